"""Who a simulated person is beyond looks: voice, habits of the head, the eyes and the mouth, drawn once for each
person.

Conventions: angles in radians, times in seconds, rates a second. Rotations are the columns of a rotation vector, as in
`Motion.head_pose`: x > 0 looks down, y > 0 turns towards the person's left, z > 0 leans towards the person's right.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Tuple

import numpy as np

from dialogue_nerfstudio.conversation.simulate.speech import Voice

_PLASTIC = 1.2207440846057596
"""Root of x^4 = x + 1: steps of 1/g, 1/g², … (mod 1) spread points evenly in three dimensions (Roberts's R3
sequence)."""

Triple = Tuple[float, float, float]


@dataclass
class PersonStyle:
    """One person's habits; they are the same in every conversation."""

    id: str
    amplitude: Triple
    """Standard deviation of a listener's answers in each column of the rotation vector, before their gains."""
    mean_rotation: Triple
    """How the head is held."""
    speaking_shift: Triple
    """How far it is held otherwise while speaking."""
    latency: int
    """Frames from what another does to this person's answer."""
    sound_gain: float
    """How strongly the speaker's sound is answered, in units of `amplitude`."""
    motion_gain: float
    """How strongly the speaker's head motion is answered, in units of `amplitude`."""
    accent_gain: float
    """How far the own voice's accents dip the head, in units of `amplitude`."""
    nod_size: float
    """Swing of a nod, in units of `amplitude`."""
    nod_frequency: float
    """Swings of a nod a second."""
    nod_loudness: float
    """Phrases that end louder than this are nodded to: low nods often, high seldom."""
    blink_rate: float
    """Blinks a second."""
    blink_duration: float
    """Mean length of a blink."""
    smile_rate: float
    """Smiles a second."""
    smile: float
    """Strength of a smile."""
    smile_balance: float
    """Left corner of the smile relative to the right one."""
    articulation: float
    """How far the mouth moves in speech, 1 average."""
    brows: float
    """How often the brows accompany accents, 0 … 1."""
    loudness: float
    """Level of the voice, 1 average."""
    voice: Voice = field(repr=False)

    def to_json(self) -> Dict[str, Any]:
        """The style as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Dict[str, Any]) -> "PersonStyle":
        """The style that `to_json` wrote.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        read = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        voice = {name: tuple(value) if isinstance(value, list) else value for name, value in values["voice"].items()}
        return cls(**{**read, "voice": Voice(**voice)})


def draw_style(number: int, seed: int) -> PersonStyle:
    """The style of a person of a seed; the same number and seed are the same person.

    Blink rate, size of motion and latency are spread evenly over the people, so that any few of them differ clearly;
    everything else is drawn independently.
    """
    rng = np.random.default_rng([seed, 0x57, number])
    offsets = np.random.default_rng([seed, 0x58]).random(3)
    even = (offsets + (number + 1) * _PLASTIC ** -np.arange(1.0, 4.0)) % 1.0
    size = 0.6 + 0.9 * even[1]
    return PersonStyle(
        id=f"person-{number:04d}",
        amplitude=_rounded(np.deg2rad(size * rng.uniform([1.7, 1.9, 1.1], [2.3, 2.9, 1.7]))),
        mean_rotation=_rounded(rng.normal(0.0, [0.07, 0.09, 0.045])),
        speaking_shift=_rounded(rng.normal(0.0, [0.020, 0.025, 0.012])),
        latency=round(5 + 12 * even[2]),
        sound_gain=float(rng.uniform(0.55, 0.80)),
        motion_gain=float(rng.uniform(0.75, 1.0)),
        accent_gain=float(rng.uniform(0.60, 0.95)),
        nod_size=float(rng.uniform(1.6, 3.6)),
        nod_frequency=float(rng.uniform(1.3, 2.1)),
        nod_loudness=float(rng.uniform(0.40, 0.85)),
        blink_rate=float(0.15 + 0.45 * even[0]),
        blink_duration=float(rng.uniform(0.18, 0.30)),
        smile_rate=float(rng.uniform(0.03, 0.12)),
        smile=float(rng.uniform(0.4, 0.95)),
        smile_balance=float(rng.uniform(0.75, 1.25)),
        articulation=float(rng.uniform(0.75, 1.15)),
        brows=float(rng.uniform(0.2, 0.9)),
        loudness=float(rng.uniform(0.75, 1.2)),
        voice=_draw_voice(rng),
    )


def _draw_voice(rng: np.random.Generator) -> Voice:
    pitch = float(np.exp(rng.uniform(np.log(90.0), np.log(260.0))))
    # Long vocal tracts go with low voices.
    scale = 0.92 + 0.34 * (np.log(pitch / 90.0) / np.log(260.0 / 90.0)) + rng.normal(0.0, 0.025)
    return Voice(
        pitch=pitch,
        pitch_range=float(rng.uniform(1.5, 3.0)),
        formant_scale=float(scale),
        breath=float(rng.uniform(0.03, 0.2)),
        tilt=float(rng.uniform(1500.0, 3200.0)),
        open_quotient=float(rng.uniform(0.45, 0.7)),
        jitter=float(rng.uniform(0.006, 0.014)),
        shimmer=float(rng.uniform(0.04, 0.09)),
        bandwidth=float(rng.uniform(0.8, 1.3)),
        rate=float(rng.uniform(0.85, 1.12)),
        upper_formants=(float(rng.uniform(3150.0, 3700.0)), float(rng.uniform(4000.0, 4700.0))),
    )


def _rounded(values: np.ndarray) -> Triple:
    return tuple(round(float(value), 6) for value in values)  # type: ignore[return-value]
