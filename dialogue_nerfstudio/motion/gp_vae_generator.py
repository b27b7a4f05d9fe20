"""Long motion from a trained GP-VAE: windows that overlap, each begun with the end of the one before.

Conventions. P people, windows of T frames that begin every T − τ frames; a window's first τ frames are its beginning.
Window k makes the frames k (T − τ) … (k + 1)(T − τ) − 1 of the conversation; the beginning of window 0 is the end of
each person's reference. Relative poses are those of `personal_pose`.

Windows join smoothly in three ways. The cross-modal encoder gets the τ frames that the window before has made. The
latent noise of those frames is kept: z is drawn from N(μ′, K′) *given* the latents that the overlap was
made of, by Gaussian conditioning. And over the overlap the older decoding is faded into the newer, since a
decoder that looks at a whole window may decode the same latents a little differently.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.motion.blinks import BlinkMaker, blink_starts, open_level, personal_examples, shrunken_rate
from dialogue_nerfstudio.motion.generator import (
    Character,
    MotionGenerator,
    MotionParts,
    MotionStream,
    check_participants,
    join_parts,
)
from dialogue_nerfstudio.motion.partners import PartnerTracker
from dialogue_nerfstudio.motion.personal_pose import PersonalPose
from dialogue_nerfstudio.motion.signals import MotionSignals

if TYPE_CHECKING:
    from dialogue_nerfstudio.motion.gp_vae import GpVae

_PINNED = 1e4
"""Precision with which the overlap's latents are given: a deviation of 0.01."""


@dataclass
class GpVaeGenerator(MotionGenerator):
    """Head poses and blinks of everybody in a conversation."""

    provides: ClassVar[Tuple[str, ...]] = ("head_pose", "blink")
    model: "GpVae"
    use_sound: bool = True
    """False: z is sampled from the prior, continued from the beginning alone (the end of DFA-NeRF 3.4)."""
    deviation: float = 1.0
    """Of the samples from their mean, in units of the learned one; at 0 seeds only draw when people blink."""

    def begin(self, characters: Sequence[Character], seed: int) -> "GpVaeStream":
        """Starts a conversation.

        Raises:
            DialogueError: a reference is shorter than a beginning, or of another frame rate.
        """
        tau = self.model.config.beginning_frames
        for character in characters:
            reference = character.reference
            if reference.num_frames < tau:
                raise DialogueError(
                    f"the reference motion of {character.id} has {reference.num_frames} frames; this model needs the "
                    f"{tau} before it begins: give a longer recording of this person."
                )
            if round(reference.fps) != 25:
                raise DialogueError(
                    f"the reference motion of {character.id} has {reference.fps:g} frames/s, motion models have 25: "
                    "process the recording again."
                )
        return GpVaeStream(self, {character.id: character for character in characters}, seed)


class GpVaeStream(MotionStream):
    """See the module's docstring."""

    def __init__(self, generator: GpVaeGenerator, characters: Dict[str, Character], seed: int):
        self._generator, self._characters, self._model = generator, characters, generator.model
        config = self._model.config
        self._tau, self._stride = config.beginning_frames, config.window_frames - config.beginning_frames
        self._device = self._model.prosody_statistics.device
        people = list(characters.values())
        self._noise = [torch.Generator().manual_seed(_seed(seed, index, 0)) for index in range(len(people))]
        self._pose = _stacked([self._model.poses.of_reference(person.reference.head_pose) for person in people])
        self._blinks = [
            _blink_maker(self._model, person, np.random.default_rng([seed, index, 1]))
            for index, person in enumerate(people)
        ]
        closures = [torch.from_numpy(np.ascontiguousarray(person.reference.blink)) for person in people]
        self._starts = torch.stack([blink_starts(closure)[-self._tau :] for closure in closures]).to(self._device)
        recorded = np.stack([person.reference.head_pose[-self._tau :] for person in people])
        self._beginning = self._pose.to_relative(torch.from_numpy(recorded).to(self._device))
        self._latent: Optional[Float[Tensor, "P D N"]] = None
        self._held: Optional[Tuple[Float[Tensor, "P tau 6"], Float32[np.ndarray, "P tau 2"]]] = None
        self._sound = _SoundBuffer(len(people), self._tau)
        self._windows = 0

    def advance(self, signals: MotionSignals) -> MotionParts:
        check_participants(signals, self._characters)
        self._sound.append(signals)
        parts = []
        while self._sound.end >= (self._windows + 1) * self._stride:
            parts.append(self._next_window())
        return join_parts(parts)

    def finish(self) -> MotionParts:
        total = self._sound.end
        parts = []
        while self._windows * self._stride < total:
            parts.append(self._next_window())
        if self._held is not None:
            parts.append(self._parts(*self._held))
        joined = join_parts(parts)
        # Whole windows were made: what lies beyond the sound is cut off.
        beyond = max(self._windows * self._stride - total, 0)
        return {
            person: {name: rows[: len(rows) - beyond] for name, rows in fields.items()}
            for person, fields in joined.items()
        }

    @torch.no_grad()
    def _next_window(self) -> MotionParts:
        """Makes the next window; the frames of it and of what was held back that are now decided."""
        model, tau = self._model, self._tau
        beginning = model.attributes(self._beginning, self._starts)
        if self._generator.use_sound:
            own, partner, heard = self._sound.window(self._windows * self._stride - tau, model.config.window_frames)
            channels = model.sound_channels(
                _tensors(own, self._device), _tensors(partner, self._device), torch.from_numpy(heard).to(self._device)
            )
            latents = model.predict(beginning, channels)
        else:
            latents, _ = model.encode(beginning)
        if self._latent is not None:
            overlap = model.beginning_tokens
            target, precision = torch.zeros_like(latents.information), torch.zeros_like(latents.precision)
            target[..., :overlap], precision[..., :overlap] = self._latent[..., -overlap:], _PINNED
            latents = latents.given(target, precision)
        shape = latents.information.shape[1:]
        white = torch.stack([torch.randn(shape, generator=noise) for noise in self._noise]).to(self._device)
        self._latent = latents.sample(white, self._generator.deviation)
        decoded = model.decode(self._latent)
        self._sound.forget(self._windows * self._stride + self._stride - tau)
        self._windows += 1
        return self._join(decoded[..., :6], self._make_blinks(model.blink_density(decoded)[:, tau:]))

    def _make_blinks(self, density: Float[Tensor, "P stride"]) -> Float32[np.ndarray, "P stride 2"]:
        made = [maker.advance(row) for maker, row in zip(self._blinks, density.cpu().numpy(), strict=True)]
        starts = torch.from_numpy(np.stack([starts for _, starts in made])).to(self._device)
        self._starts = starts[:, -self._tau :]
        return np.stack([closure for closure, _ in made])

    def _join(self, relative: Float[Tensor, "P T 6"], closure: Float32[np.ndarray, "P stride 2"]) -> MotionParts:
        tau = self._tau
        fade = _fade(tau).to(relative)[:, None]
        if self._held is None:
            # What the recording's last frame and its decoding differ by fades out over the first frames.
            relative = relative.clone()
            relative[:, tau : 2 * tau] += (1.0 - fade) * (self._beginning[:, -1:] - relative[:, tau - 1 : tau])
            decided, closures = relative[:, tau:], closure
        else:
            held, held_closure = self._held
            joined = (1.0 - fade) * held + fade * relative[:, :tau]
            decided = torch.cat([joined, relative[:, tau:]], dim=1)
            closures = np.concatenate([held_closure, closure], axis=1)
        self._beginning = relative[:, -tau:]
        self._held = decided[:, -tau:], closures[:, -tau:]
        return self._parts(decided[:, :-tau], closures[:, :-tau])

    def _parts(self, relative: Float[Tensor, "P n 6"], closure: Float32[np.ndarray, "P n 2"]) -> MotionParts:
        head_pose = self._pose.to_head_pose(relative).cpu().numpy().astype(np.float32)
        return {
            person: {"head_pose": head_pose[index], "blink": closure[index].astype(np.float32)}
            for index, person in enumerate(self._characters)
        }


class _SoundBuffer:
    """What was heard lately, as everybody's own sound and their partner's.

    Args:
        num_people: P.
        before: frames before frame 0 that windows ask for; there is no sound.
    """

    def __init__(self, num_people: int, before: int):
        self._first, self.end = -before, 0
        self._tracker = PartnerTracker(num_people)
        self._prosody = np.zeros((num_people, before, 2), np.float32)
        self._speaking = np.zeros((num_people, before), bool)
        self._mel = np.full((num_people, round(before * 3.2), 80), -1.0, np.float32)
        # Nothing is heard of them then, whoever they are.
        self._partners = np.zeros((num_people, before), dtype=int)

    def append(self, signals: MotionSignals) -> None:
        self._partners = np.concatenate([self._partners, self._tracker.follow(signals.speaking)], axis=1)
        self._prosody = np.concatenate([self._prosody, signals.prosody], axis=1)
        self._speaking = np.concatenate([self._speaking, signals.speaking], axis=1)
        self._mel = np.concatenate([self._mel, signals.mel], axis=1)
        self.end += signals.num_frames

    def window(
        self, first: int, length: int
    ) -> Tuple[Tuple[np.ndarray, ...], Tuple[np.ndarray, ...], Bool[np.ndarray, "P T"]]:
        """(own, partner, heard): prosody, speaking and spectrogram of both sides, silent where there is no sound."""
        count = min(self.end - first, length)
        offset = first - self._first
        people, rest = len(self._prosody), length - count
        prosody = np.pad(self._prosody[:, offset : offset + count], ((0, 0), (0, rest), (0, 0)))
        speaking = np.pad(self._speaking[:, offset : offset + count], ((0, 0), (0, rest)))
        partners = np.pad(self._partners[:, offset : offset + count], ((0, 0), (0, rest)), mode="edge")
        steps = round(length * 3.2)
        mel = self._mel[:, round(offset * 3.2) : round(offset * 3.2) + steps]
        mel = np.pad(mel, ((0, 0), (0, steps - mel.shape[1]), (0, 0)), constant_values=-1.0)
        frames = np.arange(first, first + length)
        heard = np.broadcast_to((frames >= 0) & (frames < self.end), (people, length)).copy()
        alone = partners < 0
        at = np.arange(length)
        # Every 16 mel steps are 5 frames, and belong to the partner of the frame in which they begin.
        frame_of_step = np.minimum((np.arange(steps) / 3.2).astype(int), length - 1)
        other_prosody = np.where(alone[..., None], np.float32(0.0), prosody[partners, at])
        other_speaking = ~alone & speaking[partners, at]
        other_mel = mel[partners[:, frame_of_step], np.arange(steps)]
        other_mel = np.where(alone[:, frame_of_step, None], np.float32(-1.0), other_mel)
        return (prosody, speaking, mel), (other_prosody, other_speaking, other_mel), heard

    def forget(self, before: int) -> None:
        """Drops what lies before a frame."""
        count = min(before, self.end) - self._first
        if count > 0:
            self._prosody = self._prosody[:, count:].copy()
            self._speaking = self._speaking[:, count:].copy()
            self._partners = self._partners[:, count:].copy()
            self._mel = self._mel[:, round(count * 3.2) :].copy()
            self._first += count


def _blink_maker(model: "GpVae", character: Character, noise: np.random.Generator) -> BlinkMaker:
    closure = character.reference.blink.astype(np.float32)
    everybody = model.blinks.rate()
    events = float(blink_starts(torch.from_numpy(closure)).sum())
    return BlinkMaker(
        examples=personal_examples(closure, model.blinks.bank()),
        resting=open_level(torch.from_numpy(closure)).numpy(),
        rate=shrunken_rate(events, len(closure), everybody),
        expected_density=everybody,
        noise=noise,
    )


def _stacked(poses: List[PersonalPose]) -> PersonalPose:
    return PersonalPose(torch.stack([pose.rest for pose in poses]), torch.stack([pose.spread for pose in poses]))


def _fade(length: int) -> Float[Tensor, " length"]:
    """From just above 0 to just below 1, flat at both ends."""
    return 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(length) + 0.5) / length)


def _tensors(arrays: Tuple[np.ndarray, ...], device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    prosody, speaking, mel = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
    return prosody, speaking, mel


def _seed(seed: int, index: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, index, stream]).generate_state(1)[0])
