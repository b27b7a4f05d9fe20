"""Parsers that tell hair, skin and clothes apart, by the user's own weights: MediaPipe's multiclass selfie segmenter
and BiSeNet; and label maps made of what they say.

Conventions. A parser takes a picture, uint8 RGB `[H, W, 3]`, to probabilities of its classes, float32 `[C, H, W]`.
Parts are the four labels in the order of their values: BACKGROUND, TORSO, NECK, HEAD.
"""

from pathlib import Path
from typing import Any, Union

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import FACE_OVAL
from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, NECK, TORSO
from dialogue_nerfstudio.process.face_mesh import quiet_stderr, require_mediapipe
from dialogue_nerfstudio.process.labels import (
    guided_filter,
    head_polygon,
    neck_polygon,
    person_mask,
    polygon_mask,
)

MULTICLASS_SUFFIXES = (".tflite", ".task")
BISENET_SUFFIXES = (".pth", ".pt")

PARSER_SIZE = 512
"""Side of the pictures that BiSeNet was trained on."""

IMAGE_MEAN, IMAGE_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NECK_OR_TORSO = 4
"""In a class map: neck in the neck's place and torso elsewhere (skin), or …"""
HEAD_OR_TORSO = 5
"""… head above the jaw and torso elsewhere (glasses, hats, microphones)."""

MULTICLASS_PARTS = (BACKGROUND, HEAD, NECK_OR_TORSO, HEAD, TORSO, HEAD_OR_TORSO)
"""Where the multiclass segmenter's classes belong: background, hair, body skin, face skin, clothes, others."""

BISENET_PARTS = (BACKGROUND, *[HEAD] * 13, NECK, NECK, TORSO, HEAD, HEAD)
"""Where BiSeNet's 19 classes belong, see `bisenet.NUM_CLASSES`."""


class MulticlassParser:
    """MediaPipe's selfie_multiclass_256x256.tflite, run by MediaPipe's image segmenter.

    Raises:
        DialogueError: the file is missing, is no segmenter, or one of other classes.
    """

    parts = MULTICLASS_PARTS

    def __init__(self, path: Path):
        path = Path(path)
        if not path.is_file():
            raise DialogueError(f"There is no file {path}: give the path of selfie_multiclass_256x256.tflite.")
        require_mediapipe()
        import mediapipe
        from mediapipe.tasks.python.core.base_options import BaseOptions
        from mediapipe.tasks.python.vision.image_segmenter import ImageSegmenter, ImageSegmenterOptions

        self._path, self._mediapipe = path, mediapipe
        options = ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_buffer=path.read_bytes()), output_confidence_masks=True
        )
        with quiet_stderr():
            try:
                self._segmenter = ImageSegmenter.create_from_options(options)
                found = len(self._masks(np.zeros((64, 64, 3), np.uint8)))
            except (RuntimeError, ValueError) as error:
                raise DialogueError(
                    f"{path} is not an image segmenter that MediaPipe can run ({_first_line(error)}): give "
                    "selfie_multiclass_256x256.tflite."
                ) from error
        if found != len(self.parts):
            self.close()
            raise DialogueError(
                f"{path} tells {found} class(es) apart, not the {len(self.parts)} of selfie_multiclass_256x256.tflite "
                "(background, hair, body skin, face skin, clothes, others)."
            )

    def _masks(self, image: np.ndarray) -> list[Any]:
        picture = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        return self._segmenter.segment(picture).confidence_masks

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "6 height width"]:
        return np.stack([np.squeeze(mask.numpy_view()) for mask in self._masks(image)]).astype(np.float32)

    def close(self) -> None:
        self._segmenter.close()

    def __enter__(self) -> "MulticlassParser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BiSeNetParser:
    """BiSeNet with the user's weights, on the GPU where there is one.

    Raises:
        DialogueError: see `bisenet.load_bisenet`.
    """

    parts = BISENET_PARTS

    def __init__(self, path: Path):
        import torch

        from dialogue_nerfstudio.process.bisenet import load_bisenet

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = load_bisenet(path).to(self._device)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "19 height width"]:
        import torch

        height, width = image.shape[:2]
        small = cv2.resize(image, (PARSER_SIZE, PARSER_SIZE), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
        normal = (small - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_DEVIATION)
        with torch.inference_mode():
            scores = self._network(torch.from_numpy(normal.transpose(2, 0, 1)[None].copy()).to(self._device))
            scores = torch.nn.functional.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
            return scores[0].softmax(0).cpu().numpy()

    def __enter__(self) -> "BiSeNetParser":
        return self

    def __exit__(self, *_: object) -> None:
        del self._network


Parser = Union[MulticlassParser, BiSeNetParser]
"""Context managers; `parts` is what each of their classes belongs to."""


def open_parser(path: Path) -> Parser:
    """The parser whose weights a file holds, by its suffix.

    Raises:
        DialogueError: the file is missing, damaged, or of another network.
    """
    return MulticlassParser(path) if Path(path).suffix.lower() in MULTICLASS_SUFFIXES else BiSeNetParser(path)


def part_probabilities(
    classes: Float32[np.ndarray, "classes height width"],
    belongs: tuple[int, ...],
    landmarks: Float[np.ndarray, "478 2"],
) -> Float32[np.ndarray, "4 height width"]:
    """Probabilities of the parts: the sums of their classes'.

    Args:
        classes: what a parser says.
        belongs: the part of each class, or NECK_OR_TORSO or HEAD_OR_TORSO.
        landmarks: the face mesh, which decides these two.
    """
    height, width = classes.shape[1:]
    neck = polygon_mask(neck_polygon(landmarks), height, width)
    above = polygon_mask(head_polygon(landmarks, reach=float(height + width)), height, width)
    where = {NECK_OR_TORSO: (NECK, neck), HEAD_OR_TORSO: (HEAD, above)}
    parts = np.zeros((4, height, width), np.float32)
    for probability, part in zip(classes, belongs, strict=True):
        if part in where:
            inside, place = where[part]
            parts[inside] += np.where(place, probability, 0)
            parts[TORSO] += np.where(place, 0, probability)
        else:
            parts[part] += probability
    return parts


def parsed_labels(
    image: UInt8[np.ndarray, "height width 3"],
    parts: Float32[np.ndarray, "4 height width"],
    landmarks: Float[np.ndarray, "478 2"],
) -> UInt8[np.ndarray, "height width"]:
    """A label map: the silhouette as for the default masks, in it the likeliest part, snapped to the picture's edges.

    The face is head whatever the parser says.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    radius = max(image.shape[1] // 64, 2)
    person = person_mask(image, 1.0 - parts[BACKGROUND], landmarks)
    refined = [guided_filter(grey, np.ascontiguousarray(parts[part]), radius) for part in (TORSO, NECK, HEAD)]
    likeliest = (TORSO + np.argmax(refined, axis=0)).astype(np.uint8)
    likeliest[polygon_mask(landmarks[list(FACE_OVAL)], *image.shape[:2])] = HEAD
    return np.where(person, likeliest, BACKGROUND).astype(np.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
