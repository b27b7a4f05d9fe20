"""Audio net: a mel window of 200 ms becomes an audio code, smoothed by attention over neighbouring frames.

Conventions: a window is [16 steps, 80 mels]; one belongs to each frame, centred on it. The encoder has the shape of
Wav2Lip's audio encoder (3×3 convolutions with residual blocks, strides 3·3·3 over mels and 1·3·2 over time), any width.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import List

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

SMOOTHING_WINDOW = 8
"""Frames [t − 4, t + 4) that smoothing attention looks at (AD-NeRF)."""

MEL_STEPS, MEL_BINS = 16, 80
"""Shape of one frame's mel window."""

SILENCE = -1.0
"""A mel value where nothing sounds."""


@dataclass
class AudioNetConfig:
    """The audio net's size; Wav2Lip's own encoder has base_width 32 and two residual blocks a stage."""

    base_width: int = 8
    """Channels of the first stage, doubled at each of the three that follow."""
    residual_blocks: int = 1
    """Residual blocks a stage."""
    code_size: int = 32
    """Width of the audio code."""


class ResidualConv(nn.Module):
    """3×3 convolution, group norm, plus the input, ReLU.

    Group norm where Wav2Lip has batch norm: a training step sees windows of very few frames, and its statistics would
    leak from one frame to another.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, channels)

    def forward(
        self, features: Float[Tensor, "batch channels mels steps"]
    ) -> Float[Tensor, "batch channels mels steps"]:
        return F.relu(self.norm(self.conv(features)) + features)


def _stage(inputs: int, outputs: int, stride: "tuple[int, int]", residual_blocks: int) -> List[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(1, outputs),
        nn.ReLU(),
        *(ResidualConv(outputs) for _ in range(residual_blocks)),
    ]


class AudioEncoder(nn.Module):
    """One mel window to one code."""

    def __init__(self, config: AudioNetConfig):
        super().__init__()
        width, blocks = config.base_width, config.residual_blocks
        self.stages = nn.Sequential(
            # [80, 16] → [27, 8] at once: the full resolution costs more than all that follows and carries formants
            # no finer than the stride.
            *_stage(1, width, (3, 2), blocks),
            *_stage(width, 2 * width, (3, 2), blocks),
            *_stage(2 * width, 4 * width, (3, 2), blocks),
        )
        self.output = nn.Sequential(
            nn.Conv2d(4 * width, 8 * width, (3, 2)), nn.ReLU(), nn.Conv2d(8 * width, config.code_size, 1)
        )

    def forward(self, windows: Float[Tensor, "batch 16 80"]) -> Float[Tensor, "batch code"]:
        return self.output(self.stages(windows.transpose(1, 2).unsqueeze(1))).flatten(1)


class SmoothingAttention(nn.Module):
    """Weights a frame's neighbours and sums their codes: AD-NeRF's self-attention filter over eight frames."""

    def __init__(self, code_size: int):
        super().__init__()
        channels = [code_size, 16, 8, 4, 2, 1]
        layers: List[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv1d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.02)]
        self.convolutions = nn.Sequential(*layers)
        self.weights = nn.Linear(SMOOTHING_WINDOW, SMOOTHING_WINDOW)

    def forward(self, codes: Float[Tensor, "batch 8 code"]) -> Float[Tensor, "batch code"]:
        scores = self.weights(self.convolutions(codes.transpose(1, 2)).squeeze(1))
        return (torch.softmax(scores, dim=-1).unsqueeze(-1) * codes).sum(dim=1)


class AudioNet(nn.Module):
    """Audio codes of chosen frames; every window that several of them share is encoded once."""

    def __init__(self, config: AudioNetConfig):
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config)
        self.smoothing = SmoothingAttention(config.code_size)

    def forward(
        self,
        mel: Float[Tensor, "num_all 16 80"],
        frames: Int[Tensor, " num_frames"],
        audible: Bool[Tensor, " num_frames"],
    ) -> Float[Tensor, "num_frames code"]:
        """Codes of `frames`.

        Args:
            mel: the windows of the whole timeline.
            frames: frame numbers; before the first and after the last frame it is silent.
            audible: where this is false, silence is heard in place of the timeline.
        """
        offsets = torch.arange(SMOOTHING_WINDOW, device=frames.device) - SMOOTHING_WINDOW // 2
        neighbours = frames.unsqueeze(1) + offsets
        inside = (neighbours >= 0) & (neighbours < mel.shape[0])
        heard = torch.where(inside & audible.unsqueeze(1), neighbours, -1)
        distinct, index = torch.unique(heard, return_inverse=True)
        windows = mel[distinct.clamp_min(0)]
        windows = torch.where((distinct < 0)[:, None, None], torch.full_like(windows, SILENCE), windows)
        return self.smoothing(self.encoder(windows)[index])
