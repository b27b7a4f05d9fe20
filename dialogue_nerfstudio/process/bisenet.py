"""BiSeNet for faces: the network behind the peers' parsing, loaded from the weights file that they use.

Conventions. Bilateral segmentation network (Yu et al. 2018, section 3: attention refinement, figure 2c, and feature
fusion, figure 2b) on a ResNet-18 whose own stages stand in for the spatial path. Features `[B, C, H, W]`; a number in
a name is the stride. Modules are named as the parameters of face-parsing.PyTorch's 79999_iter.pth: 19 classes of
CelebAMask-HQ. The two auxiliary heads are loaded, so that the file fits, and never run.
"""

from pathlib import Path
from typing import Dict, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dialogue_nerfstudio.conversation.errors import DialogueError

NUM_CLASSES = 19
"""0 background, 1 skin, 2-3 brows, 4-5 eyes, 6 glasses, 7-8 ears, 9 ear ring, 10 nose, 11 mouth, 12-13 lips, 14 neck,
15 necklace, 16 cloth, 17 hair, 18 hat."""


class ConvolutionBlock(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(features)))


class AttentionRefinement(nn.Module):
    """Weighs channels by what the whole picture holds (figure 2c)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = ConvolutionBlock(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        refined = self.conv(features)
        weight = self.bn_atten(self.conv_atten(refined.mean((2, 3), keepdim=True)))
        return refined * torch.sigmoid(weight)


class FeatureFusion(nn.Module):
    """Joins fine and wide features (figure 2b)."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.convblk = ConvolutionBlock(channels, channels, kernel=1)
        self.conv1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, fine: Tensor, wide: Tensor) -> Tensor:
        joined = self.convblk(torch.cat([fine, wide], dim=1))
        weight = self.conv2(functional.relu(self.conv1(joined.mean((2, 3), keepdim=True))))
        return joined + joined * torch.sigmoid(weight)


class Stages(nn.Module):
    """ResNet-18 without its classifier; returns features at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        whole = resnet18(weights=None)
        self.conv1, self.bn1, self.maxpool = whole.conv1, whole.bn1, whole.maxpool
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.layer3, self.layer4 = whole.layer3, whole.layer4

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        first = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        eight = self.layer2(self.layer1(first))
        sixteen = self.layer3(eight)
        return eight, sixteen, self.layer4(sixteen)


class ContextPath(nn.Module):
    """Fine features at stride 8, and wide ones brought down to it."""

    def __init__(self, channels: int = 128):
        super().__init__()
        self.resnet = Stages()
        self.arm16 = AttentionRefinement(256, channels)
        self.arm32 = AttentionRefinement(512, channels)
        self.conv_head32 = ConvolutionBlock(channels, channels)
        self.conv_head16 = ConvolutionBlock(channels, channels)
        self.conv_avg = ConvolutionBlock(512, channels, kernel=1)

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor]:
        eight, sixteen, thirtytwo = self.resnet(images)
        everywhere = self.conv_avg(thirtytwo.mean((2, 3), keepdim=True))
        wide = self.conv_head32(_enlarged(self.arm32(thirtytwo) + everywhere, sixteen))
        wide = self.conv_head16(_enlarged(self.arm16(sixteen) + wide, eight))
        return eight, wide


def _enlarged(features: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(features, like.shape[2:], mode="nearest")


class ClassHead(nn.Module):
    """Features to a score of each class."""

    def __init__(self, inputs: int, hidden: int, num_classes: int):
        super().__init__()
        self.conv = ConvolutionBlock(inputs, hidden)
        self.conv_out = nn.Conv2d(hidden, num_classes, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv_out(self.conv(features))


class BiSeNet(nn.Module):
    """Scores of NUM_CLASSES classes at the size of the pictures, whose sides are multiples of 32.

    Pictures are RGB, 0 … 1, normalised by ImageNet's mean and deviation, 512² as the published weights know them.
    """

    def __init__(self, num_classes: int = NUM_CLASSES):
        super().__init__()
        self.cp = ContextPath()
        self.ffm = FeatureFusion(256)
        self.conv_out = ClassHead(256, 256, num_classes)
        self.conv_out16 = ClassHead(128, 64, num_classes)
        self.conv_out32 = ClassHead(128, 64, num_classes)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        scores = self.conv_out(self.ffm(*self.cp(images)))
        return functional.interpolate(scores, images.shape[2:], mode="bilinear", align_corners=True)


def load_bisenet(path: Path) -> BiSeNet:
    """The network with the weights of a file, ready to run; nothing in the file is executed.

    Raises:
        DialogueError: the file is missing or damaged, holds more than tensors, or is of another network.
    """
    if not Path(path).is_file():
        raise DialogueError(f"There is no file {path}: give the path of BiSeNet's face-parsing weights.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip, runtime, EOF and OS errors for damaged files
        raise DialogueError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}): give BiSeNet's face-parsing weights as "
            "torch.save wrote them (79999_iter.pth)."
        ) from error
    network = BiSeNet()
    problem = _mismatch(content, network.state_dict())
    if problem:
        raise DialogueError(
            f"{path} is not a face-parsing BiSeNet of {NUM_CLASSES} classes: {problem}. Give the weights that the "
            "AD-NeRF family uses (79999_iter.pth)."
        )
    network.load_state_dict(content)
    return network.eval().requires_grad_(False)


def _mismatch(content: object, wanted: Dict[str, Tensor]) -> str:
    """What keeps a file's content from being the wanted state; empty where it fits."""
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        return "it is not a dictionary of tensors"
    missing, strange = wanted.keys() - content.keys(), content.keys() - wanted.keys()
    if missing or strange:
        missed = f"{len(missing)} parameters are missing (first {min(missing)})" if missing else ""
        unknown = f"{len(strange)} are unknown (first {min(strange)})" if strange else ""
        return " and ".join(filter(None, [missed, unknown]))
    for name, value in wanted.items():
        if content[name].shape != value.shape:
            return f"{name} has the shape {tuple(content[name].shape)}, not {tuple(value.shape)}"
    return ""
