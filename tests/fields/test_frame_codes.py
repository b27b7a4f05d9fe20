"""Frame codes: mean zero over training frames, zero elsewhere."""

import torch

from dialogue_nerfstudio.fields.frame_codes import FrameCodes


def test_codes_are_centred_and_zero_where_none_was_trained():
    trained = torch.tensor([True, False, True, True, False])
    codes = FrameCodes(2, trained, 3)
    assert float(codes(1, torch.arange(5)).abs().sum()) == 0.0
    torch.nn.init.normal_(codes.values)
    found = codes(1, torch.arange(5))
    torch.testing.assert_close(found[trained].mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    assert float(found[~trained].abs().sum()) == 0.0
    torch.testing.assert_close(found[2] - found[0], codes.values[1, 2] - codes.values[1, 0])


def test_only_trained_frames_get_a_gradient():
    trained = torch.tensor([True, False, True])
    codes = FrameCodes(1, trained, 2)
    (codes(0, torch.tensor([0, 1])) * torch.tensor([1.0, 3.0])).sum().backward()
    assert float(codes.values.grad[0, 1].abs().sum()) == 0.0
    torch.testing.assert_close(codes.values.grad[0, 0], torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(codes.values.grad[0, 2], torch.tensor([-0.5, -1.5]))
