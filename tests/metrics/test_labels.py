"""Overlap and change of label maps, against counting by hand."""

import numpy as np

from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, NECK, TORSO
from dialogue_nerfstudio.metrics.labels import IGNORED, confusion, label_change, part_ious


def test_overlap_is_counted_by_hand():
    true = np.array([[BACKGROUND, HEAD, HEAD, NECK, TORSO, IGNORED]], np.uint8)
    predicted = np.array([[BACKGROUND, HEAD, BACKGROUND, TORSO, TORSO, HEAD]], np.uint8)
    ious = part_ious(confusion(predicted, true))
    assert ious == {"head": 0.5, "torso": 1.0, "background": 0.5, "neck": 0.0}


def test_overlap_of_equal_maps_and_of_absent_parts():
    maps = np.random.default_rng(0).integers(0, 3, (9, 7), dtype=np.uint8)
    assert set(part_ious(confusion(maps, maps)).values()) == {1.0}
    assert confusion(maps, maps).sum() == 63


def test_change_is_counted_from_frame_to_frame():
    still = np.zeros((10, 10), np.uint8)
    jump = still.copy()
    jump[0, :5] = 3
    assert label_change([still, jump, still]) == 0.05
    assert label_change([still, jump, jump]) == 0.025
    assert label_change([still]) == label_change([]) == 0.0
