"""Conversation signals: everything that moves the avatars, of all participants and frames, as tensors.

Conventions: P participants, T frames, E expression coefficients, K residual components (padded with zeros to the
participant that has most). x_person = rotation x_head + translation, metres.
"""

from dataclasses import dataclass, fields, replace
from typing import Dict, Mapping, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from dialogue_nerfstudio.conversation import Conversation, DialogueError, Motion
from dialogue_nerfstudio.conversation.motion import SWAY_SIZE


@dataclass
class ConversationSignals:
    """The timeline that an avatar is rendered from; swapping it animates the same avatars to something else."""

    rotation: Float[Tensor, "P T 3 3"]
    translation: Float[Tensor, "P T 3"]
    euler: Float[Tensor, "P T 3"]
    """Yaw, pitch, roll (intrinsic y, x, z), radians."""
    expression: Float[Tensor, "P T E"]
    residual: Float[Tensor, "P T K"]
    sway: Float[Tensor, "P T 6"]
    """How the shoulders move beyond what the head's pose explains, metres and radians; zeros where nobody measured."""
    blink: Float[Tensor, "P T 2"]
    gaze: Float[Tensor, "P T 4"]
    """Left yaw, left pitch, right yaw, right pitch, radians."""
    audio: Float[Tensor, "T ..."]
    """The audio feature, a row a frame."""
    speaking: Bool[Tensor, "P T"]
    silence: Float[np.ndarray, "..."]
    """The audio feature's row where nothing sounds."""
    audio_feature: str
    """Its name."""
    participant_ids: Tuple[str, ...]
    expression_basis: str
    fps: float

    @property
    def num_frames(self) -> int:
        return self.audio.shape[0]

    @property
    def audio_statement(self) -> str:
        """The audio feature's name and the shape of its rows, for a checkpoint's record."""
        return f"{self.audio_feature} {' x '.join(map(str, self.silence.shape))}"

    @property
    def tensors(self) -> Dict[str, Tensor]:
        """The tensors by name, the model's non-persistent buffers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @classmethod
    def from_conversation(cls, conversation: Conversation, audio_feature: str = "mel") -> "ConversationSignals":
        """The signals of a recording.

        Raises:
            DialogueError: it has no such audio feature.
        """
        audio = conversation.feature(audio_feature)
        if audio_feature == "mel" and audio.shape[1:] != (16, 80):
            raise DialogueError(
                f"{conversation.root}: the feature 'mel' has windows of shape {audio.shape[1:]}, expected (16, 80); "
                "process the video again."
            )
        motions = [participant.motion for participant in conversation.participants]
        num_residuals = max(motion.expression_residual.shape[1] for motion in motions)
        stacked = [_motion_tensors(motion, num_residuals) for motion in motions]
        return cls(
            **{name: torch.stack([tensors[name] for tensors in stacked]) for name in stacked[0]},
            audio=torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)),
            silence=conversation.silent_feature(audio_feature),
            audio_feature=audio_feature,
            speaking=torch.from_numpy(np.ascontiguousarray(conversation.speaking.T)),
            participant_ids=tuple(conversation.participant_ids),
            expression_basis=motions[0].expression_basis,
            fps=conversation.fps,
        )

    def with_motion(self, motions: Mapping[str, Motion]) -> "ConversationSignals":
        """These signals with other motions; the new length is theirs.

        A participant without a new motion goes on with the old one, played to and fro if it is too short. Audio rows
        are cut, or continued with silence; use `with_audio` after this where there is new sound. The residual is
        personal: pass a motion without it to drive somebody else.

        Raises:
            DialogueError: an unknown participant, different lengths, another expression basis, a bad number.
        """
        unknown = sorted(set(motions) - set(self.participant_ids))
        if unknown or not motions:
            raise DialogueError(
                f"there is no participant '{', '.join(unknown)}' to move; these avatars are "
                f"{', '.join(self.participant_ids)}."
            )
        lengths = {name: motion.num_frames for name, motion in motions.items()}
        if len(set(lengths.values())) > 1:
            raise DialogueError(f"the motions differ in length ({lengths}); cut them to the same number of frames.")
        for name, motion in motions.items():
            motion.validate(f"the motion for participant {name}")
            if motion.expression_basis != self.expression_basis:
                raise DialogueError(
                    f"the motion for participant {name} has expressions in the basis '{motion.expression_basis}', "
                    f"these avatars use '{self.expression_basis}'; carry it over with `ns-dialogue refit`."
                )
        num_residuals = self.residual.shape[-1]
        signals = self.with_length(next(iter(lengths.values())))
        tensors = {name: tensor.clone() for name, tensor in signals.tensors.items()}
        for name, motion in motions.items():
            row = self.participant_ids.index(name)
            for key, value in _motion_tensors(motion, num_residuals).items():
                tensors[key][row] = value.to(tensors[key].device)
        return replace(signals, **tensors)

    def with_audio(self, audio: Float[np.ndarray, "T ..."], speaking: Bool[np.ndarray, "T P"]) -> "ConversationSignals":
        """These signals with other sound and roles; the new length is theirs.

        Motion that is too short goes on to and fro.

        Raises:
            DialogueError: shapes that do not fit.
        """
        if audio.shape[1:] != self.silence.shape or speaking.shape != (len(audio), len(self.participant_ids)):
            row = ", ".join(map(str, self.silence.shape))
            raise DialogueError(
                f"new sound needs the feature '{self.audio_feature}' [T, {row}] and roles "
                f"[T, {len(self.participant_ids)}], not {audio.shape} and {speaking.shape}."
            )
        device = self.audio.device
        return replace(
            self.with_length(len(audio)),
            audio=torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)).to(device),
            speaking=torch.from_numpy(np.ascontiguousarray(speaking.T)).to(device),
        )

    def with_length(self, num_frames: int) -> "ConversationSignals":
        """The first `num_frames`; beyond the end motion runs to and fro, and it is silent.

        Raises:
            DialogueError: there would be no frame.
        """
        if num_frames < 1:
            raise DialogueError("a timeline needs at least one frame.")
        if num_frames == self.num_frames:
            return self
        frames = torch.from_numpy(to_and_fro(self.num_frames, num_frames)).to(self.audio.device)
        tensors = {
            name: tensor[:, frames] for name, tensor in self.tensors.items() if name not in ("audio", "speaking")
        }
        kept = min(num_frames, self.num_frames)
        silence = torch.as_tensor(self.silence).to(self.audio)
        audio = torch.cat([self.audio[:kept], silence.expand(num_frames - kept, *silence.shape)])
        speaking = self.speaking.new_zeros(len(self.participant_ids), num_frames)
        speaking[:, :kept] = self.speaking[:, :kept]
        return replace(self, **tensors, audio=audio, speaking=speaking)


def to_and_fro(num_frames: int, length: int) -> np.ndarray:
    """Frame numbers 0 … n−1, n−2 … 1, 0, 1 … of the wanted length: no jump at either end."""
    if num_frames == 1:
        return np.zeros(length, dtype=np.int64)
    period = 2 * (num_frames - 1)
    position = np.arange(length) % period
    return np.minimum(position, period - position)


def _motion_tensors(motion: Motion, num_residuals: int) -> Dict[str, Tensor]:
    rotation = Rotation.from_rotvec(motion.head_pose[:, :3].astype(np.float64))
    residual = np.zeros((motion.num_frames, num_residuals))
    kept = min(num_residuals, motion.expression_residual.shape[1])
    residual[:, :kept] = motion.expression_residual[:, :kept]
    arrays = {
        "rotation": rotation.as_matrix(),
        "translation": motion.head_pose[:, 3:],
        "euler": rotation.as_euler("YXZ"),
        "expression": motion.expression,
        "residual": residual,
        "sway": np.zeros((motion.num_frames, SWAY_SIZE)) if motion.sway is None else motion.sway,
        "blink": motion.blink,
        "gaze": motion.gaze.reshape(motion.num_frames, 4),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for name, array in arrays.items()}
