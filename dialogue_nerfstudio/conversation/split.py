"""Which frames train an avatar and which are held out to measure it."""

from typing import Tuple

import numpy as np
from jaxtyping import Int

from dialogue_nerfstudio.conversation.errors import DialogueError


def split_frames(
    num_frames: int, eval_fraction: float = 0.1
) -> Tuple[Int[np.ndarray, " num_train"], Int[np.ndarray, " num_eval"]]:
    """The first frames to train on, the last `eval_fraction` of them to evaluate on (at least one each).

    The end of a recording is held out as one piece, because neighbours of training frames would be too easy.

    Raises:
        DialogueError: the fraction is outside (0, 1), or there are fewer than two frames.
    """
    if not 0.0 < eval_fraction < 1.0:
        raise DialogueError(f"the eval fraction must lie between 0 and 1, not {eval_fraction}.")
    if num_frames < 2:
        raise DialogueError(f"a conversation of {num_frames} frame(s) cannot be split into train and eval frames.")
    num_eval = min(max(round(num_frames * eval_fraction), 1), num_frames - 1)
    frames = np.arange(num_frames)
    return frames[:-num_eval], frames[-num_eval:]
