"""Heads are the function that they are said to be, plus noise of the stated size."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.simulate import answering_heads
from dialogue_nerfstudio.conversation.simulate.answering_heads import NECK_PIVOT, NOISE, move_heads, phrase_ends
from dialogue_nerfstudio.conversation.simulate.motion_only import simulate_motion
from dialogue_nerfstudio.conversation.simulate.styles import draw_style

FRAMES = 6000


@pytest.fixture(scope="module", params=[(0, 1), (4, 7)])
def talk(request):
    styles = [draw_style(person, 0) for person in request.param]
    return styles, simulate_motion(styles, FRAMES, [0, 0], with_mel=False)


def _kernel(seconds: float) -> np.ndarray:
    steps = np.arange(50) + 0.5
    kernel = steps * np.exp(-steps / (25.0 * seconds))
    return kernel / kernel.sum()


def _filtered(signal: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.convolve(signal, kernel)[: len(signal)]


def _later(signal: np.ndarray, frames: int) -> np.ndarray:
    return np.concatenate([np.zeros(frames), signal[:-frames]])


def _stated(style, own, other, pose_of_other) -> np.ndarray:
    """The module's docstring, term by term, of [(prosody, speaking)] twice and the partner's actual rotation."""
    level = [np.minimum(prosody[:, 1].astype(float) / 0.1, 2.0) for prosody, _ in (own, other)]
    role = [_filtered(speaking.astype(float), np.full(8, 1 / 8)) for _, speaking in (own, other)]
    energy = level[1] + 3.0 * other[0][:, 0]
    sound = _filtered(energy, _kernel(0.12) - _kernel(0.35)) / 0.24
    accents = _filtered(level[0], _kernel(0.05) - _kernel(0.20)) / 0.26
    pulses = np.zeros(len(energy))
    for end in range(1, len(energy) - 4):
        if level[1][end - 1] >= 0.12 and (level[1][end : end + 4] < 0.12).all():
            before = level[1][max(end - 25, 0) : end].sum() / 25
            if end + style.latency < len(pulses):
                pulses[end + style.latency] += 1.0 / (1.0 + np.exp(-(before - style.nod_loudness) / 0.06))
    tau = np.arange(50) / 25.0
    swing = np.sin(2 * np.pi * style.nod_frequency * tau) * np.exp(-tau / 0.3) * np.minimum(tau / 0.12, 1.0)
    rotation = np.zeros((len(energy), 3))
    for column in range(3):
        size = style.amplitude[column]
        steps = role[1] * np.diff(pose_of_other[:, column], prepend=pose_of_other[0, column])
        seen = _filtered(steps, np.cumsum(_kernel(0.10) - _kernel(0.35))) / (0.024, 0.020, 0.0105)[column]
        answer = style.sound_gain * (1.0, 0.6, 0.5)[column] * _later(sound, style.latency)
        answer += style.motion_gain * _later(seen, style.latency)
        rotation[:, column] = style.mean_rotation[column] + style.speaking_shift[column] * role[0]
        rotation[:, column] += (1 - role[0]) * size * answer
        rotation[:, column] += role[0] * size * style.accent_gain * (1.0, 0.5, -0.4)[column] * _later(accents, 1)
    rotation[:, 0] += (1 - role[0]) * style.nod_size * style.amplitude[0] * _filtered(pulses, swing)
    return rotation


def test_expected_pose_is_the_stated_function(talk):
    styles, conversation = talk
    sides = list(zip(conversation.prosody, conversation.speaking, strict=True))
    for person, style in enumerate(styles):
        pose_of_other = conversation.heads.head_pose[1 - person, :, :3]
        stated = _stated(style, sides[person], sides[1 - person], pose_of_other)
        np.testing.assert_allclose(conversation.heads.expected[person, :, :3], stated, atol=1e-9)
        position = np.cross(NECK_PIVOT, stated - np.array(style.mean_rotation))
        np.testing.assert_allclose(conversation.heads.expected[person, :, 3:], position, atol=1e-9)


def test_parts_add_up(talk):
    styles, conversation = talk
    heads = conversation.heads
    rest = (heads.expected - heads.from_sound - heads.from_partner)[..., :3]
    role = answering_heads.smooth_role(conversation.speaking)
    for person, style in enumerate(styles):
        held = np.array(style.mean_rotation) + np.array(style.speaking_shift) * role[person][:, None]
        np.testing.assert_allclose(rest[person], held, atol=1e-12)


def test_noise_is_what_is_left(talk):
    styles, conversation = talk
    rest = (conversation.heads.head_pose - conversation.heads.expected)[..., :3]
    for person, style in enumerate(styles):
        ratio = rest[person].std(axis=0) / style.amplitude / NOISE
        np.testing.assert_allclose(ratio, 1.0, atol=0.15)
        # It has nothing to do with what is expected.
        for column in range(3):
            correlation = np.corrcoef(rest[person][:, column], conversation.heads.expected[person, :, column])[0, 1]
            assert abs(correlation) < 0.25


def test_both_senses_carry_a_part_of_a_listeners_pitch(talk):
    _, conversation = talk
    heads = conversation.heads
    for person in (0, 1):
        listens = ~conversation.speaking[person] & conversation.speaking[1 - person]

        def correlation(guess, person=person, listens=listens):
            return np.corrcoef(guess[person, listens, 0], heads.head_pose[person, listens, 0])[0, 1]

        ceiling = correlation(heads.expected)
        assert 0.70 < ceiling < 0.90
        assert correlation(heads.expected - heads.from_sound) < ceiling - 0.05
        assert correlation(heads.expected - heads.from_partner) < ceiling - 0.05


def test_answers_come_from_the_past_alone(talk):
    """What is heard after a frame changes nothing up to it."""
    styles, conversation = talk
    prosody = conversation.prosody.copy()
    prosody[:, 2000:] = 0.0
    changed = move_heads(styles, prosody, conversation.speaking, np.random.default_rng([0, 0, 3]))
    np.testing.assert_array_equal(changed.expected[:, :2000], conversation.heads.expected[:, :2000])
    assert not np.allclose(changed.expected[:, 2010:2100], conversation.heads.expected[:, 2010:2100])


def test_heads_stay_human(talk):
    _, conversation = talk
    pose = conversation.heads.head_pose
    assert np.rad2deg(np.abs(pose[..., :3])).max() < 35.0
    assert np.rad2deg(np.abs(np.diff(pose[..., :3], axis=1))).max() < 6.0
    assert np.abs(pose[..., 3:]).max() < 0.08


def test_phrase_ends_are_first_frames_of_pauses():
    level = np.array([0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0])
    assert phrase_ends(level).tolist() == [6]


def test_three_people_and_one_alone():
    styles = [draw_style(person, 1) for person in range(3)]
    three = simulate_motion(styles, 1000, [1], with_mel=False)
    assert three.heads.head_pose.shape == (3, 1000, 6) and np.isfinite(three.heads.head_pose).all()
    assert (three.heads.from_partner[:, 200:] != 0).any(axis=(1, 2)).all()
    alone = simulate_motion(styles[:1], 500, [1], with_mel=False)
    assert not alone.heads.from_partner.any()
