"""Run the command line in this process, and make the media that its tests need."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import av
import numpy as np
import pytest

from dialogue_nerfstudio.cli.main import main


@dataclass
class Result:
    """What a command left."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(capsys) -> Callable[..., Result]:
    """Call as cli("render", "--load-config", path, …)."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit_:  # argument errors and --help leave through tyro
            code = exit_.code
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli, tmp_path) -> Callable[..., str]:
    """Run a command that must be refused with one sentence, touching nothing; returns the sentence."""

    def run(*args: object, naming: Iterable[str]) -> str:
        before = fingerprint(tmp_path)
        result = cli(*args)
        assert result.code == 2, result
        assert "Traceback" not in result.stdout + result.stderr
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
        sentence = lines[0].removeprefix("Error: ")
        for part in naming:
            assert str(part) in sentence, f"{part!r} is not named in: {sentence}"
        after = fingerprint(tmp_path)
        assert {path: after.get(path) for path in before} == before, "an input was changed"
        return sentence

    return run


def fingerprint(folder: Path) -> dict[str, str]:
    """Relative path → hash, of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int = 25, audio: Optional[np.ndarray] = None) -> Path:
    """An ordinary mp4, with mono sound at 16 kHz if given."""
    with av.open(str(path), "w") as container:
        video = sound = None
        for frame in frames:
            if video is None:
                video = container.add_stream("libx264", rate=fps, options={"crf": "18"})
                video.height, video.width, video.pix_fmt = *frame.shape[:2], "yuv420p"
                if audio is not None:
                    sound = container.add_stream("aac", rate=16000, layout="mono")
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            block = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
            block.sample_rate = 16000
            container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return path


def noise_frames(count: int, size: int = 128, seed: int = 0) -> Iterable[np.ndarray]:
    """Smooth coloured noise: a video with nobody in it."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = rng.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8)
        yield coarse.repeat(16, axis=0).repeat(16, axis=1)


def tone(seconds: float) -> np.ndarray:
    """A sound at 16 kHz."""
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * 16000)) / 16000)).astype(np.float32)
