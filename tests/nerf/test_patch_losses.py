"""Losses of patches: zero for what is equal, blur costs more than light, LPIPS as torchmetrics computes it."""

import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf.patch_losses import Lpips, edge_loss, patch_loss, structural_similarity


@pytest.fixture
def patches():
    return torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))


def test_equal_patches_cost_nothing_and_light_less_than_blur(patches):
    assert float(edge_loss(patches, patches)) == pytest.approx(0.0, abs=1e-5)
    blurred = torch.nn.functional.avg_pool2d(patches.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False)
    blurred = blurred.permute(0, 2, 3, 1)
    lighter = patches + (blurred - patches).square().mean().sqrt()
    assert float(edge_loss(lighter, patches)) < 0.3 * float(edge_loss(blurred, patches))


def test_edges_of_a_step_in_closed_form():
    """A constant against a step of height h between columns 7 and 8: one edge a row, at the scales that split there."""
    step = torch.zeros(1, 16, 16, 3)
    step[:, :, 8:] = 0.5
    flat = torch.zeros_like(step)
    gradients = sum(0.5 * scale / (16 // scale - 1) for scale in (1, 2, 4)) / 3
    channels = [picture.permute(0, 3, 1, 2) for picture in (step, flat)]
    expected = gradients + 0.5 * (1 - float(structural_similarity(*channels)))
    assert float(edge_loss(step, flat)) == pytest.approx(expected, rel=1e-5)


def test_structure_of_constant_patches():
    """Without variance SSIM is its luminance term."""
    a, b = torch.full((1, 3, 8, 8), 0.2), torch.full((1, 3, 8, 8), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(structural_similarity(a, b)) == pytest.approx(expected, rel=1e-3)


def test_lpips_with_weights_from_a_file(tmp_path):
    """Against torchmetrics' own network, with the same random backbone: no weights are on this machine."""
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import alexnet

    torch.manual_seed(0)
    network = alexnet(weights=None)
    torch.save(network.state_dict(), tmp_path / "alexnet.pth")
    ours = Lpips(tmp_path / "alexnet.pth")
    theirs = _LPIPS(pretrained=True, net="alex", pnet_rand=True, use_dropout=True).eval()
    trunk = [layer for layer in network.features if hasattr(layer, "weight")]
    copied = [layer for layer in theirs.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer, source in zip(copied, trunk, strict=True):
        layer.load_state_dict(source.state_dict())
    a, b = torch.rand(2, 64, 64, 3), torch.rand(2, 64, 64, 3)
    with torch.no_grad():
        expected = theirs(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2), normalize=True).mean()
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-6)
    a.requires_grad_()
    ours(a, b).backward()
    assert float(a.grad.abs().sum()) > 0 and not any(p.requires_grad for p in ours.parameters())


def test_missing_weights_are_one_sentence(tmp_path):
    with pytest.raises(DialogueError, match="needs AlexNet's weights"):
        patch_loss("lpips", None)
    with pytest.raises(DialogueError, match="do not exist"):
        patch_loss("lpips", tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(DialogueError, match="does not hold AlexNet's weights"):
        patch_loss("lpips", tmp_path / "broken.pth")
