"""The tracker `face-alignment`: 68 points by the network 2DFAN4 of that package (Bulat & Tzimiropoulos 2017).

Conventions. The network looks at a square of the picture, 256 pixels wide, and answers with one heat map of 64 × 64 a
landmark. That square follows the landmarks' own bounding box as in the network's training: side 200/195 of the box's
width plus height, middle raised by 0.12 of its height. Peaks are found between heat map pixels by a parabola through
the logarithm of three values, which is exact for the Gaussians that the network was trained to draw.
"""

import importlib
import pickle
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.face_mesh import FaceDetector
from dialogue_nerfstudio.process.landmarks import LandmarkTrack
from dialogue_nerfstudio.process.stages import source_fingerprint
from dialogue_nerfstudio.process.trackers.points68 import lift_68

INSTALL_COMMAND = "pip install --no-deps face-alignment==1.5.0"

NETWORK = "2DFAN-4"

MIN_SCORE = 0.2
"""Mean peak of the heat maps below which the face is lost; a landmark that is surely seen has a peak near 1."""

MIN_EXTENT = 16.0
"""Width and height (pixels) of the landmarks' box below which they are no face."""

RELOOK_FRAMES = 25
"""The detector confirms a face that is followed every this many frames."""


class FanTracker:
    """See `FaceTracker`.

    Args:
        weights: a state dict of 2DFAN4; None takes the package's own cache, which it fills by downloading once.
    """

    name = "face-alignment"

    def __init__(self, weights: Optional[Path] = None):
        self.weights = None if weights is None else Path(weights)
        self.lacks: Dict[str, str] = {
            "gaze": "eyes look straight ahead in every frame",
            "cheeks": "cheek_raise, squint and the wings of nose_wrinkle stay near zero",
        }
        self._network: Any = None

    def require(self) -> None:
        if self._network is None:
            self._network = self._load()

    def _load(self) -> Any:
        import torch

        try:
            api = importlib.import_module("face_alignment.api")
        except ImportError as error:
            raise DialogueError(
                f"The tracker face-alignment needs its package, which cannot be imported here ({error}): install it "
                f"with `{INSTALL_COMMAND}`."
            ) from error
        path = self._weights_file(api)
        network = api.FAN(api.NetworkSize.LARGE.value)
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, ValueError, AttributeError, TypeError, EOFError, KeyError, OSError) as error:
            raise self._not_weights(path, error) from error
        except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise self._not_weights(path, error) from error
        return network.eval()

    def _weights_file(self, api: Any) -> Path:
        if self.weights is not None:
            if not self.weights.is_file():
                raise DialogueError(
                    f"There is no file {self.weights}: give --face-alignment-weights the path of a 2DFAN4 state dict "
                    f"({api.models_urls[NETWORK]})."
                )
            return self.weights
        utils = importlib.import_module("face_alignment.utils")
        url = api.models_urls[NETWORK]
        try:
            return Path(utils.load_file_from_url(url))
        # URLError, HTTPError and what a broken connection raises are all of them.
        except OSError as error:
            raise DialogueError(
                f"The weights of face-alignment could not be downloaded ({error}): fetch {url} where there is a "
                "network and give the file with --face-alignment-weights, or put it into "
                f"{utils.get_dir()}/checkpoints."
            ) from error

    @staticmethod
    def _not_weights(path: Path, error: Exception) -> DialogueError:
        return DialogueError(
            f"{path} does not hold the weights of {NETWORK} ({str(error).splitlines()[0]}): give the state dict that "
            "face-alignment 1.5 downloads, whole."
        )

    def options(self) -> Dict[str, Any]:
        return {"tracker": self.name, "weights": source_fingerprint([self.weights] if self.weights else [])}

    def provenance(self) -> Dict[str, Any]:
        return {
            "name": self.name,
            "lacks": self.lacks,
            "weights": NETWORK if self.weights is None else self.weights.name,
        }

    def track(
        self, frames: Iterable[np.ndarray], num_frames: int, progress: Callable[[float], None] = lambda fraction: None
    ) -> LandmarkTrack:
        self.require()
        points = np.full((num_frames, 68, 2), np.nan, np.float32)
        box, width, height, confirmed = None, 1, 1, 0
        with FaceDetector() as detector:
            for index, frame in enumerate(frames):
                height, width = frame.shape[:2]
                if box is None or index - confirmed >= RELOOK_FRAMES:
                    found = _largest(detector(frame))
                    confirmed = index
                    if box is None and found is not None:
                        # The detector's box is another one than the landmarks'; a first look finds theirs.
                        first, _ = self.look(frame, found)
                        box = bounding_box(first)
                    elif found is None or (box is not None and not _overlap(found, box)):
                        box = None
                if box is not None:
                    seen, scores = self.look(frame, box)
                    box = None
                    extent = bounding_box(seen)
                    sides = extent[2:] - extent[:2]
                    if scores.mean() >= MIN_SCORE and sides.min() >= MIN_EXTENT and sides.max() <= max(width, height):
                        points[index], box = seen, extent
                progress((index + 1) / num_frames)
        return lift_68(points, width, height)

    def look(
        self, image: UInt8[np.ndarray, "height width 3"], box: Float[np.ndarray, " 4"]
    ) -> Tuple[Float32[np.ndarray, "68 2"], Float32[np.ndarray, " 68"]]:
        """Landmarks (pixels) of the face in a bounding box, and their peaks."""
        import torch

        utils = importlib.import_module("face_alignment.utils")
        resolution = utils.CROP_RESOLUTION
        side = utils.SCALE_FACTOR / utils.REFERENCE_SCALE * (box[2] - box[0] + box[3] - box[1])
        middle = (box[:2] + box[2:]) / 2 - np.array([0.0, utils.CENTER_Y_OFFSET * (box[3] - box[1])])
        corner, scale = middle - side / 2, side / resolution
        # From pixels of the square to the picture's, both with centres at whole numbers as OpenCV has them.
        offset = corner + 0.5 * scale - 0.5
        matrix = np.array([[scale, 0.0, offset[0]], [0.0, scale, offset[1]]])
        square = cv2.warpAffine(image, matrix, (resolution, resolution), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        with torch.inference_mode():
            heat = self._network(torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255.0)[-1][0].numpy()
        peaks, scores = sub_pixel_peaks(heat)
        return (corner + peaks * (side / heat.shape[-1])).astype(np.float32), scores


def sub_pixel_peaks(
    heat: Float32[np.ndarray, "num_maps size size"],
) -> Tuple[Float[np.ndarray, "num_maps 2"], Float32[np.ndarray, " num_maps"]]:
    """Where each map is largest, (x, y) with the first pixel's centre at 0.5, and how large."""
    count, size = heat.shape[0], heat.shape[-1]
    index = heat.reshape(count, -1).argmax(axis=1)
    y, x = np.divmod(index, size)
    maps = np.arange(count)
    peaks = np.stack([x, y], axis=1) + 0.5
    logs = np.log(np.maximum(heat, 1e-6))
    for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
        inside = (x - dx >= 0) & (x + dx < size) & (y - dy >= 0) & (y + dy < size)
        low = logs[maps, np.clip(y - dy, 0, size - 1), np.clip(x - dx, 0, size - 1)]
        high = logs[maps, np.clip(y + dy, 0, size - 1), np.clip(x + dx, 0, size - 1)]
        bend = low + high - 2 * logs[maps, y, x]
        shift = np.where(inside & (bend < -1e-9), (low - high) / (2 * np.minimum(bend, -1e-9)), 0.0)
        peaks[:, axis] += np.clip(shift, -0.5, 0.5)
    return peaks, heat.reshape(count, -1).max(axis=1)


def bounding_box(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " 4"]:
    """(x0, y0, x1, y1) of points."""
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(float)


def _largest(faces: Float[np.ndarray, "n 5"]) -> Optional[Float[np.ndarray, " 4"]]:
    if not len(faces):
        return None
    return faces[np.argmax((faces[:, 2] - faces[:, 0]) * (faces[:, 3] - faces[:, 1])), :4]


def _overlap(a: Float[np.ndarray, " 4"], b: Float[np.ndarray, " 4"]) -> bool:
    return bool((np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all())
