"""What is heard and what mouths do agree; blinks come at the person's rate; the upper face goes its own way."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.acoustics import mel_spectrogram, prosody_features
from dialogue_nerfstudio.conversation.simulate.motion_only import blink_times, simulate_motion
from dialogue_nerfstudio.conversation.simulate.styles import draw_style

FRAMES = 3000
COLUMN = {name: index for index, name in enumerate(EXPRESSION_NAMES)}


@pytest.fixture(scope="module")
def styles():
    return [draw_style(0, 0), draw_style(3, 0)]


@pytest.fixture(scope="module")
def talk(styles):
    return simulate_motion(styles, FRAMES, [0, 1])


def test_signals_are_those_of_the_tracks(talk):
    assert talk.mel.shape == (2, 9600, 80)
    for person in (0, 1):
        np.testing.assert_array_equal(talk.prosody[person], prosody_features(talk.tracks[person], 16000, FRAMES))
        np.testing.assert_array_equal(talk.mel[person], mel_spectrogram(talk.tracks[person])[:9600])
        loud = talk.prosody[person, :, 1]
        assert loud[talk.speaking[person]].mean() > 20 * loud[~talk.speaking[person]].mean()
    assert talk.speaking.any(axis=0).mean() > 0.7 and talk.speaking.all(axis=0).mean() < 0.15


def test_same_seed_same_conversation(styles, talk):
    again, other = simulate_motion(styles, FRAMES, [0, 1], False), simulate_motion(styles, FRAMES, [0, 2], False)
    np.testing.assert_array_equal(again.heads.head_pose, talk.heads.head_pose)
    np.testing.assert_array_equal(again.expression, talk.expression)
    assert not np.allclose(other.heads.head_pose, talk.heads.head_pose)


def test_mouths_follow_the_phones(talk):
    """Lips are closed in the middle of /m b p/ and the jaw is open in /aa ae/."""
    times = (np.arange(FRAMES) + 0.5) / 25.0
    closed, opened = [], []
    for turn in talk.turns:
        for phone in turn.utterance.phones:
            frame = int(np.argmin(np.abs(times - turn.start - 0.5 * (phone.start + phone.end))))
            if abs(times[frame] - turn.start - 0.5 * (phone.start + phone.end)) > 0.012:
                continue
            row = talk.expression[turn.participant, frame]
            if phone.name in "mbp":
                closed.append((row[COLUMN["lip_press"]], row[COLUMN["jaw_open"]]))
            elif phone.name in ("aa", "ae"):
                opened.append((row[COLUMN["lip_press"]], row[COLUMN["jaw_open"]]))
    closed, opened = np.array(closed), np.array(opened)
    assert len(closed) > 20 and len(opened) > 20
    assert np.median(closed[:, 0]) > 0.4 and np.median(closed[:, 1]) < 0.15
    assert np.median(opened[:, 0]) < 0.1 and np.median(opened[:, 1]) > 0.35


def test_upper_face_goes_its_own_way(talk):
    mouth = talk.expression[..., [COLUMN[name] for name in ("jaw_open", "pucker", "lip_press", "lip_corner_up_left")]]
    eyes = [COLUMN[name] for name in ("squint_left", "brow_furrow_left", "brow_inner_raise", "brow_raise_left")]
    upper = np.concatenate([talk.expression[..., eyes], talk.blink[..., :1]], axis=-1)
    for person in (0, 1):
        correlations = np.corrcoef(mouth[person].T, upper[person].T)[:4, 4:]
        # Brows accompany accents, which open the jaw.
        assert np.abs(correlations[:, [0, 1, 2, 4]]).max() < 0.35 and np.abs(correlations[:, 3]).max() < 0.5
        assert upper[person].std(axis=0).min() > 0.03 and mouth[person].std(axis=0).min() > 0.03
    assert talk.expression.min() >= 0.0 and talk.expression.max() <= 1.0


def test_blinks_come_at_the_persons_rate(styles, talk):
    for person in range(8):
        style = draw_style(person, 4)
        times = np.array(blink_times(style, 20_000.0, np.random.default_rng(person)))
        assert np.diff(times).min() >= 0.45
        assert len(times) / 20_000.0 == pytest.approx(style.blink_rate, rel=0.06)
    for person, style in enumerate(styles):
        shut = talk.blink[person, :, 0] > 0.5
        blinks = np.sum(shut[1:] & ~shut[:-1])
        expected = style.blink_rate * FRAMES / 25.0
        assert abs(blinks - expected) < 3.5 * np.sqrt(expected)
