"""Holding still: every frame the same, and trembling as strong as the recording's own noise."""

from dataclasses import replace

import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.nerf.signals import ConversationSignals
from dialogue_nerfstudio.nerf.still import held_still, trembling


@pytest.fixture
def signals(tiny):
    return ConversationSignals.from_conversation(load_conversation(tiny))


def test_trembling_keeps_noise_and_drops_steady_motion():
    torch.manual_seed(0)
    noise = 0.02 * torch.randn(1, 5000, 2)
    assert float(trembling(noise).std()) == pytest.approx(0.02, rel=0.05)
    steady = torch.arange(50.0)[None, :, None] * torch.tensor([0.1, -0.3])
    torch.testing.assert_close(trembling(steady), torch.zeros(1, 48, 2), atol=1e-5, rtol=0)


def test_without_jitter_every_frame_is_the_same(signals):
    still = held_still(signals, 5, 7)
    assert still.num_frames == 7 and not bool(still.speaking.any())
    torch.testing.assert_close(still.rotation, signals.rotation[:, 5:6].expand(-1, 7, -1, -1))
    torch.testing.assert_close(still.expression, signals.expression[:, 5:6].expand(-1, 7, -1))
    torch.testing.assert_close(still.audio, signals.audio[5:6].expand(7, -1, -1))


def test_jitter_trembles_about_the_frame_and_angles_agree_with_matrices(signals):
    noisy = replace(signals, translation=signals.translation + 1e-3 * torch.randn_like(signals.translation))
    still = held_still(noisy, 5, 8, jitter=1.0)
    assert 2e-4 < float((still.translation - noisy.translation[:, 5:6]).std()) < 3e-3
    calm = held_still(replace(noisy, euler=torch.zeros_like(noisy.euler)), 5, 8, jitter=1.0)
    torch.testing.assert_close(calm.rotation, torch.eye(3).expand(2, 8, 3, 3))


def test_impossible_requests(signals):
    with pytest.raises(DialogueError, match="no frame 99"):
        held_still(signals, 99, 4)
    with pytest.raises(DialogueError, match="hold still for less"):
        held_still(signals, 0, signals.num_frames, jitter=1.0)
