"""Everybody's whole motion from what is heard: several generators side by side, limits, and each person's own habits
for what none of them makes.

A stream, like the generators: blocks of signals in, frames out as soon as every generator has decided them; nothing
grows with the length of the conversation. Where two generators make the same field of a Motion, the later one counts.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import numpy as np
from jaxtyping import Float32

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.motion.generator import Character, MotionGenerator, MotionParts, MotionStream, join_parts
from dialogue_nerfstudio.motion.limits import FEWEST_FRAMES, PoseLimits
from dialogue_nerfstudio.motion.personal_habits import DrawnBlinks, HeldGaze, RecordedPose, resting_expression
from dialogue_nerfstudio.motion.signals import MotionSignals
from dialogue_nerfstudio.motion.steadiness import Steadiness, SteadinessMeter

FIELDS = ("head_pose", "expression", "blink", "gaze")
"""Fields of a Motion that are generated, or taken from the person's habits."""

MOTION_FPS = 25.0
"""Frames a second of everything that generators make."""


@dataclass
class NamedGenerator:
    """A generator and what to call it."""

    name: str
    generator: MotionGenerator


@dataclass
class _Running:
    """A generator at work, and what it has made that others have not yet."""

    name: str
    fields: Sequence[str]
    """Those that count."""
    stream: MotionStream
    ready: MotionParts


class Animation:
    """One conversation being animated.

    Args:
        generators: in order; of the same field the last one's counts.
        characters: everybody, in the order of the signals' participants.
        seed: same seed, same motion.

    Raises:
        DialogueError: somebody's recording is too short or at another frame rate, or a generator cannot move them.
    """

    def __init__(self, generators: Sequence[NamedGenerator], characters: Sequence[Character], seed: int):
        for character in characters:
            _check(character)
        self._characters = {character.id: character for character in characters}
        owner = {field: number for number, each in enumerate(generators) for field in each.generator.provides}
        self.unused = [each.name for number, each in enumerate(generators) if number not in owner.values()]
        """Generators of which everything is replaced by a later one's."""
        self._running: List[_Running] = []
        for number, each in enumerate(generators):
            fields = [field for field in FIELDS if owner.get(field) == number]
            if fields:
                try:
                    stream = each.generator.begin(characters, seed)
                except DialogueError as error:
                    raise DialogueError(f"{each.name}: {error}") from error
                self._running.append(_Running(each.name, fields, stream, {}))
        made = {field: each.name for each in self._running for field in each.fields}
        self._people = {
            character.id: _Person(character, made, [seed, number]) for number, character in enumerate(characters)
        }
        self._heard = 0

    @property
    def sources(self) -> Dict[str, Dict[str, str]]:
        """Where each field of each person's motion comes from."""
        return {name: dict(person.sources) for name, person in self._people.items()}

    def advance(self, signals: MotionSignals) -> Dict[str, Motion]:
        """Takes the next block of what is heard; everybody's frames that are decided, perhaps none."""
        self._heard += signals.num_frames
        for each in self._running:
            self._take(each, each.stream.advance(signals))
        # Habits alone wait for nobody.
        return self._emit(self._decided() if self._running else signals.num_frames)

    def finish(self) -> Dict[str, Motion]:
        """The frames that are still owed.

        Raises:
            DialogueError: a generator made another number of frames than were heard.
        """
        for each in self._running:
            self._take(each, each.stream.finish())
        motions = self._emit(self._decided() if self._running else 0)
        for each in self._running:
            for name, fields in each.ready.items():
                for field, rows in fields.items():
                    if self.num_frames + len(rows) != self._heard:
                        raise DialogueError(
                            f"{each.name} made {self.num_frames + len(rows)} frames of {name}'s {field} for "
                            f"{self._heard} frames of sound; it is not to be used."
                        )
        return motions

    @property
    def num_frames(self) -> int:
        """Frames given out so far."""
        return next(iter(self._people.values())).position

    def steadiness(self) -> Dict[str, Steadiness]:
        """Figures of everybody's head motion so far."""
        return {name: person.meter.figures() for name, person in self._people.items()}

    def _take(self, each: _Running, parts: MotionParts) -> None:
        kept: MotionParts = {}
        for name, character in self._characters.items():
            # Of whom, or of what, nothing is decided yet, that is not in `parts`.
            fields = parts.get(name, {})
            kept[name] = {f: fields.get(f, getattr(character.reference, f)[:0]) for f in each.fields}
            for field, rows in kept[name].items():
                self._check_rows(each.name, name, field, rows)
        each.ready = join_parts([each.ready, kept]) if each.ready else kept

    def _check_rows(self, generator: str, name: str, field: str, rows: np.ndarray) -> None:
        reference = getattr(self._characters[name].reference, field)
        if rows.shape[1:] != reference.shape[1:]:
            raise DialogueError(
                f"{generator} makes {field} of {rows.shape[1:]} numbers, but {name} has {reference.shape[1:]} in the "
                f"basis '{self._characters[name].reference.expression_basis}': train it on conversations in that basis."
            )
        if not np.isfinite(rows).all():
            bad = int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))
            raise DialogueError(
                f"{generator} made a {field} of {name} that is not a number, {bad} frames after frame "
                f"{self.num_frames}; train it again."
            )

    def _decided(self) -> int:
        """Frames that every generator has made of everybody."""
        made = [_length(each.ready.get(name, {})) for each in self._running for name in self._people]
        return min(made, default=0)

    def _emit(self, count: int) -> Dict[str, Motion]:
        parts: Dict[str, Dict[str, np.ndarray]] = {name: {} for name in self._people}
        for each in self._running:
            for name, fields in each.ready.items():
                for field, rows in fields.items():
                    parts[name][field], fields[field] = rows[:count], rows[count:]
        return {name: person.motion(parts[name], count) for name, person in self._people.items()}


class _Person:
    """One person's motion: what was generated, limited, and completed by habits."""

    def __init__(self, character: Character, made: Dict[str, str], seed: Sequence[int]):
        self._reference = character.reference
        self.position = 0
        self.limits = PoseLimits.of(character.reference.head_pose)
        self.meter = SteadinessMeter(character.reference.head_pose, self.limits, MOTION_FPS)
        self._pose = None if "head_pose" in made else RecordedPose(character)
        self._blinks = None if "blink" in made else DrawnBlinks(character, seed)
        self._gaze = None if "gaze" in made else HeldGaze(character)
        self._expression: Optional[Float32[np.ndarray, " E"]] = (
            None if "expression" in made else resting_expression(character)
        )
        self.sources = {field: f"generated: {name}" for field, name in made.items()}
        for field, habit in (("head_pose", self._pose), ("blink", self._blinks), ("gaze", self._gaze)):
            if habit is not None:
                self.sources[field] = habit.statement
        if self._expression is not None:
            self.sources["expression"] = "the person's median while listening"
        self.sources["expression_residual"] = "none"

    def motion(self, parts: Dict[str, np.ndarray], count: int) -> Motion:
        """The next `count` frames."""
        pose = parts["head_pose"] if self._pose is None else self._pose.frames(count)
        pose, radius = self.limits.limit(np.asarray(pose, np.float32))
        self.meter.take(pose, radius)
        self.position += count
        return Motion(
            head_pose=pose,
            expression=parts["expression"] if self._expression is None else np.tile(self._expression, (count, 1)),
            blink=np.clip(parts["blink"], 0.0, 1.0) if self._blinks is None else self._blinks.frames(count),
            gaze=parts["gaze"] if self._gaze is None else self._gaze.frames(pose),
            expression_residual=np.zeros((count, 0), np.float32),
            fps=MOTION_FPS,
            expression_basis=self._reference.expression_basis,
            expression_names=self._reference.expression_names,
            sources=dict(self.sources),
        )


def _length(fields: Dict[str, np.ndarray]) -> int:
    return min((len(rows) for rows in fields.values()), default=0)


def _check(character: Character) -> None:
    reference = character.reference
    if reference.num_frames < FEWEST_FRAMES:
        raise DialogueError(
            f"there are {reference.num_frames} recorded frames of {character.id}, too few to know how they move; "
            f"{FEWEST_FRAMES} are needed (better, half a minute)."
        )
    if reference.fps != MOTION_FPS:
        raise DialogueError(
            f"the recorded motion of {character.id} has {reference.fps:g} frames a second, generators know "
            f"{MOTION_FPS:g}; resample it first."
        )
