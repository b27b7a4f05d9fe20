"""Where label maps come from: the default segmentation, a parser's weights, or the user's own maps.

Conventions. What is asked for is a list of words: DEFAULT alone; one weights file alone, told by its suffix; else label
videos or folders (see `given_labels`).
"""

from contextlib import contextmanager
from pathlib import Path
from typing import Iterable, Iterator, List, Sequence

import numpy as np

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.face_parsing import (
    BISENET_SUFFIXES,
    MULTICLASS_SUFFIXES,
    open_parser,
    parsed_labels,
    part_probabilities,
)
from dialogue_nerfstudio.process.labels import Labeller, cut_silhouettes

DEFAULT = "selfie"
"""Selfie segmentation cut along the face mesh: needs no file."""


def is_parser(masks: Sequence[str]) -> bool:
    """Whether one weights file was given."""
    return len(masks) == 1 and Path(masks[0]).suffix.lower() in MULTICLASS_SUFFIXES + BISENET_SUFFIXES


def are_given(masks: Sequence[str]) -> bool:
    """Whether the user gave label maps."""
    return tuple(masks) != (DEFAULT,) and not is_parser(masks)


def check_masks(masks: Sequence[str]) -> None:
    """Refuses what cannot be meant, and loads a parser's weights once, before any long work.

    Raises:
        DialogueError: naming the file or option, and the choices.
    """
    if not masks:
        raise DialogueError(f"masks is empty: give {DEFAULT}, a parser's weights, or label videos.")
    weights = [mask for mask in masks if is_parser([mask])]
    if len(masks) > 1 and (DEFAULT in masks or weights):
        raise DialogueError(
            f"masks are given as {', '.join(masks)}: give {DEFAULT} or one weights file alone, or only label videos."
        )
    for mask in masks:
        if mask != DEFAULT and not Path(mask).exists():
            raise DialogueError(
                f"There is no {mask}: masks are {DEFAULT}, the path of selfie_multiclass_256x256.tflite or of "
                "BiSeNet's 79999_iter.pth, or label videos or folders of PNGs, one a person."
            )
    if weights:
        with open_parser(Path(weights[0])):
            """Loading it refuses what is no parser."""


def mask_files(masks: Sequence[str]) -> List[Path]:
    """The files behind the masks, for telling whether they changed."""
    files: List[Path] = []
    for path in (Path(mask) for mask in masks if mask != DEFAULT):
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files


@contextmanager
def labeller(masks: Sequence[str]) -> Iterator[Labeller]:
    """What makes label maps of pictures; a network of its own for each thread that asks.

    Raises:
        DialogueError: a weights file is missing, damaged, or of another network.
    """
    if is_parser(masks):
        with open_parser(Path(masks[0])) as parser:

            def parse(frames: Iterable[np.ndarray], landmarks: np.ndarray) -> Iterator[np.ndarray]:
                for image, points in zip(frames, landmarks, strict=True):
                    yield parsed_labels(image, part_probabilities(parser(image), parser.parts, points), points)

            yield parse
        return
    with cut_silhouettes() as cut:
        yield cut
