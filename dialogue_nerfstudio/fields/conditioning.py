"""Conditioning by what is constant over a frame or a ray, multiplied in once and never expanded to samples.

Samples lie frame after frame: `counts[f]` of them belong to frame f of the batch, so `sum(counts)` is their number. A
layer W [x ‖ s_f] with s_f constant over a frame is W_x x + W_s s_f; a gated one is W_x x + Σ_g a_g(x) W_g s_f. Both
are a product of per-sample inputs with a matrix of the frame: `frame_matmul`.
"""

from typing import List, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def frame_matmul(
    inputs: Float[Tensor, "num_samples num_inputs"],
    matrices: Float[Tensor, "num_frames num_inputs width"],
    counts: Sequence[int],
) -> Float[Tensor, "num_samples width"]:
    """Multiplies every sample with its frame's matrix.

    Args:
        inputs: one row a sample, the samples of frame 0 first.
        matrices: one matrix a frame.
        counts: samples of each frame.
    """
    num_frames = matrices.shape[0]
    if num_frames == 1:
        return inputs @ matrices[0]
    if len(set(counts)) == 1:
        return torch.bmm(inputs.view(num_frames, counts[0], inputs.shape[1]), matrices).flatten(0, 1)
    return torch.cat([rows @ matrix for rows, matrix in zip(inputs.split(list(counts)), matrices, strict=True)])


def frequency_encoding(values: Float[Tensor, "*batch dims"], num_frequencies: int) -> Float[Tensor, "*batch encoded"]:
    """γ(p) = (p, sin πp, cos πp, sin 2πp, cos 2πp, …), DialogueNeRF equation 2 with the value itself in front.

    Only the first octave calls sin and cos; the others follow from sin 2a = 2 sin a cos a and cos 2a = 1 − 2 sin² a,
    which over the few octaves used here costs no accuracy (tested to 1e-5).

    Returns:
        [*batch, dims · (1 + 2 · num_frequencies)].
    """
    if num_frequencies == 0:
        return values
    sine, cosine = torch.sin(torch.pi * values), torch.cos(torch.pi * values)
    parts = [values, sine, cosine]
    for _ in range(num_frequencies - 1):
        sine, cosine = 2 * sine * cosine, 1 - 2 * sine * sine
        parts += [sine, cosine]
    return torch.cat(parts, dim=-1)


def frequency_encoding_size(dims: int, num_frequencies: int) -> int:
    """Width of `frequency_encoding`."""
    return dims * (1 + 2 * num_frequencies)


def direction_encoding(directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 8"]:
    """Real spherical harmonics of degree 1 and 2, up to constants, of unit vectors."""
    x, y, z = directions.unbind(-1)
    return torch.stack([x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], dim=-1)


DIRECTION_SIZE = 8
"""Width of `direction_encoding`."""


def hidden_layers(width: int, num_layers: int) -> List[nn.Module]:
    """`num_layers` ReLU layers of `width`, to follow a first layer whose product was computed per frame."""
    layers: List[nn.Module] = [nn.ReLU()]
    for _ in range(num_layers - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return layers


def exponential_density(log_density: Float[Tensor, " num_samples"], scale: float) -> Float[Tensor, " num_samples"]:
    """Density, 1/m, of a raw network output: scale · exp(x), with x clamped where exp would overflow.

    An exponential reaches the several hundred per metre of skin from the few per metre of an untrained field in a
    handful of steps, which a ReLU or softplus does not.
    """
    # Half precision has too few bits for an exponent, and optical depths are summed.
    full = log_density.to(torch.promote_types(log_density.dtype, torch.float32))
    return scale * torch.exp(full.clamp(-12.0, 9.0))
