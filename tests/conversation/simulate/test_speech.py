"""The synthesiser: lengths, pitch, voices that differ, and mouths that follow their sound."""

from itertools import pairwise

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.simulate.speech import (
    PHONES,
    SAMPLE_RATE,
    TimedPhone,
    Utterance,
    backchannel,
    compose_utterance,
    draw_voice,
    mouth_shapes,
    synthesise,
)

JAW, PRESS, PUCKER = (EXPRESSION_NAMES.index(name) for name in ("jaw_open", "lip_press", "pucker"))


def say(*names: str, length: float = 0.2) -> Utterance:
    phones = [TimedPhone(name, i * length, (i + 1) * length) for i, name in enumerate(names)]
    return Utterance(phones, np.array([0.0, len(names) * length]), np.zeros(2))


def pitch_of(sound: np.ndarray) -> float:
    """Strongest autocorrelation lag between 60 and 400 Hz."""
    sound = sound - sound.mean()
    spectrum = np.fft.rfft(sound, 2 * len(sound))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(sound)]
    low, high = SAMPLE_RATE // 400, SAMPLE_RATE // 60
    return SAMPLE_RATE / (low + int(np.argmax(correlation[low:high])))


@pytest.mark.parametrize("index", [0, 1])
def test_pitch_is_the_voice_s(index):
    voice = draw_voice(index, np.random.default_rng(0))
    sound = synthesise(say("aa", "aa", "aa"), voice, np.random.default_rng(1))
    assert pitch_of(sound[2000:8000]) == pytest.approx(voice.pitch, rel=0.06)


def test_formants_are_the_vowel_s():
    voice = draw_voice(1, np.random.default_rng(0))

    def centroid(name: str) -> float:
        sound = synthesise(say(name, name, name), voice, np.random.default_rng(1))[2000:8000]
        power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        frequencies = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
        band = (frequencies > 600) & (frequencies < 3500)
        return float((power[band] * frequencies[band]).sum() / power[band].sum())

    assert centroid("iy") > centroid("eh") > centroid("uw") * 1.15


def test_stops_are_silent_and_silence_is_silence():
    voice = draw_voice(0, np.random.default_rng(0))
    sound = synthesise(say("aa", "p", "aa", "sil", "aa", length=0.3), voice, np.random.default_rng(1))

    def level(start: float, end: float) -> float:
        return float(np.sqrt(np.mean(sound[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] ** 2)))

    vowel = level(0.1, 0.2)
    assert vowel == pytest.approx(0.1, rel=0.6)
    assert level(0.40, 0.55) < 0.1 * vowel
    assert level(1.02, 1.15) < 0.1 * vowel


def test_mouth_follows_the_phones():
    times = np.arange(0, 1.2, 0.02)
    shapes = mouth_shapes(say("aa", "m", "aa", "uw", "sil", "aa"), times)

    def at(time: float) -> np.ndarray:
        return shapes[np.argmin(np.abs(times - time))]

    assert at(0.1)[JAW] > 0.5 and at(0.3)[JAW] < 0.2 and at(0.5)[JAW] > 0.5
    assert at(0.3)[PRESS] > 0.5 and at(0.1)[PRESS] < 0.2
    assert at(0.7)[PUCKER] > 0.7 and at(0.1)[PUCKER] < 0.1
    assert np.abs(at(0.9)).max() < 0.2
    assert mouth_shapes(say("aa"), np.array([-2.0, 5.0])).max() == 0.0
    # Coarticulation: no frame at 25 fps jumps from closed to open.
    assert np.abs(np.diff(shapes[::2, JAW])).max() < 0.75


def test_utterance_keeps_its_length_and_seed():
    voice = draw_voice(0, np.random.default_rng(0))
    for seconds in (0.6, 2.0, 5.0):
        utterance = compose_utterance(seconds, voice, np.random.default_rng(3))
        assert seconds - 0.6 < utterance.duration <= seconds + 1e-6
        assert all(a.end == pytest.approx(b.start) for a, b in pairwise(utterance.phones))
        again = compose_utterance(seconds, voice, np.random.default_rng(3))
        assert again.phones == utterance.phones
        np.testing.assert_array_equal(
            synthesise(utterance, voice, np.random.default_rng(4)), synthesise(again, voice, np.random.default_rng(4))
        )
    assert 0.2 < backchannel(voice, np.random.default_rng(0)).duration < 0.6
    assert all(set(phone.mouth) for name, phone in PHONES.items() if name != "sil")
