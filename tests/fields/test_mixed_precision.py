"""Under autocast the deformation still learns: positions, poses and shifts are those of float32, bit for bit."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.encodings.precision import half_while_rendering
from dialogue_nerfstudio.fields.torso_field import TorsoField, TorsoFieldConfig
from dialogue_nerfstudio.rendering.rays import axis_angle_to_matrix, head_rays

GRID = HashGridConfig(num_levels=6, log2_hashmap_size=12, base_resolution=8, max_resolution=512, kernel="torch")
BOX = torch.tensor([[[-0.35, -0.5, -0.25], [0.35, -0.08, 0.15]]])


@pytest.fixture
def field() -> TorsoField:
    field = TorsoField(TorsoFieldConfig(grid=GRID), "per-participant", BOX)
    torch.nn.init.uniform_(field.grid.grids[0].table, -0.5, 0.5)
    # A deformation that moves by a fraction of a fine cell, as it does while it learns.
    for weight in (field.deformation.output_layer.weight, field.deformation.affine):
        torch.nn.init.normal_(weight, std=1e-3)
    return field


def gradient_of_the_deformation(field: TorsoField, mixed: bool) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    torch.manual_seed(1)
    points = BOX[0, 0] + torch.rand(400, 3) * (BOX[0, 1] - BOX[0, 0])
    et = (torch.rand(2, field.config.pose_size) - 0.5).requires_grad_(True)
    field.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        density, hidden, shift = field.density(points, 0, et, [150, 250])
        colour = field.colour(hidden, 0)
    (density.float().log().square().mean() + colour.float().square().mean()).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in field.deformation.parameters()])
    return gradient, shift.detach(), et.grad.flatten()


def test_the_deformation_learns_the_same_in_half_precision(field):
    full, full_shift, full_pose = gradient_of_the_deformation(field, mixed=False)
    mixed, mixed_shift, mixed_pose = gradient_of_the_deformation(field, mixed=True)
    assert mixed_shift.dtype == torch.float32 and torch.equal(mixed_shift, full_shift)
    assert mixed.dtype == torch.float32 and mixed.isfinite().all()
    # Networks behind the grid are in bfloat16, so gradients differ by its rounding and no more.
    assert cosine_similarity(full, mixed, dim=0) > 0.95
    assert cosine_similarity(full_pose, mixed_pose, dim=0) > 0.95
    assert 0.9 < mixed.norm() / full.norm() < 1.1


def test_rounded_positions_would_not_do(field):
    """What the guard is for: with positions of bfloat16, gradients of fine levels point elsewhere."""
    full, *_ = gradient_of_the_deformation(field, mixed=False)
    normalise = field.grid.normalise
    field.grid.normalise = lambda positions, participant: normalise(positions, participant).bfloat16().float()
    rounded, *_ = gradient_of_the_deformation(field, mixed=False)
    assert cosine_similarity(full, rounded, dim=0) < 0.9


def test_rays_and_poses_are_exact_under_autocast():
    origins, directions = torch.rand(20, 3), torch.randn(20, 3)
    pose = torch.randn(20, 6) * 0.3
    expected = (*head_rays(origins, directions, pose), *head_rays(origins, directions, pose[0]))
    with torch.autocast("cpu", torch.bfloat16):
        moved = (*head_rays(origins, directions, pose), *head_rays(origins, directions, pose[0]))
        assert axis_angle_to_matrix(pose[:, :3]).dtype == torch.float32
    for reference, value in zip(expected, moved, strict=True):
        assert value.dtype == torch.float32 and torch.equal(value, reference)


@pytest.mark.parametrize(
    ("on_cuda", "wanted", "gradients", "half"),
    [(True, True, False, True), (False, True, False, False), (True, False, False, False), (True, True, True, False)],
)
def test_half_precision_is_for_rendering_on_cuda_only(on_cuda, wanted, gradients, half, monkeypatch):
    entered = []
    monkeypatch.setattr(torch, "autocast", lambda *arguments: entered.append(arguments) or nullcontext())

    class Field:
        config = SimpleNamespace(half_inference=wanted)

        @half_while_rendering
        def density(self, positions, scale):
            return scale

    class Placed(torch.Tensor):
        is_cuda = on_cuda

    with torch.set_grad_enabled(gradients):
        assert Field().density(torch.zeros(1).as_subclass(Placed), scale=3) == 3
    assert entered == ([("cuda", torch.float16)] if half else [])


def test_float16_renders_what_float32_does(field):
    """On the CPU's autocast, which rounds where CUDA's does: colours differ by less than a step of eight bits."""
    points = BOX[0, 0] + torch.rand(500, 3) * (BOX[0, 1] - BOX[0, 0])
    et = torch.rand(1, field.config.pose_size) - 0.5
    values = []
    with torch.no_grad():
        for mixed in (False, True):
            with torch.autocast("cpu", torch.float16, enabled=mixed):
                density, hidden, _ = field.density(points, 0, et, [500])
                values.append((density, field.colour(hidden, 0).float()))
    assert values[1][0].dtype == torch.float32
    assert (values[0][1] - values[1][1]).abs().max() < 1 / 255
    assert ((values[0][0] - values[1][0]).abs() / values[0][0]).max() < 0.01
