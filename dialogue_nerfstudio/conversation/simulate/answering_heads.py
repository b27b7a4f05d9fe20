"""Head motion as a known function of what is heard and seen, plus noise: speakers' accents, listeners' answers.

Conventions. P people, T frames at 25 fps. u = min(rms / 0.1, 2) is a track's loudness and z its zero-crossing rate, per
frame, as in `acoustics.prosody_features`; e = u + 3 z. w is 1 while a person speaks (roles), and w̄(t) = mean of w(t −
7 … t). r [T, 3] is the rotation vector of the head, x > 0 looking down, in radians. A person's *partner* q is, frame by
frame, whoever else speaks, and the last who spoke in a pause. Columns of r are x, y, z.

For a person p with latency L (frames, 5 … 17), amplitudes A [3], and gains as in `PersonStyle`,

    r(t)  = mean + shift w̄_p(t)                                                               roles
          + (1 − w̄_p(t)) A (sound gain) C_s S_q(t − L) + nods                                  the partner's sound
          + w̄_p(t) A (accent gain) C_a B_p(t − 1)                                              the own sound
          + (1 − w̄_p(t)) A (motion gain) M_q(t − L)                                            the partner's motion
          + A n(t)                                                                              noise

    S_q = ((g.12 − g.35) ∗ e_q) / .24                     B_p = ((g.05 − g.20) ∗ u_p) / .26
    M_q(t) = Σ_k G(k) w̄_q(t − k) (r_q(t − k) − r_q(t − k − 1)) / D,   G(k) = Σ_{j ≤ k} (g.10 − g.35)(j)

where g_c(k) ∝ (k + ½) exp(−(k + ½) / 25 c), k = 0 … 49, sums to one and D = (.024, .020, .0105). M is the partner's
motion, band-passed: what the partner's mean pose is plays no part. A nod begins L frames after the partner's voice
falls silent: the first frame of at least four below u = .12 after a second whose mean loudness is m; it adds (1 − w̄_p)
A_x (nod size) σ((m − nod loudness) / .06) sin(2π f τ) exp(−τ / .3) min(τ / .12, 1) to the x column. The position
follows the rotation about the neck to first order, t = N × (r − mean), N the neck's pivot, plus noise.

n is Gaussian and stationary with variance NOISE² in each column of r: .6 of it changes on the scale of .7 s, .4 on that
of .2 s. Everything but n is a function of prosody, roles and the partner's pose up to now and of the person's style, so
it is what a perfect predictor would say: `expected`.
"""

from dataclasses import dataclass
from typing import Sequence, no_type_check

import numba as nb
import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from dialogue_nerfstudio.conversation.roles import partner_of
from dialogue_nerfstudio.conversation.simulate.styles import PersonStyle

FPS = 25.0
KERNEL_FRAMES = 50
"""Frames that a response looks back, before its latency."""
NOISE = 0.9
"""Standard deviation of a rotation's noise, in units of the person's amplitude."""
LEAN = np.array([0.004, 0.001, 0.004])
"""Standard deviation of a position's noise (m)."""
NECK_PIVOT = np.array([0.0, -0.105, -0.045])

LOUD_RMS = 0.1
SILENCE = 0.12
"""Loudness u below which a track is silent."""
PAUSE_FRAMES = 4
PHRASE_FRAMES = 25
ROLE_FRAMES = 8
_SOUND_COLUMNS = np.array([1.0, 0.6, 0.5])
_ACCENT_COLUMNS = np.array([1.0, 0.5, -0.4])
# Deviations of the drives over an hour of conversation, so that gains are in units of amplitude.
_SOUND_DEVIATION, _ACCENT_DEVIATION = 0.24, 0.26
_MOTION_DEVIATION = np.array([0.024, 0.020, 0.0105])


@dataclass
class HeadMotion:
    """Everybody's head over a conversation, and what of it follows from what."""

    head_pose: Float[np.ndarray, "P T 6"]
    """Axis-angle and translation."""
    expected: Float[np.ndarray, "P T 6"]
    """Its mean given everything but the noise."""
    from_sound: Float[np.ndarray, "P T 6"]
    """The part of `expected` that sound makes: the partner's while listening, the own while speaking."""
    from_partner: Float[np.ndarray, "P T 6"]
    """The part of `expected` that the partner's motion makes."""


def gamma_kernel(seconds: float, fps: float = FPS) -> Float[np.ndarray, " 50"]:
    """g_c of the module's docstring."""
    steps = np.arange(KERNEL_FRAMES) + 0.5
    kernel = steps * np.exp(-steps / (seconds * fps))
    return kernel / kernel.sum()


def loudness(prosody: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    """u of the module's docstring."""
    return np.minimum(prosody[..., 1].astype(np.float64) / LOUD_RMS, 2.0)


def smooth_role(speaking: Bool[np.ndarray, "... T"]) -> Float[np.ndarray, "... T"]:
    """w̄: the mean of the last eight frames."""
    return lfilter(np.full(ROLE_FRAMES, 1.0 / ROLE_FRAMES), [1.0], speaking.astype(np.float64), axis=-1)


def phrase_ends(level: Float[np.ndarray, " T"]) -> Int[np.ndarray, " n"]:
    """First frames of pauses: silent for `PAUSE_FRAMES`, right after a frame that is not."""
    silent = np.concatenate([level < SILENCE, np.zeros(PAUSE_FRAMES, bool)])
    frames = np.arange(1, len(level))
    stays = np.all([silent[frames + ahead] for ahead in range(PAUSE_FRAMES)], axis=0)
    return frames[stays & ~silent[frames - 1]]


def delayed(signal: Float[np.ndarray, " T"], frames: int) -> Float[np.ndarray, " T"]:
    """The signal `frames` later, zero before."""
    return np.concatenate([np.zeros(frames), signal])[: len(signal)]


def sound_drive(prosody: Float[np.ndarray, "T 2"]) -> Float[np.ndarray, " T"]:
    """S of the module's docstring, of one track."""
    energy = loudness(prosody) + 3.0 * prosody[:, 0]
    return lfilter(gamma_kernel(0.12) - gamma_kernel(0.35), [1.0], energy) / _SOUND_DEVIATION


def accent_drive(prosody: Float[np.ndarray, "T 2"]) -> Float[np.ndarray, " T"]:
    """B of the module's docstring, of one track."""
    return lfilter(gamma_kernel(0.05) - gamma_kernel(0.20), [1.0], loudness(prosody)) / _ACCENT_DEVIATION


def sound_answer(
    drive: Float[np.ndarray, " T"], role: Float[np.ndarray, " T"], style: PersonStyle
) -> Float[np.ndarray, "T 3"]:
    """What a listener makes of a partner's sound drive S, without nods."""
    answer = delayed(drive, style.latency)[:, None] * style.sound_gain * _SOUND_COLUMNS * np.array(style.amplitude)
    return (1.0 - role)[:, None] * answer


def motion_drive(rotation: Float[np.ndarray, "T 3"], role: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3"]:
    """M of the module's docstring, of one person's rotation and smoothed role w̄."""
    steps = role[:, None] * np.diff(rotation, axis=0, prepend=rotation[:1])
    kernel = np.cumsum(gamma_kernel(0.10) - gamma_kernel(0.35))
    return lfilter(kernel, [1.0], steps, axis=0) / _MOTION_DEVIATION


def nods(prosody: Float[np.ndarray, "T 2"], style: PersonStyle) -> Float[np.ndarray, " T"]:
    """The nods with which a person answers a track, radians of looking down, where they only listen."""
    level = loudness(prosody)
    before = delayed(lfilter(np.full(PHRASE_FRAMES, 1.0 / PHRASE_FRAMES), [1.0], level), 1)
    impulses = np.zeros(len(level))
    for end in phrase_ends(level):
        if end + style.latency < len(level):
            weight = 1.0 / (1.0 + np.exp(-(before[end] - style.nod_loudness) / 0.06))
            impulses[end + style.latency] += weight * style.nod_size * style.amplitude[0]
    tau = np.arange(KERNEL_FRAMES) / FPS
    swing = np.sin(2 * np.pi * style.nod_frequency * tau) * np.exp(-tau / 0.3) * np.clip(tau / 0.12, 0.0, 1.0)
    return lfilter(swing, [1.0], impulses)


def stationary_noise(num_frames: int, seconds: float, rng: np.random.Generator) -> Float[np.ndarray, " T"]:
    """Gaussian noise of unit variance that changes on the scale of `seconds`."""
    sigma = seconds * FPS
    pad = int(4 * sigma) + 1
    noise = gaussian_filter1d(rng.standard_normal(num_frames + 2 * pad), sigma)[pad : pad + num_frames]
    # Variance of white noise after a Gaussian filter: 1 / (2 sqrt(pi) sigma).
    return noise * np.sqrt(2.0 * np.sqrt(np.pi) * sigma)


def move_heads(
    styles: Sequence[PersonStyle],
    prosody: Float32[np.ndarray, "P T 2"],
    speaking: Bool[np.ndarray, "P T"],
    rng: np.random.Generator,
) -> HeadMotion:
    """Everybody's head motion, given everybody's sound and roles; only the noise is drawn."""
    num_people, num_frames = speaking.shape
    role = smooth_role(speaking)
    amplitude = np.array([style.amplitude for style in styles])
    mean = np.array([style.mean_rotation for style in styles])
    partners = np.stack([partner_of(speaking, person) for person in range(num_people)])
    held = mean[:, None] + np.array([style.speaking_shift for style in styles])[:, None] * role[..., None]
    from_sound = np.zeros((num_people, num_frames, 3))
    noise = np.zeros((num_people, num_frames, 3))
    for person, style in enumerate(styles):
        accents = delayed(accent_drive(prosody[person]), 1)[:, None] * style.accent_gain * _ACCENT_COLUMNS
        from_sound[person] = role[person][:, None] * accents * amplitude[person]
        partner = partners[person]
        if partner[0] >= 0:
            heard = prosody[partner, np.arange(num_frames)]
            from_sound[person] += sound_answer(sound_drive(heard), role[person], style)
            from_sound[person, :, 0] += (1.0 - role[person]) * nods(heard, style)
        for column in range(3):
            slow, fast = (stationary_noise(num_frames, seconds, rng) for seconds in (0.7, 0.2))
            noise[person, :, column] = NOISE * amplitude[person, column] * (np.sqrt(0.6) * slow + np.sqrt(0.4) * fast)
    kernel = np.cumsum(gamma_kernel(0.10) - gamma_kernel(0.35))
    gain = amplitude / _MOTION_DEVIATION * np.array([style.motion_gain for style in styles])[:, None]
    latency = np.array([style.latency for style in styles])
    rotation, from_partner = _answer_motion(held + from_sound + noise, role, partners, kernel, gain, latency)

    lean = np.stack([[stationary_noise(num_frames, 1.6, rng) for _ in range(3)] for _ in range(num_people)]).transpose(
        0, 2, 1
    )
    expected = held + from_sound + from_partner
    return HeadMotion(
        head_pose=_with_position(rotation, mean, LEAN * lean),
        expected=_with_position(expected, mean, 0.0),
        from_sound=_with_position(from_sound, np.zeros_like(mean), 0.0),
        from_partner=_with_position(from_partner, np.zeros_like(mean), 0.0),
    )


def _with_position(
    rotation: Float[np.ndarray, "P T 3"], mean: Float[np.ndarray, "P 3"], lean: Float[np.ndarray, "P T 3"] | float
) -> Float[np.ndarray, "P T 6"]:
    """Rotations with the positions that follow from them: the neck's pivot stays where it is, to first order."""
    position = np.cross(NECK_PIVOT, rotation - mean[:, None]) + lean
    return np.concatenate([rotation, position], axis=-1)


@nb.njit(cache=True)
@no_type_check
def _answer_motion(base, role, partners, kernel, gain, latency):
    """Adds to every head what answers its partner's motion, frame by frame since that may be an answer itself."""
    num_people, num_frames, _ = base.shape
    rotation = base.copy()
    answer = np.zeros_like(base)
    # Steps of everybody's head while they speak.
    steps = np.zeros_like(base)
    for t in range(num_frames):
        for p in range(num_people):
            listening = 1.0 - role[p, t]
            if partners[p, t] >= 0 and listening > 0.0:
                for k in range(len(kernel)):
                    source = t - latency[p] - k
                    if source < 1:
                        break
                    q = partners[p, source]
                    for c in range(3):
                        answer[p, t, c] += kernel[k] * steps[q, source, c]
                for c in range(3):
                    answer[p, t, c] *= listening * gain[p, c]
                    rotation[p, t, c] += answer[p, t, c]
            if t > 0:
                for c in range(3):
                    steps[p, t, c] = role[p, t] * (rotation[p, t, c] - rotation[p, t - 1, c])
    return rotation, answer
