"""What a checkpoint and the model that loads it must agree on, and the sentence said when they do not."""

from dataclasses import asdict
from typing import Any, Dict, Optional, Sequence

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import KERNELS, HashGridConfig

CHECKPOINT_FORMAT = 2
"""Of what is stored, parameters included; any other than the program's own is refused. 2: every body follows its head
in its own way."""

GRID_LAYOUT = "tiny-cuda-nn"
"""How hash tables are laid out; kernels of the same layout read each other's checkpoints."""

KNOWN_KERNELS = KERNELS
"""Kernels whose checkpoints can be read."""


NAMES = {
    "participants": "participants",
    "grid_sharing": "grid sharing",
    "head_grid": "hash grid of the head",
    "torso_grid": "hash grid of the torso",
    "expression_basis": "expression basis",
    "audio_feature": "audio feature",
}
"""What the entries of a checkpoint's extra state are called in a sentence."""


def grid_size(config: HashGridConfig, encoding: str) -> Dict[str, Any]:
    """A grid's size without its kernel, which does not change the parameters, and what it is if not one hash grid."""
    size = {name: value for name, value in asdict(config).items() if name != "kernel"}
    return size if encoding == "grid" else {"encoding": encoding, **size}


def check_compatible(state: Optional[Dict[str, Any]], own: Dict[str, Any]) -> None:
    """Compares a checkpoint's extra state with that of the model that would load it.

    Raises:
        DialogueError: one sentence about the first thing that differs.
    """
    if not isinstance(state, dict) or "format" not in state:
        raise DialogueError("the checkpoint was not written by dialogue-nerf; give one of this method.")
    if state["format"] < CHECKPOINT_FORMAT:
        raise DialogueError(
            f"the checkpoint was written by an earlier dialogue-nerfstudio (format {state['format']}; this one reads "
            f"{CHECKPOINT_FORMAT}), whose avatars were built otherwise; train again."
        )
    if state.get("renderer", "grid") != "grid":
        raise DialogueError(
            "the checkpoint was written by dialogue-nerf-paper; load the config.yml that was saved with it."
        )
    if state["grid_layout"] != own["grid_layout"] or state["kernel"] not in KNOWN_KERNELS:
        raise DialogueError(
            f"the checkpoint was trained with the hash-grid kernel '{state['kernel']}' (layout "
            f"'{state['grid_layout']}'), which this program cannot read; it reads {', '.join(KNOWN_KERNELS)} with "
            f"layout '{own['grid_layout']}'. Train again, or load it where that kernel is installed."
        )
    check_same(state, own, ("participants", "grid_sharing", "head_grid", "torso_grid", "expression_basis"))


def check_same(state: Dict[str, Any], own: Dict[str, Any], keys: Sequence[str]) -> None:
    """Compares what any renderer's checkpoints say of themselves.

    Args:
        keys: of `NAMES`; what must be the same, besides what the avatars hear.

    Raises:
        DialogueError: one sentence about the first thing that differs.
    """
    if state["format"] > CHECKPOINT_FORMAT:
        raise DialogueError(
            f"the checkpoint has format {state['format']}, this program knows up to {CHECKPOINT_FORMAT}; "
            "upgrade dialogue-nerfstudio."
        )
    # Absent from checkpoints of before, which all heard mel windows.
    state = {"audio_feature": "mel 16 x 80", **state}
    for key in (*keys, "audio_feature"):
        if state[key] != own[key]:
            raise DialogueError(
                f"the checkpoint's {NAMES[key]} ({state[key]}) is not this configuration's ({own[key]}); load the "
                "config.yml and the data that it was trained with."
            )
