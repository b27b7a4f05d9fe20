"""Voices that speech detectors and voice encoders take for voices."""

import numpy as np
from scipy.signal import lfilter

from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE

VOWELS = ((750, 1200, 2500), (300, 2250, 3000), (320, 850, 2300), (530, 1850, 2500), (500, 900, 2400))


def voice(pitch: float, tract: float, seconds: float, seed: int) -> np.ndarray:
    """Vowels between murmured and hissed consonants: Rosenberg's glottal pulses through moving formants, natural
    enough for Silero.

    `tract` scales the formants, as a shorter throat does.
    """
    rng = np.random.default_rng(seed)
    num_samples, syllables = int(seconds * SAMPLE_RATE), int(seconds * 4) + 1
    time = np.arange(num_samples) / SAMPLE_RATE
    knots, formants, voicing, hiss = [], [], [], []
    for syllable in range(syllables):
        start = syllable * 0.25
        consonant, vowel = np.array((350, 1600, 2500)) * tract, np.array(VOWELS[rng.integers(5)]) * tract
        knots += [start, start + 0.05, start + 0.1, start + 0.22]
        formants += [consonant, consonant, vowel, vowel]
        voicing += [0.1, 0.1, 1.0, 1.0]
        hiss += [0.0, rng.choice([0.0, 0.25]), 0.0, 0.0]
    formants = np.array(formants)
    melody = np.interp(time, np.linspace(0, seconds, syllables), rng.uniform(0.85, 1.15, syllables))
    phase = np.cumsum(pitch * melody) / SAMPLE_RATE % 1
    opening, closing = 0.5 - 0.5 * np.cos(np.pi * phase / 0.42), np.cos(np.pi / 2 * (phase - 0.42) / 0.18)
    pulse = np.where(phase < 0.42, opening, np.where(phase < 0.6, closing, 0.0))
    strength = np.interp(time, knots, voicing)
    sound = (np.diff(pulse, prepend=0.0) * 20 + 0.02 * rng.normal(size=num_samples)) * strength
    tracks = [(np.interp(time, knots, formants[:, i]), width) for i, width in enumerate((70, 100, 150))]
    for track, width in [*tracks, (np.full(num_samples, 3500 * tract), 250), (np.full(num_samples, 4500 * tract), 300)]:
        sound = resonate(sound, track, width)
    noise = resonate(rng.normal(size=num_samples), np.full(num_samples, 5000.0), 2000) * np.interp(time, knots, hiss)
    sound = sound / np.abs(sound).max() + 0.5 * noise / np.abs(noise).max().clip(1e-9)
    return (0.2 * sound / np.abs(sound).max()).astype(np.float32)


def resonate(sound: np.ndarray, frequency: np.ndarray, width: float) -> np.ndarray:
    """A two-pole resonator of unit gain at 0 Hz whose frequency changes every 5 ms."""
    result, state, radius = np.empty_like(sound), np.zeros(2), np.exp(-np.pi * width / SAMPLE_RATE)
    for start in range(0, len(sound), 80):
        turn = 2 * radius * np.cos(2 * np.pi * frequency[start] / SAMPLE_RATE)
        gain = 1 - turn + radius**2
        result[start : start + 80], state = lfilter([gain], [1, -turn, radius**2], sound[start : start + 80], zi=state)
    return result
