"""Rotations, poses, placements and the recording camera: round trips and hand cases."""

import math

import pytest
import torch

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.rendering.pixels import pixel_centres, pixel_rays, plate_colour, project_points, sample_image
from dialogue_nerfstudio.rendering.placements import Placement, around, facing, side_by_side
from dialogue_nerfstudio.rendering.rays import axis_angle_to_matrix, head_rays, matrix_to_axis_angle, rays_into


def test_rotation_by_hand() -> None:
    quarter = axis_angle_to_matrix(torch.tensor([0.0, math.pi / 2, 0.0]))
    torch.testing.assert_close(
        quarter @ torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.5, 2.0, 3.14, math.pi - 1e-9])
def test_rotations_are_rotations_and_invert(angle: float) -> None:
    axes = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1) * angle
    matrices = axis_angle_to_matrix(axes)
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(matrix_to_axis_angle(matrices), axes, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(matrices, torch.linalg.matrix_exp(_cross(axes)), atol=1e-9, rtol=0)


def _cross(axes: torch.Tensor) -> torch.Tensor:
    basis = torch.eye(3, dtype=axes.dtype)
    return torch.stack([torch.linalg.cross(axes, unit.expand_as(axes)) for unit in basis], dim=-1)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 1.0])
def test_rotation_is_differentiable_at_and_off_zero(angle: float) -> None:
    axis = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64) * angle
    assert torch.autograd.gradcheck(axis_angle_to_matrix, axis.requires_grad_(True))


@pytest.mark.parametrize("shape", [(6,), (9, 6)])
def test_head_rays_pass_through_the_same_points_at_the_same_depth(shape: tuple) -> None:
    origins, directions, pose = torch.randn(9, 3), torch.randn(9, 3) * 3, torch.randn(*shape)
    head_origins, head_directions = head_rays(origins, directions, pose)
    torch.testing.assert_close(head_directions.norm(dim=-1), directions.norm(dim=-1))
    rotation, translation = axis_angle_to_matrix(pose[..., :3]), pose[..., 3:]
    in_head = head_origins + 1.7 * head_directions
    back = (rotation @ in_head[..., None])[..., 0] + translation
    torch.testing.assert_close(back, origins + 1.7 * directions, atol=1e-5, rtol=1e-5)


def test_placement_round_trip() -> None:
    placement = Placement.at((0.3, -0.1, 2.0), yaw=0.7)
    points = torch.randn(5, 3)
    torch.testing.assert_close(placement.to_person(placement.to_scene(points)), points, atol=1e-6, rtol=1e-5)
    origins, directions = torch.randn(5, 3), torch.randn(5, 3)
    inner = placement.rays_to_person(origins, directions)
    torch.testing.assert_close(placement.to_scene(inner[0] + 0.4 * inner[1]), origins + 0.4 * directions)
    camera = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.1], [1.5]])], dim=-1)
    in_scene = placement.camera_to_scene(camera)
    torch.testing.assert_close(in_scene[:, 3], placement.to_scene(camera[:, 3]))
    torch.testing.assert_close(-in_scene[:, 2], placement.rotation @ torch.tensor([0.0, 0.0, -1.0]))


def test_facing_people_look_at_each_other() -> None:
    first, second = facing(1.2)
    torch.testing.assert_close(first.translation, torch.tensor([-0.6, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(second.translation, torch.tensor([0.6, 0.0, 0.0]), atol=1e-6, rtol=0)
    ahead = torch.tensor([0.0, 0.0, 1.2])
    torch.testing.assert_close(first.to_scene(ahead), second.translation, atol=1e-6, rtol=0)
    torch.testing.assert_close(second.to_scene(ahead), first.translation, atol=1e-6, rtol=0)
    up = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(first.to_scene(up) - first.translation, up)


def test_arrangements() -> None:
    row = side_by_side(3, spacing=0.5)
    assert [p.translation[0].item() for p in row] == [-0.5, 0.0, 0.5]
    assert all(torch.equal(p.rotation, torch.eye(3)) for p in row)
    for placement in around(5, radius=0.9):
        middle = placement.to_scene(torch.tensor([0.0, 0.0, 0.9]))
        torch.testing.assert_close(middle, torch.zeros(3), atol=1e-6, rtol=0)
    for call in (lambda: side_by_side(0), lambda: around(1, 1.0), lambda: facing(0.0), lambda: facing(math.nan)):
        with pytest.raises(DialogueError):
            call()


CAMERA = {"focal": 40.0, "cx": 15.0, "cy": 12.5}
CAMERA_TO_PERSON = torch.tensor([[1.0, 0, 0, 0.1], [0, 1.0, 0, -0.05], [0, 0, 1.0, 1.4]])


def test_pixel_rays_project_back() -> None:
    pixels = pixel_centres(30, 25).reshape(-1, 2)
    assert pixels[0].tolist() == [0.5, 0.5] and pixels[1].tolist() == [1.5, 0.5]
    origins, directions = pixel_rays(pixels, **CAMERA, camera_to_person=CAMERA_TO_PERSON)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(len(pixels)))
    back = project_points(origins + 2.0 * directions, **CAMERA, camera_to_person=CAMERA_TO_PERSON)
    torch.testing.assert_close(back, pixels, atol=1e-4, rtol=0)
    # The principal point looks down −z; a pixel below it looks down.
    origins, directions = pixel_rays(
        torch.tensor([[15.0, 12.5], [15.0, 20.0]]), **CAMERA, camera_to_person=CAMERA_TO_PERSON
    )
    torch.testing.assert_close(directions[0], torch.tensor([0.0, 0.0, -1.0]))
    assert directions[1, 1] < 0


def test_plate_seen_by_its_own_camera_is_the_plate() -> None:
    plate = torch.rand(25, 30, 3)
    _, directions = pixel_rays(pixel_centres(30, 25).reshape(-1, 2), **CAMERA, camera_to_person=CAMERA_TO_PERSON)
    seen = plate_colour(3.0 * directions, plate, **CAMERA, camera_to_person=CAMERA_TO_PERSON)
    torch.testing.assert_close(seen.view(25, 30, 3), plate, atol=1e-4, rtol=0)


def test_plate_beyond_its_edges_and_behind_is_finite() -> None:
    plate = torch.rand(25, 30, 3)
    directions = torch.cat([torch.randn(200, 3), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])])
    seen = plate_colour(directions, plate, **CAMERA, camera_to_person=CAMERA_TO_PERSON)
    assert seen.isfinite().all() and (seen >= 0).all() and (seen <= 1).all()


def test_bilinear_between_pixels() -> None:
    image = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])
    seen = sample_image(image, torch.tensor([[1.0, 1.0], [0.5, 1.0], [-5.0, 9.0]]))
    torch.testing.assert_close(seen[:, 0], torch.tensor([1.5, 1.0, 2.0]))


def test_rays_into_identity_are_unchanged() -> None:
    origins, directions = torch.randn(4, 3), torch.randn(4, 3)
    inner = rays_into(origins, directions, torch.eye(3), torch.zeros(3))
    torch.testing.assert_close(inner[0], origins)
    torch.testing.assert_close(inner[1], directions)
