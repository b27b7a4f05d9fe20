"""Audio features by name: how each is made, what file it leaves in a conversation, and how new sound gets the same.

Conventions. A feature is `features/<kind>.npz`: `features` float32 `[T, ...]`, one row a video frame; `silence`
`[...]`, the row of digital silence, which stands wherever nothing is to be heard; `origin`, JSON that says what made
it, so that new sound can be heard by the same network.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import numpy as np
from jaxtyping import Float, Float32

from dialogue_nerfstudio.conversation.acoustics import at_16k, exactly, mel_features, mfcc_features, prosody_features
from dialogue_nerfstudio.conversation.conversation import Conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_npz, write_npz

FEATURE_KINDS = ("mel", "mfcc", "prosody", "wav2lip", "contrastive", "hubert", "wav2vec2")
"""Every audio feature that can be made."""

DEFAULT_KINDS = ("mel", "prosody")
"""What every conversation has: mel is what avatars hear by default."""

WEIGHTED_KINDS = ("wav2lip", "contrastive", "hubert", "wav2vec2")
"""Those made by a network whose weights the user brings."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class FeatureOrigin:
    """What made a feature."""

    kind: str
    weights: Optional[str] = None
    """File, folder or hub name of the network; None where there is none."""
    fingerprint: Optional[str] = None
    """Tells one network's weights from another's."""


@dataclass
class Feature:
    """One feature of a stretch of sound."""

    rows: Float32[np.ndarray, "num_frames ..."]
    silence: Float32[np.ndarray, "..."]
    origin: FeatureOrigin


class FeatureExtractor:
    """Makes one kind of feature; its network is loaded once.

    Raises:
        DialogueError: there is no such kind, or its weights are missing or not what they should be.
    """

    def __init__(self, kind: str, weights: Optional[str] = None):
        if kind not in FEATURE_KINDS:
            raise DialogueError(f"There is no audio feature '{kind}'; choose one of {', '.join(FEATURE_KINDS)}.")
        self.kind = kind
        self.network: Any = None
        self._normalises = False
        if kind == "wav2lip":
            if weights is None:
                raise DialogueError(
                    "The audio feature 'wav2lip' needs the network's weights, which cannot be brought along: give the "
                    "path of wav2lip.pth with --weights (in process: --audio-weights wav2lip=PATH)."
                )
            from dialogue_nerfstudio.process.wav2lip import load_wav2lip

            self.network = load_wav2lip(Path(weights))
        elif kind == "contrastive":
            if weights is None:
                raise DialogueError(
                    "The audio feature 'contrastive' needs a trained audio encoder: give the config.yml, checkpoint or "
                    ".safetensors file of a run of `ns-train dialogue-lip-sync` with --weights (in process: "
                    "--audio-weights contrastive=PATH)."
                )
            from dialogue_nerfstudio.motion.audio_encoder import load_audio_encoder

            self.network = load_audio_encoder(Path(weights))
        elif kind in WEIGHTED_KINDS:
            from dialogue_nerfstudio.process.speech_models import PUBLISHED, load_speech_model

            self.network, self._normalises = load_speech_model(kind, weights)
            weights = weights or PUBLISHED[kind]
        elif weights is not None:
            raise DialogueError(f"The audio feature '{kind}' has no weights: leave out {weights}.")
        if weights is not None and Path(weights).exists():
            weights = str(Path(weights).resolve())
        fingerprint = None if self.network is None else _fingerprint(self.network)
        self.origin = FeatureOrigin(kind, weights, fingerprint)

    def rows(
        self,
        audio: Float[np.ndarray, " num_samples"],
        sample_rate: int,
        num_frames: int,
        fps: float,
        progress: Progress = lambda _: None,
    ) -> Float32[np.ndarray, "num_frames ..."]:
        """Exactly `num_frames` rows: silence follows sound that ends early, sound that goes on is not looked at."""
        audio = at_16k(audio, sample_rate)
        if self.kind == "mel":
            rows = mel_features(audio, 16_000, num_frames, fps)
        elif self.kind == "mfcc":
            rows = mfcc_features(audio, 16_000, num_frames, fps)
        elif self.kind == "prosody":
            rows = prosody_features(audio, 16_000, num_frames, fps)
        elif self.kind == "wav2lip":
            from dialogue_nerfstudio.process.wav2lip import wav2lip_codes

            rows = wav2lip_codes(self.network, mel_features(audio, 16_000, num_frames, fps), progress=progress)
        elif self.kind == "contrastive":
            from dialogue_nerfstudio.motion.audio_encoder import audio_codes

            rows = audio_codes(self.network, mel_features(audio, 16_000, num_frames, fps), progress=progress)
        else:
            from dialogue_nerfstudio.process.speech_models import speech_states

            audio = exactly(audio, int(np.ceil(num_frames / fps * 16_000)))
            rows = speech_states(self.network, self._normalises, audio, num_frames, fps, progress)
        progress(1.0)
        return rows.astype(np.float32)

    def feature(
        self,
        audio: Float[np.ndarray, " num_samples"],
        sample_rate: int,
        num_frames: int,
        fps: float = 25.0,
        progress: Progress = lambda _: None,
    ) -> Feature:
        """The rows of a sound, and that of silence, heard from its middle."""
        silence = self.rows(np.zeros(32_000, np.float32), 16_000, max(1, round(2 * fps)), fps)
        rows = self.rows(audio, sample_rate, num_frames, fps, progress)
        return Feature(rows, silence[len(silence) // 2], self.origin)


def write_feature(folder: Path, feature: Feature) -> Path:
    """Writes features/<kind>.npz into a conversation's folder; its path.

    Raises:
        DialogueError: the disk is full.
    """
    path = Path(folder) / "features" / f"{feature.origin.kind}.npz"
    write_npz(
        path,
        features=feature.rows,
        silence=feature.silence,
        origin=np.array(json.dumps(asdict(feature.origin))),
    )
    return path


def write_features(
    folder: Path,
    audio: Float[np.ndarray, " num_samples"],
    sample_rate: int,
    num_frames: int,
    fps: float = 25.0,
    progress: Progress = lambda _: None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    weights: Optional[dict[str, str]] = None,
) -> None:
    """Writes the named features of a sound into a conversation's folder.

    Args:
        weights: file, folder or hub name by kind.

    Raises:
        DialogueError: an unknown kind, weights that are missing or wrong, a full disk.
    """
    for index, kind in enumerate(kinds):
        extractor = FeatureExtractor(kind, (weights or {}).get(kind))
        feature = extractor.feature(
            audio, sample_rate, num_frames, fps, lambda f, i=index: progress((i + f) / len(kinds))
        )
        write_feature(folder, feature)


def recorded_origin(conversation: Conversation, name: str) -> FeatureOrigin:
    """What made a feature of a conversation.

    Raises:
        DialogueError: it is not there, or nobody knows what made it.
    """
    conversation.feature(name)
    path = conversation.path("features", f"{name}.npz")
    stored = read_npz(path).get("origin")
    if stored is None and name in FEATURE_KINDS and name not in WEIGHTED_KINDS:
        return FeatureOrigin(name)
    try:
        return FeatureOrigin(**json.loads(str(stored)))
    except (TypeError, json.JSONDecodeError) as error:
        raise DialogueError(
            f"{path} does not say what made it, so new sound cannot be heard in the same way: make it again with "
            "`ns-dialogue features`, or train with another feature."
        ) from error


def features_of_new_sound(
    conversation: Conversation,
    name: str,
    audio: Float[np.ndarray, " num_samples"],
    sample_rate: int,
    num_frames: int,
    weights: Optional[str] = None,
) -> Float32[np.ndarray, "num_frames ..."]:
    """The feature `name` of another sound, heard by the network that heard the conversation's.

    Args:
        weights: where that network is now, if it was moved.

    Raises:
        DialogueError: the network is gone, or is another one.
    """
    return extractor_of(conversation, name, weights).rows(audio, sample_rate, num_frames, conversation.fps)


def extractor_of(conversation: Conversation, name: str, weights: Optional[str] = None) -> FeatureExtractor:
    """What makes the feature `name` of new sound as the conversation's was made.

    Args:
        weights: where its network is now, if it was moved.

    Raises:
        DialogueError: the network is gone, or is another one.
    """
    origin = recorded_origin(conversation, name)
    if weights is not None and origin.kind not in WEIGHTED_KINDS:
        raise DialogueError(f"The avatars hear '{origin.kind}', which has no weights: leave out {weights}.")
    try:
        extractor = FeatureExtractor(origin.kind, weights or origin.weights)
    except DialogueError as error:
        raise DialogueError(
            f"These avatars hear the audio feature '{origin.kind}', so new sound needs its network. {error} "
            "If it was moved, say where it is with --audio-weights."
        ) from error
    if extractor.origin.fingerprint != origin.fingerprint:
        raise DialogueError(
            f"{extractor.origin.weights} holds other weights than those that made {name} of {conversation.root}: give "
            "the same ones, or make the feature again with `ns-dialogue features` and train again."
        )
    return extractor


def parse_weights(pairs: Sequence[str]) -> dict[str, str]:
    """KIND=PATH pairs as a dictionary.

    Raises:
        DialogueError: a pair is malformed, or names a feature that has no weights.
    """
    weights = {}
    for pair in pairs:
        kind, equals, path = pair.partition("=")
        if not equals or not path or kind not in WEIGHTED_KINDS:
            raise DialogueError(
                f"--audio-weights takes KIND=PATH with one of {', '.join(WEIGHTED_KINDS)}, not '{pair}'."
            )
        weights[kind] = path
    return weights


def _fingerprint(network: Any) -> str:
    """A hash of names, shapes and a part of each parameter and buffer."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().float().flatten()[:256].numpy().tobytes())
    return digest.hexdigest()[:16]
