"""A written video has the frames, the rate, the sound and the statement it was given."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from dialogue_nerfstudio import __version__
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.output.video import read_provenance, synthetic_statement, write_conversation_video


def tone(seconds: float, sample_rate: int) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * sample_rate)) / sample_rate)).astype(np.float32)


def moving_square(count: int, height: int = 64, width: int = 96):
    for index in range(count):
        frame = np.full((height, width, 3), (30, 60, 90), dtype=np.uint8)
        frame[16:48, index % 48 : index % 48 + 32] = (200, 40, 60)
        yield frame


def decode_sound(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.mark.parametrize(
    "fps, count, sample_rate, sound_seconds",
    [(25.0, 37, 16000, 3.0), (25.0, 50, 16000, 0.7), (30000 / 1001, 45, 44100, 1.5), (25.0, 3, 48000, 0.12)],
)
def test_rate_duration_and_sound_agree_within_a_frame(tmp_path, fps, count, sample_rate, sound_seconds):
    path = tmp_path / "out.mp4"
    summary = write_conversation_video(path, moving_square(count), fps, tone(sound_seconds, sample_rate), sample_rate)
    assert summary.num_frames == count and summary.seconds == pytest.approx(count / fps, abs=1e-3)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")
        assert float(video.average_rate) == pytest.approx(fps, rel=1e-4)
        assert float(video.duration * video.time_base) == pytest.approx(count / fps, abs=1 / fps)
        assert float(audio.duration * audio.time_base) == pytest.approx(count / fps, abs=1 / fps)
        assert sum(1 for _ in container.decode(video=0)) == count
    loud = np.flatnonzero(np.abs(decode_sound(path)) > 0.05) / 48000
    assert loud[0] == pytest.approx(0, abs=0.01)
    assert loud[-1] == pytest.approx(min(sound_seconds, count / fps), abs=0.025)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_agrees(tmp_path):
    path = tmp_path / "out.mp4"
    write_conversation_video(path, moving_square(61), 25.0, tone(2.0, 16000), 16000)
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json", str(path)]
    probed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    video, audio = probed["streams"]
    assert video["r_frame_rate"] == video["avg_frame_rate"] == "25/1"
    assert int(video["nb_read_frames"]) == 61
    for length in (video["duration"], audio["duration"], probed["format"]["duration"]):
        assert float(length) == pytest.approx(61 / 25, abs=0.04)
    assert json.loads(probed["format"]["tags"]["comment"])["synthetic"] is True


def test_pictures_come_back_as_they_went_in(tmp_path):
    path = tmp_path / "out.mp4"
    frames = list(moving_square(12))
    write_conversation_video(path, iter(frames), 25.0)
    with av.open(str(path)) as container:
        assert not container.streams.audio
        back = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    error = np.mean((np.stack(back).astype(float) - np.stack(frames)) ** 2)
    assert 10 * np.log10(255**2 / error) > 31  # what half-resolution colour leaves of a hard coloured edge
    assert np.abs(back[5][30, 20].astype(int) - (200, 40, 60)).max() < 6


def test_odd_sizes_are_padded_by_a_pixel(tmp_path):
    summary = write_conversation_video(tmp_path / "out.mp4", moving_square(2, 63, 95), 25.0)
    assert (summary.width, summary.height) == (96, 64)


def test_the_statement_cannot_be_taken_back(tmp_path):
    path = tmp_path / "out.mp4"
    provenance = {"method": "dialogue-nerf", "checkpoint_step": 999, "sources": ["a.mp4"], "synthetic": False}
    write_conversation_video(path, moving_square(2), 25.0, provenance=provenance)
    statement = read_provenance(path)
    assert statement["synthetic"] is True
    assert statement["generator"] == f"dialogue-nerfstudio {__version__}"
    assert statement["method"] == "dialogue-nerf" and statement["checkpoint_step"] == 999
    assert statement["sources"] == ["a.mp4"]
    assert statement == synthetic_statement(provenance)


def test_a_plain_video_states_nothing(tmp_path):
    path = tmp_path / "plain.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
        container.metadata["comment"] = "holiday"
    assert read_provenance(path) is None


def test_provenance_of_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(DialogueError, match=r"notes\.mp4 is not a video"):
        read_provenance(tmp_path / "notes.mp4")
    with pytest.raises(DialogueError, match="no file"):
        read_provenance(tmp_path / "missing.mp4")


def test_bad_calls_are_refused_and_leave_nothing(tmp_path):
    wrong_size = [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)]
    with pytest.raises(DialogueError, match="Frame 1 of the output is 32x64"):
        write_conversation_video(tmp_path / "a.mp4", wrong_size, 25.0)
    with pytest.raises(DialogueError, match="no frame"):
        write_conversation_video(tmp_path / "a.mp4", [], 25.0)
    with pytest.raises(DialogueError, match="NaN or infinity at sample 7"):
        sound = np.array([0.0] * 7 + [np.nan], dtype=np.float32)
        write_conversation_video(tmp_path / "a.mp4", moving_square(2), 25.0, sound)
    with pytest.raises(DialogueError, match=r"\.mp4"):
        write_conversation_video(tmp_path / "a.avi", moving_square(2), 25.0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file(tmp_path):
    """RLIMIT_FSIZE stands for the disk: the write fails where it would on a full one, without root."""
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the old file")
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (128, 128, 3), dtype=np.uint8) for _ in range(100))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(DialogueError, match="disk is full"):
            write_conversation_video(path, noise, 25.0, tone(4, 16000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["out.mp4"]
