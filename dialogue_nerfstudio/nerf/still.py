"""A person who holds still: one frame's signals for a while, with or without the trembling of a tracker.

Conventions: as in `nerf.signals`. A signal's trembling is its second difference over √6: for noise that is independent
from frame to frame that has the noise's deviation, while movements slower than a few frames cancel.
"""

import math
from dataclasses import replace
from typing import Dict

import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf.signals import ConversationSignals

TREMBLING = ("translation", "euler", "expression", "residual", "sway", "blink", "gaze")
"""Signals that a tracker measures, each for itself."""


def trembling(values: Float[Tensor, "P T n"]) -> Float[Tensor, "P T_minus_2 n"]:
    """(x_{t−1} − 2 x_t + x_{t+1}) / √6: of variance σ² for independent noise of variance σ², zero for steady motion."""
    return (values[:, :-2] - 2.0 * values[:, 1:-1] + values[:, 2:]) / math.sqrt(6.0)


def held_still(signals: ConversationSignals, frame: int, num_frames: int, jitter: float = 0.0) -> ConversationSignals:
    """Everybody as in one frame, silent, for `num_frames`.

    Args:
        signals: of a recording.
        frame: which of its frames is held.
        num_frames: how long.
        jitter: how much of the recording's own trembling around `frame` is added; 0 for none.

    Raises:
        DialogueError: there is no such frame, or the recording is too short for so long a trembling.
    """
    if not 0 <= frame < signals.num_frames:
        raise DialogueError(f"there is no frame {frame} to hold; the timeline has {signals.num_frames}.")
    if jitter > 0 and signals.num_frames < num_frames + 2:
        raise DialogueError(
            f"the trembling of {num_frames} frames needs a recording of {num_frames + 2} or more, not "
            f"{signals.num_frames}; hold still for less."
        )
    tensors: Dict[str, Tensor] = {}
    for name, tensor in signals.tensors.items():
        if name == "audio":
            tensors[name] = tensor[frame : frame + 1].expand(num_frames, *tensor.shape[1:]).clone()
        else:
            tensors[name] = tensor[:, frame : frame + 1].expand(-1, num_frames, *tensor.shape[2:]).clone()
    tensors["speaking"][:] = False
    if jitter > 0:
        first = min(max(frame - num_frames // 2 - 1, 0), signals.num_frames - num_frames - 2)
        for name in TREMBLING:
            noise = trembling(getattr(signals, name)[:, first : first + num_frames + 2])
            tensors[name] = tensors[name] + jitter * noise
        angles = tensors["euler"].reshape(-1, 3).double().cpu().numpy()
        matrices = torch.from_numpy(Rotation.from_euler("YXZ", angles).as_matrix())
        tensors["rotation"] = matrices.to(tensors["rotation"]).view(tensors["rotation"].shape)
    return replace(signals, **tensors)
