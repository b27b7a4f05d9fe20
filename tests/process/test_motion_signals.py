"""What generators hear does not depend on the blocks that sound is read in, and is that of the whole."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.acoustics import mel_spectrogram, prosody_features
from dialogue_nerfstudio.process.motion_signals import HeardConversation
from dialogue_nerfstudio.process.participant_audio import split_by_role
from dialogue_nerfstudio.process.sound_source import ArraySound

FRAMES = 203


def heard(own: bool) -> tuple[HeardConversation, np.ndarray]:
    rng = np.random.default_rng(0)
    mix = (0.1 * rng.standard_normal(FRAMES * 640)).astype(np.float32)
    speaking = np.repeat(rng.random((FRAMES // 7 + 1, 2)) < 0.5, 7, axis=0)[:FRAMES]
    if own:
        tracks = np.stack([mix, np.roll(mix, 900)])
        return HeardConversation(ArraySound(mix), ("a", "b"), speaking, [ArraySound(track) for track in tracks]), tracks
    return HeardConversation(ArraySound(mix), ("a", "b"), speaking), split_by_role(mix, 16000, speaking, 25.0).tracks


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("length, first", [(5, None), (50, 10), (250, None)])
def test_blocks_join_to_the_whole(own, length, first):
    conversation, tracks = heard(own)
    parts = [conversation.signals(start, stop) for start, stop in conversation.blocks(length, first)]
    assert sum(part.num_frames for part in parts) == FRAMES
    if first:
        assert parts[0].num_frames == first
    expected_mel = np.stack([mel_spectrogram(track)[: round(FRAMES * 3.2)] for track in tracks])
    np.testing.assert_allclose(np.concatenate([part.mel for part in parts], axis=1), expected_mel, atol=2e-4)
    expected = np.stack([prosody_features(track, 16000, FRAMES) for track in tracks])
    joined = np.concatenate([part.prosody for part in parts], axis=1)
    np.testing.assert_allclose(joined[..., 1], expected[..., 1], atol=1e-5)
    # Where a ramp ends in a number that is only almost zero, its sign is nobody's business.
    assert (np.abs(joined[..., 0] - expected[..., 0]) < 0.02).mean() > 0.98
    np.testing.assert_array_equal(np.concatenate([part.speaking for part in parts], axis=1), conversation.speaking.T)


def test_a_track_is_silent_while_another_speaks():
    conversation, _ = heard(own=False)
    conversation.speaking[:] = [True, False]
    signals = conversation.signals(50, 100)
    assert (signals.mel[1] == -1.0).all() and (signals.prosody[1] == 0.0).all()
    assert (signals.prosody[0, :, 1] > 0.05).all()


def test_sound_that_ends_early_is_followed_by_silence():
    conversation = HeardConversation(ArraySound(np.ones(640, np.float32)), ("a",), np.ones((10, 1), bool))
    signals = conversation.signals(0, 10)
    assert signals.mel.shape == (1, 32, 80) and (signals.prosody[0, 1:, 1] == 0.0).all()
