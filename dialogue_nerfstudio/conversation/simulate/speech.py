"""A formant synthesiser whose mouth is known: syllables become sound at 16 kHz and mouth shapes that follow it.

Conventions: times in seconds from the start of an utterance, frequencies in hertz, sound in [-1, 1] at `SAMPLE_RATE`.
The voice is a source and filter (Klatt, "Software for a cascade/parallel formant synthesizer", 1980): glottal pulses
with jitter and shimmer and breath noise through a cascade of five formants whose targets move from phone to
phone, plus noise bands for fricatives and bursts.
Mouth shapes blend the phones' targets by dominance functions (Cohen & Massaro, "Modeling coarticulation in synthetic
visual speech", 1993), so closed lips stay closed in /m/ and rounding spreads to the neighbours.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, List, Tuple, no_type_check

import numba as nb
import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfilt

from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES

SAMPLE_RATE = 16000
_CONTROL_RATE = 200
_NUM_FORMANTS = 5


@dataclass(frozen=True)
class Voice:
    """What makes one person's voice theirs."""

    pitch: float
    """Mean fundamental frequency (Hz)."""
    pitch_range: float
    """Standard deviation of the melody, in semitones."""
    formant_scale: float
    """Formant frequencies relative to an average adult's: a shorter vocal tract is above 1."""
    breath: float
    """Breath noise relative to the voiced source."""
    tilt: float
    """Corner (Hz) above which the glottal source falls off: low is mellow, high is bright."""
    open_quotient: float
    """Part of each period during which the glottis is open."""
    jitter: float
    """Relative cycle-to-cycle variation of the period."""
    shimmer: float
    """Relative cycle-to-cycle variation of the amplitude."""
    bandwidth: float
    """Formant bandwidths relative to an average adult's."""
    rate: float
    """Speed of speech, 1 average."""
    upper_formants: Tuple[float, float] = (3500.0, 4500.0)
    """Fourth and fifth formant before scaling (Hz): the timbre that does not change with the vowel."""


@dataclass(frozen=True)
class _Phone:
    kind: str
    formants: Tuple[float, float, float]
    duration: float
    mouth: Dict[str, float]
    dominance: float = 1.0
    noise: Tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre (Hz), bandwidth (Hz) and level of the fricative or burst."""
    voicing: float = 1.0


def _vowel(f1: float, f2: float, f3: float, duration: float, **mouth: float) -> _Phone:
    return _Phone("vowel", (f1, f2, f3), duration, mouth)


PHONES: Dict[str, _Phone] = {
    "aa": _vowel(730, 1090, 2440, 0.155, jaw_open=0.80, lower_lip_drop=0.25),
    "ae": _vowel(660, 1720, 2410, 0.150, jaw_open=0.68, lip_corner_out=0.35, lower_lip_drop=0.35, upper_lip_raise=0.15),
    "ah": _vowel(640, 1190, 2390, 0.115, jaw_open=0.52, lower_lip_drop=0.20),
    "eh": _vowel(530, 1840, 2480, 0.120, jaw_open=0.48, lip_corner_out=0.30, lower_lip_drop=0.30),
    "er": _vowel(490, 1350, 1690, 0.130, jaw_open=0.32, funnel=0.35),
    "ih": _vowel(390, 1990, 2550, 0.095, jaw_open=0.28, lip_corner_out=0.35, lower_lip_drop=0.25),
    "iy": _vowel(270, 2290, 3010, 0.130, jaw_open=0.18, lip_corner_out=0.75, lower_lip_drop=0.30, upper_lip_raise=0.15),
    "ow": _vowel(500, 900, 2400, 0.150, jaw_open=0.45, pucker=0.60, funnel=0.35),
    "uh": _vowel(440, 1020, 2240, 0.100, jaw_open=0.28, pucker=0.45, funnel=0.25),
    "uw": _vowel(300, 870, 2240, 0.135, jaw_open=0.16, pucker=0.95, funnel=0.35),
    "m": _Phone("nasal", (260, 1100, 2200), 0.080, dict(jaw_open=0.04, lip_press=0.75, lip_roll_in=0.25), 2.6),
    "n": _Phone("nasal", (260, 1500, 2500), 0.070, dict(jaw_open=0.18, lower_lip_drop=0.1), 0.7),
    "b": _Phone("stop", (220, 900, 2200), 0.075, dict(jaw_open=0.05, lip_press=0.85), 2.8, (700.0, 900.0, 0.35), 0.25),
    "p": _Phone("stop", (220, 900, 2200), 0.090, dict(jaw_open=0.05, lip_press=0.90), 2.8, (900.0, 1000.0, 0.55), 0.0),
    "d": _Phone("stop", (220, 1700, 2600), 0.065, dict(jaw_open=0.16), 0.8, (4200.0, 2500.0, 0.40), 0.25),
    "t": _Phone("stop", (220, 1700, 2600), 0.080, dict(jaw_open=0.14), 0.8, (4600.0, 2500.0, 0.65), 0.0),
    "g": _Phone("stop", (220, 2000, 2300), 0.070, dict(jaw_open=0.22), 0.6, (2200.0, 1200.0, 0.40), 0.25),
    "k": _Phone("stop", (220, 2000, 2300), 0.085, dict(jaw_open=0.22), 0.6, (2300.0, 1200.0, 0.65), 0.0),
    "f": _Phone(
        "fricative",
        (300, 1100, 2300),
        0.090,
        dict(jaw_open=0.10, lip_roll_in=0.45, upper_lip_raise=0.15),
        1.8,
        (6000.0, 4500.0, 0.22),
        0.0,
    ),
    "v": _Phone(
        "fricative",
        (280, 1100, 2300),
        0.070,
        dict(jaw_open=0.10, lip_roll_in=0.40, upper_lip_raise=0.12),
        1.6,
        (5500.0, 4500.0, 0.10),
        0.55,
    ),
    "s": _Phone(
        "fricative",
        (320, 1600, 2600),
        0.100,
        dict(jaw_open=0.09, lip_corner_out=0.35, lower_lip_drop=0.25),
        1.1,
        (5800.0, 2200.0, 0.55),
        0.0,
    ),
    "z": _Phone(
        "fricative",
        (300, 1600, 2600),
        0.080,
        dict(jaw_open=0.10, lip_corner_out=0.30, lower_lip_drop=0.20),
        1.0,
        (5600.0, 2200.0, 0.28),
        0.5,
    ),
    "sh": _Phone(
        "fricative",
        (320, 1700, 2300),
        0.105,
        dict(jaw_open=0.12, funnel=0.75, pucker=0.25),
        1.5,
        (3000.0, 1600.0, 0.50),
        0.0,
    ),
    "h": _Phone("aspirate", (500, 1500, 2500), 0.060, dict(jaw_open=0.30), 0.3, (1500.0, 2500.0, 0.10), 0.10),
    "l": _Phone("liquid", (360, 1300, 2700), 0.065, dict(jaw_open=0.28), 0.6),
    "r": _Phone("liquid", (360, 1150, 1600), 0.070, dict(jaw_open=0.20, funnel=0.45), 0.9),
    "w": _Phone("liquid", (300, 700, 2200), 0.070, dict(jaw_open=0.10, pucker=0.95, funnel=0.2), 1.6),
    "y": _Phone("liquid", (280, 2200, 2900), 0.060, dict(jaw_open=0.15, lip_corner_out=0.55), 0.9),
    "sil": _Phone("silence", (500, 1500, 2500), 0.180, {}, 0.45, voicing=0.0),
}
_VOWELS = [name for name, phone in PHONES.items() if phone.kind == "vowel"]
_ONSETS = ["m", "n", "b", "p", "d", "t", "g", "k", "f", "v", "s", "z", "sh", "h", "l", "r", "w", "y"]
_CODAS = ["n", "m", "s", "t", "l", "z", "k", "d"]


@dataclass
class TimedPhone:
    """One phone of an utterance."""

    name: str
    start: float
    end: float
    stress: float = 0.0
    """0 unstressed to 1 accented."""


@dataclass
class Utterance:
    """Speech without its sound: what is said, when, and how high."""

    phones: List[TimedPhone]
    pitch_times: Float[np.ndarray, " points"]
    pitch_semitones: Float[np.ndarray, " points"]
    """Melody relative to the voice's mean pitch."""

    @property
    def duration(self) -> float:
        return self.phones[-1].end if self.phones else 0.0

    def speech_spans(self, bridge: float = 0.25) -> List[Tuple[float, float]]:
        """(start, end) of the stretches of sound, pauses shorter than `bridge` seconds included."""
        spans: List[Tuple[float, float]] = []
        for phone in self.phones:
            if phone.name == "sil":
                continue
            if spans and phone.start - spans[-1][1] < bridge:
                spans[-1] = (spans[-1][0], phone.end)
            else:
                spans.append((phone.start, phone.end))
        return spans

    def accents(self) -> List[float]:
        """Times of the accented vowels."""
        return [0.5 * (p.start + p.end) for p in self.phones if p.stress > 0.5 and PHONES[p.name].kind == "vowel"]


def draw_voice(index: int, rng: np.random.Generator) -> Voice:
    """The voice of the person at that place: the first two fixed and far apart, further ones drawn between and
    beyond."""
    if index == 0:
        return Voice(208.0, 2.6, 1.17, 0.10, 2600.0, 0.66, 0.008, 0.05, 1.0, 1.06, (3450.0, 4400.0))
    if index == 1:
        return Voice(104.0, 2.0, 0.93, 0.035, 1900.0, 0.50, 0.010, 0.06, 0.85, 0.98, (3250.0, 4000.0))
    high = index % 2 == 0
    return Voice(
        pitch=float(rng.uniform(235, 265) if high else rng.uniform(138, 155)),
        pitch_range=float(rng.uniform(1.6, 3.0)),
        formant_scale=float(rng.uniform(1.22, 1.30) if high else rng.uniform(1.00, 1.05)),
        breath=float(rng.uniform(0.03, 0.2)),
        tilt=float(rng.uniform(1500, 3200)),
        open_quotient=float(rng.uniform(0.45, 0.7)),
        jitter=float(rng.uniform(0.006, 0.014)),
        shimmer=float(rng.uniform(0.04, 0.09)),
        bandwidth=float(rng.uniform(0.8, 1.3)),
        rate=float(rng.uniform(0.92, 1.1)),
        upper_formants=(float(rng.uniform(3150, 3700)), float(rng.uniform(4000, 4700))),
    )


def compose_utterance(duration: float, voice: Voice, rng: np.random.Generator) -> Utterance:
    """Babble with the rhythm of speech: words of one to three syllables in phrases that decline in pitch.

    Args:
        duration: How long to speak, in seconds; the last word may end up to half a second earlier.
        voice: Sets rate and melody.
        rng: Draws the words.
    """
    phones: List[TimedPhone] = []
    points: List[Tuple[float, float]] = []
    now = 0.0
    while duration - now > 0.30:
        phrase_end = now + min(rng.uniform(1.3, 2.6), duration - now)
        if duration - phrase_end < 0.6:
            phrase_end = duration
        start, rising = now, rng.random() < 0.25
        points.append((now, 0.8 * voice.pitch_range))
        while phrase_end - now > 0.22:
            syllables = 1 + int(rng.integers(3))
            accented = int(rng.integers(syllables)) if rng.random() < 0.75 else -1
            for syllable in range(syllables):
                stress = float(syllable == accented)
                names = [_VOWELS[rng.integers(len(_VOWELS))]]
                if rng.random() < 0.88:
                    names.insert(0, _ONSETS[rng.integers(len(_ONSETS))])
                if rng.random() < 0.28:
                    names.append(_CODAS[rng.integers(len(_CODAS))])
                final = phrase_end - now < 0.45
                for name in names:
                    phone = PHONES[name]
                    length = phone.duration * rng.uniform(0.85, 1.15) / voice.rate
                    if phone.kind == "vowel":
                        length *= 1.0 + 0.30 * stress + (0.35 if final else 0.0)
                    length = min(length, max(phrase_end - now, 0.03))
                    if phone.kind == "vowel":
                        slope = -1.6 * voice.pitch_range * (now - start) / max(phrase_end - start, 0.5)
                        accent = voice.pitch_range * (1.1 * stress + 0.35 * rng.standard_normal())
                        points.append((now + 0.5 * length, 0.8 * voice.pitch_range + slope + accent))
                    phones.append(TimedPhone(name, now, now + length, stress))
                    now += length
                if phrase_end - now < 0.22:
                    break
        points.append((now, voice.pitch_range * (1.4 if rising else -1.3)))
        if duration - now > 0.75:
            pause = rng.uniform(0.14, 0.36)
            phones.append(TimedPhone("sil", now, now + pause))
            now += pause
        else:
            break
    times, values = np.array(points).T
    return Utterance(phones, times, values)


def backchannel(voice: Voice, rng: np.random.Generator) -> Utterance:
    """A short "mm" or "yeah" with a falling and rising melody."""
    names = (["m", "h", "m"], ["y", "eh", "ah"], ["ah", "h", "ah"])[rng.integers(3)]
    phones, now = [], 0.0
    for name in names:
        length = {"m": 0.15, "h": 0.05, "y": 0.06}.get(name, 0.13)
        phones.append(TimedPhone(name, now, now + length, 0.3))
        now += length
    return Utterance(phones, np.array([0.0, 0.5 * now, now]), voice.pitch_range * np.array([0.6, -0.6, 0.9]))


def mouth_shapes(utterance: Utterance, times: Float[np.ndarray, " num_frames"]) -> Float[np.ndarray, "num_frames E"]:
    """Expression coefficients of the mouth while an utterance is spoken.

    Each phone i pulls towards its target with weight d_i exp(-|t - c_i| / (0.55 w_i))  (c_i its middle, w_i its
    length, d_i its dominance); the shape is the weighted mean, and silence pulls towards the closed mouth.

    Args:
        utterance: What is said.
        times: Seconds from the start of the utterance.
    """
    index = {name: i for i, name in enumerate(EXPRESSION_NAMES)}
    phones = [
        TimedPhone("sil", -0.25, 0.0),
        *utterance.phones,
        TimedPhone("sil", utterance.duration, utterance.duration + 0.25),
    ]
    total = np.zeros((len(times), len(EXPRESSION_NAMES)))
    weights = np.zeros((len(times), 1))
    for phone in phones:
        spec = PHONES[phone.name]
        target = np.zeros(len(EXPRESSION_NAMES))
        for name, value in spec.mouth.items():
            sides = [name] if name in index else [f"{name}_left", f"{name}_right"]
            for side in sides:
                target[index[side]] = value * (1.0 + (0.22 * phone.stress - 0.10 if spec.kind == "vowel" else 0.0))
        centre, width = 0.5 * (phone.start + phone.end), max(phone.end - phone.start, 0.04)
        strength = 3.0 if phone.name == "sil" else spec.dominance
        outside = np.maximum(np.abs(times - centre) - 0.5 * width, 0.0)
        inside = np.minimum(np.abs(times - centre), 0.5 * width)
        weight = strength * np.exp(-inside / (1.1 * width) - outside / 0.030)[:, None]
        total += weight * target
        weights += weight
    return total / np.maximum(weights, 1e-9) * ((times > -0.25) & (times < utterance.duration + 0.25))[:, None]


@nb.njit(cache=True, fastmath=True)
@no_type_check
def _synthesise(
    formants, bandwidths, pitch, voiced, aspirated, open_quotient, tilt, jitter, shimmer, noise, wobble, step
):
    """Glottal source through a formant cascade; control tracks change every `step` samples and are interpolated."""
    num_controls, num_formants = formants.shape
    out = np.zeros((num_controls - 1) * step)
    y1, y2 = np.zeros(num_formants), np.zeros(num_formants)
    phase, period_scale, loudness, cycle = 0.0, 1.0, 1.0, 0
    tilt_state, previous = 0.0, 0.0
    alpha = 1.0 - math.exp(-2.0 * math.pi * tilt / SAMPLE_RATE)
    for k in range(num_controls - 1):
        for i in range(step):
            n = k * step + i
            w = i / step
            f0 = (pitch[k] + w * (pitch[k + 1] - pitch[k])) * period_scale
            phase += f0 / SAMPLE_RATE
            if phase >= 1.0:
                phase -= 1.0
                cycle += 1
                period_scale = 1.0 + jitter * wobble[2 * cycle % wobble.shape[0]]
                loudness = 1.0 + shimmer * wobble[(2 * cycle + 1) % wobble.shape[0]]
            # Rosenberg's pulse: a slow opening, a fast closing, and a closed rest.
            rise, fall = 0.62 * open_quotient, 0.38 * open_quotient
            if phase < rise:
                flow = 0.5 * (1.0 - math.cos(math.pi * phase / rise))
            elif phase < rise + fall:
                flow = math.cos(0.5 * math.pi * (phase - rise) / fall)
            else:
                flow = 0.0
            tilt_state += alpha * (flow - tilt_state)
            pulse = (tilt_state - previous) * 6.0
            previous = tilt_state
            breathing = 0.35 + 0.65 * flow
            voice_level = voiced[k] + w * (voiced[k + 1] - voiced[k])
            air = aspirated[k] + w * (aspirated[k + 1] - aspirated[k])
            s = voice_level * loudness * pulse + air * breathing * noise[n] * 0.22
            for j in range(num_formants):
                frequency = formants[k, j] + w * (formants[k + 1, j] - formants[k, j])
                width = bandwidths[k, j] + w * (bandwidths[k + 1, j] - bandwidths[k, j])
                c = -math.exp(-2.0 * math.pi * width / SAMPLE_RATE)
                b = 2.0 * math.exp(-math.pi * width / SAMPLE_RATE) * math.cos(2.0 * math.pi * frequency / SAMPLE_RATE)
                value = (1.0 - b - c) * s + b * y1[j] + c * y2[j]
                y2[j] = y1[j]
                y1[j] = value
                s = value
            out[n] = s
    return out


@lru_cache(maxsize=256)
def _band_filter(centre: float, width: float) -> Float[np.ndarray, "sections 6"]:
    """Designing a filter takes ten times as long as filtering a phone with it, and a voice has few of them."""
    low, high = max(centre - 0.5 * width, 120.0), min(centre + 0.5 * width, 7600.0)
    return butter(2, [low, high], "bandpass", fs=SAMPLE_RATE, output="sos")


def _noise_band(centre: float, width: float, noise: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return sosfilt(_band_filter(centre, width), noise)


def synthesise(utterance: Utterance, voice: Voice, rng: np.random.Generator) -> Float[np.ndarray, " num_samples"]:
    """The sound of an utterance in a voice.

    Args:
        utterance: Phones and melody.
        voice: Whose voice.
        rng: Draws noise, jitter and shimmer.

    Returns:
        float32 samples at `SAMPLE_RATE`, root mean square of its voiced parts near 0.1, a tenth of a second longer
        than the utterance.
    """
    num_controls = math.ceil((utterance.duration + 0.1) * _CONTROL_RATE) + 1
    times = np.arange(num_controls) / _CONTROL_RATE
    step = SAMPLE_RATE // _CONTROL_RATE
    num_samples = (num_controls - 1) * step

    formants = np.tile(np.array([500.0, 1500.0, 2500.0]), (num_controls, 1))
    voiced, aspirated, nasal = np.zeros(num_controls), np.zeros(num_controls), np.zeros(num_controls)
    noises: List[Tuple[float, float, _Phone]] = []
    for phone in utterance.phones:
        spec = PHONES[phone.name]
        during = (times >= phone.start) & (times < phone.end)
        formants[during] = spec.formants
        if spec.kind == "stop":
            # Closure, burst, and for the voiceless ones a breathy release into the vowel.
            burst = phone.end - (0.016 if spec.voicing > 0 else 0.034)
            voiced[(times >= phone.start) & (times < burst)] = 0.5 * spec.voicing
            noises.append((burst, burst + 0.014, spec))
            aspirated[(times >= burst) & (times < phone.end)] = 0.9 if spec.voicing == 0 else 0.3
        else:
            level = {"vowel": 1.0 + 0.25 * phone.stress, "liquid": 0.75, "nasal": 0.55}.get(spec.kind, spec.voicing)
            voiced[during] = level
            aspirated[during] = 1.0 if spec.kind == "aspirate" else 0.0
            if spec.kind in ("fricative", "aspirate"):
                noises.append((phone.start, phone.end, spec))
        nasal[during] = spec.kind == "nasal"
    smooth = 0.022 * _CONTROL_RATE / voice.rate
    formants = gaussian_filter1d(formants, smooth, axis=0, mode="nearest") * voice.formant_scale
    # Formants are never quite still.
    formants *= 1.0 + 0.012 * gaussian_filter1d(rng.standard_normal(formants.shape), 8.0, axis=0) * 5.0
    voiced = gaussian_filter1d(voiced, 0.009 * _CONTROL_RATE)
    aspirated = gaussian_filter1d(aspirated, 0.006 * _CONTROL_RATE) + voice.breath * voiced
    nasal = gaussian_filter1d(nasal, 0.010 * _CONTROL_RATE)
    upper = np.array(voice.upper_formants) * voice.formant_scale
    formants = np.concatenate([formants, np.tile(np.minimum(upper, 7300.0), (num_controls, 1))], axis=1)
    bandwidths = (
        np.array([70.0, 95.0, 140.0, 230.0, 330.0])
        * voice.bandwidth
        * (1.0 + 1.8 * nasal[:, None] + 0.6 * np.minimum(aspirated, 1.0)[:, None])
    )

    melody = np.interp(times, utterance.pitch_times, utterance.pitch_semitones)
    melody = (
        gaussian_filter1d(melody, 0.035 * _CONTROL_RATE)
        + 0.25 * gaussian_filter1d(rng.standard_normal(num_controls), 4.0) * 3.0
    )
    pitch = voice.pitch * 2.0 ** (melody / 12.0)
    sound = _synthesise(
        formants,
        bandwidths,
        pitch,
        voiced,
        aspirated,
        voice.open_quotient,
        voice.tilt,
        voice.jitter,
        voice.shimmer,
        rng.standard_normal(num_samples),
        rng.standard_normal(4096),
        step,
    )
    loud = np.sqrt(np.mean(sound[np.repeat(voiced[:-1] > 0.5, step)] ** 2)) if (voiced > 0.5).any() else 1.0
    sound = sound / max(loud, 1e-9) * 0.1

    sample_times = np.arange(num_samples) / SAMPLE_RATE
    for start, end, spec in noises:
        first, last = max(int((start - 0.01) * SAMPLE_RATE), 0), min(int((end + 0.02) * SAMPLE_RATE), num_samples)
        if last - first < 64:
            continue
        centre, width, level = spec.noise
        band = _noise_band(
            min(centre * (0.4 + 0.6 * voice.formant_scale), 6800.0), width, rng.standard_normal(last - first)
        )
        envelope = np.clip((sample_times[first:last] - start) / 0.012, 0, 1) * np.clip(
            (end + 0.012 - sample_times[first:last]) / 0.014, 0, 1
        )
        sound[first:last] += 0.055 * level / max(band.std(), 1e-9) * band * envelope
    return sound.astype(np.float32)
