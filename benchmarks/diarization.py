"""Diarization error rate and speed on a recording with a reference: `python benchmarks/diarization.py talk.wav
talk.rttm`; prints JSON."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from dialogue_nerfstudio.conversation.roles import read_rttm
from dialogue_nerfstudio.metrics.diarization import diarization_error
from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE, load_audio
from dialogue_nerfstudio.process.diarization import DiarizationConfig, diarize


@dataclass
class Options:
    """Compare diarization with a reference."""

    audio: tyro.conf.Positional[Path]
    """Recording: any audio or video file."""
    reference: tyro.conf.Positional[Path]
    """Who really speaks when: RTTM."""
    diarization: DiarizationConfig


def main(options: Options) -> None:
    audio, reference = load_audio(options.audio), read_rttm(options.reference)
    duration = len(audio) / SAMPLE_RATE
    started = time.perf_counter()
    segments = diarize(audio, SAMPLE_RATE, len({segment.speaker for segment in reference}), options.diarization)
    seconds = time.perf_counter() - started
    errors = {
        f"collar_{collar}": diarization_error(reference, segments, duration, collar) for collar in (0.0, 0.25, 0.5)
    }
    print(json.dumps({"duration": duration, "seconds": seconds, **errors}, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Options))
