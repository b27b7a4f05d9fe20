"""The one place that knows MediaPipe: face detection, face mesh, landmarker task and selfie segmentation, loaded when
first used.

Conventions. Pictures are uint8 RGB `[H, W, 3]`. Pixel coordinates are continuous, x to the right and y down, with the
centre of the top left pixel at (0.5, 0.5). The mesh has 478 landmarks: 468 of the canonical face mesh and five for each
iris.
"""

import importlib
import os
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError

NUM_LANDMARKS = 478

INSTALL_COMMAND = "pip install --no-deps mediapipe==0.10.9"


def require_mediapipe() -> Any:
    """The module `mediapipe.solutions`.

    Raises:
        DialogueError: MediaPipe is not installed, or this Python has no wheel of the version that carries its models.
    """
    if sys.version_info >= (3, 12):
        raise DialogueError(
            "Processing a video needs mediapipe 0.10.9, which exists for Python 3.10 and 3.11 only, and this is Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}: process it with Python 3.11 ({INSTALL_COMMAND}); "
            "everything else works here on the folder it writes."
        )
    # MediaPipe's graphs log through glog and TensorFlow Lite; both read these before they first speak.
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with quiet_stderr():
            return importlib.import_module("mediapipe.python.solutions")
    except ImportError as error:
        raise DialogueError(
            f"Processing a video needs mediapipe, which cannot be imported here ({error}): "
            f"install it with `{INSTALL_COMMAND}`."
        ) from error


_STDERR_LOCK = threading.RLock()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what C++ code prints to the process's standard error, and prints it after all if the block fails.

    TensorFlow Lite announces its CPU delegate for every graph with no switch to turn that off. One thread at a time:
    the descriptor is the process's.
    """
    with _STDERR_LOCK:
        yield from _held_stderr()


def _held_stderr() -> Iterator[None]:
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class _Solution:
    """A MediaPipe graph as a context manager, silent while it starts."""

    def __init__(self, module: str, name: str, **options: Any):
        solutions = require_mediapipe()
        with quiet_stderr():
            self._graph = getattr(importlib.import_module(f"{solutions.__name__}.{module}"), name)(**options)
            # A graph loads its models with its first picture, in threads of its own: an empty one makes it speak now.
            self._graph.process(np.zeros((64, 64, 3), np.uint8))

    def _process(self, image: UInt8[np.ndarray, "height width 3"]) -> Any:
        return self._graph.process(np.ascontiguousarray(image))

    def close(self) -> None:
        self._graph.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FaceDetector(_Solution):
    """Face boxes in one square picture (BlazeFace, the full-range model)."""

    def __init__(self, min_confidence: float = 0.5):
        super().__init__("face_detection", "FaceDetection", model_selection=1, min_detection_confidence=min_confidence)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "num_faces 5"]:
        """Boxes (x0, y0, x1, y1) in pixels and the score of each."""
        height, width = image.shape[:2]
        rows = []
        for detection in self._process(image).detections or ():
            box = detection.location_data.relative_bounding_box
            rows.append(
                (
                    box.xmin * width,
                    box.ymin * height,
                    (box.xmin + box.width) * width,
                    (box.ymin + box.height) * height,
                    detection.score[0],
                )
            )
        return np.array(rows, dtype=float).reshape(-1, 5)


class FaceMesher(_Solution):
    """The mesh of the one face in a crop, tracked from call to call."""

    def __init__(self, min_confidence: float = 0.5):
        super().__init__(
            "face_mesh",
            "FaceMesh",
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=min_confidence,
            min_tracking_confidence=min_confidence,
        )

        # Protobuf's Python parser takes longer for the landmarks than the network: they are read here as they come.
        self._get_serialized = importlib.import_module(
            "mediapipe.python.packet_getter"
        )._packet_getter._get_serialized_proto_list
        self._graph._output_stream_type_info.clear()

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"]
    ) -> Optional[Tuple[Float32[np.ndarray, "478 2"], Float32[np.ndarray, " 478"]]]:
        """Landmarks in pixels and their own depth (pixels, larger is nearer to the camera); None without a face."""
        self._process(image)
        packet = self._graph._graph_outputs.get("multi_face_landmarks")
        faces = [] if packet is None or packet.is_empty() else self._get_serialized(packet)
        return _in_pixels(read_landmarks(faces[0]), image) if faces else None


def read_landmarks(serialized: bytes) -> Float32[np.ndarray, "num_landmarks 3"]:
    """x, y and z of a NormalizedLandmarkList, from its wire format: landmarks of one length each, of which the first
    three fields are floats of the numbers 1, 2 and 3.

    Raises:
        RuntimeError: it is something else, of another version of MediaPipe.
    """
    length = serialized[1] + 2 if len(serialized) > 1 else 0
    if length < 17 or len(serialized) % length:
        raise RuntimeError(f"{len(serialized)} bytes are no list of landmarks")
    rows = np.frombuffer(serialized, np.uint8).reshape(-1, length)
    # A landmark is field 1 (0x0a) and its length; its own fields 1 to 3 are four bytes each (0x0d, 0x15, 0x1d).
    if (rows[:, [0, 1, 2, 7, 12]] != (0x0A, length - 2, 0x0D, 0x15, 0x1D)).any():
        raise RuntimeError("a landmark's first fields are not x, y and z")
    return np.ascontiguousarray(rows[:, [3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16]]).view("<f4")


class TaskLandmarker:
    """The Face Landmarker task on the one face in a crop, tracked from call to call.

    Raises:
        DialogueError: the file is no such task.
    """

    def __init__(self, task: Path, fps: float = 25.0):
        require_mediapipe()
        with quiet_stderr():
            self._mediapipe = importlib.import_module("mediapipe")
            tasks = importlib.import_module("mediapipe.tasks.python")
            options = tasks.vision.FaceLandmarkerOptions(
                base_options=tasks.BaseOptions(model_asset_buffer=Path(task).read_bytes()),
                running_mode=tasks.vision.RunningMode.VIDEO,
                output_face_blendshapes=True,
                num_faces=1,
            )
            try:
                self._landmarker = tasks.vision.FaceLandmarker.create_from_options(options)
            except (RuntimeError, ValueError) as error:
                raise DialogueError(
                    f"{task} is not a Face Landmarker task of MediaPipe ({str(error).splitlines()[0]}): give "
                    "face_landmarker.task, whole."
                ) from error
            self._step, self._next = 1000.0 / fps, 0
            self(np.zeros((64, 64, 3), np.uint8))

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"]
    ) -> Optional[Tuple[Float32[np.ndarray, "478 2"], Float32[np.ndarray, " 478"], Dict[str, float]]]:
        """As `FaceMesher`, and the blendshapes' coefficients 0 … 1 by their ARKit names; None without a face."""
        picture = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        found = self._landmarker.detect_for_video(picture, round(self._next * self._step))
        self._next += 1
        if not found.face_landmarks:
            return None
        scores = {
            shape.category_name: float(shape.score)
            for shape in found.face_blendshapes[0]
            if shape.category_name != "_neutral"
        }
        points = np.array([(p.x, p.y, p.z) for p in found.face_landmarks[0]], dtype=np.float32)
        return *_in_pixels(points, image), scores

    def close(self) -> None:
        self._landmarker.close()

    def __enter__(self) -> "TaskLandmarker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_pixels(
    landmarks: Float32[np.ndarray, "478 3"], image: UInt8[np.ndarray, "height width 3"]
) -> Tuple[Float32[np.ndarray, "478 2"], Float32[np.ndarray, " 478"]]:
    """MediaPipe's landmarks, relative to the picture, as pixels and depth (larger is nearer)."""
    height, width = image.shape[:2]
    return landmarks[:, :2] * np.array([width, height], np.float32), -landmarks[:, 2] * width


class PersonSegmenter(_Solution):
    """The probability of "person" per pixel (selfie segmentation, the square model 0, steadier than model 1)."""

    SIZE = 256
    """Side of the pictures that the network sees; of larger ones, probabilities come at this size."""

    def __init__(self) -> None:
        super().__init__("selfie_segmentation", "SelfieSegmentation", model_selection=0)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "mask_height mask_width"]:
        if min(image.shape[:2]) > self.SIZE:
            image = cv2.resize(image, (self.SIZE, self.SIZE), interpolation=cv2.INTER_AREA)
        return np.asarray(self._process(image).segmentation_mask, dtype=np.float32)
