"""HuBERT and wav2vec 2.0 through the transformers library: what is said, a row of hidden states per video frame.

Conventions. The networks hear 16 kHz sound and give a state every 320 samples; state k comes from 400 samples around
its centre, 320 k + 200. A video frame's row is the mean of the states whose centres lie in it: two at 25 frames a
second. Long sound is heard in blocks of `BLOCK_SECONDS` with `CONTEXT_SECONDS` of sound before and after, so that
memory does not grow with its length (attention would, with its square).
"""

from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from jaxtyping import Float

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE

STATE_HOP, STATE_REACH = 320, 400
BLOCK_SECONDS, CONTEXT_SECONDS = 20.0, 1.0

PUBLISHED = {"hubert": "facebook/hubert-large-ls960-ft", "wav2vec2": "facebook/wav2vec2-base-960h"}
"""What is downloaded where no path is given: HuBERT as the audio features of ER-NeRF and its followers, wav2vec 2.0
with the 768 numbers of Talking Together."""


def load_speech_model(kind: str, weights: str | None) -> tuple[Any, bool]:
    """The network, ready for inference, and whether it wants sound of zero mean and unit variance.

    Args:
        kind: "hubert" or "wav2vec2".
        weights: a folder in transformers' format (config.json, model.safetensors or pytorch_model.bin), or a name on
            the Hugging Face hub; None for the published one.

    Raises:
        DialogueError: transformers is not installed, or there is no such model, or it is another kind.
    """
    try:
        from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
        from transformers.utils import logging
    except ImportError as error:
        raise DialogueError(
            f"The audio feature '{kind}' needs the transformers library: pip install 'dialogue-nerfstudio[speech]', or "
            "pip install transformers."
        ) from error
    logging.set_verbosity_error()
    source = weights or PUBLISHED[kind]
    local = Path(source).is_dir()
    if not local and Path(source).exists():
        raise DialogueError(f"{source} is a file: give the folder that holds config.json and the model's weights.")
    # A path that is not there must not be looked up on the hub.
    if not local and (Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1):
        raise DialogueError(f"There is no folder {source}: give the folder of a {kind} model in transformers' format.")
    # Without one the library guesses the kind of model from the folder's name.
    if local and not (Path(source) / "config.json").is_file():
        raise DialogueError(
            f"{source} holds no config.json: give the folder of a {kind} model in transformers' format (config.json "
            "and model.safetensors or pytorch_model.bin)."
        )
    options = {"local_files_only": local, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type != kind:
            raise DialogueError(
                f"{source} is a model of the kind '{config.model_type}', not '{kind}': give another folder, or ask for "
                f"'{config.model_type}'."
            )
        model = AutoModel.from_pretrained(source, config=config, dtype=torch.float32, **options)
    except DialogueError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        way = (
            "it must hold config.json and model.safetensors or pytorch_model.bin"
            if local
            else "without a connection to huggingface.co, give the folder of a downloaded model with --weights"
        )
        raise DialogueError(f"The {kind} model {source} cannot be loaded ({reason}): {way}.") from error
    hop, reach = _hop_and_reach(config)
    if (hop, reach) != (STATE_HOP, STATE_REACH):
        raise DialogueError(f"{source} gives a state every {hop} samples; {kind} as published every {STATE_HOP}.")
    try:
        normalises = Wav2Vec2FeatureExtractor.from_pretrained(source, local_files_only=local).do_normalize
    except OSError:
        # Without preprocessor_config.json: as the library itself would do.
        normalises = Wav2Vec2FeatureExtractor().do_normalize
    return model.eval().requires_grad_(False), bool(normalises)


def _hop_and_reach(config: Any) -> tuple[int, int]:
    """Samples between two states, and behind one, of the convolutions in front."""
    hop, reach = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        reach += (kernel - 1) * hop
        hop *= stride
    return hop, reach


def speech_states(
    model: Any,
    normalises: bool,
    audio: Float[np.ndarray, " num_samples"],
    num_frames: int,
    fps: float,
    progress: Callable[[float], None] = lambda _: None,
) -> Float[np.ndarray, "num_frames width"]:
    """The mean of the last layer's states in each frame, of 16 kHz sound; silence follows sound that ends early."""
    length = round(num_frames / fps * SAMPLE_RATE)
    audio = np.asarray(audio[:length], np.float32)
    if normalises and len(audio):
        audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    num_states = max(1, (length - STATE_HOP // 2) // STATE_HOP + 1)
    frame_of = np.floor((STATE_HOP * np.arange(num_states) + STATE_REACH / 2) / SAMPLE_RATE * fps).astype(int)
    frame_of = np.minimum(frame_of, num_frames - 1)
    sums = np.zeros((num_frames, model.config.hidden_size), np.float64)
    block, context = (round(seconds * SAMPLE_RATE / STATE_HOP) for seconds in (BLOCK_SECONDS, CONTEXT_SECONDS))
    with torch.no_grad():
        for first in range(0, num_states, block):
            last = min(first + block, num_states)
            begin, end = max(first - context, 0), min(last + context, num_states)
            heard = audio[begin * STATE_HOP : (end - 1) * STATE_HOP + STATE_REACH]
            heard = np.pad(heard, (0, (end - 1 - begin) * STATE_HOP + STATE_REACH - len(heard)))
            states = model(torch.from_numpy(heard)[None]).last_hidden_state[0].numpy()
            np.add.at(sums, frame_of[first:last], states[first - begin : last - begin])
            progress(last / num_states)
    counts = np.bincount(frame_of, minlength=num_frames)
    # At more than 50 frames a second some frames have no state of their own: they take the last one's.
    filled = np.maximum.accumulate(np.where(counts > 0, np.arange(num_frames), 0))
    return (sums / np.maximum(counts, 1)[:, None])[filled].astype(np.float32)
