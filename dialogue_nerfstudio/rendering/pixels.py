"""Pixels and rays of the recording camera, and the background plate behind a person.

Convention (nerfstudio's, OpenGL): the camera looks down its −z, y up; column x and row y of an image have their centre
at (x + 0.5, y + 0.5) in pixel coordinates, y down; `focal`, `cx`, `cy` are in pixels. `camera_to_person` is [3, 4],
rigid. Directions of pixels have unit length.
"""

import torch
from jaxtyping import Float
from torch import Tensor

MOST_OBLIQUE = 1e-3
"""Directions less than this far in front of the image plane have no pixel; they take the nearest that has one."""


def pixel_centres(width: int, height: int, device: torch.device | str = "cpu") -> Float[Tensor, "height width 2"]:
    """(x, y) of the centre of every pixel."""
    x = torch.arange(width, device=device) + 0.5
    y = torch.arange(height, device=device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def pixel_rays(
    pixels: Float[Tensor, "num_rays 2"], focal: float, cx: float, cy: float, camera_to_person: Float[Tensor, "3 4"]
) -> tuple[Float[Tensor, "num_rays 3"], Float[Tensor, "num_rays 3"]]:
    """Origins and unit directions, in person space, of the rays through pixel coordinates."""
    x, y = (pixels[:, 0] - cx) / focal, (pixels[:, 1] - cy) / focal
    in_camera = torch.stack([x, -y, -torch.ones_like(x)], dim=-1)
    directions = torch.nn.functional.normalize(in_camera, dim=-1) @ camera_to_person[:, :3].T
    return camera_to_person[:, 3].expand_as(directions), directions


def project_points(
    points: Float[Tensor, "n 3"], focal: float, cx: float, cy: float, camera_to_person: Float[Tensor, "3 4"]
) -> Float[Tensor, "n 2"]:
    """Pixel coordinates of points of person space; points behind the camera take the most oblique direction's."""
    return project_directions(points - camera_to_person[:, 3], focal, cx, cy, camera_to_person)


def project_directions(
    directions: Float[Tensor, "n 3"], focal: float, cx: float, cy: float, camera_to_person: Float[Tensor, "3 4"]
) -> Float[Tensor, "n 2"]:
    """Pixel coordinates that the recording camera gives to directions of person space, of any length."""
    in_camera = directions @ camera_to_person[:, :3]
    forward = -in_camera[:, 2]
    distance = torch.maximum(forward, MOST_OBLIQUE * in_camera.norm(dim=-1)).clamp(min=1e-12)
    return torch.stack([cx + focal * in_camera[:, 0] / distance, cy - focal * in_camera[:, 1] / distance], dim=-1)


def sample_image(image: Float[Tensor, "height width c"], pixels: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
    """Bilinear colours at pixel coordinates; outside, the nearest edge's."""
    height, width, _ = image.shape
    x = (pixels[:, 0] - 0.5).clamp(0, width - 1)
    y = (pixels[:, 1] - 0.5).clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    left, top = left.long(), top.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    flat = image.reshape(-1, image.shape[-1])
    upper = torch.lerp(flat.index_select(0, top * width + left), flat.index_select(0, top * width + right), fx)
    lower = torch.lerp(flat.index_select(0, bottom * width + left), flat.index_select(0, bottom * width + right), fx)
    return torch.lerp(upper, lower, fy)


def plate_colour(
    directions: Float[Tensor, "num_rays 3"],
    plate: Float[Tensor, "height width 3"],
    focal: float,
    cx: float,
    cy: float,
    camera_to_person: Float[Tensor, "3 4"],
) -> Float[Tensor, "num_rays 3"]:
    """The background plate as infinitely far scenery: the colour the recording camera saw in each direction.

    `plate` has the resolution that `focal`, `cx` and `cy` are given for. From the recording camera itself this is the
    plate, pixel for pixel; beyond its edges the nearest pixel goes on.
    """
    return sample_image(plate, project_directions(directions, focal, cx, cy, camera_to_person))
