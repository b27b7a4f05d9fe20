"""The audio net hears its own frames and neighbours, nothing else, and silence where it is told to."""

import pytest
import torch

from dialogue_nerfstudio.fields.audio_net import SILENCE, AudioNet, AudioNetConfig


@pytest.fixture
def net():
    return AudioNet(AudioNetConfig(base_width=4, code_size=12)).eval()


def codes(net, mel, frames, audible=True):
    frames = torch.tensor(frames)
    return net(mel, frames, torch.full(frames.shape, audible))


def test_a_code_a_frame(net):
    assert codes(net, torch.randn(20, 16, 80), [0, 7, 19]).shape == (3, 12)


def test_frames_do_not_depend_on_the_others_of_the_batch(net):
    mel = torch.randn(20, 16, 80)
    together, alone = codes(net, mel, [3, 9, 12]), codes(net, mel, [9])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_only_the_smoothing_window_is_heard(net):
    mel = torch.randn(30, 16, 80)
    changed = mel.clone()
    changed[14:] = 0.0
    torch.testing.assert_close(codes(net, mel, [10]), codes(net, changed, [10]))
    changed[13] = 0.0
    assert not torch.allclose(codes(net, mel, [10]), codes(net, changed, [10]))


def test_who_is_not_audible_is_silent(net):
    silent = codes(net, torch.full((20, 16, 80), SILENCE), [10])
    torch.testing.assert_close(codes(net, torch.randn(20, 16, 80), [10], audible=False), silent)


def test_beyond_the_timeline_it_is_silent(net):
    mel = torch.randn(4, 16, 80)
    padded = torch.full((12, 16, 80), SILENCE)
    padded[4:8] = mel
    torch.testing.assert_close(codes(net, mel, [0, 3]), codes(net, padded, [4, 7]), atol=1e-5, rtol=1e-4)


def test_gradient_reaches_every_parameter(net):
    codes(net, torch.randn(20, 16, 80), [5, 9]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
