"""Sound alone in, a Conversation of voices out: who speaks when, and the features that animate avatars.

    sound        the mix, one file a voice where there are several     (audio_features)
    features     one row a frame                                       (audio_features)
    voices       who speaks when                                       (diarization)

One file holds everybody, and its voices are told apart; of several files, which run synchronously, each is one voice.
Participants have no camera, no boxes and no motion (`Participant.is_voice`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

import dialogue_nerfstudio
from dialogue_nerfstudio.conversation.conversation import SAMPLE_RATE, Conversation, Participant, save_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import write_json
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm, segments_to_frames, write_rttm
from dialogue_nerfstudio.conversation.split import split_frames
from dialogue_nerfstudio.process.decode import FPS, MIN_FRAMES
from dialogue_nerfstudio.process.pipeline import (
    WORK_FOLDER,
    ProcessConfig,
    check_options,
    check_output,
    clipped,
    feature_files,
    feature_options,
    feature_stage_options,
    recognised_voices,
)
from dialogue_nerfstudio.process.stages import Progress, StageRunner, source_fingerprint

DEFAULT_VOICES = 2
"""How many voices one file is taken to hold where nothing else is said: this is about conversations."""


def process_sound(
    files: Sequence[Path], output: Path, config: Optional[ProcessConfig] = None, progress: Optional[Progress] = None
) -> Conversation:
    """Turns sound files into a conversation of voices.

    Args:
        files: one file of everybody, or one for each voice, beginning together.
        output: the folder to make; where an earlier run was interrupted, it goes on.
        config: options; those about pictures are refused.
        progress: called as progress(stage, done, total).

    Raises:
        DialogueError: naming what is wrong with which file or option; finished stages stay.
    """
    config, output, paths = config or ProcessConfig(), Path(output), [Path(path) for path in files]
    _check_options(config, paths)
    check_output(output)
    return _SoundProcessing(paths, output, config, progress).run()


def _check_options(config: ProcessConfig, paths: Sequence[Path]) -> None:
    for name, value in (
        ("shot", config.shot),
        ("size", config.size),
        ("focal", config.focal),
        ("audio", config.audio),
        ("without-sound", config.without_sound),
    ):
        if value:
            raise DialogueError(f"--{name} is about pictures, and {paths[0]} is sound alone: leave it out.")
    check_options(config, paths)
    for path in paths:
        if not path.is_file():
            raise DialogueError(f"There is no file {path}: give the path of an audio file.")


class _SoundProcessing:
    """One run: holds what the stages share."""

    def __init__(self, paths: List[Path], output: Path, config: ProcessConfig, progress: Optional[Progress]):
        self.paths, self.output, self.config = paths, output, config
        count = len(paths) if len(paths) > 1 else config.num_people or len(config.names) or DEFAULT_VOICES
        self.ids = list(config.names) or [f"p{index}" for index in range(count)]
        if len(self.ids) != count:
            raise DialogueError(f"{len(self.ids)} name(s) were given ({', '.join(self.ids)}) for {count} voices.")
        self.runner = StageRunner(output, output / WORK_FOLDER, source_fingerprint(paths), progress)

    def run(self) -> Conversation:
        given = self._given_roles()
        runner, own = self.runner, len(self.paths) > 1
        sound = self.output / "audio.wav"
        voices = [self.output / "audio" / f"{name}.wav" for name in self.ids] if own else []
        runner.run("sound", self.write_sound, [sound, *voices], options={"ids": self.ids})
        files, options = feature_files(self.output, self.config), feature_stage_options(self.config)
        runner.run("features", self.write_features, files, ["sound"], options)
        segments = given
        if segments is None:
            found = self.output / WORK_FOLDER / "voices.rttm"
            diarizer = {"diarizer": self.config.diarizer, "model": self.config.pyannote_model}
            runner.run("voices", self.find_voices, [found], ["sound"], diarizer, version=2)
            segments = read_rttm(found)
        return self.finish(segments)

    def _given_roles(self) -> Optional[List[SpeechSegment]]:
        if self.config.rttm is None:
            return None
        segments = read_rttm(self.config.rttm)
        if not self.config.names and len(self.paths) == 1 and self.config.num_people is None:
            # The file's own names are as good as any, and say how many there are.
            self.ids = list(dict.fromkeys(segment.speaker for segment in segments)) or self.ids
        try:
            segments_to_frames(segments, self.ids, 0, FPS)
        except DialogueError as error:
            raise DialogueError(f"{self.config.rttm}: {error}") from error
        return segments

    def write_sound(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.audio_features import load_audio, mix_tracks, save_wav

        tracks = []
        for index, path in enumerate(self.paths):
            tracks.append(load_audio(path))
            progress((index + 1) / len(self.paths))
        length = max(map(len, tracks))
        if length < MIN_FRAMES / FPS * SAMPLE_RATE:
            raise DialogueError(
                f"{self.paths[0]} is {length / SAMPLE_RATE:.1f} s long: give at least {MIN_FRAMES / FPS:g} s of sound "
                "(better, half a minute)."
            )
        # Whole frames: sound and rows end together.
        frame = round(SAMPLE_RATE / FPS)
        length = length // frame * frame
        tracks = [np.pad(track[:length], (0, max(0, length - len(track)))) for track in tracks]
        if len(tracks) > 1:
            for name, track in zip(self.ids, tracks, strict=True):
                save_wav(self.output / "audio" / f"{name}.wav", track)
        save_wav(self.output / "audio.wav", mix_tracks(tracks, length))

    def _sound(self) -> np.ndarray:
        from dialogue_nerfstudio.process.audio_features import load_audio

        return load_audio(self.output / "audio.wav")

    def write_features(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.features import write_features

        sound = self._sound()
        kinds, weights = feature_options(self.config)
        write_features(self.output, sound, SAMPLE_RATE, self._num_frames(sound), FPS, progress, kinds, weights)

    @staticmethod
    def _num_frames(sound: np.ndarray) -> int:
        return round(len(sound) / SAMPLE_RATE * FPS)

    def find_voices(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.audio_features import load_audio
        from dialogue_nerfstudio.process.diarization import diarize

        segments: List[SpeechSegment] = []
        if len(self.paths) > 1:
            for index, name in enumerate(self.ids):
                heard = diarize(load_audio(self.output / "audio" / f"{name}.wav"), SAMPLE_RATE, 1)
                segments += [SpeechSegment(segment.start, segment.end, name) for segment in heard]
                progress((index + 1) / len(self.ids))
        else:
            heard = recognised_voices(self._sound(), len(self.ids), replace(self.config, num_voices=None))
            names = dict(zip(dict.fromkeys(segment.speaker for segment in heard), self.ids, strict=False))
            segments = [SpeechSegment(segment.start, segment.end, names[segment.speaker]) for segment in heard]
        write_rttm(self.output / WORK_FOLDER / "voices.rttm", segments)

    def finish(self, segments: List[SpeechSegment]) -> Conversation:
        num_frames = self._num_frames(self._sound())
        train, evaluation = split_frames(num_frames, self.config.eval_fraction)
        own = len(self.paths) > 1
        conversation = Conversation(
            num_frames=num_frames,
            participants=[
                Participant(id=name, name=name, source={"file": self.paths[index if own else 0].name})
                for index, name in enumerate(self.ids)
            ],
            segments=clipped(segments, num_frames / FPS),
            train_frames=train,
            eval_frames=evaluation,
            fps=FPS,
            provenance={
                "program": "dialogue-nerfstudio",
                "version": dialogue_nerfstudio.__version__,
                "command": "process",
                "inputs": [path.name for path in self.paths],
                "options": {"eval_fraction": self.config.eval_fraction},
            },
            root=self.output,
        )
        write_json(self.output / "process.json", self.summary(conversation))
        save_conversation(conversation, self.output)
        return conversation

    def summary(self, conversation: Conversation) -> Dict[str, Any]:
        """The figures of process.json."""
        shares = conversation.speaking.mean(axis=0)
        return {
            "num_frames": conversation.num_frames,
            "fps": conversation.fps,
            "inputs": [path.name for path in self.paths],
            "voices": {name: {"speaking_share": float(s)} for name, s in zip(self.ids, shares, strict=True)},
            "notes": self.notes(shares),
            "seconds": {**self.runner.seconds, "total": float(sum(self.runner.seconds.values()))},
            "stages_run": self.runner.ran,
        }

    def notes(self, shares: np.ndarray) -> List[str]:
        """What was decided without being asked, a sentence each."""
        notes = ["There are no pictures: nothing can be trained on this, and avatars of other people can speak it."]
        if len(self.paths) == 1 and not (self.config.num_people or self.config.names or self.config.rttm):
            notes.append(f"{DEFAULT_VOICES} voices were looked for; --num-people says how many there are.")
        silent = [name for name, share in zip(self.ids, shares, strict=True) if share == 0]
        if silent:
            notes.append(f"{', '.join(silent)} was not heard: there may be fewer voices, or too little speech.")
        return notes
