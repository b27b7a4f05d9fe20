"""Two voices at once: a classifier of voice embeddings that learns, on each recording, from its own voices.

A voice embedding of two people talking at the same time is neither's and lies where no single voice does, but where
depends on the two. So the recording teaches it: from stretches in which one voice is recognised without doubt, windows
of both are added to each other at several loudnesses (power spectra add up), or joined one after the other, and
embedded like any other window. What is in the middle of such a window is known, one voice or two; logistic regression
on that gives every window of the recording the probability of each voice alone and of each pair, and a Viterbi path
through those says who speaks when.

Conventions as in `diarization.py`. A *state* is a voice alone (states 0 … V−1) or a pair of voices (after them, in the
order of `itertools.combinations`).
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

Embed = Callable[[Float[np.ndarray, "n steps bands"]], Float[np.ndarray, "n size"]]


@dataclass
class OverlapConfig:
    """How two voices at once are recognised. Chosen on synthetic dialogues (espeak-ng's and the simulator's voices)."""

    enabled: bool = True
    """Whether they are looked for; else each instant has one voice."""
    samples: int = 200
    """Windows of each sort that are made to learn from."""
    loudness: float = 6.0
    """Largest difference (dB) of the two voices' levels in them."""
    pure_margin: float = 0.3
    """A window teaches a voice if that voice alone is recognised for this long (s) before and after it."""
    regularisation: float = 0.3
    """Inverse strength (scikit-learn's C) of the penalty on the classifier's weights."""
    certainty: float = 6.0
    """Largest log odds that one window may give against a state."""
    pair_bonus: float = 0.5
    """Log odds a window for two voices at once, whose own windows are the easiest to mistake."""
    switch_cost: float = 2.0
    """Log odds against a change of state from one window to the next."""
    seed: int = 0
    """Seed of what is mixed with what."""


def states_of(num_voices: int) -> list[tuple[int, ...]]:
    """The voices that sound in each state."""
    return [*((voice,) for voice in range(num_voices)), *combinations(range(num_voices), 2)]


def pure_windows(
    times: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], hop: float, margin: float
) -> Bool[np.ndarray, " n"]:
    """Whether a window's voice is recognised throughout the `margin` seconds around it, without a gap."""
    reach = round(margin / hop)
    pure = np.ones(len(times), bool)
    for shift in range(-reach, reach + 1):
        other = np.clip(np.arange(len(times)) + shift, 0, len(times) - 1)
        near = np.abs(times[other] - times) <= margin + hop
        pure &= near & (labels[other] == labels)
    return pure


def teaching_windows(
    windows: list[Float[np.ndarray, "_ steps bands"]], config: OverlapConfig
) -> tuple[Float[np.ndarray, "m steps bands"], Int[np.ndarray, " m"]]:
    """Windows made from pure ones of each voice, and the state in the middle of each: one voice alone, two throughout,
    one that another joins or leaves, and one after the other."""
    rng = np.random.default_rng(config.seed)
    steps = windows[0].shape[1]
    states = states_of(len(windows))
    made: list[np.ndarray] = []
    truth: list[int] = []

    def draw(voice: int) -> np.ndarray:
        return windows[voice][rng.integers(len(windows[voice]))]

    def add(window: np.ndarray, state: tuple[int, ...]) -> None:
        made.append(window)
        truth.append(states.index(tuple(sorted(state))))

    for voice in range(len(windows)):
        for _ in range(config.samples):
            add(draw(voice), (voice,))
    for pair in states[len(windows) :]:
        for _ in range(config.samples):
            gain = 10 ** (rng.uniform(-config.loudness, config.loudness) / 20)
            add(draw(pair[0]) * gain + draw(pair[1]) / gain, pair)
            one, other = pair if rng.random() < 0.5 else pair[::-1]
            # Changes near the ends leave the middle as it is, which is to be learnt as well.
            cut = int(rng.integers(steps // 10, steps - steps // 10))
            later = (np.arange(steps) >= cut)[:, None]
            middle = bool(later[steps // 2, 0])
            add(np.where(later, draw(other), draw(one)), (other,) if middle else (one,))
            joined = later if rng.random() < 0.5 else ~later
            gain = 10 ** (rng.uniform(-config.loudness, config.loudness) / 10)
            add(draw(one) + joined * draw(other) * gain, pair if joined[steps // 2, 0] else (one,))
    return np.stack(made), np.array(truth)


def state_scores(
    embeddings: Float[np.ndarray, "n size"],
    windows: Callable[[Int[np.ndarray, " k"]], Float[np.ndarray, "k steps bands"]],
    pure: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    embed: Embed,
    config: OverlapConfig,
) -> Float[np.ndarray, "n states"] | None:
    """Log probability of every state at every window, at least −`certainty`, pairs raised by `pair_bonus`; None where
    some voice is too short to learn from.

    Args:
        embeddings: of the recording.
        windows: what some of them were embedded from.
        pure: see `pure_windows`.
        labels: the voice of each.
        embed: embeds windows.
    """
    voices = range(int(labels.max()) + 1)
    chosen = [np.flatnonzero(pure & (labels == voice)) for voice in voices]
    if len(chosen) < 2 or min(map(len, chosen)) < 10:
        return None
    made, truth = teaching_windows([windows(rows) for rows in chosen], config)
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=config.regularisation, max_iter=500)
    classifier.fit(embed(made.astype(np.float32)), truth)
    scores = np.maximum(classifier.predict_log_proba(embeddings), -config.certainty)
    scores[:, len(chosen) :] += config.pair_bonus
    return scores
