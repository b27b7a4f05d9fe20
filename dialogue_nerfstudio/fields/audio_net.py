"""Audio net: a frame's audio feature becomes an audio code, smoothed by attention over neighbouring frames.

Conventions: one row of the feature belongs to each frame, centred on it. A row is a mel window of 200 ms, [16 steps, 80
mels], or any other array of numbers (what a speech network said, prosody). The encoder of mel windows has the shape of
Wav2Lip's audio encoder (3×3 convolutions with residual blocks, strides 3·3·3 over mels and 1·3·2 over time), any width;
other rows are what such an encoder leaves, so two layers follow.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import List, Optional

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


class RowEncoder(nn.Module):
    """A row of numbers of any shape to one code: standardised as training's frames were, then two layers."""

    def __init__(self, config: AudioNetConfig, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.layers = nn.Sequential(
            nn.Linear(size, 8 * config.base_width), nn.ReLU(), nn.Linear(8 * config.base_width, config.code_size)
        )

    def fit(self, rows: Float[Tensor, "num_rows ..."]) -> None:
        """Takes mean and spread of training's rows; numbers that never change there stay as they are."""
        rows = rows.flatten(1).float()
        spread = rows.std(dim=0, unbiased=False)
        self.mean.copy_(rows.mean(dim=0))
        self.scale.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, rows: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch code"]:
        return self.layers((rows.flatten(1) - self.mean) / self.scale)


def feature_encoder(config: AudioNetConfig, shape: torch.Size) -> nn.Module:
    """The encoder of a feature whose rows have that shape."""
    return AudioEncoder(config) if tuple(shape) == (MEL_STEPS, MEL_BINS) else RowEncoder(config, max(1, shape.numel()))


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
    """Audio codes of chosen frames; every row that several of them share is encoded once.

    Args:
        config: sizes.
        silence: the row of the audio feature where nothing sounds, which also says what rows look like; None for mel
            windows.
    """

    def __init__(self, config: AudioNetConfig, silence: Optional[Float[Tensor, "..."]] = None):
        super().__init__()
        self.config = config
        silence = torch.full((MEL_STEPS, MEL_BINS), SILENCE) if silence is None else silence
        self.register_buffer("silence", silence.float(), persistent=False)
        self.encoder = feature_encoder(config, silence.shape)
        self.smoothing = SmoothingAttention(config.code_size)

    def fit(self, rows: Float[Tensor, "num_rows ..."]) -> None:
        """Takes from training's rows what the encoder standardises them by; mel windows need none of it."""
        for module in self.modules():
            if isinstance(module, RowEncoder):
                module.fit(rows)

    def forward(
        self,
        audio: Float[Tensor, "num_all ..."],
        frames: Int[Tensor, " num_frames"],
        audible: Bool[Tensor, " num_frames"],
    ) -> Float[Tensor, "num_frames code"]:
        """Codes of `frames`.

        Args:
            audio: the audio feature's rows of the whole timeline.
            frames: frame numbers; before the first and after the last frame it is silent.
            audible: where this is false, silence is heard in place of the timeline.
        """
        offsets = torch.arange(SMOOTHING_WINDOW, device=frames.device) - SMOOTHING_WINDOW // 2
        neighbours = frames.unsqueeze(1) + offsets
        inside = (neighbours >= 0) & (neighbours < audio.shape[0])
        heard = torch.where(inside & audible.unsqueeze(1), neighbours, -1)
        distinct, index = torch.unique(heard, return_inverse=True)
        rows = audio[distinct.clamp_min(0)]
        silent = (distinct < 0).view(-1, *[1] * self.silence.dim())
        rows = torch.where(silent, self.silence.to(rows.dtype), rows)
        return self.smoothing(self.encoder(rows)[index])
