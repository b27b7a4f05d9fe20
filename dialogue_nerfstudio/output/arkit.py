"""Expression under ARKit's blendshape names: the tracker's own where it gave them, else this project's fields.

Conventions. Weights `[T, W]`, 0 … 1. A field of "dialogue-28" stands for the ARKit shape that moves the same part of
the face in the same direction; where ARKit has a left and a right one and the field is both, both get its value. The
shapes themselves are not the same, so a weight means the same movement and not the same millimetres. Lids are shapes in
ARKit; gaze is an angle here and stays one, because ARKit's eyeLook weights have no published unit.
"""

from dataclasses import dataclass
from typing import Dict, List, Tuple

import numpy as np
from jaxtyping import Float, Float32

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, Motion

ARKIT_OF_FIELD: Dict[str, Tuple[str, ...]] = {
    "jaw_open": ("jawOpen",),
    "jaw_left": ("jawLeft",),
    "jaw_right": ("jawRight",),
    "jaw_forward": ("jawForward",),
    "mouth_left": ("mouthLeft",),
    "mouth_right": ("mouthRight",),
    "lip_corner_out_left": ("mouthStretchLeft",),
    "lip_corner_out_right": ("mouthStretchRight",),
    "lip_corner_up_left": ("mouthSmileLeft",),
    "lip_corner_up_right": ("mouthSmileRight",),
    "lip_corner_down_left": ("mouthFrownLeft",),
    "lip_corner_down_right": ("mouthFrownRight",),
    "pucker": ("mouthPucker",),
    "funnel": ("mouthFunnel",),
    "upper_lip_raise": ("mouthUpperUpLeft", "mouthUpperUpRight"),
    "lower_lip_drop": ("mouthLowerDownLeft", "mouthLowerDownRight"),
    "lip_press": ("mouthPressLeft", "mouthPressRight"),
    "lip_roll_in": ("mouthRollUpper", "mouthRollLower"),
    "brow_raise_left": ("browOuterUpLeft",),
    "brow_raise_right": ("browOuterUpRight",),
    "brow_inner_raise": ("browInnerUp",),
    "brow_furrow_left": ("browDownLeft",),
    "brow_furrow_right": ("browDownRight",),
    "squint_left": ("eyeSquintLeft",),
    "squint_right": ("eyeSquintRight",),
    "cheek_raise_left": ("cheekSquintLeft",),
    "cheek_raise_right": ("cheekSquintRight",),
    "nose_wrinkle": ("noseSneerLeft", "noseSneerRight"),
}
"""ARKit's names of this project's fields."""

BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")


@dataclass(frozen=True)
class Weights:
    """Weights by name."""

    names: Tuple[str, ...]
    values: Float32[np.ndarray, "T W"]
    source: str
    """Where they come from, in a word: "tracker" or "fields"."""


def arkit_weights(motion: Motion) -> Weights:
    """The blinks and, in this project's basis, the expression under ARKit's names, cut to ARKit's 0 … 1."""
    names: List[str] = list(BLINKS)
    columns: List[np.ndarray] = [motion.blink[:, 0], motion.blink[:, 1]]
    if motion.expression_basis == EXPRESSION_BASIS:
        for column, field in enumerate(motion.expression_names):
            for name in ARKIT_OF_FIELD[field]:
                names.append(name)
                columns.append(motion.expression[:, column])
    return Weights(tuple(names), np.clip(np.stack(columns, axis=1), 0.0, 1.0).astype(np.float32), "fields")


def tracked_weights(tracking: Dict[str, np.ndarray], num_frames: int, where: str) -> Weights | None:
    """The tracker's own weights, where it gave some; frames in which it saw no face are NaN.

    Raises:
        DialogueError: the file has another number of frames.
    """
    if "blendshapes" not in tracking or "blendshape_names" not in tracking:
        return None
    values: Float[np.ndarray, "T W"] = tracking["blendshapes"]
    names = tuple(str(name) for name in tracking["blendshape_names"])
    if values.shape != (num_frames, len(names)):
        raise DialogueError(
            f"{where} holds weights {values.shape} for {num_frames} frames and {len(names)} names; process the video "
            "again."
        )
    return Weights(names, values.astype(np.float32), "tracker")
