"""Heads are the function that they are said to be, plus noise of the stated size."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.simulate.answering_heads import NOISE, move_heads
from dialogue_nerfstudio.conversation.simulate.motion_only import simulate_motion
from dialogue_nerfstudio.conversation.simulate.styles import draw_style


@pytest.fixture(scope="module")
def talk():
    styles = [draw_style(0, 0), draw_style(1, 0)]
    return styles, simulate_motion(styles, 4500, [0, 0], with_mel=False)


def test_noise_is_what_is_left(talk):
    styles, conversation = talk
    rest = (conversation.heads.head_pose - conversation.heads.expected)[..., :3]
    for person, style in enumerate(styles):
        ratio = rest[person].std(axis=0) / style.amplitude / NOISE
        np.testing.assert_allclose(ratio, 1.0, atol=0.2)


def test_answers_come_from_the_past_alone(talk):
    """What is heard after a frame changes nothing up to it."""
    styles, conversation = talk
    prosody = conversation.prosody.copy()
    prosody[:, 2000:] = 0.0
    changed = move_heads(styles, prosody, conversation.speaking, np.random.default_rng([0, 0, 3]))
    np.testing.assert_array_equal(changed.expected[:, :2000], conversation.heads.expected[:, :2000])
    assert not np.allclose(changed.expected[:, 2010:2100], conversation.heads.expected[:, 2010:2100])
