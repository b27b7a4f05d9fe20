"""Sound in and out of media files."""

import av
import numpy as np
import pytest
import soundfile
from media import damage_packets, noise_frames, write_video

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.audio_features import (
    SAMPLE_RATE,
    load_audio,
    save_wav,
    sound_blocks,
    sound_channels,
    sound_end,
)


def tone(frequency: float, seconds: float, rate: int = SAMPLE_RATE, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_wav_round_trip(tmp_path):
    audio = tone(440.0, 0.5)
    save_wav(tmp_path / "a.wav", audio, SAMPLE_RATE)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), audio, atol=1 / 32767)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_load_mixes_to_mono_at_16k(tmp_path):
    stereo = np.stack([tone(440.0, 1.0, 44_100), tone(440.0, 1.0, 44_100)])
    write_media(tmp_path / "a.m4a", stereo, 44_100)
    audio = load_audio(tmp_path / "a.m4a")
    assert audio.dtype == np.float32 and audio.ndim == 1 and abs(len(audio) - SAMPLE_RATE) < 1600
    spectrum = np.abs(np.fft.rfft(audio[2000:10_000]))
    assert abs(spectrum.argmax() * SAMPLE_RATE / 8000 - 440) <= 2


def test_sound_of_a_video_is_aligned_with_its_first_frame(tmp_path):
    click = np.zeros((1, 2 * SAMPLE_RATE), np.float32)
    click[0, SAMPLE_RATE : SAMPLE_RATE + 80] = 0.9
    write_media(tmp_path / "a.mp4", click, SAMPLE_RATE, video_frames=50)
    write_media(tmp_path / "late.mp4", click, SAMPLE_RATE, video_frames=50, audio_delay=0.2)
    assert abs(np.abs(load_audio(tmp_path / "a.mp4")).argmax() / SAMPLE_RATE - 1.0) < 0.02
    assert abs(np.abs(load_audio(tmp_path / "late.mp4")).argmax() / SAMPLE_RATE - 1.2) < 0.02


def write_media(path, samples, rate, video_frames=0, audio_delay=0.0):
    """AAC sound [channels, S], optionally beside a grey 25 fps video; `audio_delay` moves the sound later by its
    timestamps."""
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=rate, layout="mono" if len(samples) == 1 else "stereo")
        if video_frames:
            video = container.add_stream("libx264", rate=25)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
            for _ in range(video_frames):
                container.mux(
                    video.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24"))
                )
            container.mux(video.encode(None))
        for start in range(0, samples.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + 1024]), format="fltp", layout=audio.layout.name
            )
            frame.sample_rate = rate
            frame.pts = start + round(audio_delay * rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def test_where_sound_ends_is_known_without_decoding(tmp_path):
    save_wav(tmp_path / "a.wav", np.zeros(20000, np.float32))
    assert sound_end(tmp_path / "a.wav") == pytest.approx(1.25, abs=0.01)
    video = write_video(tmp_path / "a.mp4", noise_frames(50), audio=tone(220.0, 1.0))
    assert sound_end(video) == pytest.approx(len(load_audio(video)) / SAMPLE_RATE, abs=0.07)
    with pytest.raises(DialogueError, match=r"silent\.mp4 has no audio track"):
        sound_end(write_video(tmp_path / "silent.mp4", noise_frames(5)))


def test_damaged_sound_is_silence_and_the_rest_stays_in_time(tmp_path):
    ramp = np.repeat([0.1, 0.4], 32000) * np.sin(2 * np.pi * 440 * np.arange(64000) / 16000)
    path = write_video(tmp_path / "a.mp4", noise_frames(100, size=64), audio=ramp)
    whole = load_audio(path)
    heard = load_audio(damage_packets(path, "audio", range(20, 26)))
    assert abs(len(heard) - len(whole)) < 1600
    begins = [np.flatnonzero(np.abs(sound) > 0.3)[0] for sound in (whole, heard)]
    assert begins[1] == begins[0], "the loud half begins where it did before the damage"
    assert np.abs(heard[21 * 1024 : 24 * 1024]).max() < 0.11


def test_bad_files_are_one_clear_sentence(tmp_path):
    with pytest.raises(DialogueError, match="no file"):
        load_audio(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("not media at all")
    with pytest.raises(DialogueError, match=r"text\.mp4"):
        load_audio(tmp_path / "text.mp4")
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(DialogueError, match=r"empty\.wav"):
        load_audio(tmp_path / "empty.wav")
    save_wav(tmp_path / "nothing.wav", np.zeros(0, np.float32))
    with pytest.raises(DialogueError, match=r"nothing\.wav is empty"):
        load_audio(tmp_path / "nothing.wav")
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
    with pytest.raises(DialogueError, match="no audio track"):
        load_audio(silent)


def test_nan_sound_is_refused(tmp_path):
    with pytest.raises(DialogueError):
        save_wav(tmp_path / "a.wav", np.array([0.0, np.nan], np.float32))
    assert not list(tmp_path.iterdir())


def test_blocks_of_two_channels_keep_them_apart_and_mix_to_what_is_loaded(tmp_path):
    left, right = tone(300.0, 1.5), tone(900.0, 1.5, amplitude=0.2)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT")
    blocks = list(sound_blocks(tmp_path / "two.wav", channels=2))
    assert sound_channels(tmp_path / "two.wav") == 2 and max(block.shape[1] for block in blocks) <= 4096
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), [left, right], atol=1e-6)
    np.testing.assert_allclose(load_audio(tmp_path / "two.wav"), (left + right) * 0.5**0.5, atol=1e-6)
