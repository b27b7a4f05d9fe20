"""Synthetic dubbing: single-speaker conversations cut at their pauses and re-assembled into alternating two-person ones
(Talking Together, curation pipeline b).

Conventions. Every person's frames in the new conversation are rows of their own recording: frame t shows, and its
motion is, what the recording has at `rows[t]`, so that pictures, labels, landmarks and motion agree exactly; nothing is
smoothed across a cut. What a frame is worth is its *kind*: SPEAKING, in a turn of their own, with their own sound at
the same place; SILENT, a pause of their recording, played once and forwards; FILLER, anything repeated or held because
the pauses were too short. SILENT is a face that does not speak, never a reaction to the other: nobody was there. The
paper therefore takes only the speaker's lips for its loss from such data.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Bool, Float, Int

import dialogue_nerfstudio
from dialogue_nerfstudio.conversation import (
    SAMPLE_RATE,
    Conversation,
    DialogueError,
    LabelWriter,
    Motion,
    Participant,
    VideoWriter,
    frames_to_segments,
    load_conversation,
    save_conversation,
    split_frames,
)
from dialogue_nerfstudio.conversation.files import read_json, read_npz, remove_temporaries, write_npz
from dialogue_nerfstudio.process.pipeline import FACE_MODEL_NAME

SPEAKING, SILENT, FILLER = 0, 1, 2
"""Kinds of frames."""

KIND_NAMES = ("speaking", "silent", "filler")

MARGIN_SECONDS = 0.08
"""Left out at either end of a pause: lips open before the sound and close after it."""

CANDIDATES = 8
"""Pieces drawn for the next silence, of which the one is taken that begins closest to where the last one ended."""

FADE_SECONDS = 0.005
"""Length of the sound's fades at cuts: shorter ones click."""

METRES_A_RADIAN = 0.2
"""What a turned head counts against a moved one when pieces are compared: about the size of a head."""


@dataclass
class DubConfig:
    """How conversations are put together."""

    seconds: float = 20.0
    """How long each becomes; shorter where somebody runs out of speech."""
    min_turn: float = 0.6
    """Shortest turn, seconds."""
    max_turn: float = 6.0
    """Longest turn, seconds; longer speech is cut at a place drawn at random."""
    min_pause: float = 0.3
    """Shortest pause between words, seconds, at which speech is cut; also the shortest that is taken for silence."""
    min_gap: float = 0.1
    """Shortest silence between two turns, seconds."""
    max_gap: float = 0.6
    """Longest silence between two turns, seconds."""
    eval_fraction: float = 0.1
    """Part of the frames, at the end, held out from training."""


def check_dub_options(config: DubConfig) -> None:
    """Raises:
    DialogueError: an option is out of its range.
    """
    if not config.seconds >= 2.0:
        raise DialogueError(f"--seconds must be at least 2, not {config.seconds:g}.")
    if not 0.2 <= config.min_turn < config.max_turn:
        raise DialogueError(
            f"--min-turn {config.min_turn:g} must be at least 0.2 s and below --max-turn {config.max_turn:g}."
        )
    if not config.min_pause > 0:
        raise DialogueError(f"--min-pause must be above 0 s, not {config.min_pause:g}.")
    if not 0 <= config.min_gap <= config.max_gap:
        raise DialogueError(
            f"--min-gap {config.min_gap:g} must not be negative, nor above --max-gap {config.max_gap:g}."
        )


# Which frames


@dataclass
class Part:
    """One person's frames in a new conversation."""

    rows: Int[np.ndarray, " num_frames"]
    """Frames of the recording."""
    kinds: Int[np.ndarray, " num_frames"]

    @property
    def cuts(self) -> Int[np.ndarray, " n"]:
        """Frames that do not follow the one before them in the recording."""
        return np.flatnonzero(np.diff(self.rows) != 1) + 1


def runs(mask: Bool[np.ndarray, " num_frames"]) -> List[Tuple[int, int]]:
    """Where it holds, as [start, stop)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def utterances(
    speaking: Bool[np.ndarray, " num_frames"], fps: float, config: DubConfig, rng: np.random.Generator
) -> List[Tuple[int, int]]:
    """Speech between pauses, [start, stop) in frames: pauses shorter than `min_pause` do not part it, and what is
    longer than `max_turn` is cut somewhere."""
    joined: List[List[int]] = []
    for start, stop in runs(speaking):
        if joined and start - joined[-1][1] < config.min_pause * fps:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    shortest, longest = max(1, round(config.min_turn * fps)), round(config.max_turn * fps)
    found = []
    for start, stop in joined:
        while stop - start > longest:
            # Neither piece may be too short to be used.
            length = int(rng.integers(max(shortest, longest // 2), longest + 1))
            found.append((start, start + length))
            start += length
        if stop - start >= shortest:
            found.append((start, stop))
    return found


def pauses(speaking: Bool[np.ndarray, " num_frames"], fps: float, config: DubConfig) -> List[Tuple[int, int]]:
    """Stretches of at least `min_pause` without speech, [start, stop) in frames, without their margins."""
    margin = round(MARGIN_SECONDS * fps)
    trimmed = [(start + margin, stop - margin) for start, stop in runs(~speaking)]
    shortest = max(1, config.min_pause * fps - 2 * margin)
    return [(start, stop) for start, stop in trimmed if stop - start >= shortest]


def plan_turns(
    available: Sequence[List[Tuple[int, int]]], fps: float, config: DubConfig, rng: np.random.Generator
) -> Tuple[List[Tuple[int, int, int, int]], int]:
    """Turns of two people, alternating, each utterance used once.

    Args:
        available: each one's utterances.

    Returns:
        (who, first frame in the new conversation, start and stop in the recording) of each turn, and the number of
        frames.
    """
    orders = [list(rng.permutation(len(pieces))) for pieces in available]
    limit, frame = round(config.seconds * fps), 0
    who = int(rng.integers(2))
    turns: List[Tuple[int, int, int, int]] = []
    while orders[who]:
        start, stop = available[who][orders[who].pop()]
        frame += round(float(rng.uniform(config.min_gap, config.max_gap)) * fps)
        if frame + stop - start > limit and len(turns) >= 2:
            break
        turns.append((who, frame, start, stop))
        frame += stop - start
        who = 1 - who
    end = turns[-1][1] + turns[-1][3] - turns[-1][2] if turns else 0
    return turns, end + round(config.min_gap * fps)


def fill_silence(
    part: Part,
    start: int,
    stop: int,
    silences: Sequence[Tuple[int, int]],
    used: Bool[np.ndarray, " num_source"],
    motion: Motion,
    rng: np.random.Generator,
) -> None:
    """Fills the frames start … stop − 1 with pauses, each new piece beginning as close as possible to the last frame;
    `used` says, and is told, which frames were shown before."""
    frame = start
    while frame < stop:
        last = int(part.rows[frame - 1]) if frame else None
        piece = _next_piece(stop - frame, last, silences, used, motion, rng)
        part.rows[frame : frame + len(piece)] = piece
        forwards = len(piece) > 1 and bool((np.diff(piece) == 1).all())
        part.kinds[frame : frame + len(piece)] = np.where(used[piece] | (not forwards), FILLER, SILENT)
        used[piece] = True
        frame += len(piece)


def _next_piece(
    wanted: int,
    last: Optional[int],
    silences: Sequence[Tuple[int, int]],
    used: Bool[np.ndarray, " num_source"],
    motion: Motion,
    rng: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    if not silences:
        # Nothing but speech: hold the frame in which the face is calmest.
        return np.full(wanted, int(np.argmin(np.abs(motion.expression).sum(axis=1))))
    fresh = [run for start, stop in silences for run in _shifted(runs(~used[start:stop]), start)]
    long_enough = [run for run in fresh if run[1] - run[0] >= min(wanted, 5)]
    if not long_enough:
        # All were shown: there and back again through one of them.
        start, stop = silences[int(rng.integers(len(silences)))]
        there = np.arange(start, stop)
        period = np.concatenate([there, there[-2:0:-1]])
        return np.resize(period, wanted)
    # Long pieces first: every end of one is a cut.
    lengths = np.array([stop - start for start, stop in long_enough], dtype=float)
    count = min(CANDIDATES, len(long_enough))
    drawn = rng.choice(len(long_enough), size=count, replace=False, p=lengths / lengths.sum())
    candidates = []
    for index in drawn:
        start, stop = long_enough[index]
        offset = int(rng.integers(0, max(1, stop - start - wanted + 1)))
        candidates.append((start + offset, min(start + offset + wanted, stop)))
    longest = max(stop - start for start, stop in candidates)
    candidates = [piece for piece in candidates if piece[1] - piece[0] >= 0.5 * longest]
    if last is None:
        return np.arange(*candidates[0])
    distances = [pose_distance(motion.head_pose[last], motion.head_pose[start]) for start, _ in candidates]
    return np.arange(*candidates[int(np.argmin(distances))])


def _shifted(pieces: Sequence[Tuple[int, int]], by: int) -> List[Tuple[int, int]]:
    return [(start + by, stop + by) for start, stop in pieces]


def pose_distance(a: Float[np.ndarray, "6"], b: Float[np.ndarray, "6"]) -> float:
    """How far a head jumps between two poses, metres; turning counts METRES_A_RADIAN."""
    from scipy.spatial.transform import Rotation

    turn = (Rotation.from_rotvec(a[:3]).inv() * Rotation.from_rotvec(b[:3])).magnitude()
    return float(np.linalg.norm(a[3:] - b[3:]) + METRES_A_RADIAN * turn)


def plan_parts(
    speaking: Sequence[Bool[np.ndarray, " _"]],
    motions: Sequence[Motion],
    fps: float,
    config: DubConfig,
    rng: np.random.Generator,
) -> List[Part]:
    """Which frames of their recordings two people show in a new conversation; no frames where one hardly speaks."""
    available = [utterances(mask, fps, config, rng) for mask in speaking]
    turns, num_frames = plan_turns(available, fps, config, rng)
    parts = []
    for who, mask in enumerate(speaking):
        part = Part(np.zeros(num_frames, int), np.full(num_frames, FILLER))
        silences, used = pauses(mask, fps, config), np.zeros(len(mask), bool)
        filled = 0
        for _, frame, start, stop in (turn for turn in turns if turn[0] == who):
            fill_silence(part, filled, frame, silences, used, motions[who], rng)
            filled = frame + stop - start
            part.rows[frame:filled], part.kinds[frame:filled] = np.arange(start, stop), SPEAKING
        fill_silence(part, filled, num_frames, silences, used, motions[who], rng)
        parts.append(part)
    return parts


# Sound


def dubbed_sound(
    audio: Float[np.ndarray, " num_source"], part: Part, fps: float, gain: float = 1.0
) -> Float[np.ndarray, " num_samples"]:
    """One person's sound: that of their turns, sample for sample where the frames are, and silence."""
    frame = round(SAMPLE_RATE / fps)
    sound = np.zeros(len(part.rows) * frame, np.float32)
    fade = round(FADE_SECONDS * SAMPLE_RATE)
    ramp = np.ones(0, np.float32) if fade == 0 else (np.arange(fade, dtype=np.float32) + 0.5) / fade
    edges = set(part.cuts.tolist())
    for start, stop in runs(part.kinds == SPEAKING):
        # Two turns never touch; a cut within a run would be one of the recording's own utterances.
        assert not edges.intersection(range(start + 1, stop))
        first = part.rows[start] * frame
        piece = audio[first : first + (stop - start) * frame].astype(np.float32)
        piece = np.pad(piece, (0, (stop - start) * frame - len(piece))) * gain
        piece[:fade] *= ramp
        piece[len(piece) - fade :] *= ramp[::-1]
        sound[start * frame : stop * frame] = piece
    return sound


def speech_level(audio: Float[np.ndarray, " n"], speaking: Bool[np.ndarray, " num_frames"], fps: float) -> float:
    """Root mean square of the sound while its person speaks; 0 if they never do."""
    samples = np.repeat(speaking, round(SAMPLE_RATE / fps))[: len(audio)]
    spoken = audio[: len(samples)][samples]
    return float(np.sqrt(np.mean(np.square(spoken, dtype=np.float64)))) if len(spoken) else 0.0


# The conversation


def find_speakers(folders: Sequence[Path]) -> List[Path]:
    """Conversations of one person among the given folders and the folders in them, in order.

    Raises:
        DialogueError: a folder does not exist, or there are fewer than two such conversations.
    """
    found: List[Path] = []
    left_out = 0
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DialogueError(f"{folder} is not a folder: give conversations that `ns-dialogue process` wrote.")
        itself = (folder / "conversation.json").is_file()
        for path in [folder] if itself else sorted(path.parent for path in folder.glob("*/conversation.json")):
            participants = read_json(path / "conversation.json").get("participants", [])
            if len(participants) == 1 and participants[0].get("camera") is not None:
                found.append(path)
            else:
                left_out += 1
    if len(found) < 2:
        others = f", and {left_out} of several people or of sound alone" if left_out else ""
        raise DialogueError(
            f"{', '.join(map(str, folders))}: there are {len(found)} conversation(s) of one person{others}; dubbing "
            "makes one of two people from two of them."
        )
    return found


def make_dub(
    sources: Sequence[Path],
    output: Path,
    seed: Sequence[int],
    config: Optional[DubConfig] = None,
    progress: Callable[[str, float, float], None] = lambda stage, done, total: None,
) -> Conversation:
    """Makes a two-person conversation of two single-person ones.

    Args:
        sources: two conversation folders.
        output: the folder to make; what is in it is written over.
        seed: of all that is drawn.
        config: options.
        progress: called as progress(stage, done, total).

    Raises:
        DialogueError: the sources do not go together, or one has too little speech.
    """
    config = config or DubConfig()
    check_dub_options(config)
    people = [load_conversation(path) for path in sources]
    _check_sources(people)
    fps = people[0].fps
    speaking = [person.speaking[:, 0] for person in people]
    motions = [person.participants[0].motion for person in people]
    parts = plan_parts(speaking, motions, fps, config, np.random.default_rng(list(seed)))
    num_frames = len(parts[0].rows)
    for person, part in zip(people, parts, strict=True):
        if not (part.kinds == SPEAKING).any():
            raise DialogueError(
                f"{person.root}: there is not enough speech between pauses for turns of {config.min_turn:g} s; lower "
                "--min-turn, or leave this one out."
            )
    ids = [person.participants[0].id for person in people]
    if ids[0] == ids[1]:
        ids = ["p0", "p1"]
    output = Path(output)
    (output / "conversation.json").unlink(missing_ok=True)
    for number, (name, person, part) in enumerate(zip(ids, people, parts, strict=True)):
        _write_person(
            output / "participants" / name, person, part, lambda f, n=number: progress("pictures", (n + f) / 2, 1.0)
        )
    _write_sound(output, ids, people, parts, fps)
    progress("sound", 1.0, 1.0)
    if (people[0].root / FACE_MODEL_NAME).is_file():
        shutil.copyfile(people[0].root / FACE_MODEL_NAME, output / FACE_MODEL_NAME)
    train, evaluation = split_frames(num_frames, config.eval_fraction)
    heard = np.stack(
        [mask[part.rows] & (part.kinds == SPEAKING) for mask, part in zip(speaking, parts, strict=True)], axis=1
    )
    conversation = Conversation(
        num_frames=num_frames,
        participants=[_participant(name, person, part) for name, person, part in zip(ids, people, parts, strict=True)],
        segments=frames_to_segments(heard, ids, fps),
        train_frames=train,
        eval_frames=evaluation,
        fps=fps,
        provenance={
            "program": "dialogue-nerfstudio",
            "version": dialogue_nerfstudio.__version__,
            "command": "dub",
            "inputs": [str(Path(path).resolve()) for path in sources],
            "seed": list(seed),
            "options": asdict(config),
            "dub": {name: _ranges(part) for name, part in zip(ids, parts, strict=True)},
        },
        root=output,
    )
    save_conversation(conversation, output)
    return conversation


def _check_sources(people: Sequence[Conversation]) -> None:
    for person in people:
        if len(person.participants) != 1:
            raise DialogueError(f"{person.root} is of {len(person.participants)} people: recordings of one are cut.")
    first, second = people
    if first.fps != second.fps:
        raise DialogueError(f"{first.root} has {first.fps:g} frames a second, {second.root} {second.fps:g}.")
    first.participants[0].motion.check_same_basis(second.participants[0].motion, str(second.root))


def _participant(name: str, person: Conversation, part: Part) -> Participant:
    original = person.participants[0]
    return Participant(
        id=name,
        name=original.name if original.name != original.id else person.root.name,
        camera=original.camera,
        head_box=original.head_box,
        torso_box=original.torso_box,
        motion=original.motion.take(part.rows),
        source={**original.source, "conversation": person.root.name, "participant": original.id},
    )


def _ranges(part: Part) -> Dict[str, Any]:
    """What each frame is worth, and where the recording jumps, as short lists."""
    kinds = {name: [list(run) for run in runs(part.kinds == kind)] for kind, name in enumerate(KIND_NAMES)}
    return {**kinds, "cuts": part.cuts.tolist()}


def _write_person(folder: Path, person: Conversation, part: Part, progress: Callable[[float], None]) -> None:
    """Pictures, labels, plate and tracking of one person's part; rows.npz says where each frame is from."""
    participant = person.participants[0]
    with (
        person.frames(participant.id) as frames,
        person.labels(participant.id) as labels,
        VideoWriter(folder / "video.mp4", person.fps, frames.width, frames.height) as video,
        LabelWriter(folder / "labels.mkv", person.fps, labels.width, labels.height) as maps,
    ):
        for number, row in enumerate(part.rows.tolist()):
            video.write(frames[row])
            maps.write(labels[row])
            progress((number + 1) / len(part.rows))
    original = person.participant_path(participant.id, "")
    for plate in original.glob("*.png"):
        shutil.copyfile(plate, folder / plate.name)
    for archive in ("tracking.npz", "face.npz"):
        if (original / archive).is_file():
            arrays = read_npz(original / archive)
            of_frames = arrays if archive == "tracking.npz" else ("mouth_opening",)
            write_npz(
                folder / archive,
                **{name: values[part.rows] if name in of_frames and _has_rows(values, person) else values
                   for name, values in arrays.items()},
            )  # fmt: skip
    write_npz(folder / "rows.npz", rows=part.rows, kinds=part.kinds)


def _has_rows(values: np.ndarray, person: Conversation) -> bool:
    return values.ndim > 0 and len(values) == person.num_frames


def _write_sound(
    output: Path, ids: Sequence[str], people: Sequence[Conversation], parts: Sequence[Part], fps: float
) -> None:
    from dialogue_nerfstudio.process.audio_features import mix_tracks, save_wav
    from dialogue_nerfstudio.process.features import write_features

    sounds = [person.audio()[0] for person in people]
    levels = [speech_level(sound, person.speaking[:, 0], fps) for sound, person in zip(sounds, people, strict=True)]
    # Both as loud as their middle: else who was recorded at a lower gain would sound far away.
    middle = float(np.sqrt(levels[0] * levels[1]))
    gains = [middle / level if level > 0 and middle > 0 else 1.0 for level in levels]
    tracks = [dubbed_sound(sound, part, fps, gain) for sound, part, gain in zip(sounds, parts, gains, strict=True)]
    for name, track in zip(ids, tracks, strict=True):
        save_wav(output / "audio" / f"{name}.wav", track)
    mix = mix_tracks(tracks, len(tracks[0]))
    save_wav(output / "audio.wav", mix)
    write_features(output, mix, SAMPLE_RATE, len(parts[0].rows), fps)


def dub_task(task: Dict[str, Any], report: Callable[[str, float, float], None]) -> Dict[str, Any]:
    """The work on one dub, in a worker; see `engines`."""
    output = Path(task["output"])
    if output.is_dir():
        remove_temporaries(output)
    made = make_dub(task["sources"], output, task["seed"], task["config"], report)
    return {"conversations": [{"folder": ".", "num_frames": made.num_frames, "participants": 2}]}
