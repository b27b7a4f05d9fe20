"""Losses of small patches of a picture: by edges and structure, without any weights, or LPIPS with given ones.

Conventions: patches are [K, side, side, 3], rendered and recorded, colours in 0 … 1; losses are means over patches.
"""

from pathlib import Path
from typing import Callable, List, Literal, Optional

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation import DialogueError

PatchLossName = Literal["edges", "lpips"]
PatchLoss = Callable[[Tensor, Tensor], Tensor]

SCALES = (1, 2, 4)
"""Pixels averaged before edges are compared."""

SSIM_WINDOW = 5
"""Pixels of the window in which structure is compared; small, because a patch is."""

LPIPS_MEAN, LPIPS_DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Colours in −1 … 1 are shifted and scaled by these before they enter AlexNet (Zhang et al. 2018, their code)."""


def edge_loss(
    rendered: Float[Tensor, "patches side side 3"], recorded: Float[Tensor, "patches side side 3"]
) -> Float[Tensor, ""]:
    """Mean over scales of |∇(rendered − recorded)|, plus half of 1 − SSIM: blur costs, a slight shift of light hardly.

    The gradient difference loss is of Mathieu et al. 2016 (equation 6, α = 1), SSIM of Wang et al. 2004 (equation 13)
    with a uniform window.
    """
    rendered, recorded = (patches.permute(0, 3, 1, 2) for patches in (rendered, recorded))
    edges = []
    for scale in SCALES:
        error = F.avg_pool2d(rendered - recorded, scale) * scale
        if min(error.shape[-2:]) > 1:
            edges.append(error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    return sum(edges) / len(edges) + 0.5 * (1.0 - structural_similarity(rendered, recorded))


def structural_similarity(
    rendered: Float[Tensor, "patches 3 side side"], recorded: Float[Tensor, "patches 3 side side"]
) -> Float[Tensor, ""]:
    """Mean SSIM over all windows that lie in a patch, for colours of range 1."""

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, min(SSIM_WINDOW, values.shape[-1]), stride=1)

    mean_a, mean_b = mean(rendered), mean(recorded)
    variance_a, variance_b = mean(rendered.square()) - mean_a.square(), mean(recorded.square()) - mean_b.square()
    covariance = mean(rendered * recorded) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a.square() + mean_b.square() + 0.01**2)
    return (luminance * (2 * covariance + 0.03**2) / (variance_a + variance_b + 0.03**2)).mean()


class Lpips(nn.Module):
    """Learned perceptual similarity with AlexNet's features (Zhang et al. 2018), frozen.

    Args:
        weights: AlexNet's weights as torchvision publishes them (a state dict with `features.*`). The small linear
            heads come with torchmetrics.

    Raises:
        DialogueError: the file is missing or holds something else.
    """

    def __init__(self, weights: Path):
        super().__init__()
        import torchmetrics.functional.image as metrics
        from torchvision.models import alexnet

        if not Path(weights).is_file():
            raise DialogueError(
                f"the LPIPS weights {weights} do not exist; give AlexNet's weights with "
                "--pipeline.model.lpips-weights, or choose --pipeline.model.lip-patch-loss edges, which needs none."
            )
        network = alexnet(weights=None)
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load and load_state_dict raise pickle, zip, runtime, type and OS errors
            raise DialogueError(
                f"{weights} does not hold AlexNet's weights ({type(error).__name__}); give the file that torchvision "
                "publishes."
            ) from error
        self.features = network.features[:12]
        heads = torch.load(
            Path(metrics.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu", weights_only=True
        )
        for index in range(5):
            self.register_buffer(f"head_{index}", heads[f"lin{index}.model.1.weight"])
        self.register_buffer("shift", torch.tensor(LPIPS_MEAN).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(LPIPS_DEVIATION).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def activations(self, patches: Float[Tensor, "patches side side 3"]) -> List[Tensor]:
        """The outputs of AlexNet's five ReLUs, each pixel's features scaled to unit length."""
        values = (2.0 * patches.permute(0, 3, 1, 2) - 1.0 - self.shift) / self.scale
        outputs = []
        for layer in self.features:
            values = layer(values)
            if isinstance(layer, nn.ReLU):
                values = values.clone()
                outputs.append(values / (values.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return outputs

    def forward(
        self, rendered: Float[Tensor, "patches side side 3"], recorded: Float[Tensor, "patches side side 3"]
    ) -> Float[Tensor, ""]:
        """Mean over patches of Σ_layers mean over pixels of head · (difference of features)²."""
        distances = [
            F.conv2d((a - b).square(), getattr(self, f"head_{index}")).mean(dim=(1, 2, 3))
            for index, (a, b) in enumerate(zip(self.activations(rendered), self.activations(recorded), strict=True))
        ]
        return sum(distances).mean()


def patch_loss(name: PatchLossName, lpips_weights: Optional[Path]) -> PatchLoss:
    """The patch loss of that name.

    Raises:
        DialogueError: there is none of that name, or LPIPS has no weights.
    """
    if name == "edges":
        return edge_loss
    if name == "lpips":
        if lpips_weights is None:
            raise DialogueError(
                "LPIPS needs AlexNet's weights: give the file with --pipeline.model.lpips-weights, or choose "
                "--pipeline.model.lip-patch-loss edges, which needs none."
            )
        return Lpips(lpips_weights)
    raise DialogueError(f"there is no patch loss '{name}'; choose edges or lpips.")
