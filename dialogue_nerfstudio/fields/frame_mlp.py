"""Networks whose first layer is one matrix a frame, layer after layer in torch or in one fused kernel on CUDA.

Convention: as in `fields.conditioning`: samples lie frame after frame, `counts[f]` of them belong to frame f.

A network of a few dozen units is bound by memory: torch writes and reads every layer's activations. The fused kernel
(`fused_mlp_kernel`, after Müller 2021, "fully fused" networks) reads the inputs once and writes the outputs once.
"""

import functools
import importlib
import sys
from typing import Literal, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import is_installed, triton_interprets
from dialogue_nerfstudio.fields.conditioning import frame_matmul

MlpKernelName = Literal["auto", "torch", "triton"]

FUSED_WIDTHS = (16, 32, 64)
"""Widths of hidden layers that the fused kernel takes."""

MOST_INPUTS, MOST_OUTPUTS = 64, 64
"""Wider networks would not fit in the shared memory of every GPU."""

SHARED_MEMORY = 99 * 1024
"""Bytes that a program may use on every GPU since Ampere, and that the largest network nearly fills."""


def can_fuse(hidden: nn.Sequential, num_inputs: int) -> bool:
    """Whether the fused kernel takes this network: ReLU, Linear or ReLU, Linear, ReLU, Linear, of few units."""
    linears = [layer for layer in hidden if isinstance(layer, nn.Linear)]
    pattern = [type(layer) for layer in hidden]
    return (
        pattern in ([nn.ReLU, nn.Linear], [nn.ReLU, nn.Linear, nn.ReLU, nn.Linear])
        and all(linear.bias is not None and linear.in_features == linears[0].in_features for linear in linears)
        and all(linear.out_features == linear.in_features for linear in linears[:-1])
        and linears[0].in_features in FUSED_WIDTHS
        and linears[-1].out_features <= MOST_OUTPUTS
        and num_inputs <= MOST_INPUTS
    )


def resolve_mlp_kernel(name: str, device: torch.device, hidden: nn.Sequential, num_inputs: int) -> str:
    """The kernel that `name` means for a network on `device`: "torch" or "triton".

    auto fuses under autocast only, where products are of half precision anyway: the fused kernel has none in full
    float32, and nobody's results should change by its being installed.

    Raises:
        DialogueError: `name` is no kernel, is not installed, or cannot run there or that network.
    """
    if name == "torch":
        return "torch"
    if name == "auto":
        half = device.type == "cuda" and torch.is_autocast_enabled("cuda")
        fits = half and is_installed("triton") and can_fuse(hidden, num_inputs) and has_room(device)
        return "triton" if fits else "torch"
    if name != "triton":
        raise DialogueError(f'Unknown option mlp_kernel={name}: choose "auto", "torch" or "triton".')
    if not is_installed("triton"):
        raise DialogueError(
            "The option mlp_kernel=triton needs triton, which is not installed: run `pip install triton`, or use "
            "mlp_kernel=auto."
        )
    if device.type != "cuda" and not triton_interprets():
        raise DialogueError(f"The option mlp_kernel=triton needs a CUDA device, not {device}: use mlp_kernel=auto.")
    if device.type == "cuda" and not has_room(device):
        raise DialogueError(
            f"The option mlp_kernel=triton needs {SHARED_MEMORY // 1024} KiB of shared memory a program (Ampere and "
            "newer), which this GPU does not have: use mlp_kernel=auto."
        )
    if not can_fuse(hidden, num_inputs):
        raise DialogueError(
            "The option mlp_kernel=triton takes one or two hidden layers of 16, 32 or 64 units, and up to 64 inputs "
            "and outputs: change the network's size, or use mlp_kernel=auto."
        )
    return "triton"


@functools.cache
def has_room(device: torch.device) -> bool:
    """Whether a CUDA device has the shared memory that the fused kernel needs; Turing and older have not. Taken for
    granted where there is none to ask."""
    if not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= SHARED_MEMORY


@functools.cache
def _announce(requested: str, resolved: str, device_type: str) -> None:
    """Say once per process, on stderr, which kernel runs where torch does not."""
    if resolved != "torch":
        why = "" if requested == resolved else f" ({requested})"
        print(f"networks: fused {resolved} kernel on {device_type}{why}", file=sys.stderr)


def frame_mlp(
    inputs: Float[Tensor, "n num_inputs"],
    matrices: Float[Tensor, "num_frames num_inputs width"],
    counts: Sequence[int],
    hidden: nn.Sequential,
    kernel: MlpKernelName = "auto",
) -> Float[Tensor, "n num_outputs"]:
    """hidden(inputs · the frame's matrix), computed in autocast's type where that is on, else in float32 (torch) or
    TF32 (triton).

    Args:
        inputs: one row a sample, the samples of frame 0 first; a column of ones carries the first layer's bias.
        matrices: the first layer of each frame.
        counts: samples of each frame.
        hidden: what follows, starting with a ReLU.
        kernel: auto fuses on CUDA, under autocast, what can be fused.

    Raises:
        DialogueError: the kernel is absent, or does not fit device or network.
    """
    resolved = resolve_mlp_kernel(kernel, inputs.device, hidden, inputs.shape[1])
    _announce(kernel, resolved, inputs.device.type)
    if resolved == "torch":
        return hidden(frame_matmul(inputs, matrices, counts))
    fused = importlib.import_module("dialogue_nerfstudio.fields.fused_mlp_kernel")
    device_type = inputs.device.type
    mixed = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if mixed else torch.float32
    linears = [layer for layer in hidden if isinstance(layer, nn.Linear)]
    middle = linears[0] if len(linears) == 2 else None
    layers = fused.Layers(
        None if middle is None else middle.weight,
        None if middle is None else middle.bias,
        linears[-1].weight,
        linears[-1].bias,
    )
    return fused.frame_mlp(inputs, matrices, counts, layers, dtype)
