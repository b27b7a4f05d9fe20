"""Occupancy and marching in a scene whose truth is known: an opaque ball, and what stands behind it."""

import copy
import functools

import pytest
import torch

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.compositing import Samples, composite, light_reach
from dialogue_nerfstudio.rendering.march import Source, march, pack_samples
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid, OccupancyGridConfig
from dialogue_nerfstudio.rendering.sampling import points_along, stratified

BOX = torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])
RADIUS = 0.3


def ball_density(points: torch.Tensor) -> torch.Tensor:
    return torch.where(points.norm(dim=-1) < RADIUS, 200.0, 0.0)


def ball(points: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    return ball_density(points), (points + 0.5,)


def smooth(points: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    return 7.0 + 2.0 * torch.sin(9 * points).sum(dim=-1), (torch.sin(3 * points) * 0.5 + 0.5,)


def from_geometry(geometry: tuple, points: torch.Tensor, rays: torch.Tensor) -> torch.Tensor:
    return geometry[0]


def front_rays(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slightly perspective rays along −z that cover the box from the front."""
    x, y = torch.meshgrid(torch.linspace(-0.6, 0.6, size), torch.linspace(-0.6, 0.6, size), indexing="xy")
    targets = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3)
    origins = torch.tensor([0.0, 0.0, 4.0]).expand_as(targets)
    return origins.contiguous(), torch.nn.functional.normalize(targets - origins, dim=-1)


def source(
    rays: tuple[torch.Tensor, torch.Tensor], density, shift: float = 0.0, samples: int = 64, occupancy=None
) -> Source:
    origins = rays[0] + torch.tensor([shift, 0.0, shift])
    near, far = intersect_box(origins, rays[1], BOX[0], BOX[1])
    return Source(origins, rays[1], near, far, samples, density, from_geometry, occupancy)


def dense(sources: list[Source], background: torch.Tensor):
    listed = []
    for s in sources:
        t, delta = stratified(s.near, s.far, s.num_samples)
        sigma, geometry = s.density(points_along(s.origins, s.directions, t).reshape(-1, 3), torch.zeros(0))
        listed.append(Samples(t, delta, sigma.view(t.shape), geometry[0].view(*t.shape, 3)))
    return composite(listed, background)


def look_from_the_front(grid: OccupancyGrid, rays: tuple[torch.Tensor, torch.Tensor], density) -> None:
    seen_by = source(rays, density, samples=64, occupancy=grid)
    march([seen_by], torch.zeros(3), perturb=True).mark_visible([seen_by])


def trained_grid(**options) -> OccupancyGrid:
    """A grid that met the ball again and again, and was looked at from the front."""
    return copy.deepcopy(_trained_grid(**options))


@functools.cache
def _trained_grid(updates: int = 16, visibility: bool = True, resolution: int = 32) -> OccupancyGrid:
    grid = OccupancyGrid(BOX, OccupancyGridConfig(resolution=resolution, updates_to_forget=12 if visibility else 0))
    rays = front_rays(48)
    for _ in range(updates):
        look_from_the_front(grid, rays, ball)
        grid.update(ball_density)
    return grid


def test_packed_march_equals_dense_rendering() -> None:
    rays = front_rays(20)
    sources = [
        source(rays, smooth, samples=20),
        source(rays, ball, shift=0.2, samples=13),
        source(rays, smooth, -0.3, 9),
    ]
    background = torch.rand(400, 3)
    packed, reference = march(sources, background, weight_threshold=0.0).composite, dense(sources, background)
    for name in ("rgb", "depth", "accumulation", "opacity"):
        torch.testing.assert_close(getattr(packed, name), getattr(reference, name), atol=3e-6, rtol=1e-4)


def test_march_carries_gradients() -> None:
    rays = front_rays(12)
    strength = torch.tensor(2.0, requires_grad=True)

    def fog(points: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return strength.expand(len(points)), (points + 0.5,)

    sources = [source(rays, fog, samples=16), source(rays, smooth, 0.1, 8)]
    gradients = []
    for rendered in (march(sources, torch.zeros(3), weight_threshold=0.0).composite, dense(sources, torch.zeros(3))):
        gradients.append(torch.autograd.grad(rendered.rgb.square().sum() + rendered.opacity.sum(), strength)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=0)


def test_unseen_samples_get_no_colour_and_no_light_is_lost() -> None:
    rays = front_rays(24)
    coloured = []

    def white(geometry: tuple, points: torch.Tensor, rays: torch.Tensor) -> torch.Tensor:
        coloured.append(len(points))
        return torch.ones_like(points)

    opaque = source(rays, ball, samples=96)
    opaque.colour = white
    rendered = march([opaque], torch.zeros(3)).composite
    torch.testing.assert_close(rendered.rgb, rendered.accumulation[:, None].expand(-1, 3), atol=1e-6, rtol=0)
    evaluated = len(pack_samples(opaque).t)
    assert 0 < coloured[0] < 0.15 * evaluated


def test_early_termination_changes_nothing_visible() -> None:
    rays = front_rays(24)
    counted = []

    def behind(points: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        counted.append(len(points))
        return smooth(points, rays)

    # The second box lies half behind the first one's ball.
    sources = [source(rays, ball, samples=64), source(rays, behind, shift=0.5, samples=32)]
    all_of_it = march(sources, torch.ones(3)).composite
    terminated = march(sources, torch.ones(3), transmittance_threshold=1e-4).composite
    assert counted[1] < 0.9 * counted[0]
    torch.testing.assert_close(terminated.rgb, all_of_it.rgb, atol=1e-3, rtol=0)


def test_rays_that_miss_everything() -> None:
    origins, directions = front_rays(4)
    missing = source((origins, -directions), ball)
    rendered = march([missing, missing], torch.full((16, 3), 0.25)).composite
    assert (rendered.rgb == 0.25).all() and (rendered.depth == 0).all()
    terminated = march([missing, missing], torch.full((16, 3), 0.25), transmittance_threshold=1e-3).composite
    assert torch.equal(terminated.rgb, rendered.rgb)


def test_light_reach_is_the_same_packed_and_dense() -> None:
    rays = front_rays(16)
    sources = [source(rays, ball, samples=48), source(rays, smooth, shift=0.4, samples=12)]
    reach = march(sources, torch.zeros(3)).light_reach()
    t = [stratified(s.near, s.far, s.num_samples)[0] for s in sources]
    torch.testing.assert_close(reach, light_reach(t, dense(sources, torch.zeros(3))))
    assert reach.isinf().any() and (reach < 4.0).any()


def test_query_finds_the_cell() -> None:
    grid = OccupancyGrid(BOX, OccupancyGridConfig(resolution=4, dilation=0))
    grid.occupied.zero_()
    grid.occupied[1 + 4 * 2 + 16 * 3] = True
    points = torch.tensor([[-0.2, 0.1, 0.4], [-0.2, 0.1, 0.6], [0.1, 0.1, 0.4], [-0.2, 0.1, 0.2]])
    assert grid.query(points).tolist() == [True, False, False, False]
    origins, directions = torch.tensor([[-0.2, 0.1, 1.0]]), torch.tensor([[0.0, 0.0, -2.0]])
    assert grid.query_along(origins, directions, torch.tensor([[0.26, 0.3, 0.4, 0.7]])).tolist() == [
        [True, True, False, False]
    ]


def test_occupancy_never_culls_density() -> None:
    grid = trained_grid(visibility=False)
    points = torch.rand(200_000, 3) - 0.5
    dense_points = points[ball_density(points) > 1.0]
    assert grid.query(dense_points).all()
    assert not grid.query(torch.tensor([[0.45, 0.45, 0.45], [2.0, 0.0, 0.0]])).any()


def test_update_meets_only_lit_cells_within_the_hull() -> None:
    grid = trained_grid()
    left = grid._cell_corner(torch.arange(32**3))[:, 0] < 16
    met = []

    def density(points: torch.Tensor) -> torch.Tensor:
        met.append(points)
        return ball_density(points)

    grid.update(density, within=left)
    assert (met[0][:, 0] <= 0).all() and (met[0].norm(dim=-1) > 0.15).all()
    assert not grid.occupied[~left].any() and grid.occupied[left].any()
    grid.update(density, fraction=0.25, within=left)
    assert 0.2 < len(met[1]) / len(met[0]) < 0.3


def test_occupancy_culls_empty_space_and_what_is_behind_the_surface() -> None:
    solid, seen = trained_grid(visibility=False), trained_grid()
    assert solid.occupied_fraction < 0.21
    # Of the box all but the shell that the front camera sees is culled, dilation and one sample's depth included.
    assert seen.occupied_fraction < 0.65 * solid.occupied_fraction
    behind = torch.tensor([[0.0, 0.0, -0.2], [0.0, 0.0, 0.0], [0.1, 0.1, -0.1]])
    assert solid.query(behind).all() and not seen.query(behind).any()
    rays = front_rays(64)
    occupied, everything = source(rays, ball, samples=64, occupancy=seen), source(rays, ball, samples=64)
    share = len(pack_samples(occupied).t) / len(pack_samples(everything).t)
    assert share < 0.15
    culled, full = (march([s], torch.ones(3)).composite.rgb for s in (occupied, everything))
    torch.testing.assert_close(culled, full, atol=2e-3, rtol=0)


def test_what_was_culled_is_found_again_when_the_surface_recedes() -> None:
    """A mouth that opens: the surface jumps back by many cells, into what was dark and culled."""
    grid, rays = trained_grid(), front_rays(64)

    def smaller(points: torch.Tensor) -> torch.Tensor:
        return torch.where(points.norm(dim=-1) < 0.15, 200.0, 0.0)

    def small_ball(points: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return smaller(points), (points + 0.5,)

    front = torch.tensor([[0.0, 0.0, 0.14]])
    assert not grid.query(front).any()
    for _ in range(8):
        grid.update(smaller, fraction=0.5)
        look_from_the_front(grid, rays, small_ball)
    assert grid.query(front).all()


def test_state_travels_in_checkpoints_and_is_validated() -> None:
    grid = trained_grid(updates=3, resolution=8)
    fresh = OccupancyGrid(BOX, OccupancyGridConfig(resolution=8))
    fresh.load_state_dict(grid.state_dict(), strict=True)
    assert torch.equal(fresh.occupied, grid.occupied)
    with pytest.raises(DialogueError):
        OccupancyGrid(BOX, OccupancyGridConfig(resolution=1))


def test_a_field_that_starts_thin_is_not_culled_before_it_can_grow() -> None:
    """Without a warm-up, a field that is thin at the first update has no cell left to learn in."""

    def nothing(points: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(points))

    impatient = OccupancyGrid(BOX, OccupancyGridConfig(resolution=6))
    impatient.update(nothing)
    assert not impatient.occupied.any()
    patient = OccupancyGrid(BOX, OccupancyGridConfig(resolution=6, warm_up=3, updates_to_forget=12))
    for _ in range(2):
        patient.update(nothing)
        assert patient.occupied.all()
    patient.update(nothing)
    assert not patient.occupied.any()
