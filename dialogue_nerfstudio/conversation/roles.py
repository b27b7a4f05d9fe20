"""Who speaks when: RTTM files, and the conversion between segments in seconds and roles per frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence

import numpy as np
from jaxtyping import Bool, Int

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path


@dataclass(frozen=True)
class SpeechSegment:
    """One person speaking from `start` to `end`, in seconds."""

    start: float
    end: float
    speaker: str


def read_rttm(path: Path) -> List[SpeechSegment]:
    """Reads the SPEAKER lines of an RTTM file, in order of their start.

    Raises:
        DialogueError: the file is missing, or a line is not RTTM (it is named).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DialogueError(f"{path} does not exist; give the path of an RTTM file.") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DialogueError(f"{path} is not an RTTM text file.") from error
    segments = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            start, duration, speaker = float(fields[3]), float(fields[4]), fields[7]
        except (IndexError, ValueError) as error:
            raise DialogueError(f"{path}, line {number}: not an RTTM SPEAKER line: '{line.strip()}'.") from error
        if not (np.isfinite(start) and np.isfinite(duration) and start >= 0 and duration >= 0):
            raise DialogueError(f"{path}, line {number}: start and duration must be numbers that are not negative.")
        segments.append(SpeechSegment(start, start + duration, speaker))
    return sorted(segments, key=lambda segment: (segment.start, segment.end, segment.speaker))


def write_rttm(path: Path, segments: Sequence[SpeechSegment], uri: str = "conversation") -> None:
    """Writes segments as RTTM, atomically."""
    lines = [
        f"SPEAKER {uri} 1 {segment.start:.3f} {segment.end - segment.start:.3f} <NA> <NA> {segment.speaker} <NA> <NA>\n"
        for segment in sorted(segments, key=lambda segment: segment.start)
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def segments_to_frames(
    segments: Sequence[SpeechSegment], participant_ids: Sequence[str], num_frames: int, fps: float
) -> Bool[np.ndarray, "num_frames num_participants"]:
    """Whether each participant speaks at each frame's middle, (t + 0.5) / fps.

    Raises:
        DialogueError: a segment names somebody who is not a participant.
    """
    speaking = np.zeros((num_frames, len(participant_ids)), dtype=bool)
    middles = (np.arange(num_frames) + 0.5) / fps
    for segment in segments:
        if segment.speaker not in participant_ids:
            raise DialogueError(
                f"the roles name a speaker '{segment.speaker}' who is not a participant; "
                f"use {', '.join(participant_ids)} as the speaker names of the RTTM file."
            )
        inside = (middles >= segment.start) & (middles < segment.end)
        speaking[inside, list(participant_ids).index(segment.speaker)] = True
    return speaking


def frames_to_segments(
    speaking: Bool[np.ndarray, "num_frames num_participants"], participant_ids: Sequence[str], fps: float
) -> List[SpeechSegment]:
    """The runs of speaking frames as segments whose frames' middles they cover."""
    segments = []
    for column, participant_id in enumerate(participant_ids):
        edges = np.diff(np.concatenate([[False], speaking[:, column], [False]]).astype(np.int8))
        for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            segments.append(SpeechSegment(start / fps, stop / fps, participant_id))
    return sorted(segments, key=lambda segment: (segment.start, segment.end, segment.speaker))


def partner_of(
    speaking: Bool[np.ndarray, "num_participants num_frames"], person: int
) -> Int[np.ndarray, " num_frames"]:
    """Frame by frame, whom a person talks with: whoever else speaks (who began last, if several), in a pause the last
    who spoke, and before anybody else has spoken the first who will. −1 everywhere for somebody alone."""
    num_people, num_frames = speaking.shape
    others = [other for other in range(num_people) if other != person]
    if not others:
        return np.full(num_frames, -1)
    if len(others) == 1:
        return np.full(num_frames, others[0])
    begun = np.full((len(others), num_frames), -1)
    for row, other in enumerate(others):
        mine = speaking[other]
        begins = mine & ~np.concatenate([[False], mine[:-1]])
        begun[row] = np.where(mine, np.maximum.accumulate(np.where(begins, np.arange(num_frames), -1)), -1)
    chosen = np.where(begun.max(axis=0) >= 0, begun.argmax(axis=0), -1)
    known = np.maximum.accumulate(np.where(chosen >= 0, np.arange(num_frames), -1))
    spoken = np.flatnonzero(chosen >= 0)
    first = chosen[spoken[0]] if len(spoken) else 0
    return np.asarray(others)[np.where(known >= 0, chosen[np.maximum(known, 0)], first)]
