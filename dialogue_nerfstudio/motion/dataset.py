"""Any number of simulated folders and recorded conversations as one dataset: training windows, whole sequences, people.

Conventions. A *section* is what one conversation contributes to a split: all of a simulated one, the first or the last
part of a recorded one (`eval_fraction`). Frames are at 25 fps, windows begin at multiples of `signals.BLOCK`, so that
mel steps begin with them. P participants, T frames, S = round(3.2 T) mel steps. People are numbered once for the
dataset, in the order of the sources, in every split alike. Memory holds the open sections' index and what a batch
needs: simulated arrays are mapped and sliced, at most `OPEN_SECTIONS` of them at a time.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float32, Int

from dialogue_nerfstudio.conversation.conversation import load_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.conversation.motion_shards import MANIFEST_NAME, Split, read_manifest
from dialogue_nerfstudio.conversation.roles import partner_of
from dialogue_nerfstudio.motion.generator import Character
from dialogue_nerfstudio.motion.mapped import Arrays, map_shard, recorded_arrays
from dialogue_nerfstudio.motion.model import MotionStatistics
from dialogue_nerfstudio.motion.signals import BLOCK, MEL_RATE, MotionSignals
from dialogue_nerfstudio.motion.windows import MotionWindows, Side

FPS = 25.0
OPEN_CONVERSATIONS = 128
"""Mapped at a time."""
STATISTICS_SECTIONS = 256
"""Training sections from which the statistics are taken, evenly spread: more do not change them."""
NOBODY = -1
"""Partner's number of who talks alone; such a partner is still and silent."""

_MOTION = ("head_pose", "expression", "blink", "gaze")
_SEEN = (*_MOTION, "prosody", "speaking")
_TRUTH = ("expected_head_pose", "expected_from_sound", "expected_from_partner")


@dataclass
class _Source:
    """A conversation of the dataset, not yet open."""

    name: str
    ids: Tuple[str, ...]
    people: Tuple[int, ...]
    num_frames: int
    open: Callable[[], Arrays]
    is_simulated: bool


@dataclass
class _Section:
    source: int
    start: int
    stop: int


@dataclass
class MotionSequence:
    """A whole section of a split, for evaluation."""

    name: str
    people: Tuple[int, ...]
    """The dataset's numbers of the participants, in their order."""
    signals: MotionSignals
    motions: Tuple[Motion, ...]
    """What they really did."""
    start: int
    """First frame in its conversation."""
    characters: Tuple[Character, ...]
    """Everybody as a generator may know them: from training, or, of people that it does not know, from before
    `start`."""
    expected_head_pose: Optional[Float32[np.ndarray, "P T 6"]] = None
    """Simulation only: the conditional mean, the ceiling of any predictor."""
    expected_from_sound: Optional[Float32[np.ndarray, "P T 6"]] = None
    """The part of it that sound makes; what is left without is what a predictor without sound could know at least."""
    expected_from_partner: Optional[Float32[np.ndarray, "P T 6"]] = None
    """The part of it that the partner's motion makes."""


class MotionDataset:
    """One split of all sources, as windows of one length; a `windows.WindowSource`.

    Args:
        sources: Folders of `ns-dialogue simulate --motion-only` and of `ns-dialogue process`, in any order.
        split: train, eval (held-out conversations of the same people; the end of recorded ones), or unseen (simulated
            people that train does not know).
        window: Frames of a window.
        with_mel: Whether windows and sequences bring the spectrogram.
        eval_fraction: Part of each recorded conversation, at its end, that is `eval`.

    Raises:
        DialogueError: a source is missing, half-written, damaged, without pictures, in another expression basis or
            frame rate than the first, or the split is empty or too short for the window.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        split: Split = "train",
        window: int = 100,
        with_mel: bool = False,
        eval_fraction: float = 0.2,
    ) -> None:
        if not sources:
            raise DialogueError("no motion data was given; name folders of `ns-dialogue simulate --motion-only`.")
        if window < 1:
            raise DialogueError(f"the window is {window} frames, but must be at least one.")
        if not 0.0 < eval_fraction < 1.0:
            raise DialogueError(f"the eval fraction must lie between 0 and 1, not {eval_fraction}.")
        self.split, self.window, self.with_mel = split, window, with_mel
        self.person_ids: List[str] = []
        """The name of every person, by number: the folder's (its path, where two are called the same), a slash, and the
        id in it."""
        self.styles: Dict[int, Dict[str, Any]] = {}
        """Number → true style, of simulated people."""
        self._basis: Optional[Tuple[str, Tuple[str, ...], float]] = None
        self._basis_source: Optional[Path] = None
        self._sources: List[_Source] = []
        self._sections: Dict[str, List[_Section]] = {"train": [], "eval": [], "unseen": []}
        self._eval_fraction = eval_fraction
        self._open: OrderedDict[int, Arrays] = OrderedDict()
        paths = list(dict.fromkeys(Path(source) for source in sources))
        names = [path.name for path in paths]
        self._names = {path: path.name if names.count(path.name) == 1 else str(path) for path in paths}
        for path in paths:
            self._add(path)
        self._lay_out()

    # What there is.

    def _add(self, path: Path) -> None:
        if (path / "conversation.json").is_file():
            self._add_recorded(path)
        elif path.is_dir():
            self._add_simulated(path)
        else:
            raise DialogueError(
                f"{path} is not a folder; give one that `ns-dialogue simulate --motion-only` or `ns-dialogue process` "
                "wrote."
            )

    def _add_simulated(self, path: Path) -> None:
        manifest = read_manifest(path)
        self._check_basis(path, manifest.expression_basis, manifest.expression_names, manifest.fps)
        numbers: Dict[str, int] = {}
        for name, style in manifest.people.items():
            numbers[name] = self._new_person(path, name)
            self.styles[numbers[name]] = style
        for entry in manifest.conversations:
            unknown = [name for name in entry.people if name not in numbers]
            if unknown or entry.split not in self._sections:
                raise DialogueError(
                    f"{path / MANIFEST_NAME} is damaged: {entry.name} names people or a split that it lacks."
                )
            self._sections[entry.split].append(_Section(len(self._sources), 0, entry.num_frames))
            self._sources.append(
                _Source(
                    name=f"{self._names[path]}/{entry.name}",
                    ids=entry.people,
                    people=tuple(numbers[name] for name in entry.people),
                    num_frames=entry.num_frames,
                    open=partial(map_shard, path / entry.file_name),
                    is_simulated=True,
                )
            )

    def _add_recorded(self, path: Path) -> None:
        conversation = load_conversation(path, needs_pictures=False)
        voices = [participant.id for participant in conversation.participants if participant.is_voice]
        if voices:
            raise DialogueError(
                f"of {', '.join(voices)} in {path} there is a voice, but no motion to learn from; leave this "
                "conversation out, or process a video of these people."
            )
        motion = conversation.participants[0].motion
        self._check_basis(path, motion.expression_basis, motion.expression_names, conversation.fps)
        ids = tuple(conversation.participant_ids)
        people = tuple(self._new_person(path, name) for name in ids)
        # A conversation's own split holds out a tenth, too short a piece for most windows.
        middle = round(conversation.num_frames * (1.0 - self._eval_fraction)) // BLOCK * BLOCK
        self._sections["train"].append(_Section(len(self._sources), 0, middle))
        self._sections["eval"].append(_Section(len(self._sources), middle, conversation.num_frames))
        self._sources.append(
            _Source(
                name=self._names[path],
                ids=ids,
                people=people,
                num_frames=conversation.num_frames,
                open=partial(recorded_arrays, path),
                is_simulated=False,
            )
        )

    def _new_person(self, path: Path, name: str) -> int:
        self.person_ids.append(f"{self._names[path]}/{name}")
        return len(self.person_ids) - 1

    def _check_basis(self, path: Path, basis: str, names: Sequence[str], fps: float) -> None:
        if fps != FPS:
            raise DialogueError(f"{path} has {fps:g} frames a second, motion models work at {FPS:g}; process it again.")
        found = (basis, tuple(names), fps)
        if self._basis is None:
            self._basis, self._basis_source = found, path
        elif found != self._basis:
            raise DialogueError(
                f"the expressions of {path} are in the basis '{basis}', those of {self._basis_source} in "
                f"'{self._basis[0]}'; carry one over with `ns-dialogue refit`, or train on them apart."
            )

    def _lay_out(self) -> None:
        """Counts the windows of every section."""
        stride = -(-self.window // BLOCK) * BLOCK
        sections = self._sections[self.split]
        if not sections:
            names = ", ".join(self._names.values())
            raise DialogueError(
                f"there is nothing in the split '{self.split}' of {names}; simulate more people or hours, or choose "
                "another split."
            )
        lengths = np.array([section.stop - section.start for section in sections])
        people = np.array([len(self._sources[section.source].people) for section in sections])
        laid = np.where(lengths >= self.window, (lengths - self.window) // stride + 1, 0)
        self._first_number = np.concatenate([[0], np.cumsum(laid * people)])
        self._laid, self._stride = laid, stride
        starts = np.where(lengths >= self.window, (lengths - self.window) // BLOCK + 1, 0)
        self._first_start = np.concatenate([[0], np.cumsum(starts * people)])
        self._starts = starts
        if self._first_number[-1] == 0:
            longest = int(np.argmax(lengths))
            raise DialogueError(
                f"the longest conversation in the split '{self.split}', "
                f"{self._sources[sections[longest].source].name}, has {lengths[longest]} frames there, fewer than the "
                f"window's {self.window}; give longer ones or choose a shorter window."
            )

    @property
    def fps(self) -> float:
        return FPS

    @property
    def num_people(self) -> int:
        return len(self.person_ids)

    @property
    def expression_basis(self) -> str:
        return self._basis[0]

    @property
    def expression_names(self) -> Tuple[str, ...]:
        return self._basis[1]

    def split_people(self, split: Split) -> Tuple[int, ...]:
        """The numbers of who appears in a split."""
        found = {person for section in self._sections[split] for person in self._sources[section.source].people}
        return tuple(sorted(found))

    # Windows.

    def __len__(self) -> int:
        """Windows of the split, end to end, of every person."""
        return int(self._first_number[-1])

    def batch(self, numbers: Sequence[int]) -> MotionWindows:
        """The windows of these numbers, of those that lie end to end."""
        return self._gather(
            [self._locate(int(number), self._first_number, self._laid, self._stride) for number in numbers]
        )

    def draw(self, count: int, rng: np.random.Generator) -> MotionWindows:
        """Windows that begin at any multiple of `BLOCK` of the split's frames, all equally likely."""
        numbers = rng.integers(self._first_start[-1], size=count).tolist()
        return self._gather([self._locate(number, self._first_start, self._starts, BLOCK) for number in numbers])

    def _locate(self, number: int, first: np.ndarray, counts: np.ndarray, stride: int) -> Tuple[_Section, int, int]:
        """Section, participant and first frame of a window."""
        if not 0 <= number < first[-1]:
            raise IndexError(f"window {number} of {first[-1]}")
        place = int(np.searchsorted(first, number, side="right")) - 1
        participant, index = divmod(int(number - first[place]), int(counts[place]))
        section = self._sections[self.split][place]
        return section, participant, section.start + index * stride

    def _gather(self, places: Sequence[Tuple[_Section, int, int]]) -> MotionWindows:
        simulated = all(self._sources[section.source].is_simulated for section, _, _ in places)
        names = [*_SEEN, *(["mel"] if self.with_mel else []), *(["expected_head_pose"] if simulated else [])]
        own, partner = self._empty(names, len(places)), self._empty(names, len(places))
        people, partners, starts = [], [], []
        for row, (section, participant, start) in enumerate(places):
            source = self._sources[section.source]
            arrays = self._arrays(section.source)
            for name in names:
                own[name][row] = arrays[name][participant, self._rows(name, start)]
            whom = self._copy_partner(section.source, participant, start, partner, row)
            people.append(source.people[participant])
            partners.append(NOBODY if whom == NOBODY else source.people[whom])
            starts.append(start)
        return MotionWindows(
            own=Side(**{name: torch.from_numpy(rows) for name, rows in own.items()}),
            partner=Side(**{name: torch.from_numpy(rows) for name, rows in partner.items()}),
            person=torch.tensor(people),
            partner_person=torch.tensor(partners),
            start=torch.tensor(starts),
        )

    def _empty(self, names: Sequence[str], count: int) -> Arrays:
        """Room for that many windows; a side that nobody fills is still and silent."""
        width = {"expression": len(self.expression_names), "blink": 2, "gaze": 4, "prosody": 2}
        empty = {
            name: np.zeros((count, self.window, width.get(name, 6)), np.float32)
            for name in names
            if name not in ("speaking", "mel")
        }
        empty["speaking"] = np.zeros((count, self.window), bool)
        if "mel" in names:
            empty["mel"] = np.full((count, round(self.window / FPS * MEL_RATE), 80), -1.0, np.float32)
        return empty

    def _rows(self, name: str, start: int) -> slice:
        """Where a window lies in an array."""
        if name == "mel":
            first = round(start / FPS * MEL_RATE)
            return slice(first, first + round(self.window / FPS * MEL_RATE))
        return slice(start, start + self.window)

    def _copy_partner(self, number: int, participant: int, start: int, to: Arrays, row: int) -> int:
        """Fills in the partner's side of a window; returns which participant that is the longest."""
        arrays = self._arrays(number)
        others = [other for other in range(len(self._sources[number].people)) if other != participant]
        if not others:
            return NOBODY
        if len(others) == 1:
            for name, rows in to.items():
                rows[row] = arrays[name][others[0], self._rows(name, start)]
            return others[0]
        whom = self._partners(number)[participant, start : start + self.window]
        for name, rows in to.items():
            # A mel step belongs to the frame during which it is centred.
            rate = MEL_RATE / FPS if name == "mel" else 1.0
            frames = np.minimum((np.arange(rows.shape[1]) / rate).astype(int), self.window - 1)
            window = arrays[name][:, self._rows(name, start)]
            rows[row] = window[whom[frames], np.arange(len(frames))]
        present, counts = np.unique(whom, return_counts=True)
        return int(present[np.argmax(counts)])

    def _arrays(self, number: int) -> Arrays:
        """A conversation's arrays; the least recently used one is closed when too many are open."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= OPEN_CONVERSATIONS:
            self._open.popitem(last=False)
        source = self._sources[number]
        arrays = source.open()
        if arrays["head_pose"].shape != (len(source.people), source.num_frames, 6):
            raise DialogueError(
                f"{source.name} holds arrays of another shape than its folder says; simulate or process it again."
            )
        self._open[number] = arrays
        return arrays

    def _partners(self, number: int) -> Int[np.ndarray, "P T"]:
        """Whom everybody talks with, in a conversation of more than two."""
        arrays = self._arrays(number)
        if "partners" not in arrays:
            speaking = arrays["speaking"]
            arrays["partners"] = np.stack([partner_of(speaking, person) for person in range(len(speaking))])
        return arrays["partners"]

    # Whole sequences and people.

    def sequences(self, reference_seconds: float = 20.0) -> Iterator[MotionSequence]:
        """The split's sections one after the other, with everybody's character.

        Args:
            reference_seconds: Length of each character's reference: the beginning of their first training section. Of
                people whom train does not know it is the beginning of the section itself, which then begins after it.

        Raises:
            DialogueError: a shard is damaged, or a section is too short to spare the reference.
        """
        trained = set(self.split_people("train"))
        for section in self._sections[self.split]:
            source = self._sources[section.source]
            start = section.start
            if self.split != "train" and not trained.issuperset(source.people):
                start += round(reference_seconds * FPS) // BLOCK * BLOCK
                if start + self.window > section.stop:
                    raise DialogueError(
                        f"{source.name} has {section.stop - section.start} frames, too few for "
                        f"{reference_seconds:g} s of reference and a window of {self.window}; ask for a shorter one."
                    )
            characters = [
                self._character(person, name, reference_seconds, section if person not in trained else None)
                for person, name in zip(source.people, source.ids, strict=True)
            ]
            yield self._sequence(section, start, tuple(characters))

    def characters(self, reference_seconds: float = 20.0) -> Dict[int, Character]:
        """Everybody in the split by number, from their first section of train (of people whom train does not know: of
        the split); `Character.id` is the id in the source."""
        trained = set(self.split_people("train"))
        found: Dict[int, Character] = {}
        for section in self._sections[self.split]:
            source = self._sources[section.source]
            for person, name in zip(source.people, source.ids, strict=True):
                if person not in found:
                    given = section if person not in trained else None
                    found[person] = self._character(person, name, reference_seconds, given)
        return found

    def _character(self, person: int, name: str, seconds: float, section: Optional[_Section]) -> Character:
        if section is None:
            section = next(
                section for section in self._sections["train"] if person in self._sources[section.source].people
            )
        source = self._sources[section.source]
        participant = source.people.index(person)
        stop = min(section.start + round(seconds * FPS) // BLOCK * BLOCK, section.stop)
        speaking = self._arrays(section.source)["speaking"][participant, section.start : stop].copy()
        reference = self._motion(section, participant, section.start, stop)
        return Character(id=name, reference=reference, was_speaking=speaking)

    def _motion(self, section: _Section, participant: int, start: int, stop: int) -> Motion:
        arrays, is_simulated = self._arrays(section.source), self._sources[section.source].is_simulated
        rows = {name: arrays[name][participant, start:stop].astype(np.float32) for name in _MOTION}
        return Motion(
            **{**rows, "gaze": rows["gaze"].reshape(-1, 2, 2)},
            expression_residual=np.zeros((stop - start, 0), np.float32),
            fps=FPS,
            expression_basis=self.expression_basis,
            expression_names=self.expression_names,
            sources=dict.fromkeys(_MOTION, "simulated" if is_simulated else "tracked"),
        )

    def _sequence(self, section: _Section, start: int, characters: Tuple[Character, ...]) -> MotionSequence:
        source, arrays = self._sources[section.source], self._arrays(section.source)
        stop = section.stop
        first, last = (round(frame / FPS * MEL_RATE) for frame in (start, stop if self.with_mel else start))
        truth = _TRUTH if source.is_simulated else ()
        return MotionSequence(
            name=source.name,
            people=source.people,
            signals=MotionSignals(
                participant_ids=source.ids,
                prosody=arrays["prosody"][:, start:stop].astype(np.float32),
                mel=arrays["mel"][:, first:last].astype(np.float32),
                speaking=arrays["speaking"][:, start:stop].copy(),
                fps=FPS,
            ),
            motions=tuple(self._motion(section, person, start, stop) for person in range(len(source.people))),
            start=start,
            characters=characters,
            **{name: arrays[name][:, start:stop].astype(np.float32) for name in truth},
        )

    @cached_property
    def statistics(self) -> MotionStatistics:
        """Of the training split, whichever this is."""
        sections = self._sections["train"]
        count = min(len(sections), STATISTICS_SECTIONS)
        chosen = np.unique(np.linspace(0, len(sections) - 1, count).round().astype(int))
        names = ("head_pose", "expression", "blink", "gaze", "prosody")
        moments = {name: _Moments() for name in (*names, "head_velocity")}
        for index in chosen:
            section = sections[index]
            arrays = self._arrays(section.source)
            for participant in range(len(self._sources[section.source].people)):
                for name in names:
                    values = arrays[name][participant, section.start : section.stop]
                    if not np.isfinite(values).all():
                        raise DialogueError(
                            f"{self._sources[section.source].name}: {name} holds a value that is not a number; make or "
                            "process it again."
                        )
                    moments[name].add(values)
                poses = arrays["head_pose"][participant, section.start : section.stop]
                moments["head_velocity"].add(np.diff(poses, axis=0))
        return MotionStatistics(
            **{name: moment.rows() for name, moment in moments.items()},
            num_people=self.num_people,
            expression_basis=self.expression_basis,
            expression_names=self.expression_names,
        )


class _Moments:
    """Mean and standard deviation of rows that come in parts."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        values = values.astype(np.float64)
        self._count += len(values)
        self._sum = self._sum + values.sum(axis=0)
        self._squares = self._squares + np.square(values).sum(axis=0)

    def rows(self) -> torch.Tensor:
        """[2, columns]; a column that never moves has a deviation of 1, so that dividing by it changes nothing."""
        mean = self._sum / max(self._count, 1)
        deviation = np.sqrt(np.maximum(self._squares / max(self._count, 1) - mean**2, 0.0))
        deviation = np.where(deviation > 1e-6, deviation, 1.0)
        return torch.from_numpy(np.stack([mean, deviation]).astype(np.float32))
