"""Audio features against sounds whose pitch, moment and energy are known."""

import av
import librosa
import numpy as np
import pytest
import soundfile
from media import damage_packets, noise_frames, write_video

from dialogue_nerfstudio.conversation import acoustics
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.audio_features import (
    SAMPLE_RATE,
    load_audio,
    mel_features,
    mel_spectrogram,
    prosody_features,
    save_wav,
    sound_blocks,
    sound_channels,
    sound_end,
)


def tone(frequency: float, seconds: float, rate: int = SAMPLE_RATE, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("frequency", [220.0, 1000.0, 3000.0, 6000.0])
def test_tone_is_strongest_in_its_mel_band(frequency):
    centres = librosa.mel_frequencies(82, fmin=55.0, fmax=7600.0)[1:-1]
    mel = mel_features(tone(frequency, 1.0), SAMPLE_RATE, 25)
    band = mel[12].mean(0).argmax()
    assert abs(band - np.abs(centres - frequency).argmin()) <= 1


def test_long_sound_is_analysed_in_blocks_that_leave_no_trace(monkeypatch):
    audio = np.random.default_rng(3).normal(0, 0.1, 3 * SAMPLE_RATE + 77).astype(np.float32)
    whole = mel_spectrogram(audio)
    monkeypatch.setattr(acoustics, "MEL_BLOCK", 50)
    np.testing.assert_allclose(mel_spectrogram(audio), whole, atol=1e-6)
    assert len(whole) == 1 + len(audio) // 200


def test_silence_is_the_lowest_value_and_range_is_kept():
    assert (mel_features(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE, 25) == -1.0).all()
    loud = mel_features(np.random.default_rng(0).uniform(-1, 1, SAMPLE_RATE).astype(np.float32), SAMPLE_RATE, 25)
    assert loud.max() <= 1.0 and loud[10].mean() > 0.0


@pytest.mark.parametrize("frame", [0, 3, 20, 49])
def test_click_is_in_the_middle_of_its_frames_window(frame):
    audio = np.zeros(2 * SAMPLE_RATE, np.float32)
    audio[round((frame + 0.5) / 25 * SAMPLE_RATE)] = 1.0
    energy = mel_features(audio, SAMPLE_RATE, 50)[frame].mean(-1)
    heard = np.flatnonzero(energy > -0.99)
    # A click is heard by the four analysis windows of 50 ms around it: their middle is the click, to within a step.
    assert abs(heard.mean() - 7.5) <= 1.0
    far = mel_features(audio, SAMPLE_RATE, 50)[(frame + 25) % 50]
    assert (far == -1.0).all()


def test_windows_of_neighbouring_frames_overlap_consistently():
    audio = np.random.default_rng(1).normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32)
    mel = mel_features(audio, SAMPLE_RATE, 50)
    full = mel_spectrogram(audio)
    # 5 frames are exactly 16 steps.
    np.testing.assert_array_equal(mel[10, :], mel_features(audio, SAMPLE_RATE, 50)[10])
    first = [int(np.abs(full - row).sum(-1).argmin()) for row in mel[10:16, 0]]
    assert first[5] - first[0] == 16
    for t, step in zip(range(10, 16), first, strict=True):
        middle = (step + 7.5) * 200 / SAMPLE_RATE
        assert abs(middle - (t + 0.5) / 25) <= 0.00625 + 1e-9


def test_another_sample_rate_gives_the_same_picture():
    at_16k = mel_features(tone(500.0, 1.0), SAMPLE_RATE, 25)
    at_48k = mel_features(tone(500.0, 1.0, rate=48_000), 48_000, 25)
    band = at_16k[12].mean(0).argmax()
    assert at_48k[12].mean(0).argmax() == band
    assert abs(at_48k[12, :, band] - at_16k[12, :, band]).max() < 0.05


def test_prosody_of_a_sine():
    features = prosody_features(tone(1000.0, 1.0, amplitude=0.8), SAMPLE_RATE, 25)
    np.testing.assert_allclose(features[:, 0], 2 * 1000.0 / SAMPLE_RATE, atol=2 / 640)
    np.testing.assert_allclose(features[:, 1], 0.8 / np.sqrt(2), rtol=1e-3)


def test_prosody_is_librosas_at_hop_640():
    audio = np.random.default_rng(2).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    features = prosody_features(audio, SAMPLE_RATE, 25)
    rms = librosa.feature.rms(y=audio, frame_length=640, hop_length=640, center=False)[0]
    crossings = librosa.feature.zero_crossing_rate(audio, frame_length=640, hop_length=640, center=False)[0]
    np.testing.assert_allclose(features[:, 1], rms, rtol=1e-5)
    np.testing.assert_allclose(features[:, 0], crossings, atol=1 / 640)


def test_prosody_loudness_is_in_the_frame_that_sounds():
    audio = np.zeros(SAMPLE_RATE, np.float32)
    audio[640 * 7 : 640 * 8] = tone(400.0, 0.04)
    assert np.flatnonzero(prosody_features(audio, SAMPLE_RATE, 25)[:, 1]).tolist() == [7]


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
