"""Resampling by timestamps, and what is refused."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media import damage_packets, noise_frames, tone, write_video

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.process.decode import MIN_FRAMES, probe, resample_by_time


def _shades(count: int) -> list:
    """Pictures that say by their brightness which one they are."""
    return [np.full((64, 96, 3), 20 + 5 * index, np.uint8) for index in range(count)]


def _number(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 20) / 5)


def test_25_a_second_is_left_alone():
    np.testing.assert_array_equal(resample_by_time(np.arange(50) / 25, 25.0, 1 / 25), np.arange(50))


def test_milliseconds_of_matroska_do_not_drop_frames():
    times = np.round(np.arange(300) / 25, 3)
    np.testing.assert_array_equal(resample_by_time(times, 25.0, 0.04), np.arange(300))


@pytest.mark.parametrize("rate", [12.0, 24000 / 1001, 29.97, 30.123, 50.0, 60.0])
def test_any_rate_stays_in_time(rate):
    times = np.arange(int(8 * rate)) / rate
    pick = resample_by_time(times, 25.0, 1 / rate)
    assert abs(len(pick) - 25 * len(times) / rate) <= 0.5
    shown = times[pick]
    middles = (np.arange(len(pick)) + 0.5) / 25
    assert (middles - shown > -1e-3).all() and (middles - shown < 1 / rate + 1e-3).all()


def test_variable_rate_shows_what_was_on_screen():
    times = np.array([0.0, 0.04, 0.5, 0.52])
    pick = resample_by_time(times, 25.0, 0.04)
    assert len(pick) == 14
    assert (pick[2:12] == 1).all() and pick[-1] == 3


def test_frames_come_at_25_a_second(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", _shades(40), fps=30, audio=tone(1.4))
    source = probe(path)
    assert (source.width, source.height) == (96, 64)
    assert source.num_frames == round(40 / 30 * 25)
    assert source.source_fps == pytest.approx(30, rel=1e-3)
    numbers = [_number(frame) for frame in source.frames()]
    np.testing.assert_array_equal(numbers, source.pick)


def test_steps_and_stop(tmp_path: Path):
    source = probe(write_video(tmp_path / "a.mp4", _shades(40), audio=tone(1.6)))
    assert [_number(frame) for frame in source.frames(step=7)] == list(range(0, 40, 7))
    assert [_number(frame) for frame in source.frames(stop=3)] == [0, 1, 2]


def test_slower_video_repeats_pictures(tmp_path: Path):
    source = probe(write_video(tmp_path / "a.mp4", _shades(20), fps=10, audio=tone(2.0)))
    numbers = [_number(frame) for frame in source.frames()]
    assert len(numbers) == 50 and numbers[0] == 0 and numbers[-1] == 19
    assert set(np.diff(numbers)) <= {0, 1}


def test_no_file(tmp_path: Path):
    with pytest.raises(DialogueError, match="no file"):
        probe(tmp_path / "none.mp4")


def test_not_a_video(tmp_path: Path):
    path = tmp_path / "text.mp4"
    path.write_text("this is no video" * 100)
    with pytest.raises(DialogueError, match=r"text\.mp4 is not a video"):
        probe(path)


def test_no_pictures(tmp_path: Path):
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    with pytest.raises(DialogueError, match="no pictures"):
        probe(tmp_path / "sound.m4a")


def test_no_audio_track(tmp_path: Path):
    with pytest.raises(DialogueError, match="no audio track"):
        probe(write_video(tmp_path / "a.mp4", noise_frames(30)))


def test_three_frames_are_too_few(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", noise_frames(3), audio=tone(0.12))
    with pytest.raises(DialogueError, match=rf"3 frame.*at least {MIN_FRAMES}"):
        probe(path)


def test_truncated_file_is_refused(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", noise_frames(60), audio=tone(2.4))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DialogueError, match=r"a\.mp4"):
        for _ in probe(path).frames():
            pass


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_pictures_stored_sideways_come_upright(tmp_path: Path, degrees):
    """Phones store pictures sideways and say by how much to turn them (counter-clockwise)."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :20] = 255
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        if not hasattr(video, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.set_display_rotation(degrees)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for _ in range(30):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(tone(1.2)[None], format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    source = probe(path)
    frame = next(source.frames())
    expected = np.rot90(picture, degrees // 90)
    assert frame.shape == expected.shape == (source.height, source.width, 3)
    assert np.abs(frame.astype(int) - expected).mean() < 5


def test_rate_is_a_fraction(tmp_path: Path):
    """30000/1001 a second, as cameras have it."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=Fraction(30000, 1001))
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for frame in _shades(45):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(tone(1.5)[None], format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    source = probe(path)
    numbers = [_number(frame) for frame in source.frames()]
    expected = np.floor((np.arange(len(numbers)) + 0.5) / 25 * 30000 / 1001)
    assert np.abs(np.array(numbers) - expected).max() <= 1


@pytest.mark.parametrize("rate", [24, 50, 60])
def test_usual_rates_come_in_time(tmp_path: Path, rate):
    shades = [np.full((64, 96, 3), 20 + 3 * index, np.uint8) for index in range(72)]
    path = write_video(tmp_path / "a.mp4", shades, fps=rate, audio=tone(72 / rate))
    numbers = np.array([round((float(frame.mean()) - 20) / 3) for frame in probe(path).frames()])
    expected = np.floor((np.arange(len(numbers)) + 0.5) / 25 * rate + 1e-3)
    assert abs(len(numbers) - 72 / rate * 25) <= 0.5
    assert np.abs(numbers - expected).max() <= (0 if rate % 25 else 1), "half way between two, either is right"


def test_a_phone_s_variable_rate(tmp_path: Path):
    """Pictures come as the light allows; each stays until the next."""
    times = np.cumsum([0] + [33, 33, 34, 120, 33, 400, 33, 33, 66, 33] * 4)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for frame, time in zip(_shades(len(times)), times.tolist(), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(tone(3.3)[None], format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    numbers = [_number(frame) for frame in probe(path).frames()]
    middles = (np.arange(len(numbers)) + 0.5) * 40
    expected = np.searchsorted(times, middles + 0.1, side="right") - 1
    assert len(numbers) == pytest.approx(times[-1] / 40, abs=2)
    np.testing.assert_array_equal(numbers, expected)


def test_a_damaged_packet_costs_its_own_pictures_only(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", _shades(45), audio=tone(1.8), keyframe_interval=10)
    numbers = [_number(frame) for frame in probe(damage_packets(path, "video", [23, 24])).frames()]
    assert len(numbers) == 45
    assert numbers[:20] == list(range(20)) and numbers[30:] == list(range(30, 45)), "in time again at the next keyframe"
    assert all(20 <= number < 30 for number in numbers[20:30])
    assert [_number(frame) for frame in probe(path).frames(step=5)] == numbers[::5]


def test_a_damaged_first_packet(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", _shades(45), audio=tone(1.8), keyframe_interval=10)
    numbers = [_number(frame) for frame in probe(damage_packets(path, "video", [0])).frames()]
    assert len(numbers) == 45 and numbers[10:] == list(range(10, 45))


def test_damage_for_longer_than_a_second_is_refused(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", _shades(48) + _shades(48), audio=tone(3.84), keyframe_interval=8)
    damage_packets(path, "video", range(32, 72))
    with pytest.raises(DialogueError, match=r"a\.mp4 is damaged for more than 1 s after 1\.[23] s"):
        for _ in probe(path).frames():
            pass


def test_a_part_is_the_same_pictures(tmp_path: Path):
    source = probe(write_video(tmp_path / "a.mp4", _shades(45), audio=tone(1.8), keyframe_interval=10))
    part = source.part(17, 40)
    assert part.num_frames == 23
    assert [_number(frame) for frame in part.frames()] == list(range(17, 40))
    assert [_number(frame) for frame in part.frames(stop=10, step=3)] == [17, 20, 23, 26]


@pytest.mark.parametrize("rate", [24, 30, 50, 60])
def test_a_flash_and_its_click_stay_together(tmp_path: Path, rate: int):
    from dialogue_nerfstudio.process.audio_features import load_audio

    flash = rate * 3 // 2
    frames = [np.full((64, 64, 3), 250 if index == flash else 10, np.uint8) for index in range(2 * rate)]
    sound = np.zeros(2 * 16000, np.float32)
    sound[24000 : 24000 + 160] = 0.8
    path = write_video(tmp_path / "clap.mp4", frames, fps=rate, audio=sound, audio_pts=0)
    bright = [index for index, frame in enumerate(probe(path).frames()) if frame.mean() > 100]
    click = int(np.argmax(np.abs(load_audio(path)) > 0.3)) / 16000
    if bright:  # a picture shorter than 1/25 s may fall between the frames
        assert abs(bright[0] / 25 - click) <= 1 / 25
    assert abs(click - 1.5) < 0.01 and (bright or rate > 25)
