"""Mouths from sound: whoever speaks moves jaw and lips as their own track says, everybody else's mouth rests (DFA-NeRF
3.3, "deterministic").

Conventions. Audio codes of frames t − BEFORE … t + AFTER give frame t's mouth code, which the face codes' decoder turns
into landmarks and the basis into coefficients. Frame t is decided when frame t + LOOK_AHEAD has been heard: 0.18 s
after the time it shows, of which the spectrogram's window and the codes after it need as much as the end of speech
does.
"""

from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import expression_basis
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, MOUTH_NAMES
from dialogue_nerfstudio.motion.audio_encoder import AudioEncoder
from dialogue_nerfstudio.motion.face_codes import FaceAutoEncoder
from dialogue_nerfstudio.motion.face_landmarks import MOUTH_POINTS, FaceLandmarks, check_basis
from dialogue_nerfstudio.motion.generator import (
    Character,
    MotionGenerator,
    MotionParts,
    MotionStream,
    check_participants,
    join_parts,
)
from dialogue_nerfstudio.motion.signals import BLOCK, MEL_RATE, MotionSignals, mel_windows

LOOK_AHEAD = 4
"""Frames that must have been heard beyond the one that is decided."""

RAMP = 4
"""Frames over which a mouth goes between rest and speech, before and after speaking."""

AT_ONCE = 250
"""Frames computed at once, so that memory stays flat."""

FEWEST_FRAMES = 25
"""Frames of speech from which on a person's articulation can be told."""

SURE_FRAMES = 50
"""Frames of speech at which a measured articulation counts half, the training set's the rest."""

ARTICULATION_RANGE = (0.6, 1.6)
"""Least and most that a person's articulation may be of the training set's."""


class MouthFromSound(nn.Module):
    """Audio codes around a frame to its mouth code."""

    BEFORE, AFTER = 4, 1

    def __init__(self, code_size: int, mouth_size: int, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear((self.BEFORE + 1 + self.AFTER) * code_size, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, mouth_size),
        )

    def contexts(self, codes: Float[Tensor, "B n code"]) -> Float[Tensor, "B fewer context"]:
        """What `forward` takes, of the frames that have all their neighbours."""
        # Numbers of a code of length one, made as large as layers expect.
        return codes.shape[2] ** 0.5 * codes.unfold(1, self.BEFORE + 1 + self.AFTER, 1).flatten(2)

    def forward(self, contexts: Float[Tensor, "*batch context"]) -> Float[Tensor, "*batch mouth"]:
        return self.layers(contexts)


def articulation(landmarks: Float[Tensor, "T 68 3"], speaking: Bool[Tensor, " T"]) -> Optional[Tensor]:
    """How far a mouth moves while it speaks: root mean square distance (mm) of its points from their mean; None where
    there are fewer than FEWEST_FRAMES frames of speech."""
    if int(speaking.sum()) < FEWEST_FRAMES:
        return None
    moved = landmarks[speaking][:, list(MOUTH_POINTS)]
    return (moved - moved.mean(dim=0)).square().sum(dim=-1).mean().sqrt()


def speech_gate(speaking: Bool[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    """1 while somebody speaks, falling to 0 over RAMP frames before and after."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(speaking, RAMP), 2 * RAMP + 1)
    nearness = 1.0 - np.abs(np.arange(-RAMP, RAMP + 1)) / (RAMP + 1)
    return (around * nearness).max(axis=1).astype(np.float32)


class MouthGenerator(MotionGenerator):
    """Expression of everybody from their own tracks; brows and cheeks stay at the person's median.

    Args:
        audio_encoder, mouth_from_sound, autoencoder, landmarks: trained networks.
        typical_articulation: of the training set, mm (`articulation`).
    """

    provides = ("expression",)

    def __init__(
        self,
        audio_encoder: AudioEncoder,
        mouth_from_sound: MouthFromSound,
        autoencoder: FaceAutoEncoder,
        landmarks: FaceLandmarks,
        typical_articulation: float,
    ):
        self._audio_encoder, self._mouth_from_sound = audio_encoder.eval(), mouth_from_sound.eval()
        self._autoencoder, self._landmarks = autoencoder.eval(), landmarks
        self._typical_articulation = typical_articulation
        self._mouth_columns = [EXPRESSION_NAMES.index(name) for name in MOUTH_NAMES]

    def begin(self, characters: Sequence[Character], seed: int) -> MotionStream:
        for character in characters:
            try:
                check_basis(character.reference.expression_basis, character.reference.expression_names)
            except DialogueError as error:
                raise DialogueError(f"{character.id} cannot be moved by sound. {error}") from error
        return _MouthStream(self, {character.id: character for character in characters})

    def resting_expression(self, character: Character) -> Float32[np.ndarray, " E"]:
        """The person's face while they do not speak: medians; of somebody who always speaks, those of the tenth of
        frames whose mouth is the least open."""
        expression, speaking = character.reference.expression, character.was_speaking
        resting = expression[~speaking]
        if len(resting) < FEWEST_FRAMES:
            opening = expression[:, EXPRESSION_NAMES.index("jaw_open")]
            resting = expression[opening <= np.quantile(opening, 0.1)]
        return np.median(resting, axis=0).astype(np.float32)

    @torch.no_grad()
    def personal_articulation(self, character: Character) -> float:
        """How far this person's mouth moves in speech relative to the training set's; 1 where the reference does not
        tell."""
        reference = character.reference
        spread = articulation(
            self._landmarks(self._tensor(reference.expression), self._tensor(reference.blink)),
            torch.as_tensor(character.was_speaking),
        )
        if spread is None or not np.isfinite(self._typical_articulation):
            return 1.0
        frames = float(character.was_speaking.sum())
        measured = np.clip(float(spread) / self._typical_articulation, *ARTICULATION_RANGE)
        return float(1.0 + (measured - 1.0) * frames / (frames + SURE_FRAMES))

    @torch.no_grad()
    def mouths(self, windows: Float32[np.ndarray, "n 16 80"]) -> Float32[np.ndarray, "m M"]:
        """Coefficients of MOUTH_NAMES of an average speaker from successive frames' windows; m = n − BEFORE − AFTER,
        the first window being BEFORE frames before the first mouth."""
        net = self._mouth_from_sound
        mouth = net(net.contexts(self._audio_encoder(self._tensor(windows))[None]))[0]
        # Lids and brows of a face at rest: none of them shows in the mouth's coefficients.
        _, eye = self._autoencoder.encode(self._landmarks.fields.new_zeros(1, *self._landmarks.fields.shape[1:]))
        found = self._autoencoder.decode(mouth, eye.expand(len(mouth), -1))
        return self._landmarks.coefficients(found)[0][:, self._mouth_columns]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32).to(self._landmarks.fields)


class _MouthStream(MotionStream):
    """Keeps the spectrogram and roles of the last frames, as many as the next one needs."""

    def __init__(self, generator: MouthGenerator, characters: Mapping[str, Character]):
        self._generator, self._characters = generator, characters
        self._rest = {name: generator.resting_expression(character) for name, character in characters.items()}
        self._scale = {name: generator.personal_articulation(character) for name, character in characters.items()}
        self._kept: Optional[MotionSignals] = None
        self._first = 0
        """The conversation's frame that `_kept` begins with, a multiple of BLOCK."""
        self._done = 0
        """Frames that were given."""

    def advance(self, signals: MotionSignals) -> MotionParts:
        check_participants(signals, self._characters)
        self._kept = signals if self._kept is None else _join(self._kept, signals)
        return self._frames(self._first + self._kept.num_frames - LOOK_AHEAD)

    def finish(self) -> MotionParts:
        return {} if self._kept is None else self._frames(self._first + self._kept.num_frames)

    def _frames(self, stop: int) -> MotionParts:
        blocks: List[MotionParts] = []
        while self._done < stop:
            until = min(stop, self._done + AT_ONCE)
            blocks.append(self._block(self._done, until))
            self._done = until
            self._forget()
        return join_parts(blocks)

    def _block(self, start: int, stop: int) -> MotionParts:
        signals, net = self._kept, self._generator._mouth_from_sound
        first, last = start - self._first, stop - self._first
        parts: Dict[str, Dict[str, np.ndarray]] = {}
        columns = self._generator._mouth_columns
        for row, name in enumerate(signals.participant_ids):
            gate = speech_gate(signals.speaking[row])[first:last, None]
            expression = np.tile(self._rest[name], (stop - start, 1))
            if gate.any():
                windows = mel_windows(signals.mel[row], range(first - net.BEFORE, last + net.AFTER), signals.fps)
                spoken = self._scale[name] * self._generator.mouths(windows)
                upper = expression_basis().upper
                expression[:, columns] += gate * (np.minimum(spoken, upper) - expression[:, columns])
            parts[name] = {"expression": expression}
        return parts

    def _forget(self) -> None:
        """Lets go of what no later frame needs: a window reaches three frames back, from BEFORE frames back."""
        needed = self._done - max(self._generator._mouth_from_sound.BEFORE + 3, RAMP) - self._first
        unneeded = max(0, needed // BLOCK * BLOCK)
        self._kept = self._kept.frames(unneeded, self._kept.num_frames)
        self._first += unneeded


def _join(before: MotionSignals, after: MotionSignals) -> MotionSignals:
    expected = round(before.num_frames / before.fps * MEL_RATE)
    if before.num_frames % BLOCK or before.mel.shape[1] != expected:
        raise ValueError(f"a block of {before.num_frames} frames was not the last one, but is no multiple of {BLOCK}")
    return MotionSignals(
        before.participant_ids,
        np.concatenate([before.prosody, after.prosody], axis=1),
        np.concatenate([before.mel, after.mel], axis=1),
        np.concatenate([before.speaking, after.speaking], axis=1),
        before.fps,
    )
