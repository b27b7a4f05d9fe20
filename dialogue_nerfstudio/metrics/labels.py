"""Label maps against true ones: overlap of head, torso and background, and how much they change.

Conventions. Label maps are uint8 `[H, W]` of BACKGROUND, TORSO, NECK and HEAD; where the truth is IGNORED nothing is
counted. The neck belongs to the torso, as it does for a model that is trained on the maps; on its own it is scored
too.
"""

from typing import Dict, Iterable

import numpy as np
from jaxtyping import Int, UInt8

from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, NECK, TORSO

IGNORED = 255
"""A true label that is not known."""

NUM_LABELS = 4

PARTS = {"head": (HEAD,), "torso": (TORSO, NECK), "background": (BACKGROUND,), "neck": (NECK,)}
"""What is scored: name → the labels that make it up."""


def confusion(
    predicted: UInt8[np.ndarray, "height width"], true: UInt8[np.ndarray, "height width"]
) -> Int[np.ndarray, "4 4"]:
    """Pixels by predicted (row) and true label (column)."""
    known = true != IGNORED
    pairs = NUM_LABELS * predicted[known].astype(np.int64) + true[known]
    return np.bincount(pairs, minlength=NUM_LABELS**2).reshape(NUM_LABELS, NUM_LABELS)


def part_ious(counts: Int[np.ndarray, "4 4"]) -> Dict[str, float]:
    """Intersection over union of each of PARTS, over all the pixels counted; 1 for a part in neither map."""
    ious = {}
    for name, labels in PARTS.items():
        part = list(labels)
        both = counts[np.ix_(part, part)].sum()
        either = counts[part].sum() + counts[:, part].sum() - both
        ious[name] = float(both / either) if either else 1.0
    return ious


def label_change(maps: Iterable[UInt8[np.ndarray, "height width"]]) -> float:
    """Share of pixels whose label is another one than in the frame before: how far edges go, in true maps as far as the
    person moves.

    Fewer than two frames change by 0.
    """
    before, changes, pixels = None, 0, 0
    for current in maps:
        if before is not None:
            changes += int((current != before).sum())
            pixels += current.size
        before = current
    return changes / pixels if pixels else 0.0
