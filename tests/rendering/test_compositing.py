"""Joint compositing against brute force, closed forms and conservation of light."""

import math

import pytest
import torch

from dialogue_nerfstudio.rendering.compositing import (
    MAX_OPTICAL_DEPTH,
    Samples,
    composite,
    first_of_ray,
    merge_by_depth,
    merged_positions,
    packed_weights,
    sum_over_rays,
)
from dialogue_nerfstudio.rendering.sampling import stratified


def random_source(num_rays: int, num_samples: int, opaque: float = 8.0, dtype: torch.dtype = torch.float64) -> Samples:
    t = torch.rand(num_rays, num_samples, dtype=dtype).sort(dim=-1).values
    return Samples(
        t=t,
        delta=torch.rand(num_rays, num_samples, dtype=dtype) * 0.1,
        density=torch.rand(num_rays, num_samples, dtype=dtype) * opaque,
        rgb=torch.rand(num_rays, num_samples, 3, dtype=dtype),
    )


def brute_force(sources: list[Samples], background: torch.Tensor) -> dict[str, torch.Tensor]:
    """DialogueNeRF eq. 4–5 with Python loops over one sorted list of samples a ray."""
    num_rays = sources[0].t.shape[0]
    rgb, depth = torch.zeros(num_rays, 3).double(), torch.zeros(num_rays).double()
    opacity = torch.zeros(num_rays, len(sources)).double()
    for ray in range(num_rays):
        listed = [(s.t[ray, i].item(), k, i) for k, s in enumerate(sources) for i in range(s.t.shape[1])]
        through = 1.0
        for t, k, i in sorted(listed):
            alpha = 1.0 - math.exp(-(sources[k].density[ray, i] * sources[k].delta[ray, i]).item())
            rgb[ray] += through * alpha * sources[k].rgb[ray, i].double()
            depth[ray] += through * alpha * t
            opacity[ray, k] += through * alpha
            through *= 1.0 - alpha
        rgb[ray] += through * background[ray].double()
    return {"rgb": rgb, "depth": depth / opacity.sum(dim=-1), "opacity": opacity}


@pytest.mark.parametrize("sizes", [[5], [7, 4], [3, 6, 2, 5]])
def test_joint_rendering_equals_brute_force(sizes: list[int]) -> None:
    sources = [random_source(6, size) for size in sizes]
    background = torch.rand(6, 3, dtype=torch.float64)
    rendered, expected = composite(sources, background), brute_force(sources, background)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(rendered, name), value)


def test_equal_depths_keep_the_order_of_sources() -> None:
    first, second = random_source(4, 5), random_source(4, 5)
    second.t = first.t.clone()
    background = torch.zeros(4, 3, dtype=torch.float64)
    expected = brute_force([first, second], background)
    torch.testing.assert_close(composite([first, second], background).rgb, expected["rgb"])


def test_merged_list_renders_the_same() -> None:
    sources = [random_source(8, 6), random_source(8, 3), random_source(8, 4)]
    background = torch.rand(8, 3, dtype=torch.float64)
    merged, tags = merge_by_depth(sources)
    assert (merged.t.diff(dim=-1) >= 0).all()
    assert (torch.bincount(tags.flatten()) == torch.tensor([48, 24, 32])).all()
    alone, joint = composite([merged], background), composite(sources, background)
    torch.testing.assert_close(alone.rgb, joint.rgb)
    for index in range(3):
        torch.testing.assert_close((alone.weights[0] * (tags == index)).sum(dim=-1), joint.opacity[:, index])


@pytest.mark.parametrize("opaque", [0.0, 1.0, 1e4])
def test_light_is_conserved(opaque: float) -> None:
    sources = [random_source(50, 12, opaque, torch.float32), random_source(50, 7, opaque, torch.float32)]
    rendered = composite(sources, torch.ones(3))
    weights = torch.cat(rendered.weights, dim=-1)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), rendered.accumulation, atol=2e-6, rtol=0)
    torch.testing.assert_close(rendered.opacity.sum(dim=-1), rendered.accumulation, atol=2e-6, rtol=0)
    white = [Samples(s.t, s.delta, s.density, torch.ones_like(s.rgb)) for s in sources]
    torch.testing.assert_close(composite(white, torch.ones(3)).rgb, torch.ones(50, 3), atol=2e-6, rtol=0)


def test_constant_density_has_its_closed_form() -> None:
    near, far, density = torch.tensor([1.0]), torch.tensor([1.5]), 3.0
    t, delta = stratified(near, far, 400)
    source = Samples(t, delta, torch.full_like(t, density), torch.full((1, 400, 3), 0.25))
    rendered = composite([source], torch.zeros(3))
    opacity = 1.0 - math.exp(-density * 0.5)
    assert rendered.accumulation.item() == pytest.approx(opacity, abs=1e-5)
    assert rendered.rgb[0, 0].item() == pytest.approx(0.25 * opacity, abs=1e-5)
    mean = 1.0 + (1 / density - (0.5 + 1 / density) * math.exp(-density * 0.5)) / opacity
    assert rendered.depth.item() == pytest.approx(mean, abs=1e-3)


def test_two_media_in_one_place_absorb_like_their_sum() -> None:
    t, delta = stratified(torch.tensor([0.0]), torch.tensor([1.0]), 64)
    grey = torch.full((1, 64, 3), 0.5)
    parts = [Samples(t, delta, torch.full_like(t, density), grey) for density in (1.0, 2.5)]
    together = composite(parts, torch.zeros(3))
    assert together.accumulation.item() == pytest.approx(1 - math.exp(-3.5), abs=1e-5)
    assert (together.opacity[0, 1] / together.opacity[0, 0]).item() == pytest.approx(2.5, rel=0.05)


def test_empty_rays_show_the_background_at_depth_zero() -> None:
    source = random_source(3, 4, opaque=0.0)
    background = torch.rand(3, 3, dtype=torch.float64)
    rendered = composite([source], background)
    torch.testing.assert_close(rendered.rgb, background)
    assert (rendered.depth == 0).all() and (rendered.accumulation == 0).all()


def test_gradients_are_those_of_the_formula() -> None:
    sources = [random_source(2, 3), random_source(2, 2)]
    background = torch.rand(2, 3, dtype=torch.float64)

    def render(first: torch.Tensor, second: torch.Tensor, rgb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = Samples(sources[0].t, sources[0].delta, first, rgb)
        b = Samples(sources[1].t, sources[1].delta, second, sources[1].rgb)
        rendered = composite([a, b], background)
        return rendered.rgb, rendered.depth, rendered.opacity

    variables = [v.requires_grad_(True) for v in (sources[0].density, sources[1].density, sources[0].rgb)]
    assert torch.autograd.gradcheck(render, variables)


def test_gradient_is_finite_behind_an_opaque_wall_and_in_the_void() -> None:
    for opaque in (0.0, 1e8):
        source = random_source(4, 6, opaque, torch.float32)
        source.density.requires_grad_(True)
        rendered = composite([source], torch.zeros(3))
        (rendered.rgb.sum() + rendered.depth.sum()).backward()
        assert source.density.grad.isfinite().all()


def pack(source: Samples, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rays = torch.arange(source.t.shape[0])[:, None].expand_as(source.t)
    return rays[keep], source.t[keep], (source.density * source.delta)[keep]


@pytest.mark.parametrize("sizes", [[6], [6, 4], [5, 3, 4]])
def test_packed_weights_equal_dense_ones(sizes: list[int]) -> None:
    num_rays = 40
    sources = [random_source(num_rays, size, 30.0, torch.float32) for size in sizes]
    masks = [torch.rand(num_rays, size) < 0.4 for size in sizes]
    for source, mask in zip(sources, masks, strict=True):
        source.density = source.density * mask
    dense = composite(sources, torch.zeros(3))
    packed = [pack(source, mask) for source, mask in zip(sources, masks, strict=True)]
    weights, remaining = packed_weights(*map(list, zip(*packed, strict=True)), num_rays)
    torch.testing.assert_close(1.0 - remaining, dense.accumulation, atol=1e-6, rtol=0)
    for value, reference, mask, (rays, _, _) in zip(weights, dense.weights, masks, packed, strict=True):
        torch.testing.assert_close(value, reference[mask], atol=1e-6, rtol=0)
        total = sum_over_rays(value, rays, num_rays)
        torch.testing.assert_close(total, reference.sum(dim=-1), atol=1e-6, rtol=0)


def test_merged_positions_are_a_stable_sort() -> None:
    rays = [torch.tensor([0, 0, 3, 3]), torch.tensor([0, 1, 3])]
    t = [torch.tensor([1.0, 2.0, 1.0, 5.0]), torch.tensor([2.0, 0.5, 1.0])]
    places = merged_positions(rays, t)
    assert places[0].tolist() == [0, 1, 4, 6]
    assert places[1].tolist() == [2, 3, 5]


def test_packed_weights_without_samples() -> None:
    nothing = torch.empty(0)
    weights, remaining = packed_weights([nothing.long()] * 2, [nothing] * 2, [nothing] * 2, num_rays=3)
    assert [w.numel() for w in weights] == [0, 0]
    assert (remaining == 1).all()


def test_packed_weights_stay_exact_over_many_opaque_rays() -> None:
    """The running sum over all rays grows far beyond one ray's optical depth; float64 keeps the difference exact."""
    num_rays, num_samples = 20000, 8
    rays = torch.arange(num_rays).repeat_interleave(num_samples)
    t = torch.arange(num_samples).float().repeat(num_rays)
    tau = torch.full_like(t, 1e9)
    tau[-num_samples:] = 0.125
    weights, remaining = packed_weights([rays], [t], [tau], num_rays)
    assert remaining[-1].item() == pytest.approx(math.exp(-1.0), rel=1e-6)
    assert remaining[0].item() == pytest.approx(math.exp(-MAX_OPTICAL_DEPTH), rel=1e-5)
    assert weights[0][-1].item() == pytest.approx(math.exp(-0.875) - math.exp(-1.0), rel=1e-5)


@pytest.mark.parametrize("rays", [[], [0, 0, 2, 2, 2, 5], [4], [0, 1, 2, 3, 4, 5]])
def test_first_of_ray_without_counting(rays):
    """What CUDA runs, where counting would wait for the device: the same places."""
    rays = torch.tensor(rays, dtype=torch.long)
    assert torch.equal(first_of_ray(rays, 6), torch.searchsorted(rays, torch.arange(7)))
