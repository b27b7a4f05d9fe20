"""The audio encoder E_a of DFA-NeRF 3.3: 200 ms of mel spectrogram become a code that says what the lips do; its files.

Conventions. A window `[n, 16, 80]` is 16 steps of 80 mel bands in [−1, 1], −1 silence, centred on its frame
(`signals.mel_windows`); a code is `[n, code]`, of length one. Sizes are read off the weights' shapes, so that any file
of an encoder's weights is enough to build it: the `.safetensors` that `save_audio_encoder` writes, a checkpoint of a
lip-sync run, or the run's `config.yml`, whose newest checkpoint is taken. No code in any of them is run.
"""

from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path
from dialogue_nerfstudio.motion.signals import MEL_STEPS

MEL_BANDS = 80

LOST_STEPS = 6
"""Steps fewer after three convolutions over three steps."""

FORMAT = "dialogue-nerfstudio audio encoder 1"
"""What a .safetensors file of ours says it is."""

PREFIX = "audio_encoder."
"""What the encoder's weights are called by inside a lip-sync model."""


class _StepLayer(nn.Module):
    """A convolution over three steps, without padding, normalised step by step over channels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, features: Float[Tensor, "n inputs steps"]) -> Float[Tensor, "n outputs fewer"]:
        result = self.norm(self.conv(features).transpose(1, 2)).transpose(1, 2)
        return torch.relu(result)


class AudioEncoder(nn.Module):
    """Three convolutions over time that see all bands, then one code a window.

    Unlike a renderer's own audio net this one has to tell a window from itself 40 ms later, so that time is kept to the
    last layer. Nothing before that layer knows where a window begins: a track's steps are gone through once, however
    many windows share them.

    Args:
        width: channels.
        code_size: numbers of a code.
    """

    def __init__(self, width: int, code_size: int):
        super().__init__()
        self.first = _StepLayer(MEL_BANDS, width)
        self.others = nn.ModuleList(_StepLayer(width, width) for _ in range(2))
        self.hidden = nn.Linear(width * (MEL_STEPS - LOST_STEPS), 2 * width)
        self.code = nn.Linear(2 * width, code_size)

    @property
    def code_size(self) -> int:
        """Numbers of a code."""
        return self.code.out_features

    def forward(self, windows: Float[Tensor, "n 16 80"]) -> Float[Tensor, "n code"]:
        """f_a = E_a(a), of length one."""
        return self._codes(self._steps(windows))

    def along(self, mel: Float[Tensor, "n steps 80"], first: Int[Tensor, " frames"]) -> Float[Tensor, "n frames code"]:
        """Codes of the windows that begin at the steps `first`: what `forward` gives for each of them cut out."""
        steps = first[:, None] + torch.arange(MEL_STEPS - LOST_STEPS, device=first.device)
        windows = self._steps(mel)[:, steps]
        return self._codes(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])

    def _steps(self, mel: Float[Tensor, "n steps 80"]) -> Float[Tensor, "n fewer width"]:
        features = self.first(mel.transpose(1, 2))
        for layer in self.others:
            features = features[..., 1:-1] + layer(features)
        return features.transpose(1, 2)

    def _codes(self, features: Float[Tensor, "n 10 width"]) -> Float[Tensor, "n code"]:
        return F.normalize(self.code(torch.relu(self.hidden(features.flatten(1)))), dim=-1)


@torch.no_grad()
def audio_codes(
    encoder: AudioEncoder,
    windows: Float32[np.ndarray, "n 16 80"],
    batch_size: int = 512,
    progress: Callable[[float], None] = lambda _: None,
) -> Float32[np.ndarray, "n code"]:
    """The code of each window, one batch after the other."""
    codes = np.empty((len(windows), encoder.code_size), np.float32)
    for first in range(0, len(windows), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(windows[first : first + batch_size]))
        codes[first : first + batch_size] = encoder(batch).numpy()
        progress(min(first + batch_size, len(windows)) / len(windows))
    return codes


def save_audio_encoder(path: Path, encoder: AudioEncoder) -> None:
    """Writes the encoder alone as .safetensors, atomically.

    Raises:
        DialogueError: the disk is full, or the name is another kind of file's.
    """
    from safetensors.torch import save_file

    if Path(path).suffix != ".safetensors":
        raise DialogueError(f"{path}: an audio encoder is kept as .safetensors; change the name.")
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    with atomic_path(Path(path)) as temporary:
        save_file(weights, temporary, metadata={"format": FORMAT})


def load_audio_encoder(path: Path) -> AudioEncoder:
    """The encoder in a .safetensors file, a checkpoint, or the newest checkpoint of a config.yml's run, ready to hear.

    Raises:
        DialogueError: there is no such file, it cannot be read, or holds no such encoder.
    """
    path = Path(path)
    if not path.is_file():
        raise DialogueError(
            f"There is no file {path}: give the config.yml or checkpoint of a run of `ns-train dialogue-lip-sync`, "
            "or the .safetensors file made of one."
        )
    weights = _encoder_weights(path)
    try:
        encoder = AudioEncoder(len(weights["first.conv.weight"]), len(weights["code.weight"]))
        encoder.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise DialogueError(
            f"{path} does not hold the audio encoder of a lip-sync model ({reason}): give the config.yml, checkpoint "
            "or .safetensors file of a run of `ns-train dialogue-lip-sync`."
        ) from error
    return encoder.eval().requires_grad_(False)


def newest_checkpoint(config_path: Path) -> Path:
    """The newest checkpoint of the run whose config.yml this is.

    Raises:
        DialogueError: there is none beside it.
    """
    found: List[Path] = list((Path(config_path).parent / "nerfstudio_models").glob("step-*.ckpt"))
    if not found:
        raise DialogueError(f"{config_path} has no checkpoint beside it, in nerfstudio_models: train first.")
    return max(found)


def _encoder_weights(path: Path) -> Dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    path = newest_checkpoint(path) if path.suffix in (".yml", ".yaml") else path
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip, runtime, EOF and OS errors for what is no checkpoint
        raise DialogueError(
            f"{path} is not a checkpoint of weights alone ({str(error).splitlines()[0]}): give that of a run of "
            "`ns-train dialogue-lip-sync`."
        ) from error
    state = content.get("pipeline", content) if isinstance(content, dict) else {}
    names = [str(name) for name in state if f".{PREFIX}" in f".{name}"]
    return {name[f".{name}".index(f".{PREFIX}") + len(PREFIX) :]: state[name] for name in names}


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise DialogueError(
                    f"{path} is a .safetensors file, but not of an audio encoder: make one of a run of `ns-train "
                    "dialogue-lip-sync` with `ns-dialogue features … --save-weights`."
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise DialogueError(f"{path} cannot be read as .safetensors ({error}): make it again.") from error
