"""How simulated people behave: turns, pauses and backchannels, and heads, eyes and faces that speak and that answer
what was said.

Conventions: seconds from the start of the conversation, metres, radians; frame t shows the time (t + 0.5) / fps.
Everything a listener does in response carries the time of its cause, and comes after it by a drawn latency
(`Response`). Head rotation is R = R_y(yaw) R_x(-pitch) R_z(roll): yaw turns towards the person's left, pitch looks up,
roll leans towards the person's right.
"""

from dataclasses import dataclass, field
from typing import List, Tuple

import numpy as np
from jaxtyping import Float, Float32
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.roles import SpeechSegment
from dialogue_nerfstudio.conversation.simulate.speech import (
    SAMPLE_RATE,
    Utterance,
    Voice,
    backchannel,
    compose_utterance,
    draw_voice,
    mouth_shapes,
    synthesise,
)

_NECK_PIVOT = np.array([0.0, -0.105, -0.045])
_MAX_ANGLE = np.deg2rad(15.0)
_ROOM_NOISE = 2.5e-4
_INDEX = {name: i for i, name in enumerate(EXPRESSION_NAMES)}


@dataclass
class Turn:
    """One person saying something."""

    participant: int
    start: float
    utterance: Utterance
    is_backchannel: bool = False

    @property
    def end(self) -> float:
        return self.start + self.utterance.duration


@dataclass
class Response:
    """Something a person did because of what another did."""

    participant: int
    kind: str
    """nod, smile, blink or backchannel."""
    time: float
    """When it starts."""
    cause: float
    """When what it answers ended."""


@dataclass
class Habits:
    """How one person moves."""

    blink_rate: float
    """Spontaneous blinks a second."""
    nod: float
    """Amplitude of a nod (rad)."""
    restless: float
    """Size of head motion, 1 average."""
    smile: float
    """Strength of a smile."""
    smile_balance: float
    """Left corner of the smile relative to the right one."""
    articulation: float
    """How far the mouth moves in speech, 1 average."""
    brows: float
    """How much the brows accompany accents."""


@dataclass
class Performance:
    """One person's motion over a conversation, person space as placed before recentring."""

    head_pose: Float[np.ndarray, "num_frames 6"]
    torso_pose: Float[np.ndarray, "num_frames 6"]
    expression: Float[np.ndarray, "num_frames E"]
    blink: Float[np.ndarray, "num_frames 2"]
    gaze: Float[np.ndarray, "num_frames 2 2"]
    blinks: List[Tuple[float, float]] = field(default_factory=list)
    """(start, duration) of every blink."""


@dataclass
class Dialogue:
    """A whole conversation: who says what when, how everybody moves, and what answers what."""

    turns: List[Turn]
    segments: List[SpeechSegment]
    performances: List[Performance]
    responses: List[Response]
    voices: List[Voice]


def draw_habits(rng: np.random.Generator) -> Habits:
    """Habits of a person, drawn."""
    return Habits(
        blink_rate=float(rng.uniform(0.22, 0.42)),
        nod=float(np.deg2rad(rng.uniform(5.5, 8.0))),
        restless=float(rng.uniform(0.85, 1.15)),
        smile=float(rng.uniform(0.65, 0.95)),
        smile_balance=float(rng.uniform(0.8, 1.2)),
        articulation=float(rng.uniform(0.9, 1.1)),
        brows=float(rng.uniform(0.4, 0.9)),
    )


def plan_turns(seconds: float, voices: List[Voice], rng: np.random.Generator) -> Tuple[List[Turn], List[Response]]:
    """Who says what when: turns with gaps between them, and listeners' backchannels in the speaker's pauses."""
    num_people = len(voices)
    mean_turn = float(np.clip(seconds / (2.2 * num_people), 1.4, 4.2))
    turns: List[Turn] = []
    responses: List[Response] = []
    now, speaker = 0.30, int(rng.integers(num_people))
    while seconds - now > 0.75:
        length = min(mean_turn * rng.uniform(0.7, 1.4), seconds - now - 0.15)
        # A rest too short for another turn is spoken by this one.
        if seconds - now - length < 1.1:
            length = seconds - now - 0.15
        turn = Turn(speaker, now, compose_utterance(length, voices[speaker], rng))
        turns.append(turn)
        for phone in turn.utterance.phones:
            pause_start = turn.start + phone.start
            if phone.name == "sil" and num_people > 1 and rng.random() < 0.35 and pause_start + 1.0 < seconds:
                listener = (speaker + 1 + int(rng.integers(num_people - 1))) % num_people
                time = pause_start + rng.uniform(0.12, 0.30)
                turns.append(Turn(listener, time, backchannel(voices[listener], rng), True))
                responses.append(Response(listener, "backchannel", time, pause_start))
        now = turn.end + rng.uniform(0.15, 0.65)
        if num_people > 1:
            speaker = (speaker + 1 + int(rng.integers(num_people - 1))) % num_people
    return turns, responses


def _drift(num_frames: int, fps: float, seconds: float, rng: np.random.Generator) -> Float[np.ndarray, " num_frames"]:
    """Smooth noise of unit variance that changes on the scale of `seconds`."""
    sigma = seconds * fps
    pad = int(4 * sigma) + 1
    noise = gaussian_filter1d(rng.standard_normal(num_frames + 2 * pad), sigma)[pad : pad + num_frames]
    # Variance of white noise after a Gaussian filter: 1 / (2 sqrt(pi) sigma).
    return noise * np.sqrt(2.0 * np.sqrt(np.pi) * sigma)


def bump(
    times: Float[np.ndarray, " n"], start: float, rise: float, hold: float, fall: float
) -> Float[np.ndarray, " n"]:
    """0 -> 1 -> 0 with raised-cosine flanks."""
    up = np.clip((times - start) / rise, 0.0, 1.0)
    down = np.clip((times - start - rise - hold) / fall, 0.0, 1.0)
    return (0.5 - 0.5 * np.cos(np.pi * up)) * (0.5 + 0.5 * np.cos(np.pi * down))


def nod_curve(
    times: Float[np.ndarray, " n"], start: float, amplitude: float, frequency: float
) -> Float[np.ndarray, " n"]:
    """Pitch of a nod: down first, then a dying swing."""
    tau = np.maximum(times - start, 0.0)
    return -amplitude * np.sin(2 * np.pi * frequency * tau) * np.exp(-tau / 0.38) * np.clip(tau / 0.12, 0, 1)


def blink_curve(times: Float[np.ndarray, " n"], start: float, duration: float) -> Float[np.ndarray, " n"]:
    """Lid closure of one blink: closing takes 35 % of it, opening half."""
    return bump(times, start, 0.35 * duration, 0.15 * duration, 0.50 * duration)


def _lagged(signal: Float[np.ndarray, "n ..."], fps: float, seconds: float) -> Float[np.ndarray, "n ..."]:
    """First-order low pass with that time constant, which is also its lag."""
    out = np.empty_like(signal)
    out[0] = signal[0]
    keep = np.exp(-1.0 / (fps * seconds))
    for t in range(1, len(signal)):
        out[t] = keep * out[t - 1] + (1.0 - keep) * signal[t]
    return out


def _plan_responses(
    turns: List[Turn], num_people: int, seconds: float, rng: np.random.Generator
) -> Tuple[List[Response], List[Tuple[int, float]]]:
    """Listeners' nods, smiles and blinks after the ends of phrases, and the speakers' own smiles as (participant,
    time)."""
    responses: List[Response] = []
    smiles: List[Tuple[int, float]] = []
    for turn in turns:
        if turn.is_backchannel:
            continue
        ends = [turn.start + end for _, end in turn.utterance.speech_spans(bridge=0.10)]
        if rng.random() < 0.6:
            smile_time = ends[-1] - rng.uniform(0.2, 0.6)
            smiles.append((turn.participant, smile_time))
        else:
            smile_time = None
        for listener in range(num_people):
            if listener == turn.participant:
                continue
            for end in ends:
                if rng.random() < 0.75:
                    responses.append(Response(listener, "nod", end + rng.uniform(0.22, 0.55), end))
                if rng.random() < 0.45:
                    responses.append(Response(listener, "blink", end + rng.uniform(0.12, 0.40), end))
            if smile_time is not None and rng.random() < 0.8:
                responses.append(Response(listener, "smile", smile_time + rng.uniform(0.35, 0.80), smile_time))
    return [response for response in responses if response.time < seconds - 0.3], smiles


def _head_angles(
    who: int,
    times: Float[np.ndarray, " n"],
    fps: float,
    own: List[Turn],
    nods: List[Response],
    habits: Habits,
    speaking: Float[np.ndarray, " n"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "n 3"]:
    """Yaw, pitch and roll (rad): slow drift, larger while speaking, dips on accents, nods in response."""
    n = len(times)
    size = np.deg2rad(habits.restless) * (0.65 + 0.55 * speaking)
    yaw = size * (4.3 * _drift(n, fps, 1.0, rng) + 1.3 * _drift(n, fps, 0.28, rng))
    pitch = size * (1.9 * _drift(n, fps, 0.9, rng) + 0.9 * _drift(n, fps, 0.25, rng))
    roll = size * (2.2 * _drift(n, fps, 1.1, rng) + 0.5 * _drift(n, fps, 0.3, rng))
    for turn in own:
        for accent in turn.utterance.accents():
            depth = np.deg2rad(rng.uniform(1.2, 3.4)) * (0.5 if turn.is_backchannel else 1.0)
            time = turn.start + accent
            pitch -= depth * np.exp(-0.5 * ((times - time - 0.02) / 0.10) ** 2)
            yaw += np.deg2rad(rng.normal(0.0, 1.0)) * np.exp(-0.5 * ((times - time) / 0.16) ** 2)
    for response in nods:
        pitch += nod_curve(times, response.time, habits.nod * rng.uniform(0.75, 1.1), rng.uniform(1.9, 2.5))
    angles = np.stack([yaw, pitch, roll], axis=1)
    return _MAX_ANGLE * np.tanh(angles / _MAX_ANGLE)


def look_around(
    who: int,
    num_people: int,
    times: Float[np.ndarray, " n"],
    fps: float,
    angles: Float[np.ndarray, "n 3"],
    rng: np.random.Generator,
) -> Tuple[Float[np.ndarray, "n 2 2"], List[float]]:
    """Eye directions in head space: fixations on the camera, the neighbour or somewhere else, held against the head's
    motion; and the times of large saccades."""
    n = len(times)
    target = np.zeros((n, 2))
    large: List[float] = []
    now, previous = 0.0, np.zeros(2)
    while now < times[-1]:
        draw = rng.random()
        if draw < 0.55:
            point = rng.normal(0.0, 0.02, 2)
        elif draw < 0.82 and num_people > 1:
            side = 1.0 if who == 0 else (-1.0 if who == num_people - 1 else rng.choice([-1.0, 1.0]))
            point = np.array([side * rng.uniform(0.18, 0.32), rng.normal(0.0, 0.03)])
        else:
            point = np.array([rng.choice([-1.0, 1.0]) * rng.uniform(0.08, 0.25), rng.uniform(-0.16, 0.10)])
        if np.linalg.norm(point - previous) > 0.25:
            large.append(now)
        target[times >= now] = point
        previous = point
        now += 0.35 + rng.exponential(0.95)
    # A saccade takes about two frames.
    target = gaussian_filter1d(target, 0.55, axis=0, mode="nearest")
    eye = target - angles[:, :2]
    eye = np.stack([0.42 * np.tanh(eye[:, 0] / 0.42), 0.26 * np.tanh(eye[:, 1] / 0.26)], axis=1)
    # Both look at a point about a metre away: the eyes turn in by a few hundredths.
    vergence = np.array([-0.03, 0.0])
    return np.stack([eye + vergence, eye - vergence], axis=1), large


def _blinks(
    habits: Habits, seconds: float, triggered: List[float], rng: np.random.Generator
) -> List[Tuple[float, float]]:
    """Spontaneous blinks as a Poisson process with a refractory time, together with the triggered ones."""
    times, now = [], rng.exponential(1.0 / habits.blink_rate)
    while now < seconds:
        times.append(now)
        now += rng.exponential(1.0 / habits.blink_rate)
    # What is triggered keeps its time; a spontaneous blink too close to it is dropped.
    chosen: List[float] = []
    for time in sorted(triggered):
        if not chosen or time - chosen[-1] > 0.7:
            chosen.append(time)
    for time in times:
        if all(abs(time - other) > 0.7 for other in chosen):
            chosen.append(time)
    return [(time, float(rng.uniform(0.17, 0.25))) for time in sorted(chosen) if 0.1 < time < seconds - 0.3]


def perform(
    who: int,
    num_people: int,
    turns: List[Turn],
    responses: List[Response],
    smiles: List[float],
    habits: Habits,
    num_frames: int,
    fps: float,
    rng: np.random.Generator,
) -> Performance:
    """One person's motion, given what everybody says and what this person answers.

    Args:
        who: Place of the person, from the left.
        num_people: How many there are.
        turns: All turns.
        responses: All responses; those of this person are acted out, and its blink responses that a closer blink
        displaced are removed. smiles: When this person smiles unprompted.
        habits: How this person moves.
        num_frames: Length.
        fps: Frames a second.
        rng: Draws the motion.
    """
    times = (np.arange(num_frames) + 0.5) / fps
    seconds = num_frames / fps
    own = [turn for turn in turns if turn.participant == who]
    mine = [response for response in responses if response.participant == who]
    speaking = np.zeros(num_frames)
    for turn in own:
        if not turn.is_backchannel:
            speaking = np.maximum(
                speaking, bump(times, turn.start - 0.25, 0.4, max(turn.utterance.duration - 0.1, 0.1), 0.6)
            )

    angles = _head_angles(
        who, times, fps, own, [r for r in mine if r.kind in ("nod", "backchannel")], habits, speaking, rng
    )
    gaze, large_saccades = look_around(who, num_people, times, fps, angles, rng)

    rotation = Rotation.from_euler("YXZ", angles * np.array([1.0, -1.0, 1.0]))
    lean = np.stack(
        [
            0.0050 * _drift(num_frames, fps, 1.6, rng),
            0.0012 * _drift(num_frames, fps, 1.2, rng),
            0.0050 * _drift(num_frames, fps, 1.8, rng),
        ],
        axis=1,
    )
    translation = _NECK_PIVOT - rotation.apply(_NECK_PIVOT) + lean
    head_pose = np.concatenate([rotation.as_rotvec(), translation], axis=1)

    # The torso follows the head a third of a second later, and breathes.
    lag_angles, lag_lean = _lagged(angles, fps, 0.35), _lagged(lean, fps, 0.35)
    breath = np.sin(2 * np.pi * (0.27 * times + rng.random()))
    sway = Rotation.from_euler(
        "YXZ",
        lag_angles * np.array([0.16, -0.06, 0.12]) + np.deg2rad(0.12) * breath[:, None] * np.array([0.0, -1.0, 0.0]),
    )
    torso_shift = 0.5 * lag_lean + np.array([0.0, 0.0005, 0.0]) * breath[:, None]
    torso_pose = np.concatenate([sway.as_rotvec(), torso_shift], axis=1)

    expression = np.zeros((num_frames, len(EXPRESSION_NAMES)))
    for turn in own:
        expression = np.maximum(expression, habits.articulation * mouth_shapes(turn.utterance, times - turn.start))
        for accent in turn.utterance.accents():
            if rng.random() < habits.brows:
                lift = rng.uniform(0.25, 0.75) * np.exp(-0.5 * ((times - turn.start - accent) / 0.15) ** 2)
                for name in ("brow_raise_left", "brow_raise_right"):
                    expression[:, _INDEX[name]] += lift
    smile = np.zeros(num_frames)
    for start in [*smiles, *(r.time for r in mine if r.kind == "smile")]:
        smile = np.maximum(smile, habits.smile * bump(times, start, 0.35, rng.uniform(0.6, 1.3), 0.9))
    balance = {"left": min(habits.smile_balance, 1.0), "right": min(2.0 - habits.smile_balance, 1.0)}
    for side, weight in balance.items():
        expression[:, _INDEX[f"lip_corner_up_{side}"]] += 0.85 * weight * smile
        expression[:, _INDEX[f"lip_corner_out_{side}"]] += 0.45 * weight * smile
        expression[:, _INDEX[f"cheek_raise_{side}"]] += 0.70 * weight * smile
        expression[:, _INDEX[f"squint_{side}"]] += 0.40 * smile
    mood = np.maximum(_drift(num_frames, fps, 1.3, rng), 0.0)
    worry = np.maximum(_drift(num_frames, fps, 1.5, rng) - 0.6, 0.0)
    for name, value in (
        ("brow_raise_left", 0.16 * mood),
        ("brow_raise_right", 0.16 * mood),
        ("brow_furrow_left", 0.3 * worry),
        ("brow_furrow_right", 0.3 * worry),
        ("brow_inner_raise", 0.12 * np.maximum(_drift(num_frames, fps, 1.0, rng), 0.0)),
    ):
        expression[:, _INDEX[name]] += value
    # Listening lips press together now and then.
    rest = (1.0 - speaking) * np.maximum(_drift(num_frames, fps, 1.2, rng) - 1.0, 0.0)
    expression[:, _INDEX["lip_press"]] += 0.35 * rest
    expression = np.clip(expression, 0.0, 1.0)

    answered = [r.time for r in mine if r.kind == "blink"]
    blinks = _blinks(habits, seconds, answered + [t for t in large_saccades if rng.random() < 0.45], rng)
    kept = {time for time, _ in blinks}
    responses[:] = [r for r in responses if r.participant != who or r.kind != "blink" or r.time in kept]
    closure = np.zeros(num_frames)
    for start, duration in blinks:
        closure = np.maximum(closure, blink_curve(times, start, duration))
    return Performance(head_pose, torso_pose, expression, np.stack([closure, closure], axis=1), gaze, blinks)


def act_dialogue(num_people: int, num_frames: int, fps: float, seed: int) -> Dialogue:
    """A whole conversation's speech and motion, drawn from a seed."""
    seconds = num_frames / fps
    character = np.random.default_rng([seed, 1])
    voices = [draw_voice(index, character) for index in range(num_people)]
    habits = [draw_habits(character) for _ in range(num_people)]
    rng = np.random.default_rng([seed, 2])
    turns, responses = plan_turns(seconds, voices, rng)
    answers, smiles = _plan_responses(turns, num_people, seconds, rng)
    responses.extend(answers)
    performances = [
        perform(
            who,
            num_people,
            turns,
            responses,
            [time for person, time in smiles if person == who],
            habits[who],
            num_frames,
            fps,
            np.random.default_rng([seed, 3, who]),
        )
        for who in range(num_people)
    ]
    segments = sorted(
        (
            SpeechSegment(turn.start + start, min(turn.start + end, seconds), f"p{turn.participant}")
            for turn in turns
            for start, end in turn.utterance.speech_spans()
        ),
        key=lambda segment: (segment.start, segment.speaker),
    )
    return Dialogue(turns, segments, performances, sorted(responses, key=lambda r: r.time), voices)


def speak_dialogue(
    dialogue: Dialogue, num_samples: int, seed: int
) -> Tuple[Float32[np.ndarray, "num_people num_samples"], Float32[np.ndarray, " num_samples"]]:
    """Each person's sound alone, and the mix with a quiet room."""
    tracks = np.zeros((len(dialogue.voices), num_samples), np.float32)
    for number, turn in enumerate(dialogue.turns):
        sound = synthesise(turn.utterance, dialogue.voices[turn.participant], np.random.default_rng([seed, 4, number]))
        first = round(turn.start * SAMPLE_RATE)
        last = min(first + len(sound), num_samples)
        tracks[turn.participant, first:last] += sound[: last - first] * (0.55 if turn.is_backchannel else 1.0)
    mix = tracks.sum(axis=0) + _ROOM_NOISE * np.random.default_rng([seed, 5]).standard_normal(num_samples).astype(
        np.float32
    )
    scale = min(1.6, 0.95 / max(float(np.abs(mix).max()), 1e-6))
    return tracks * np.float32(scale), mix * np.float32(scale)
