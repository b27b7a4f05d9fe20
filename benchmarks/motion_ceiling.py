"""How well any predictor can do on simulated motion: `python benchmarks/motion_ceiling.py`; prints a table over seeds.

For every rotation column, over frames in which the person listens (the partner speaks, they do not) and in which they
speak: the correlation with the actual pose of what a predictor expects that knows everything (the ceiling), that does
not hear, and that does not see the partner. The latter two twice: `additive` leaves the missing sense's part out;
`linear` puts back what the best linear filter of the sense that is left says about it, since people move with what they
say. A predictor that lacks a sense can reach `linear`, and little more. `without knowing the person` is a predictor
that knows nothing of a style but the size of motion.
"""

import time
from dataclasses import dataclass, replace
from typing import Dict, List, Tuple

import numpy as np
import tyro

from dialogue_nerfstudio.conversation.simulate.answering_heads import (
    delayed,
    loudness,
    motion_drive,
    nods,
    smooth_role,
    sound_answer,
    sound_drive,
)
from dialogue_nerfstudio.conversation.simulate.motion_only import MotionOnlyConversation, simulate_motion
from dialogue_nerfstudio.conversation.simulate.styles import PersonStyle, draw_style

LAGS = 75
AHEAD = 11
"""A mean latency: what a predictor has heard and seen since the moment that is answered."""
LATENCIES = range(5, 18)
"""Frames; the latencies of people are spread evenly over these."""


@dataclass
class Options:
    """Measure the ceilings."""

    seeds: int = 5
    """How many data sets."""
    conversations: int = 6
    """Conversations of each, between new people every time."""
    seconds: float = 180.0
    """Length of each."""


def lagged(signals: np.ndarray) -> np.ndarray:
    """[T, columns] → [T, columns · lags], from LAGS frames before to AHEAD after."""
    padded = np.pad(signals, ((LAGS, AHEAD), (0, 0)))
    return np.concatenate([padded[k : k + len(signals)] for k in range(LAGS + AHEAD + 1)], axis=1)


def fit(inputs: List[np.ndarray], targets: List[np.ndarray]) -> List[np.ndarray]:
    """What ridge regression says about each target from the others' data: half of the conversations teach the other."""
    said: List[np.ndarray] = [np.zeros(0)] * len(inputs)
    for half in (0, 1):
        taught = [number for number in range(len(inputs)) if number // 2 % 2 == half]
        x = np.concatenate([np.pad(inputs[number], ((0, 0), (0, 1)), constant_values=1.0) for number in taught])
        y = np.concatenate([targets[number] for number in taught])
        scale = np.maximum(x.std(axis=0), 1e-9)
        scale[-1] = 1.0
        weights = np.linalg.solve((x / scale).T @ (x / scale) + 10.0 * np.eye(x.shape[1]), (x / scale).T @ y)
        for number in range(len(inputs)):
            if number // 2 % 2 != half:
                said[number] = np.pad(inputs[number], ((0, 0), (0, 1)), constant_values=1.0) / scale @ weights
    return said


def measure(talks: List[Tuple[List[PersonStyle], MotionOnlyConversation]]) -> Dict[str, np.ndarray]:
    """Mean over people of every correlation, by what is left out, [3 columns]."""
    views = [(styles, talk, person) for styles, talk in talks for person in (0, 1)]
    sounds, steps, drives, motions = [], [], [], []
    for _, talk, person in views:
        other, role = 1 - person, smooth_role(talk.speaking)
        level = loudness(talk.prosody[other])
        sounds.append(lagged(np.stack([level, talk.prosody[other, :, 0]], axis=1)))
        rotation = talk.heads.head_pose[other, :, :3]
        steps.append(lagged(role[other][:, None] * np.diff(rotation, axis=0, prepend=rotation[:1])))
        drives.append(sound_drive(talk.prosody[other])[:, None])
        motions.append(motion_drive(rotation, role[other]))
    heard, seen = fit(steps, drives), fit(sounds, motions)
    found: Dict[str, List[List[float]]] = {}
    for number, (styles, talk, person) in enumerate(views):
        style, heads, role = styles[person], talk.heads, smooth_role(talk.speaking)[person]
        listens, speaks = ~talk.speaking[person] & talk.speaking[1 - person], talk.speaking[person]
        actual, expected = heads.head_pose[person, :, :3], heads.expected[person, :, :3]
        deaf = expected - heads.from_sound[person, :, :3]
        blind = expected - heads.from_partner[person, :, :3]
        gain = np.array(style.amplitude) * style.motion_gain * (1.0 - role)[:, None]
        guesses = {
            "ceiling": expected,
            "without sound, additive": deaf,
            "without sound, linear": deaf + sound_answer(heard[number][:, 0], role, style),
            "without partner's motion, additive": blind,
            "without partner's motion, linear": blind
            + gain * np.stack([delayed(column, style.latency) for column in seen[number].T], axis=1),
        }
        guesses["without knowing the person"] = of_anybody(talk, person, style)
        for name, guess in guesses.items():
            found.setdefault(name, []).append([correlation(guess[listens, c], actual[listens, c]) for c in range(3)])
        found.setdefault("ceiling, speaking", []).append(
            [correlation(expected[speaks, c], actual[speaks, c]) for c in range(3)]
        )
        found.setdefault("ceiling, all frames", []).append(
            [correlation(expected[:, c], actual[:, c]) for c in range(3)]
        )
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def of_anybody(talk: MotionOnlyConversation, person: int, style: PersonStyle) -> np.ndarray:
    """How people listen on average over latencies and gains; only the size of motion and how the head is held are this
    person's, which a few seconds of them show."""
    other, role = 1 - person, smooth_role(talk.speaking)
    sound = sound_drive(talk.prosody[other])
    motion = motion_drive(talk.heads.head_pose[other, :, :3], role[other])
    listening = (1.0 - role[person])[:, None]
    answers = np.zeros((len(sound), 3))
    for latency in LATENCIES:
        anybody = replace(
            style,
            latency=latency,
            sound_gain=0.675,
            motion_gain=0.875,
            nod_size=2.6,
            nod_frequency=1.7,
            nod_loudness=0.625,
        )
        answers += sound_answer(sound, role[person], anybody)
        later = np.stack([delayed(column, latency) for column in motion.T], axis=1)
        answers += listening * np.array(style.amplitude) * anybody.motion_gain * later
        answers[:, 0] += listening[:, 0] * nods(talk.prosody[other], anybody)
    return answers / len(LATENCIES)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def main(options: Options) -> None:
    started, frames, rows = time.process_time(), round(options.seconds * 25), []
    for seed in range(options.seeds):
        talks = []
        for number in range(options.conversations):
            styles = [draw_style(2 * number + person, seed) for person in (0, 1)]
            talks.append((styles, simulate_motion(styles, frames, [seed, number], with_mel=False)))
        rows.append(measure(talks))
    print(
        f"{options.seeds} seeds, {options.conversations} conversations of {options.seconds:g} s each, "
        f"{time.process_time() - started:.0f} CPU s; mean ± deviation over seeds"
    )
    print(f"{'listening unless said':36s}{'pitch':>16s}{'yaw':>16s}{'roll':>16s}")
    for name in rows[0]:
        values = np.stack([row[name] for row in rows])
        cells = "".join(
            f"{mean:9.3f} ± {deviation:.3f}" for mean, deviation in zip(values.mean(0), values.std(0), strict=True)
        )
        print(f"{name:36s}{cells}")


if __name__ == "__main__":
    main(tyro.cli(Options))
