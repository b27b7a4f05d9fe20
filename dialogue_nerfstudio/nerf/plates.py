"""Background plates: the picture behind each person, looked up by a ray through the camera that recorded it.

Conventions: a plate stands upright in person space, perpendicular to the recording camera's axis, `PLATE_DEPTH` metres
behind the origin. From the recording camera any depth gives the same picture; from elsewhere this one gives parallax.
"""

from typing import Dict, List, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.encodings.precision import full_precision
from dialogue_nerfstudio.nerf.frame_store import resize_frame

PLATE_DEPTH = 1.0


class Plates(nn.Module):
    """The plates of all participants.

    Args:
        cameras: the recording cameras, at the size of the plates.
        plates: uint8 [height, width, 3], one a participant.
    """

    def __init__(self, cameras: List[Camera], plates: List[np.ndarray]):
        super().__init__()
        self._cameras, self._plates = cameras, plates
        self._resized: Dict[Tuple[int, int], Float[Tensor, "1 3 h w"]] = {}
        self.register_buffer("_indicator", torch.empty(0), persistent=False)

    def height_for(self, participant: int, focal_y: float) -> int:
        """Height of the plate whose pixels are as large as those of a camera of that focal length."""
        camera = self._cameras[participant]
        return int(np.clip(round(camera.height * focal_y / camera.focal), 8, camera.height))

    def _image(self, participant: int, height: int) -> Float[Tensor, "1 3 h w"]:
        key = (participant, height)
        if key not in self._resized:
            plate = self._plates[participant]
            resized = resize_frame(plate, height, max(1, round(plate.shape[1] * height / plate.shape[0])))
            self._resized[key] = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255.0
        image = self._resized[key]
        if image.device != self._indicator.device:
            image = self._resized[key] = image.to(self._indicator.device)
        return image

    def forward(
        self,
        origins: Float[Tensor, "rays 3"],
        directions: Float[Tensor, "rays 3"],
        participant: int,
        height: int,
    ) -> Tuple[Float[Tensor, "rays 3"], Float[Tensor, " rays"]]:
        """(colour, distance) of the plate along rays; beyond its edges the edge goes on.

        Args:
            origins, directions: in person space; directions of unit length.
            participant: whose plate.
            height: pixels of the plate, see `height_for`.
        """
        camera = self._cameras[participant]
        transform = torch.as_tensor(camera.camera_to_person, dtype=origins.dtype, device=origins.device)
        rotation, centre = transform[:, :3], transform[:, 3]
        # Camera axes: the plate is the plane z = −depth.
        depth = float(np.linalg.norm(camera.camera_to_person[:, 3])) + PLATE_DEPTH
        with full_precision(origins):
            local_origins, local_directions = (origins - centre) @ rotation, directions @ rotation
        ahead = local_directions[:, 2] < -1e-3
        distance = (-depth - local_origins[:, 2]) / torch.where(
            ahead, local_directions[:, 2], torch.full_like(local_directions[:, 2], -1e-3)
        )
        distance = distance.clamp(0.0, 100.0)
        points = local_origins + local_directions * distance.unsqueeze(-1)
        x = (camera.focal * points[:, 0] / depth + camera.cx) / camera.width
        y = (-camera.focal * points[:, 1] / depth + camera.cy) / camera.height
        coordinates = 2.0 * torch.stack([x, y], dim=-1) - 1.0
        # Rays that look away from the plate see its border, so that every ray has a colour.
        coordinates = torch.where(ahead.unsqueeze(-1), coordinates, coordinates.sign()).clamp(-2.0, 2.0)
        sampled = F.grid_sample(
            self._image(participant, height), coordinates[None, None], padding_mode="border", align_corners=False
        )
        return sampled[0, :, 0].t(), distance
