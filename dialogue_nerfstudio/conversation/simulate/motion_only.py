"""A conversation without pictures: what is said and heard, and how everybody moves, as arrays.

Conventions: P people, T frames at 25 fps, S = round(3.2 T) mel steps. Speech comes from `speech`, turns and eyes from
`dialogue`, heads from `answering_heads`; every person has a `PersonStyle`. Mouths follow the phones; brows, lids and
the rest of the face move independently of them.
"""

from dataclasses import dataclass
from typing import List, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32

from dialogue_nerfstudio.conversation.acoustics import mel_spectrogram, prosody_features
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.roles import SpeechSegment, segments_to_frames
from dialogue_nerfstudio.conversation.simulate.answering_heads import FPS, HeadMotion, move_heads, stationary_noise
from dialogue_nerfstudio.conversation.simulate.dialogue import Turn, blink_curve, bump, look_around, plan_turns
from dialogue_nerfstudio.conversation.simulate.speech import SAMPLE_RATE, mouth_shapes, synthesise
from dialogue_nerfstudio.conversation.simulate.styles import PersonStyle

_INDEX = {name: i for i, name in enumerate(EXPRESSION_NAMES)}
_BACKCHANNEL_LEVEL = 0.55
_BLINK_REST = 0.45
"""Shortest time (s) from one blink's start to the next one's."""


@dataclass
class MotionOnlyConversation:
    """What everybody says and how everybody moves."""

    turns: List[Turn]
    segments: List[SpeechSegment]
    """Who speaks when; the speakers are the styles' ids."""
    speaking: Bool[np.ndarray, "P T"]
    tracks: Float32[np.ndarray, "P num_samples"]
    """Everybody's sound alone."""
    prosody: Float32[np.ndarray, "P T 2"]
    mel: Float32[np.ndarray, "P S 80"]
    heads: HeadMotion
    expression: Float[np.ndarray, "P T E"]
    blink: Float[np.ndarray, "P T 2"]
    gaze: Float[np.ndarray, "P T 2 2"]


def simulate_motion(
    styles: Sequence[PersonStyle], num_frames: int, seed: Sequence[int], with_mel: bool = True
) -> MotionOnlyConversation:
    """A conversation of these people.

    Args:
        styles: Who talks, 1 or more, no one twice.
        num_frames: Length.
        seed: Draws everything but the styles.
        with_mel: Whether the spectrogram is computed; without, it has no steps.
    """
    seconds, num_people = num_frames / FPS, len(styles)
    turns, _ = plan_turns(seconds, [style.voice for style in styles], np.random.default_rng([*seed, 1]))
    segments = sorted(
        (
            SpeechSegment(turn.start + start, min(turn.start + end, seconds), styles[turn.participant].id)
            for turn in turns
            for start, end in turn.utterance.speech_spans()
        ),
        key=lambda segment: (segment.start, segment.speaker),
    )
    tracks = _speak(turns, styles, round(seconds * SAMPLE_RATE), np.random.default_rng([*seed, 2]))
    prosody = np.stack([prosody_features(track, SAMPLE_RATE, num_frames) for track in tracks])
    speaking = segments_to_frames(segments, [style.id for style in styles], num_frames, FPS).T
    heads = move_heads(styles, prosody, speaking, np.random.default_rng([*seed, 3]))
    steps = round(num_frames / FPS * 80)
    faces = [
        _face(
            styles[person],
            person,
            [turn for turn in turns if turn.participant == person],
            heads.head_pose[person],
            num_people,
            np.random.default_rng([*seed, 4, person]),
        )
        for person in range(num_people)
    ]
    return MotionOnlyConversation(
        turns=turns,
        segments=segments,
        speaking=speaking,
        tracks=tracks,
        prosody=prosody,
        mel=np.stack([mel_spectrogram(track)[: steps if with_mel else 0] for track in tracks])
        if with_mel
        else np.zeros((num_people, 0, 80), np.float32),
        heads=heads,
        expression=np.stack([face[0] for face in faces]),
        blink=np.stack([face[1] for face in faces]),
        gaze=np.stack([face[2] for face in faces]),
    )


def _speak(
    turns: Sequence[Turn], styles: Sequence[PersonStyle], num_samples: int, rng: np.random.Generator
) -> Float32[np.ndarray, "P num_samples"]:
    tracks = np.zeros((len(styles), num_samples), np.float32)
    for turn in turns:
        style = styles[turn.participant]
        sound = synthesise(turn.utterance, style.voice, rng)
        first = round(turn.start * SAMPLE_RATE)
        last = min(first + len(sound), num_samples)
        level = style.loudness * (_BACKCHANNEL_LEVEL if turn.is_backchannel else 1.0)
        tracks[turn.participant, first:last] += np.float32(level) * sound[: last - first]
    return np.clip(tracks, -1.0, 1.0)


def blink_times(style: PersonStyle, seconds: float, rng: np.random.Generator) -> List[float]:
    """When a person blinks: a renewal process whose mean rate is the style's, at least `_BLINK_REST` apart."""
    mean_gap = 1.0 / style.blink_rate - _BLINK_REST
    times: List[float] = []
    now = rng.exponential(1.0 / style.blink_rate)
    while now < seconds:
        times.append(now)
        now += _BLINK_REST + rng.exponential(mean_gap)
    return times


def _face(
    style: PersonStyle,
    who: int,
    own: Sequence[Turn],
    head_pose: Float[np.ndarray, "T 6"],
    num_people: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "T E"], Float[np.ndarray, "T 2"], Float[np.ndarray, "T 2 2"]]:
    """Expression, blink and gaze of one person."""
    num_frames = len(head_pose)
    times = (np.arange(num_frames) + 0.5) / FPS
    expression = np.zeros((num_frames, len(EXPRESSION_NAMES)))
    for turn in own:
        first = max(int((turn.start - 0.5) * FPS), 0)
        last = min(int((turn.end + 0.5) * FPS) + 1, num_frames)
        spoken = style.articulation * mouth_shapes(turn.utterance, times[first:last] - turn.start)
        expression[first:last] = np.maximum(expression[first:last], spoken)
    _add_upper_face(expression, style, own, times, rng)
    _add_smiles(expression, style, times, rng)
    closure = np.zeros(num_frames)
    for start in blink_times(style, times[-1], rng):
        first, last = int(start * FPS), min(int((start + 1.0) * FPS), num_frames)
        # Short enough blinks fall between two frames; the shortest here spans four.
        curve = blink_curve(times[first:last], start, style.blink_duration * rng.uniform(0.9, 1.15))
        closure[first:last] = np.maximum(closure[first:last], curve)
    deviation = head_pose[:, :3] - head_pose[:, :3].mean(axis=0)
    # look_around knows yaw, pitch (up) and roll.
    gaze, _ = look_around(who, num_people, times, FPS, deviation[:, [1, 0, 2]] * [1.0, -1.0, 1.0], rng)
    return np.clip(expression, 0.0, 1.0), np.stack([closure, closure], axis=1), gaze


def _add_upper_face(
    expression: Float[np.ndarray, "T E"],
    style: PersonStyle,
    own: Sequence[Turn],
    times: Float[np.ndarray, " T"],
    rng: np.random.Generator,
) -> None:
    """Brows on accents, and moods of brows, lids and nose that have nothing to do with the mouth."""
    for turn in own:
        for accent in turn.utterance.accents():
            if rng.random() < style.brows:
                lift = rng.uniform(0.2, 0.7)
                centre = turn.start + accent
                first, last = max(int((centre - 0.8) * FPS), 0), int((centre + 0.8) * FPS)
                bell = lift * np.exp(-0.5 * ((times[first:last] - centre) / 0.15) ** 2)
                for name in ("brow_raise_left", "brow_raise_right"):
                    expression[first:last, _INDEX[name]] += bell
    moods = (
        (("brow_raise_left", "brow_raise_right"), 0.20, 0.0, 1.3),
        (("brow_raise_left",), 0.10, 0.5, 1.0),
        (("brow_raise_right",), 0.10, 0.5, 1.0),
        (("brow_furrow_left", "brow_furrow_right"), 0.30, 0.5, 1.5),
        (("brow_inner_raise",), 0.15, 0.0, 1.0),
        (("squint_left", "squint_right"), 0.25, 0.3, 0.9),
        (("cheek_raise_left", "cheek_raise_right"), 0.15, 0.5, 1.2),
        (("nose_wrinkle",), 0.12, 0.8, 0.8),
    )
    for names, size, threshold, seconds in moods:
        mood = size * np.maximum(stationary_noise(len(times), seconds, rng) - threshold, 0.0)
        for name in names:
            expression[:, _INDEX[name]] += mood


def _add_smiles(
    expression: Float[np.ndarray, "T E"], style: PersonStyle, times: Float[np.ndarray, " T"], rng: np.random.Generator
) -> None:
    """Smiles as a Poisson process, and lips that press or move aside now and then."""
    smile = np.zeros(len(times))
    now = rng.exponential(1.0 / style.smile_rate)
    while now < times[-1]:
        smile = np.maximum(smile, style.smile * bump(times, now, 0.35, rng.uniform(0.6, 1.6), 0.9))
        now += 2.0 + rng.exponential(1.0 / style.smile_rate)
    balance = {"left": min(style.smile_balance, 1.0), "right": min(2.0 - style.smile_balance, 1.0)}
    for side, weight in balance.items():
        expression[:, _INDEX[f"lip_corner_up_{side}"]] += 0.85 * weight * smile
        expression[:, _INDEX[f"lip_corner_out_{side}"]] += 0.45 * weight * smile
        expression[:, _INDEX[f"cheek_raise_{side}"]] += 0.30 * weight * smile
    still = 1.0 - np.minimum(2.0 * expression[:, _INDEX["jaw_open"]], 1.0)
    for names, size, threshold, seconds in (
        (("lip_press",), 0.35, 1.0, 1.2),
        (("mouth_left",), 0.25, 1.0, 1.0),
        (("mouth_right",), 0.25, 1.0, 1.0),
        (("lip_corner_down_left", "lip_corner_down_right"), 0.25, 0.8, 1.4),
    ):
        move = size * still * np.maximum(stationary_noise(len(times), seconds, rng) - threshold, 0.0)
        for name in names:
            expression[:, _INDEX[name]] += move
