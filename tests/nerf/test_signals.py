"""Signals: what a recording gives, and what replaces it."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.fields.audio_net import SILENCE
from dialogue_nerfstudio.nerf.signals import ConversationSignals, to_and_fro


@pytest.fixture
def signals(tiny):
    return ConversationSignals.from_conversation(load_conversation(tiny))


def test_poses_are_the_recordings(tiny, signals):
    motion = load_conversation(tiny).participants[1].motion
    torch.testing.assert_close(signals.translation[1].numpy(), motion.head_pose[:, 3:])
    expected = Rotation.from_rotvec(motion.head_pose[:, :3]).as_matrix()
    np.testing.assert_allclose(signals.rotation[1].numpy(), expected, atol=1e-6)
    rebuilt = Rotation.from_euler("YXZ", signals.euler[1].numpy()).as_matrix()
    np.testing.assert_allclose(rebuilt, expected, atol=1e-5)
    assert signals.residual.shape == (2, 24, 3) and (signals.residual[0, :, 2] == 0).all()


def test_new_motion_replaces_one_person_and_sets_the_length(tiny, signals):
    motion = load_conversation(tiny).participants[0].motion.slice(0, 10)
    motion.expression[:] = 0.25
    changed = signals.with_motion({"p0": motion})
    assert changed.num_frames == 10 and signals.num_frames == 24
    assert (changed.expression[0] == 0.25).all()
    assert torch.equal(changed.expression[1], signals.expression[1, :10])
    assert torch.equal(changed.audio, signals.audio[:10])


def test_new_sound_sets_the_length_and_motion_goes_to_and_fro(signals):
    mel, speaking = np.zeros((60, 16, 80), np.float32), np.zeros((60, 2), bool)
    speaking[:, 1] = True
    changed = signals.with_audio(mel, speaking)
    assert changed.num_frames == 60 and changed.speaking[1].all() and not changed.speaking[0].any()
    assert torch.equal(changed.translation[:, 23], changed.translation[:, 23])
    assert torch.equal(changed.translation[:, 24], signals.translation[:, 22])


def test_a_longer_timeline_is_silent_at_its_end(signals):
    longer = signals.with_length(30)
    assert (longer.audio[24:] == SILENCE).all() and not longer.speaking[:, 24:].any()


@pytest.mark.parametrize("num_frames, expected", [(1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 1, 0]), (3, [0, 1, 2, 1, 0])])
def test_to_and_fro(num_frames, expected):
    assert to_and_fro(num_frames, 5).tolist() == expected


def test_what_does_not_fit_is_refused(tiny, signals):
    motion = load_conversation(tiny).participants[0].motion
    with pytest.raises(DialogueError, match="no participant 'stranger'"):
        signals.with_motion({"stranger": motion})
    with pytest.raises(DialogueError, match="differ in length"):
        signals.with_motion({"p0": motion, "p1": motion.slice(0, 5)})
    motion.expression_basis = "flame"
    with pytest.raises(DialogueError, match="'flame'"):
        signals.with_motion({"p0": motion})
    with pytest.raises(DialogueError, match="roles"):
        signals.with_audio(np.zeros((5, 16, 80), np.float32), np.zeros((5, 3), bool))


def test_a_bad_number_in_a_motion_is_named(tiny, signals):
    motion = load_conversation(tiny).participants[0].motion
    motion.blink[7, 0] = np.nan
    with pytest.raises(DialogueError, match=r"participant p0.*blink.*frame 7"):
        signals.with_motion({"p0": motion})
