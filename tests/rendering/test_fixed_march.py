"""The march of fixed sizes against the ordinary one, its counts, and that it never asks a device for a number."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.fixed_march import Capacity, compact, fixed_march, fixed_samples
from dialogue_nerfstudio.rendering.march import Source, march, pack_samples
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid, OccupancyGridConfig

BOX = torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])


def field(points, rays):
    return (8.0 + 12.0 * torch.sin(9 * points).sum(dim=-1)).relu(), (torch.sin(3 * points) * 0.5 + 0.5,)


def colour(geometry, points, rays):
    return geometry[0]


def two_sources(num_rays: int = 300, device: str = "cpu") -> list[Source]:
    """Overlapping boxes, one shifted, with random occupancy; some rays miss either."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.tensor([0.0, 0.0, 3.0]) + 0.3 * torch.randn(num_rays, 3, generator=generator)
    targets = 0.45 * torch.randn(num_rays, 3, generator=generator)
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    sources = []
    for shift in (0.0, 0.35):
        grid = OccupancyGrid(BOX, OccupancyGridConfig(resolution=8))
        grid.occupied.copy_(torch.rand(len(grid.occupied), generator=generator) < 0.5)
        moved = origins + shift
        near, far = intersect_box(moved, directions, BOX[0], BOX[1])
        parts = [part.to(device) for part in (moved, directions, near, far)]
        sources.append(Source(*parts, 24, field, colour, grid.to(device)))
    return sources


def test_compact_keeps_order_and_says_how_many():
    kept = torch.tensor([False, True, True, False, True])
    index, count = compact(kept, 4)
    assert index.tolist() == [1, 2, 4, 5] and int(count) == 3
    index, count = compact(kept, 2)
    assert index.tolist() == [1, 2] and int(count) == 3
    assert compact(torch.zeros(3, dtype=torch.bool), 2)[0].tolist() == [3, 3]


def test_samples_are_those_of_the_ordinary_march():
    source = two_sources()[0]
    expected = pack_samples(source)
    packed, count = fixed_samples(source, 5000)
    n = len(expected.t)
    assert int(count) == n < 5000
    for name in ("rays", "t", "delta", "points"):
        torch.testing.assert_close(getattr(packed, name)[:n], getattr(expected, name))
    assert (packed.rays[n:] == 300).all() and not packed.t[n:].any() and not packed.delta[n:].any()


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (5e-3, 1e-2)])
def test_pictures_are_the_same_whatever_the_room(thresholds):
    sources = two_sources()
    background = torch.rand(300, 3, generator=torch.Generator().manual_seed(1))
    expected = march(sources, background, *thresholds).composite
    for room in (4800, 7000):
        seen = fixed_march(sources, background, [Capacity(room, room, room)] * 2, *thresholds)
        assert (seen.needed <= room).all()
        for name in ("rgb", "depth", "accumulation", "opacity"):
            torch.testing.assert_close(getattr(seen.composite, name), getattr(expected, name), atol=2e-6, rtol=1e-5)
    assert expected.accumulation.max() > 0.9 and expected.accumulation.min() == 0
    # Exactly as much room as is said to be needed is enough, and one less is noticed.
    exact = [Capacity(*counts) for counts in seen.needed.tolist()]
    again = fixed_march(sources, background, exact, *thresholds)
    torch.testing.assert_close(again.composite.rgb, expected.rgb, atol=2e-6, rtol=1e-5)
    short = [Capacity(exact[0].live - 1, *exact[0].sizes[1:]), exact[1]]
    assert int(fixed_march(sources, background, short, *thresholds).needed[0, 0]) == exact[0].live


def test_no_host_waits_on_a_gpu():
    """On imagined CUDA tensors, which have shapes but no values, whatever needs a value fails: the ordinary march."""
    capacities = [Capacity(4000, 3000, 2000)] * 2
    with FakeTensorMode(allow_non_fake_inputs=True):
        sources = [
            Source(
                *(torch.empty_like(part, device="cuda") for part in (s.origins, s.directions, s.near, s.far)),
                s.num_samples,
                field,
                colour,
                imagined_grid(),
            )
            for s in two_sources()
        ]
        background = torch.empty(300, 3, device="cuda")
        with torch.no_grad():
            seen = fixed_march(sources, background, capacities, 5e-3, 1e-2)
            assert seen.composite.rgb.shape == (300, 3) and seen.composite.rgb.is_cuda
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                march(sources, background, 5e-3, 1e-2)


def imagined_grid() -> OccupancyGrid:
    grid = OccupancyGrid(BOX, OccupancyGridConfig(resolution=8))
    for name, value in list(grid._buffers.items()):
        grid._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return grid
