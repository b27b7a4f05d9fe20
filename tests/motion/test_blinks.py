"""Blinks are found where they are, counted right, and made again at the person's rate with eyes that really close."""

import numpy as np
import pytest
import torch

from dialogue_nerfstudio.motion.blinks import (
    EXAMPLE,
    LEAD,
    REFRACTORY,
    BlinkBank,
    BlinkMaker,
    blink_examples,
    blink_starts,
    event_density,
    open_level,
    personal_examples,
    shrunken_rate,
)

SHAPE = np.array([0.05, 0.15, 0.3, 0.9, 1.0, 0.8, 0.4, 0.1], np.float32)
"""A blink that passes one half in its frame 3 = LEAD."""


def _closure(length: int, starts: list, resting: float = 0.0) -> torch.Tensor:
    closure = np.zeros(length, np.float32)
    for start in starts:
        closure[start : start + len(SHAPE)] = SHAPE[: length - start]
    return torch.from_numpy(np.repeat((resting + (1.0 - resting) * closure)[:, None], 2, axis=1))


def test_starts_are_where_lids_begin_to_move():
    starts = blink_starts(_closure(100, [10, 40, 60], resting=0.1))
    assert LEAD == 3
    assert torch.nonzero(starts)[:, 0].tolist() == [10, 40, 60]


def test_density_integrates_to_the_number_of_events():
    starts = torch.zeros(2, 100, dtype=torch.bool)
    starts[0, [20, 60]] = True
    density = event_density(starts)
    assert density.sum(-1).tolist() == pytest.approx([2.0, 0.0])
    assert density[0].argmax().item() in (20, 60)


def test_examples_are_whole_isolated_and_relative_to_the_open_eye():
    closure = torch.stack([_closure(100, [10, 40, 45, 95], resting=0.2), _closure(100, [30])])
    examples, rows = blink_examples(closure, blink_starts(closure))
    # 40 is not alone, 95 not whole; 45 has no further one after it.
    assert rows.tolist() == [0, 0, 1]
    np.testing.assert_allclose(examples[0, : len(SHAPE), 0], SHAPE, atol=1e-6)
    assert examples.shape[1] == EXAMPLE and examples[0, len(SHAPE) :].abs().max() < 1e-6


def test_open_level_is_that_of_the_open_eye():
    assert open_level(_closure(100, [10, 40], resting=0.15)).tolist() == pytest.approx([0.15, 0.15])


@pytest.mark.parametrize("rate", [0.15, 0.6])
@pytest.mark.parametrize("density", ["flat", "bumps", "far too high"])
def test_rate_is_the_persons_whatever_the_scale_of_the_density(rate, density):
    frames = 25 * 600
    rng = np.random.default_rng(1)
    values = np.full(frames, 0.012, np.float32)
    if density == "bumps":
        values = event_density(torch.from_numpy(rng.random(frames) < 0.02)).numpy()
    elif density == "far too high":
        values = np.full(frames, 0.2, np.float32)
    examples = np.repeat(np.pad(SHAPE, (0, EXAMPLE - len(SHAPE)))[None, :, None], 2, axis=2)
    resting = np.full(2, 0.1, np.float32)
    maker = BlinkMaker(examples, resting, rate / 25.0, 0.012, np.random.default_rng(0))
    closure, starts = maker.advance(values)
    assert starts.sum() / 600 == pytest.approx(rate, rel=0.15)
    assert np.diff(np.flatnonzero(starts)).min() >= REFRACTORY
    assert closure.min() == pytest.approx(0.1) and closure.max() == pytest.approx(1.0)
    # Both eyes, and what is made is found again.
    np.testing.assert_array_equal(closure[:, 0], closure[:, 1])
    assert blink_starts(torch.from_numpy(closure)).sum() == pytest.approx(starts.sum(), abs=1)


def test_blinks_fall_where_the_density_is():
    events = np.arange(50, 3000, 100)
    starts = np.zeros(3000, bool)
    starts[events] = True
    density = event_density(torch.from_numpy(starts)).numpy()
    examples = np.ones((1, EXAMPLE, 2), np.float32)
    maker = BlinkMaker(examples, np.zeros(2, np.float32), 0.01, 0.01, np.random.default_rng(0))
    made = np.flatnonzero(maker.advance(density)[1])
    distance = np.abs(made[:, None] - events[None]).min(axis=1)
    assert len(made) > 20 and distance.max() <= 9


def test_blocks_do_not_matter():
    density = np.random.default_rng(0).random(500).astype(np.float32) * 0.04
    examples = np.random.default_rng(1).random((5, EXAMPLE, 2)).astype(np.float32)
    whole = BlinkMaker(examples, np.zeros(2, np.float32), 0.02, 0.02, np.random.default_rng(0)).advance(density)
    maker = BlinkMaker(examples, np.zeros(2, np.float32), 0.02, 0.02, np.random.default_rng(0))
    parts = [maker.advance(density[first : first + 7]) for first in range(0, 500, 7)]
    for index in range(2):
        np.testing.assert_array_equal(np.concatenate([part[index] for part in parts]), whole[index])


def test_bank_counts_and_keeps_the_newest():
    bank = BlinkBank()
    assert len(bank.bank()) == 0
    closure = torch.stack([_closure(200, [20, 60, 100]), _closure(200, [50])])
    for _ in range(40):
        bank.collect(closure, blink_starts(closure))
    assert bank.rate() == pytest.approx(4 / (2 * (200 - LEAD)))
    assert bank.bank().shape == (bank.size, EXAMPLE, 2)
    restored = BlinkBank()
    restored.load_state_dict(bank.state_dict())
    np.testing.assert_array_equal(restored.bank(), bank.bank())


def test_few_own_blinks_give_way_to_others():
    others = np.ones((1, EXAMPLE, 2), np.float32)
    assert personal_examples(_closure(200, [20]).numpy(), others) is others
    assert len(personal_examples(_closure(200, [20, 60, 100]).numpy(), others)) == 3
    assert len(personal_examples(_closure(200, [20]).numpy(), others[:0])) == 1


def test_nobody_blinks_who_was_never_seen_blinking():
    none = np.zeros((0, EXAMPLE, 2), np.float32)
    maker = BlinkMaker(none, np.full(2, 0.1, np.float32), 0.01, 0.01, np.random.default_rng(0))
    closure, starts = maker.advance(np.full(1000, 0.05, np.float32))
    assert not starts.any() and closure.max() == pytest.approx(0.1)


def test_short_recordings_count_little():
    assert shrunken_rate(0, 0, mean=0.01) == pytest.approx(0.01)
    assert shrunken_rate(25, 250, mean=0.01) == pytest.approx(0.055)
    assert shrunken_rate(1000, 100_000, mean=0.05) == pytest.approx(0.01, rel=0.02)
