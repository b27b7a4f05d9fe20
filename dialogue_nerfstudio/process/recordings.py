"""Which files belong to one recording, and what becomes of it: a conversation of pictures, of voices, or one a shot.

Conventions. A *recording* is one video of everybody, one synchronous video a person, sound alone (one file of
everybody, or one a voice), or an AD-NeRF-family folder. Given side by side or in one folder, videos are the pictures,
sound files are the sound in place of the videos' own, and an RTTM file says who speaks. Where many recordings are asked
for (`find_recordings`), every file of a folder is a recording of its own, together with the sound and the RTTM file of
the same name, and every folder in it is one recording of its files.
"""

import os
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import write_json
from dialogue_nerfstudio.process.ad_nerf import process_ad_nerf
from dialogue_nerfstudio.process.ad_nerf_folder import is_ad_nerf_folder
from dialogue_nerfstudio.process.decode import FPS, MIN_FRAMES
from dialogue_nerfstudio.process.pipeline import WORK_FOLDER, ProcessConfig, Processing, process_video
from dialogue_nerfstudio.process.shots import describe_shots
from dialogue_nerfstudio.process.sound_only import process_sound
from dialogue_nerfstudio.process.stages import Progress

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
"""What counts as a video in a folder."""

SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma")
"""What counts as sound without pictures."""

ROLES_SUFFIX = ".rttm"

MAX_VIDEOS = 16
"""Most videos of one recording: a folder of more is a collection, and one participant a file would be a wrong guess."""

SHOTS_FILE = "shots.json"
"""Beside the conversations of `--shot all`: what became of each shot."""


@dataclass(frozen=True)
class Recording:
    """The files of one recording."""

    source: Path
    """What stands for it: its first file, or its folder."""
    videos: Tuple[Path, ...] = ()
    """In the order of the participants."""
    sounds: Tuple[Path, ...] = ()
    rttm: Optional[Path] = None

    @property
    def files(self) -> Tuple[Path, ...]:
        """All that the result depends on."""
        return (*self.videos, *self.sounds, *([] if self.rttm is None else [self.rttm])) or (self.source,)


def media_of(folder: Path) -> List[Path]:
    """The videos, sounds and RTTM files in a folder, by name; hidden files are none."""
    kinds = (*VIDEO_SUFFIXES, *SOUND_SUFFIXES, ROLES_SUFFIX)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return [folder / name for name in sorted(names) if os.path.splitext(name)[1].lower() in kinds]


def is_conversation(folder: Path) -> bool:
    """Whether `process` made, or began, this folder."""
    return (folder / "conversation.json").exists() or (folder / WORK_FOLDER).is_dir()


def one_recording(inputs: Sequence[Path]) -> Recording:
    """Files as they are given, and folders as the files in them, as one recording.

    Raises:
        DialogueError: there is nothing, a folder without media, too many videos, or several RTTM files.
    """
    if not inputs:
        raise DialogueError("No video was given: name at least one.")
    family = [path for path in inputs if is_ad_nerf_folder(path)]
    if family and len(inputs) > 1:
        raise DialogueError(
            f"{family[0]} is an AD-NeRF-family folder, a conversation of one: process it alone, not with other inputs."
        )
    if family:
        return Recording(Path(family[0]))
    paths: List[Path] = []
    for path in map(Path, inputs):
        if not path.is_dir():
            paths.append(path)
            continue
        if is_conversation(path):
            raise DialogueError(f"{path} already is a conversation: train on it, or give a video.")
        found = media_of(path)
        if not any(file.suffix.lower() != ROLES_SUFFIX for file in found):
            raise DialogueError(
                f"The folder {path} holds no video ({', '.join(VIDEO_SUFFIXES)}) and no sound "
                f"({', '.join(SOUND_SUFFIXES)}): give a file, or --each if its folders hold a recording each."
            )
        paths += found
    return _sorted_by_kind(Path(inputs[0]), paths)


def _sorted_by_kind(source: Path, paths: Sequence[Path]) -> Recording:
    sounds = [path for path in paths if path.suffix.lower() in SOUND_SUFFIXES]
    roles = [path for path in paths if path.suffix.lower() == ROLES_SUFFIX]
    videos = [path for path in paths if path not in sounds and path not in roles]
    if len(videos) > MAX_VIDEOS:
        raise DialogueError(
            f"{source} holds {len(videos)} videos, which would be one conversation of as many people: add --each to "
            "make a conversation of each of them, or name the files."
        )
    if len(roles) > 1:
        raise DialogueError(
            f"{' and '.join(str(path) for path in roles)} both say who speaks in one recording: keep one of them."
        )
    if not videos and not sounds:
        raise DialogueError(f"{roles[0]} says who speaks, but there is no video and no sound: name them, too.")
    stems = {path.stem: path for path in sounds}
    if len(sounds) == len(videos) and set(stems) == {path.stem for path in videos}:
        sounds = [stems[path.stem] for path in videos]
    return Recording(source, tuple(videos), tuple(sounds), roles[0] if roles else None)


def find_recordings(inputs: Iterable[Path]) -> List[Recording]:
    """Every file, and every file and folder in a folder, as a recording of its own; see this module's conventions.

    Only names are read, so that thousands take no time; what is in the files is seen when they are worked on.

    Raises:
        DialogueError: an input does not exist, or there is no recording in any.
    """
    recordings: List[Recording] = []
    inputs = [Path(path) for path in inputs]
    for path in inputs:
        if not path.exists():
            raise DialogueError(f"There is no file {path}: give a video, or a folder of recordings.")
        if not path.is_dir() or is_ad_nerf_folder(path):
            recordings.append(one_recording([path]))
            continue
        recordings += _by_name(media_of(path))
        with os.scandir(path) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        for folder in (path / name for name in folders):
            if is_ad_nerf_folder(folder):
                recordings.append(Recording(folder))
            elif not is_conversation(folder) and any(f.suffix.lower() != ROLES_SUFFIX for f in media_of(folder)):
                recordings.append(one_recording([folder]))
    if not recordings:
        raise DialogueError(
            f"{', '.join(str(path) for path in inputs)}: no video and no sound is in there, nor in the folders in it; "
            "give a folder of recordings."
        )
    return recordings


def _by_name(files: Sequence[Path]) -> List[Recording]:
    """A recording for each video, with the sound and the roles of its name, and for each sound that is no video's."""
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    sounds = [path for path in files if path.suffix.lower() in SOUND_SUFFIXES]
    roles = {path.stem: path for path in files if path.suffix.lower() == ROLES_SUFFIX}
    seen = {path.stem for path in videos}
    beside = {path.stem: path for path in sounds if path.stem in seen}
    found = [
        Recording(path, (path,), (beside[path.stem],) if path.stem in beside else (), roles.get(path.stem))
        for path in videos
    ]
    found += [Recording(path, (), (path,), roles.get(path.stem)) for path in sounds if path.stem not in seen]
    return sorted(found, key=lambda recording: recording.source)


def process_inputs(
    inputs: Sequence[Path], output: Path, config: Optional[ProcessConfig] = None, progress: Optional[Progress] = None
) -> List[Dict[str, Any]]:
    """Turns the inputs, as one recording, into a conversation folder; see `process_recording`."""
    return process_recording(one_recording(inputs), output, config, progress)


def process_recording(
    recording: Recording, output: Path, config: Optional[ProcessConfig] = None, progress: Optional[Progress] = None
) -> List[Dict[str, Any]]:
    """Turns a recording of any kind into a conversation folder, or with `shot="all"` into one a shot.

    Returns:
        For each conversation its folder under `output` ("." for `output` itself), frames and participants.

    Raises:
        DialogueError: naming what is wrong with which input, option or frame; finished stages stay.
    """
    config, output = config or ProcessConfig(), Path(output)
    if not recording.videos and not recording.sounds:
        made = process_ad_nerf(recording.source, output, config, progress=progress)
        return [_made(".", made.num_frames, len(made.participants))]
    if config.audio and recording.sounds:
        raise DialogueError(
            f"--audio and {recording.sounds[0].name} among the inputs both are the sound: leave one of them out."
        )
    if recording.rttm is not None and config.rttm is None:
        config = replace(config, rttm=recording.rttm)
    if not recording.videos:
        made = process_sound(recording.sounds, output, config, progress=progress)
        return [_made(".", made.num_frames, len(made.participants))]
    if recording.sounds:
        config = replace(config, audio=recording.sounds)
    if config.shot == "all":
        return _process_shots(recording, output, config, progress)
    made = process_video(recording.videos, output, config, progress=progress)
    return [_made(".", made.num_frames, len(made.participants))]


def _made(folder: str, num_frames: int, participants: int) -> Dict[str, Any]:
    return {"folder": folder, "num_frames": num_frames, "participants": participants}


def _process_shots(
    recording: Recording, output: Path, config: ProcessConfig, progress: Optional[Progress]
) -> List[Dict[str, Any]]:
    """A conversation of every shot that shows the people: output/shot-01, …; shots.json says what became of each.

    Raises:
        DialogueError: no shot becomes a conversation.
    """
    if (output / "conversation.json").exists():
        raise DialogueError(f"{output} already is a conversation: give another --output for those of all shots.")
    if config.rttm is not None:
        raise DialogueError("--rttm is of one conversation, --shot all makes several: choose one, or leave it out.")
    whole = Processing.of(recording.videos, output, config, progress)
    shots = whole.read_shots()
    long_enough = [number for number, (start, stop) in enumerate(shots, start=1) if stop - start >= MIN_FRAMES]
    outcomes: List[Dict[str, Any]] = []
    for number, (start, stop) in enumerate(shots, start=1):
        outcome: Dict[str, Any] = {"shot": number, "start_seconds": start / FPS, "end_seconds": stop / FPS}
        if number not in long_enough:
            outcome["reason"] = f"It is shorter than {MIN_FRAMES} frames."
        else:
            done = long_enough.index(number)
            name = f"shot-{number:0{max(2, len(str(len(shots))))}d}"
            try:
                made = Processing.of(
                    recording.videos,
                    output / name,
                    replace(config, shot=number),
                    _part_of(progress, done, len(long_enough)),
                    shots=shots,
                ).run()
                outcome.update(_made(name, made.num_frames, len(made.participants)))
            except DialogueError as error:
                outcome["reason"] = str(error)
        outcomes.append(outcome)
    write_json(output / SHOTS_FILE, outcomes)
    made = [outcome for outcome in outcomes if "folder" in outcome]
    if not made:
        reason = next((o["reason"] for o in outcomes if o["shot"] in long_enough), outcomes[0]["reason"])
        raise DialogueError(
            f"None of the {len(shots)} shots of {recording.source} ({describe_shots(shots, FPS)}) became a "
            f"conversation. The first: {reason}"
        )
    return made


def _part_of(progress: Optional[Progress], done: int, total_runs: int) -> Optional[Progress]:
    """The progress of one of several runs of the same stages, as that of all of them."""
    if progress is None:
        return None
    return lambda stage, part, total: progress(stage, done + part / total, total_runs)


def output_names(recordings: Sequence[Recording], taken: Dict[str, str]) -> Dict[str, str]:
    """A folder name for each recording, by its source: the file's name without suffix, and with it (or a number) where
    that is another's.

    Args:
        recordings: in order.
        taken: source → name, of an earlier run; those stay.
    """
    names = dict(taken)
    used = set(taken.values())
    for recording in recordings:
        source = str(recording.source.resolve())
        if source in names:
            continue
        path = recording.source
        stem = path.name if path.is_dir() else path.stem
        longer = [stem, path.name, f"{path.resolve().parent.name}-{stem}"]
        candidates = chain(longer, (f"{stem}-{number}" for number in count(2)))
        name = next(name for name in candidates if name not in used)
        names[source] = name
        used.add(name)
    return names
