"""Long motion: the same however sound is cut, another for each seed, smooth at joins, alive after ten minutes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_conversations import RATES, SmallSource, character, small_conversation, train_briefly

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.motion.generator import join_parts
from dialogue_nerfstudio.motion.gp_vae import GpVaeConfig
from dialogue_nerfstudio.motion.gp_vae_generator import GpVaeGenerator
from dialogue_nerfstudio.motion.signals import MotionSignals

SMALL = GpVaeConfig(
    window_frames=50, beginning_frames=15, width=16, latent_size=8, layers=1, cross_modal_layers=1, latent_steps=100
)
TEN_MINUTES = 25 * 600
STRIDE = SMALL.window_frames - SMALL.beginning_frames


@pytest.fixture(scope="module")
def generator() -> GpVaeGenerator:
    source = SmallSource([small_conversation(number) for number in range(4)], SMALL.window)
    torch.manual_seed(0)
    return train_briefly(SMALL.build(source.statistics), source, range(150)).generator()


@pytest.fixture(scope="module")
def conversation():
    return small_conversation(5, num_frames=1500)


@pytest.fixture(scope="module")
def characters(conversation):
    return [character(conversation, side, 0, 500) for side in range(2)]


@pytest.fixture(scope="module")
def signals(conversation) -> MotionSignals:
    return conversation.signals.frames(500, 1500)


@pytest.fixture(scope="module")
def motion(generator, signals, characters):
    return generator.generate(signals, characters, seed=1)


@pytest.fixture(scope="module")
def people():
    """The same two, well known."""
    return [character(small_conversation(5, 9000), side, 0, 9000) for side in range(2)]


@pytest.fixture(scope="module")
def ten_minutes(generator, signals, people):
    times = TEN_MINUTES // signals.num_frames
    long = MotionSignals(
        signals.participant_ids,
        np.tile(signals.prosody, (1, times, 1)),
        np.tile(signals.mel, (1, times, 1)),
        np.tile(signals.speaking, (1, times)),
    )
    return generator.generate(long, people, seed=3)


def test_motion_is_of_the_sounds_length_and_finite(motion):
    for fields in motion.values():
        assert fields["head_pose"].shape == (1000, 6) and fields["blink"].shape == (1000, 2)
        assert all(rows.dtype == np.float32 and np.isfinite(rows).all() for rows in fields.values())
        assert fields["blink"].min() >= 0.0 and fields["blink"].max() <= 1.0


@pytest.mark.parametrize("block", [5, 170])
def test_stream_equals_one_shot(generator, signals, characters, motion, block):
    stream = generator.begin(characters, seed=1)
    parts = [stream.advance(signals.frames(first, min(first + block, 1000))) for first in range(0, 1000, block)]
    joined = join_parts([*parts, stream.finish()])
    for person, fields in motion.items():
        for name, rows in fields.items():
            np.testing.assert_allclose(joined[person][name], rows, atol=1e-6)


@pytest.mark.parametrize("frames", [1, STRIDE, 2 * STRIDE - 1])
def test_any_length(generator, signals, characters, motion, frames):
    short = generator.generate(signals.frames(0, frames), characters, seed=1)
    for person in motion:
        assert len(short[person]["head_pose"]) == len(short[person]["blink"]) == frames
    # Frames decided before the end is known do not depend on it.
    decided = max(frames // STRIDE * STRIDE - SMALL.beginning_frames, 0)
    np.testing.assert_allclose(short["a"]["head_pose"][:decided], motion["a"]["head_pose"][:decided], atol=1e-6)


def test_what_is_returned_was_decided_with_little_delay(generator, signals, characters):
    stream = generator.begin(characters, seed=1)
    given = returned = 0
    for first in range(0, 500, 5):
        given += 5
        returned += len(stream.advance(signals.frames(first, first + 5)).get("a", {}).get("head_pose", ()))
        assert given - returned <= STRIDE + SMALL.beginning_frames


def test_seeds(generator, signals, characters, motion):
    again = generator.generate(signals, characters, seed=1)
    other = generator.generate(signals, characters, seed=2)
    np.testing.assert_array_equal(again["a"]["head_pose"], motion["a"]["head_pose"])
    np.testing.assert_array_equal(again["a"]["blink"], motion["a"]["blink"])
    apart = np.abs(other["a"]["head_pose"] - motion["a"]["head_pose"])[:, :3].mean()
    assert apart > 0.2 * characters[0].reference.head_pose[:, :3].std(axis=0).mean()
    assert not np.array_equal(other["a"]["blink"], motion["a"]["blink"])


def test_two_people_of_one_reference_move_each_by_themselves(generator, signals, characters):
    twins = [characters[0], replace(characters[0], id="b")]
    same = replace(signals, prosody=signals.prosody[[0, 0]], mel=signals.mel[[0, 0]], speaking=signals.speaking[[0, 0]])
    made = generator.generate(same, twins, seed=1)
    assert np.abs(made["a"]["head_pose"] - made["b"]["head_pose"]).max() > 1e-3


def test_no_deviation_is_the_mean(generator, signals, characters, motion):
    mean = replace(generator, deviation=0.0)
    one, other = (mean.generate(signals, characters, seed)["a"]["head_pose"][:, 0] for seed in (1, 2))
    # Only when they blink is still drawn, which a head's motion may go along with.
    assert np.abs(one - other).mean() < 0.2 * np.abs(one - motion["a"]["head_pose"][:, 0]).mean()


def test_begins_where_the_reference_ends(motion, characters):
    for person in characters:
        made = motion[person.id]["head_pose"]
        first = np.abs(made[0] - person.reference.head_pose[-1])
        # A step like any other, far from what two moments of the recording differ by.
        assert (first <= np.abs(np.diff(made, axis=0)).max(axis=0)).all()
        assert (first[:3] < 0.5 * person.reference.head_pose[:, :3].std(axis=0)).all()


def test_windows_join_without_jumps(ten_minutes):
    for fields in ten_minutes.values():
        speed = np.abs(np.diff(fields["head_pose"], axis=0)) / fields["head_pose"].std(axis=0)
        acceleration = np.abs(np.diff(speed, axis=0))
        # The frames over which one window is faded into the next, and the two steps at their ends.
        place = (np.arange(1, TEN_MINUTES) + SMALL.beginning_frames) % STRIDE
        joins = place <= SMALL.beginning_frames
        assert 0.3 < joins.mean() < 0.5
        assert speed[joins].mean() < 1.15 * speed[~joins].mean()
        assert np.quantile(speed[joins], 0.99) < 1.25 * np.quantile(speed[~joins], 0.99)
        assert acceleration[joins[1:]].mean() < 1.25 * acceleration[~joins[1:]].mean()


def test_ten_minutes_neither_freeze_nor_drift(ten_minutes, people):
    for person in people:
        pose = ten_minutes[person.id]["head_pose"][:, :3]
        recorded = person.reference.head_pose[:, :3]
        pieces = pose.reshape(60, 250, 3)
        deviation = pieces.std(axis=1).mean(axis=-1) / recorded.reshape(36, 250, 3).std(axis=1).mean()
        assert deviation.min() > 0.3 and deviation.max() < 2.0
        # As much motion at the end as at the beginning, around the same pose.
        assert 0.7 < deviation[-20:].mean() / deviation[:20].mean() < 1.4
        assert (np.abs(pieces.mean(axis=1) - recorded.mean(axis=0)) < 2.5 * recorded.std(axis=0)).all()
        assert (np.abs(pose[-5000:].mean(axis=0) - pose[:5000].mean(axis=0)) < 0.5 * recorded.std(axis=0)).all()


def test_blinks_come_at_the_persons_rate_and_close_both_eyes(ten_minutes, people, conversation):
    for side, person in enumerate(people):
        blink = ten_minutes[person.id]["blink"]
        closed = blink.mean(axis=1) > 0.5
        events = np.flatnonzero(closed[1:] & ~closed[:-1])
        assert len(events) / 600.0 == pytest.approx(RATES[conversation.people[side]], rel=0.2)
        assert np.median([blink[event : event + 8].max(axis=0).min() for event in events]) > 0.95
        # Three frames are more than half closed, as in the recording: 0.9, 1 and 0.8.
        assert closed.sum() / len(events) == pytest.approx(3.0, abs=0.6)


def test_sampling_without_sound(generator, signals, characters):
    silent = replace(generator, use_sound=False)
    made = silent.generate(signals, characters, seed=1)
    changed = replace(signals, prosody=signals.prosody + 1.0, speaking=~signals.speaking)
    np.testing.assert_array_equal(
        made["a"]["head_pose"], silent.generate(changed, characters, seed=1)["a"]["head_pose"]
    )
    assert made["a"]["head_pose"].std(axis=0)[0] > 0.3 * characters[0].reference.head_pose.std(axis=0)[0]


def test_sound_matters(generator, signals, characters, motion):
    deaf = replace(signals, prosody=np.zeros_like(signals.prosody), speaking=np.zeros_like(signals.speaking))
    made = generator.generate(deaf, characters, seed=1)
    assert np.abs(made["a"]["head_pose"] - motion["a"]["head_pose"]).max() > 1e-3


def test_memory_is_flat(generator, signals, characters):
    stream = generator.begin(characters, seed=1)
    sizes = []
    for first in range(0, 1000, 50):
        stream.advance(signals.frames(first, first + 50))
        sizes.append(stream._sound._prosody.shape[1])
    assert max(sizes) <= SMALL.window_frames + 50


def test_a_third_person_is_answered_while_speaking(generator, signals, characters):
    def of_three(prosody_of_last: float) -> MotionSignals:
        speaking = np.zeros((3, 300), bool)
        speaking[1, :100], speaking[2, 150:] = True, True
        prosody = np.zeros((3, 300, 2), np.float32)
        prosody[2] = prosody_of_last
        return MotionSignals(("a", "b", "c"), prosody, np.full((3, 960, 80), -1.0, np.float32), speaking)

    people = [*characters, replace(characters[0], id="c")]
    quiet, loud = (generator.generate(of_three(level), people, seed=1)["a"]["head_pose"] for level in (0.0, 0.3))
    # Windows that end before the third one speaks are the same, later ones are not.
    np.testing.assert_array_equal(quiet[:90], loud[:90])
    assert np.abs(quiet[200:] - loud[200:]).max() > 1e-3


def test_somebody_alone(generator, signals, characters):
    alone = MotionSignals(("a",), signals.prosody[:1], signals.mel[:1], signals.speaking[:1])
    made = generator.generate(alone, characters[:1], seed=1)
    assert made["a"]["head_pose"].shape == (1000, 6)


def test_references_that_do_not_do_are_refused(generator, conversation):
    with pytest.raises(DialogueError, match="reference motion of a has 10 frames"):
        generator.begin([character(conversation, 0, 0, 10)], seed=0)
    slow = character(conversation, 0, 0, 100)
    slow.reference.fps = 30.0
    with pytest.raises(DialogueError, match="30 frames/s"):
        generator.begin([slow], seed=0)


def test_signals_of_others_are_refused(generator, signals, characters):
    with pytest.raises(ValueError, match="the stream moves"):
        generator.begin(characters[::-1], seed=0).advance(signals)
