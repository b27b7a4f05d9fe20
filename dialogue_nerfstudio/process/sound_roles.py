"""Who of some known people speaks when in a sound: by name, by RTTM, by a channel each, or by telling voices apart.

Conventions. Sound is 16 kHz; roles are bool `[T, P]`, columns in the order of the people. Channel levels are root mean
squares `[T, 2]` a frame.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, List, Optional, Sequence

import numpy as np
from jaxtyping import Bool, Float

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm
from dialogue_nerfstudio.process.diarization import (
    DiarizationConfig,
    VoiceTrack,
    centroids,
    diarize_source,
    separate_voices,
)
from dialogue_nerfstudio.process.sound_source import SoundSource

CHANNEL_DIFFERENCE = 6.0
"""Decibels by which one channel outdoes the other while one person of two speaks into their own microphone."""
ONE_SIDED = 0.7
"""Share of the loud frames in which one channel has to outdo the other."""
BOTH_HEARD = 0.05
"""Share of the loud frames in which either channel has to be the louder one."""
LOUD = 0.1
"""Share of the loudest frames' level (95th percentile) from which on a frame is loud."""
AUDIBLE = 1e-3
"""Level below which nothing is loud."""
VOICE_LIKENESS = 0.83
"""Cosine similarity of two clusters of voice embeddings from which on they may be one voice: pieces of one recorded
voice were measured to be 0.86 … 0.96 alike, different ones 0.66 … 0.94. So voices like each other are not counted."""
LEAST_VOICE = 2.0
"""Seconds of speech that make a further voice."""

Progress = Callable[[float], None]


@dataclass
class SoundRoles:
    """Who speaks when, and how that is known."""

    segments: List[SpeechSegment]
    method: str
    """"speaker", "rttm", "channels", "voices" or "speech"."""
    notes: List[str] = field(default_factory=list)
    """What the user should know, a sentence each."""


def one_person_a_channel(levels: Float[np.ndarray, "T 2"]) -> bool:
    """Whether two channels are those of two people: mostly one of them is much louder than the other, now this one and
    now that one. In a stereo recording of a room or of music they are about as loud as each other."""
    louder = levels.max(axis=1)
    loud = louder > max(AUDIBLE, LOUD * float(np.quantile(louder, 0.95))) if len(levels) else np.zeros(0, bool)
    if not loud.any():
        return False
    decibels = 20.0 * np.log10(np.maximum(levels[loud], 1e-6))
    difference = decibels[:, 0] - decibels[:, 1]
    shares = [(difference > CHANNEL_DIFFERENCE).mean(), (difference < -CHANNEL_DIFFERENCE).mean()]
    return bool(sum(shares) >= ONE_SIDED and min(shares) >= BOTH_HEARD)


def roles_by_name(speaker: str, ids: Sequence[str], seconds: float) -> SoundRoles:
    """One person speaks throughout.

    Raises:
        DialogueError: there is no such person.
    """
    if speaker not in ids:
        raise DialogueError(f"--speaker {speaker}: there is no such person; there is {', '.join(ids)}.")
    return SoundRoles([SpeechSegment(0.0, seconds, speaker)], "speaker")


def roles_by_rttm(path: Path, ids: Sequence[str]) -> SoundRoles:
    """What an RTTM file says. Speakers named otherwise than the people (`SPEAKER_00` …) are these, in order.

    Raises:
        DialogueError: the file cannot be read, names more speakers than there are people, or mixes both sorts of names.
    """
    segments = read_rttm(path)
    speakers = list(dict.fromkeys(segment.speaker for segment in segments))
    known = [speaker for speaker in speakers if speaker in ids]
    if len(known) == len(speakers):
        return SoundRoles(segments, "rttm", [] if segments else [f"{path} names nobody: everybody listens."])
    if known or len(speakers) > len(ids):
        raise DialogueError(
            f"{path} names {len(speakers)} speaker(s), {', '.join(speakers)}; there are {len(ids)} people, "
            f"{', '.join(ids)}: name the speakers by these, and leave out everybody else."
        )
    names = dict(zip(speakers, ids, strict=False))
    renamed = [SpeechSegment(segment.start, segment.end, names[segment.speaker]) for segment in segments]
    who = ", ".join(f"{speaker} is {name}" for speaker, name in names.items())
    return SoundRoles(renamed, "rttm", [f"Speakers of {path} in the order in which they are named: {who}."])


def roles_by_channel(
    channels: Sequence[SoundSource],
    levels: Float[np.ndarray, "T 2"],
    ids: Sequence[str],
    fps: float,
    progress: Progress = lambda fraction: None,
) -> SoundRoles:
    """Each channel's own speech; where the other channel is much louder it is the other's, heard from afar.

    Raises:
        DialogueError: silero-vad is not installed.
    """
    decibels = 20.0 * np.log10(np.maximum(levels, 1e-6))
    segments: List[SpeechSegment] = []
    for number, (channel, name) in enumerate(zip(channels, ids, strict=True)):
        heard = diarize_source(
            channel, 1, progress=lambda fraction, n=number: progress((n + fraction) / len(channels))
        ).segments
        afar = decibels[:, 1 - number] - decibels[:, number] > CHANNEL_DIFFERENCE
        segments += [piece for one in heard for piece in _without(SpeechSegment(one.start, one.end, name), afar, fps)]
    who = ", ".join(f"channel {number + 1} is {name}" for number, name in enumerate(ids))
    return SoundRoles(
        sorted(segments, key=lambda s: (s.start, s.end, s.speaker)), "channels", [f"Two channels: {who}."]
    )


def _without(segment: SpeechSegment, away: Bool[np.ndarray, " T"], fps: float) -> List[SpeechSegment]:
    """The pieces of a segment that are left when the frames of `away` are taken out, a fifth of a second at least."""
    first, last = int(segment.start * fps), min(int(np.ceil(segment.end * fps)), len(away))
    if not away[first:last].any():
        return [segment]
    kept = np.concatenate([[False], ~away[first:last], [False]]).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(kept) == 1) + first, np.flatnonzero(np.diff(kept) == -1) + first
    return [
        SpeechSegment(max(segment.start, start / fps), min(segment.end, stop / fps), segment.speaker)
        for start, stop in zip(starts, stops, strict=True)
        if stop - start >= 0.2 * fps
    ]


def roles_by_voice(
    sound: SoundSource,
    ids: Sequence[str],
    num_voices: Optional[int] = None,
    progress: Progress = lambda fraction: None,
    config: Optional[DiarizationConfig] = None,
) -> SoundRoles:
    """Voices told apart and given to the people in the order in which they are heard; of more voices than people those
    that speak most are theirs, and what the others say is nobody's.

    Args:
        sound: the mix.
        ids: the people.
        num_voices: how many voices there are; as many as people if None.
        progress: told the fraction done.
        config: of the diarizer.

    Raises:
        DialogueError: a network for it is not installed.
    """
    config = config or DiarizationConfig()
    count = num_voices or len(ids)
    found = diarize_source(sound, count, config, progress)
    if not found.segments:
        note = "No speech was found in the sound (silence, music or noise): everybody listens throughout."
        return SoundRoles([], "speech", [f"{note} --speaker or --rttm says who speaks after all."])
    spoken = {segment.speaker: 0.0 for segment in found.segments}
    for segment in found.segments:
        spoken[segment.speaker] += segment.end - segment.start
    chosen = sorted(spoken, key=lambda voice: -spoken[voice])[: len(ids)]
    names = dict(zip([voice for voice in spoken if voice in chosen], ids, strict=False))
    segments = [SpeechSegment(s.start, s.end, names[s.speaker]) for s in found.segments if s.speaker in names]
    notes = []
    if len(ids) > 1:
        who = ", ".join(f"{voice} is {name} ({spoken[voice]:.1f} s)" for voice, name in names.items())
        notes.append(f"Voices in the order in which they are heard: {who}.")
    if len(names) < len(ids):
        silent = ", ".join(ids[len(names) :])
        notes.append(f"Fewer voices than people were heard: {silent} only listens.")
    left_out = [voice for voice in spoken if voice not in names]
    if left_out:
        seconds = sum(spoken[voice] for voice in left_out)
        notes.append(f"{len(left_out)} further voice(s) speak for {seconds:.1f} s, which is nobody's speech here.")
    elif found.voices is not None and num_voices is None:
        further = further_voice(found.voices, count, config)
        if further > 0:
            notes.append(
                f"There seem to be {count + 1} voices in the sound, and there are {count} people: about {further:.0f} "
                f"s of another voice were given to who sounds most like it. --num-voices {count + 1} makes it nobody's "
                "speech, --rttm says it all."
            )
    return SoundRoles(segments, "voices", notes)


def further_voice(voices: VoiceTrack, count: int, config: DiarizationConfig) -> float:
    """Seconds of speech of one more voice than `count`; 0 if the voices are not all unlike each other then."""
    if len(voices.times) < count + 1:
        return 0.0
    labels = separate_voices(voices.embeddings, count + 1, config)
    means = centroids(voices.embeddings, labels, count + 1)
    seconds = np.bincount(labels, minlength=count + 1) * voices.hop
    likeness = (means @ means.T)[np.triu_indices(count + 1, 1)]
    if seconds.min() < LEAST_VOICE or likeness.max() > VOICE_LIKENESS:
        return 0.0
    return float(seconds.min())
