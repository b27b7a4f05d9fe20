"""Temporal convolutional network (Bai et al. 2018): residual blocks of dilated causal convolutions, whole sequences at
once or block by block with the same result.

Conventions. Sequences are [B, C, T] as in torch.nn.Conv1d. A *memory* is what a causal layer keeps of its past input,
[B, C, reach]; a network's memories are a list, one a layer, and all zero before anything was heard.
"""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

_SHORT = 16
"""Frames up to which a convolution is a product of matrices."""

Memories = List[Float[Tensor, "B _ _"]]


@dataclass
class TcnConfig:
    """Sizes of a TCN."""

    channels: int = 32
    """Channels of every hidden layer."""
    levels: int = 5
    """Residual blocks; the convolutions of block i are dilated by 2^i."""
    kernel: int = 3
    """Taps of a convolution."""
    weight_norm: bool = False
    """Whether convolutions are weight-normalised, as Bai et al. do."""
    dropout: float = 0.0
    """Share of the channels dropped after every convolution, a whole channel at a time (Bai et al., section 3.4)."""

    @property
    def receptive_field(self) -> int:
        """Frames, the present one included, that an output depends on: 1 + 2 (k − 1) (2^L − 1)."""
        return 1 + 2 * (self.kernel - 1) * (2**self.levels - 1)


class CausalConv(nn.Module):
    """A dilated convolution that sees nothing of the future."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, normalised: bool = False):
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)
        if normalised:
            weight_norm(self.conv)

    def forward(
        self, x: Float[Tensor, "B C T"], memory: Optional[Float[Tensor, "B C reach"]] = None
    ) -> Tuple[Float[Tensor, "B D T"], Float[Tensor, "B C reach"]]:
        """The convolution over the past input and the present one, and what to remember."""
        if memory is None:
            memory = x.new_zeros(*x.shape[:2], self.reach)
        heard = torch.cat([memory, x], dim=-1)
        short = x.shape[-1] <= _SHORT and not torch.is_grad_enabled()
        return self._product(heard) if short else self.conv(heard), heard[..., heard.shape[-1] - self.reach :]

    def _product(self, heard: Float[Tensor, "B C longer"]) -> Float[Tensor, "B D T"]:
        """The convolution as one product of matrices: of a few frames, calling a convolution takes most of its time."""
        weight, dilation = self.conv.weight, self.conv.dilation[0]
        length = heard.shape[-1] - self.reach
        taps = [heard[..., tap * dilation : tap * dilation + length] for tap in range(weight.shape[2])]
        return torch.matmul(weight.transpose(1, 2).flatten(1), torch.cat(taps, dim=1)) + self.conv.bias[:, None]


class ResidualBlock(nn.Module):
    """ReLU(x + F(x)), F twice convolution, ReLU, dropout (Bai et al. 2018, figure 1b)."""

    def __init__(self, config: TcnConfig, dilation: int):
        super().__init__()
        convolution = (config.channels, config.channels, config.kernel, dilation, config.weight_norm)
        self.first, self.second = CausalConv(*convolution), CausalConv(*convolution)
        self.dropout = nn.Dropout1d(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B C T"],
        modulation: Float[Tensor, "B 2 C 1"],
        memories: Optional[Memories] = None,
    ) -> Tuple[Float[Tensor, "B C T"], Memories]:
        """
        Args:
            x: the input.
            modulation: (scale − 1, shift) before the first ReLU: the condition that holds for the whole sequence
                (FiLM, Perez et al. 2018).
            memories: of both convolutions.
        """
        before = memories or [None, None]
        hidden, first = self.first(x, before[0])
        hidden = self._dropped(torch.relu(hidden * (1.0 + modulation[:, 0]) + modulation[:, 1]))
        hidden, second = self.second(hidden, before[1])
        hidden = self._dropped(torch.relu(hidden))
        return torch.relu(x + hidden), [first, second]

    def _dropped(self, hidden: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        # In generation, blocks of five frames, doing nothing would take as long as a convolution.
        return self.dropout(hidden) if self.training else hidden


class Tcn(nn.Module):
    """Residual blocks whose dilation doubles, under a condition that is constant over a sequence.

    Args:
        config: sizes.
        inputs: channels in.
        outputs: channels out; zero at first.
        condition: size of the condition.
    """

    def __init__(self, config: TcnConfig, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.config = config
        self.enter = nn.Conv1d(inputs, config.channels, 1)
        self.condition = nn.Linear(condition, 2 * config.channels * config.levels)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)
        self.blocks = nn.ModuleList(ResidualBlock(config, 2**level) for level in range(config.levels))
        self.leave = nn.Conv1d(config.channels, outputs, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        x: Float[Tensor, "B C T"],
        condition: Float[Tensor, "B K"],
        memories: Optional[Memories] = None,
    ) -> Tuple[Float[Tensor, "B D T"], Memories]:
        """The output of these frames, and the memories with which the next frames are to be heard."""
        modulations = self.condition(condition).unflatten(-1, (self.config.levels, 2, -1)).unsqueeze(-1)
        hidden, kept = self.enter(x), []
        for level, block in enumerate(self.blocks):
            own = None if memories is None else memories[2 * level : 2 * level + 2]
            hidden, memory = block(hidden, modulations[:, level], own)
            kept += memory
        return self.leave(hidden), kept
