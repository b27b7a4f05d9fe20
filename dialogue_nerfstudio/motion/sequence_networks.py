"""Networks over sequences of tokens that the VAEs are built of: an MLP, an LSTM or a Transformer, one interface.

Conventions. Sequences are `[B, N, channels]`, N tokens evenly spaced in time. `positions` are the tokens' times, in
tokens: two tokens of one time (sound and pose of one moment) have one position.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

SequenceKind = Literal["transformer", "lstm", "mlp"]

MLP_TOKEN_CHANNELS = 8
"""To what the MLP narrows a token before it looks at all of them at once."""


class SequenceNetwork(nn.Module):
    """Every output token may depend on every input token.

    Args:
        kind: `transformer`: full attention (DFA-NeRF Fig. 4); `lstm`: both directions; `mlp`: the whole window as one
            vector, to which time is nothing special.
        inputs, outputs: channels of a token.
        width: of the layers.
        layers: how many.
        num_tokens: N, which the MLP is built for; the others take any.
    """

    def __init__(self, kind: SequenceKind, inputs: int, outputs: int, width: int, layers: int, num_tokens: int):
        super().__init__()
        self.kind, self.width, self.outputs = kind, width, outputs
        # What a token says of its own moment is found within few steps by a linear path around everything.
        self.skip = nn.Linear(inputs, outputs)
        if kind == "mlp":
            size = num_tokens * MLP_TOKEN_CHANNELS
            self.input_layer = nn.Linear(inputs, MLP_TOKEN_CHANNELS)
            hidden: list[nn.Module] = []
            for layer in range(layers):
                hidden += [nn.Linear(size if layer == 0 else 4 * width, 4 * width), nn.GELU()]
            self.body = nn.Sequential(*hidden)
            self.output_layer = nn.Linear(4 * width, num_tokens * outputs)
        elif kind == "lstm":
            self.input_layer = nn.Linear(inputs, width)
            self.body = nn.LSTM(width, width // 2, layers, batch_first=True, bidirectional=True)
            self.output_layer = nn.Linear(width, outputs)
        else:
            self.input_layer = nn.Linear(inputs, width)
            layer = nn.TransformerEncoderLayer(
                width,
                nhead=4,
                dim_feedforward=2 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
            self.output_layer = nn.Linear(width, outputs)

    def forward(
        self, tokens: Float[Tensor, "B N inputs"], positions: Float[Tensor, " N"]
    ) -> Float[Tensor, "B N outputs"]:
        """The network on a batch of sequences."""
        hidden = self.input_layer(tokens)
        if self.kind == "mlp":
            found = self.output_layer(self.body(hidden.flatten(1))).unflatten(1, (tokens.shape[1], self.outputs))
        elif self.kind == "lstm":
            found = self.output_layer(self.body(hidden)[0])
        else:
            found = self.output_layer(self.body(hidden + sinusoids(positions, self.width)))
        return self.skip(tokens) + found


def sinusoids(positions: Float[Tensor, " N"], width: int) -> Float[Tensor, "N width"]:
    """sin and cos of positions at width / 2 frequencies, 1 to 1 / 1,000 (Vaswani 2017, with fewer, nearer ones)."""
    half = width // 2
    frequencies = torch.exp(-math.log(1000.0) / (half - 1) * torch.arange(half, device=positions.device))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def smooth_pieces(num_frames: int, token: int, terms: int = 3) -> Float[Tensor, "T N terms"]:
    """How tokens become frames: each adds a polynomial of time over its neighbourhood, faded into its neighbours'.

    frame t = Σ_n Σ_k S[t, n, k] c[n, k],   S[t, n, k] = w(u) u^k / Σ_n w(u),   w(u) = cos²(π u / 2), |u| < 1,

    u the time from the middle of token n in tokens. Motion made of pieces so short that each were a vector of frames
    would tremble at the joins; these are smooth whatever the coefficients.
    """
    middles = torch.arange(num_frames // token) * token + (token - 1) / 2.0
    offsets = (torch.arange(num_frames)[:, None] - middles) / token
    weights = torch.where(offsets.abs() < 1.0, torch.cos(0.5 * torch.pi * offsets).square(), torch.zeros(()))
    weights = weights / weights.sum(1, keepdim=True)
    return weights[..., None] * offsets[..., None] ** torch.arange(terms)
