"""Wav2Lip's audio encoder: 200 ms of mel spectrogram become 512 numbers that say what the lips do.

Conventions. A window is `[80 bands, 16 steps]` of Wav2Lip's mel in [-4, 4], which is four times this package's mel
feature. Windows are centred on the middle of their video frame, like the mel feature's. The encoder's layers carry the
names they have in wav2lip.pth and wav2lip_gan.pth (Prajwal et al., "A Lip Sync Expert Is All You Need", 2020; DFA-NeRF
and DialogueNeRF take their audio code from it), so that those files load as they are.

The weights are for research only and are not brought along: the user gives their path.
"""

from pathlib import Path
from typing import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError

MEL_SCALE = 4.0
"""Wav2Lip's mel over this package's: max_abs_value of its symmetric normalisation."""

CODE_SIZE = 512

PREFIX = "audio_encoder."
"""What the encoder's parameters are called by inside the checkpoint of the whole network."""

LAYERS: tuple[tuple[int, int, int, "int | tuple[int, int]", int], ...] = (
    (1, 32, 3, 1, 1),
    (32, 32, 3, 1, 1),
    (32, 32, 3, 1, 1),
    (32, 64, 3, (3, 1), 1),
    (64, 64, 3, 1, 1),
    (64, 64, 3, 1, 1),
    (64, 128, 3, 3, 1),
    (128, 128, 3, 1, 1),
    (128, 128, 3, 1, 1),
    (128, 256, 3, (3, 2), 1),
    (256, 256, 3, 1, 1),
    (256, 512, 3, 1, 0),
    (512, 512, 1, 1, 0),
)
"""Channels in and out, kernel, stride (bands, steps) and padding of each layer; those of one width with a 3 x 3 kernel
add their input."""


class Wav2LipLayer(nn.Module):
    """Convolution, batch norm, the input added where `residual`, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: "int | tuple[int, int]", padding: int):
        super().__init__()
        self.conv_block = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs))
        self.residual = inputs == outputs and kernel == 3

    def forward(self, features: Float[Tensor, "batch inputs bands steps"]) -> Float[Tensor, "batch outputs b s"]:
        result = self.conv_block(features)
        return torch.relu(result + features if self.residual else result)


class Wav2LipAudioEncoder(nn.Sequential):
    """Mel windows `[batch, 1, 80, 16]` to codes `[batch, 512, 1, 1]`."""

    def __init__(self) -> None:
        super().__init__(*(Wav2LipLayer(*layer) for layer in LAYERS))


def load_wav2lip(path: Path) -> Wav2LipAudioEncoder:
    """The audio encoder of a Wav2Lip checkpoint, ready for inference; no code in the file is run.

    Raises:
        DialogueError: there is no file, it is no checkpoint of weights alone, or not Wav2Lip's.
    """
    path = Path(path)
    if not path.is_file():
        raise DialogueError(f"There is no file {path}: give the path of wav2lip.pth or wav2lip_gan.pth.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip, runtime, EOF and OS errors for what is no checkpoint
        raise DialogueError(
            f"{path} is not a checkpoint of weights alone ({str(error).splitlines()[0]}): give wav2lip.pth or "
            "wav2lip_gan.pth as published."
        ) from error
    states = content.get("state_dict", content) if isinstance(content, dict) else {}
    # Published by several GPUs: every name begins with "module.".
    states = {str(name).removeprefix("module."): value for name, value in states.items()}
    weights = {name.removeprefix(PREFIX): value for name, value in states.items() if name.startswith(PREFIX)}
    encoder = Wav2LipAudioEncoder().eval().requires_grad_(False)
    own = encoder.state_dict()
    wrong = [
        name
        for name, value in own.items()
        if not isinstance(weights.get(name), Tensor) or weights[name].shape != value.shape
    ]
    if wrong or set(weights) - set(own):
        odd = (wrong or sorted(set(weights) - set(own)))[0]
        raise DialogueError(
            f"{path} does not hold Wav2Lip's audio encoder ({PREFIX}{odd} does not fit): give wav2lip.pth or "
            "wav2lip_gan.pth; other sizes of the network have other layers."
        )
    encoder.load_state_dict(weights)
    return encoder


def wav2lip_codes(
    encoder: Wav2LipAudioEncoder,
    mel: Float[np.ndarray, "num_frames 16 80"],
    batch_size: int = 128,
    progress: Callable[[float], None] = lambda _: None,
) -> Float[np.ndarray, "num_frames 512"]:
    """The code of each frame's window of this package's mel feature."""
    codes = np.empty((len(mel), CODE_SIZE), np.float32)
    with torch.no_grad():
        for first in range(0, len(mel), batch_size):
            windows = torch.from_numpy(mel[first : first + batch_size]).transpose(1, 2).unsqueeze(1)
            codes[first : first + batch_size] = encoder(MEL_SCALE * windows).flatten(1).numpy()
            progress(min(first + batch_size, len(mel)) / len(mel))
    return codes
