"""The one interface of all motion generators: conversation signals and characters in, a Motion for each person out.

A generator is a *stream*: it is told whom it moves, then given what is heard in blocks of any length, and returns
frames as soon as they are decided. What it returns does not depend on how the sound was cut into blocks, its memory
does not grow with the length of the conversation, and `generate` is nothing but one stream with one block.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.motion.signals import MotionSignals

MotionParts = Dict[str, Dict[str, np.ndarray]]
"""participant id → field of `Motion` (head_pose, blink, expression, …) → its rows, float32 [n, …]; all the same n."""


@dataclass
class Character:
    """A person as generators know them: motion of theirs, to begin from, to take habits from and to stay within."""

    id: str
    reference: Motion
    """Recorded (or simulated) motion of this person, a few seconds or more."""
    was_speaking: np.ndarray
    """bool [T], when this person spoke during the reference."""


class MotionStream(ABC):
    """One conversation being generated."""

    @abstractmethod
    def advance(self, signals: MotionSignals) -> MotionParts:
        """Takes the next block of what is heard; the frames decided since the last call, perhaps none.

        The block's participants are those that the stream was begun with, in the same order; its length is a multiple
        of `signals.BLOCK` frames, but for the last block. People, or fields, of which nothing is decided may be left
        out of what is returned.
        """

    @abstractmethod
    def finish(self) -> MotionParts:
        """No more is heard: the frames that are still owed."""


class MotionGenerator(ABC):
    """A trained generator."""

    provides: ClassVar[Tuple[str, ...]]
    """The fields of `Motion` that it makes."""

    @abstractmethod
    def begin(self, characters: Sequence[Character], seed: int) -> MotionStream:
        """Starts a conversation of these people; the same seed and signals give the same motion.

        Raises:
            DialogueError: it cannot move one of them (who and why is said).
        """

    def generate(self, signals: MotionSignals, characters: Sequence[Character], seed: int) -> MotionParts:
        """The whole of a conversation at once."""
        stream = self.begin(characters, seed)
        return join_parts([stream.advance(signals), stream.finish()])


def join_parts(blocks: Sequence[MotionParts]) -> MotionParts:
    """Blocks of motion one after the other."""
    people: List[str] = list(dict.fromkeys(person for block in blocks for person in block))
    return {
        person: {
            name: np.concatenate([block[person][name] for block in blocks if person in block])
            for name in dict.fromkeys(name for block in blocks for name in block.get(person, {}))
        }
        for person in people
    }


def check_participants(signals: MotionSignals, characters: Mapping[str, Character]) -> None:
    """Raises ValueError where signals are not of the people that a stream was begun with."""
    if tuple(signals.participant_ids) != tuple(characters):
        raise ValueError(f"signals are of {signals.participant_ids}, the stream moves {tuple(characters)}")
