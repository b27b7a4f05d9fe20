"""Each participant's own sound: nothing is lost or doubled between turns, and overlaps are said."""

import numpy as np

from dialogue_nerfstudio.process.participant_audio import ParticipantAudioConfig, split_by_role

RATE, FPS = 16_000, 25.0


def test_turns_go_to_their_speakers_and_power_is_kept_where_they_meet():
    speaking = np.zeros((100, 2), bool)
    speaking[10:50, 0] = speaking[50:90, 1] = True
    mix = np.ones(4 * RATE, np.float32)
    split = split_by_role(mix, RATE, speaking, FPS)
    first, second = split.tracks
    at = lambda seconds: int(seconds * RATE)  # noqa: E731
    assert (first[at(0.5) : at(1.9)] == 1).all() and (second[at(2.1) : at(3.5)] == 1).all()
    assert not second[: at(1.9)].any() and not first[at(2.1) :].any() and not split.tracks[:, : at(0.3)].any()
    np.testing.assert_allclose((split.tracks**2).sum(0)[at(0.5) : at(3.5)], 1.0, atol=1e-3)
    assert split.overlap_seconds == 0.0
    assert np.abs(np.diff(split.tracks, axis=1)).max() < 0.01, "no clicks"


def test_who_speaks_at_once_shares_the_mix_and_it_is_counted():
    speaking = np.zeros((50, 2), bool)
    speaking[5:45, 0] = speaking[20:30, 1] = True
    split = split_by_role(np.ones(2 * RATE, np.float32), RATE, speaking, FPS)
    assert split.overlap_seconds == 0.4
    assert (split.tracks[:, int(0.9 * RATE) : int(1.1 * RATE)] == 1).all()
    assert (split.tracks[0, int(0.3 * RATE) : int(1.7 * RATE)] == 1).all()


def test_turns_are_kept_a_little_longer_than_their_frames():
    speaking = np.zeros((50, 2), bool)
    speaking[20:30, 0] = True
    config = ParticipantAudioConfig(fade=0.0, margin=0.1)
    track = split_by_role(np.ones(2 * RATE, np.float32), RATE, speaking, FPS, config).tracks[0]
    heard = np.flatnonzero(track) / RATE
    assert abs(heard[0] - 0.7) < 0.002 and abs(heard[-1] - 1.3) < 0.002


def test_nothing_at_all():
    assert split_by_role(np.zeros(0, np.float32), RATE, np.zeros((0, 2), bool), FPS).tracks.shape == (2, 0)
