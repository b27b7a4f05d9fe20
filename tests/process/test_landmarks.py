"""Bridging and refusing lost faces."""

import struct

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.process.face_mesh import read_landmarks
from dialogue_nerfstudio.process.landmarks import LandmarkTrack, bridged, fill_gaps, lost_runs, require_face


def _visible(lost: slice, count: int = 100) -> np.ndarray:
    visible = np.ones(count, bool)
    visible[lost] = False
    return visible


def test_lost_runs():
    visible = _visible(slice(10, 20))
    visible[[0, 99]] = False
    assert lost_runs(visible) == [(0, 1), (10, 20), (99, 100)]
    assert lost_runs(np.ones(5, bool)) == []


def test_gaps_are_interpolated_and_ends_held():
    values = np.arange(20, dtype=np.float32)[:, None] * [1.0, 2.0]
    visible = np.ones(20, bool)
    visible[[0, 1, 8, 9, 10, 19]] = False
    filled = fill_gaps(np.where(visible[:, None], values, np.nan), visible)
    np.testing.assert_allclose(filled[8:11], values[8:11])
    np.testing.assert_allclose(filled[0], values[2])
    np.testing.assert_allclose(filled[19], values[18])


def test_bridged_tracks_still_say_what_was_seen():
    points = np.random.default_rng(0).standard_normal((10, 478, 2)).astype(np.float32)
    depth = np.zeros((10, 478), np.float32)
    points[4], depth[4] = np.nan, np.nan
    track = bridged(LandmarkTrack(points, depth, ~np.isnan(points).any(axis=(1, 2))))
    assert np.isfinite(track.points).all() and track.points.dtype == np.float32
    np.testing.assert_allclose(track.points[4], (points[3] + points[5]) / 2, atol=1e-6)
    assert not track.visible[4]


def test_short_losses_are_allowed():
    require_face(_visible(slice(40, 60)), 25.0, 1.0, "chat.mp4", "p0")


def test_a_long_loss_names_file_participant_and_frames():
    with pytest.raises(DialogueError, match=r"chat\.mp4.*participant p1.*frame 30 to 69"):
        require_face(_visible(slice(30, 70)), 25.0, 1.0, "chat.mp4", "p1")


def test_a_face_never_seen():
    with pytest.raises(DialogueError, match=r"chat\.mp4.*never.*p0"):
        require_face(np.zeros(50, bool), 25.0, 1.0, "chat.mp4", "p0")


def test_landmarks_are_read_from_their_wire_format():
    points = np.random.default_rng(0).normal(size=(478, 3)).astype(np.float32)
    points[3] = 0.0
    coded = [struct.pack("<BfBfBf", 0x0D, p[0], 0x15, p[1], 0x1D, p[2]) for p in points]
    for rest in (b"", struct.pack("<Bf", 0x25, 0.5)):
        serialized = b"".join(bytes([0x0A, len(each + rest)]) + each + rest for each in coded)
        np.testing.assert_array_equal(read_landmarks(serialized), points)
    with pytest.raises(RuntimeError, match="no list of landmarks"):
        read_landmarks(serialized[:-1])
    with pytest.raises(RuntimeError, match="not x, y and z"):
        read_landmarks(serialized.replace(bytes([0x15]), bytes([0x16])))
