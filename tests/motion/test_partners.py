"""Partners: whoever else speaks, who began last of several, who spoke last in a pause."""

import numpy as np

from dialogue_nerfstudio.motion.partners import PartnerTracker


def test_who_attends_to_whom():
    #                      0  1  2  3  4  5  6  7
    speaking = np.array([[0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]]).astype(bool)
    expected = [[1, 1, 1, 1, 1, 1, 2, 2], [2, 0, 0, 0, 0, 0, 2, 2], [0, 0, 0, 1, 1, 1, 1, 1]]
    assert PartnerTracker(3).follow(speaking).tolist() == expected
    tracker = PartnerTracker(3)
    parts = [tracker.follow(speaking[:, start : start + 3]) for start in range(0, 8, 3)]
    assert np.concatenate(parts, axis=1).tolist() == expected


def test_two_and_one():
    assert PartnerTracker(2).follow(np.ones((2, 3), bool)).tolist() == [[1] * 3, [0] * 3]
    assert PartnerTracker(1).follow(np.ones((1, 2), bool)).tolist() == [[-1, -1]]
