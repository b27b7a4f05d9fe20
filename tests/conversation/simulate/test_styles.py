"""People differ, stay themselves, and survive JSON."""

import json

import numpy as np

from dialogue_nerfstudio.conversation.simulate.styles import PersonStyle, draw_style


def test_the_same_person_every_time():
    assert draw_style(5, 2) == draw_style(5, 2)
    assert draw_style(5, 2) != draw_style(5, 3)


def test_any_few_people_differ_clearly():
    for seed in range(5):
        people = [draw_style(number, seed) for number in range(6)]
        blinks = np.array([person.blink_rate for person in people])
        latencies = np.array([person.latency for person in people])
        sizes = np.array([person.amplitude[0] for person in people])
        assert blinks.min() >= 0.15 and blinks.max() <= 0.60 and np.ptp(blinks) > 0.25
        assert np.diff(np.sort(blinks)).min() > 0.02
        # 0.2 to 0.7 s at 25 fps.
        assert latencies.min() >= 5 and latencies.max() <= 17 and np.ptp(latencies) >= 5
        assert sizes.max() > 1.3 * sizes.min()
        means = np.array([person.mean_rotation for person in people])
        assert means.std(axis=0).min() > 0.01


def test_json_keeps_a_style():
    style = draw_style(3, 0)
    assert PersonStyle.from_json(json.loads(json.dumps(style.to_json()))) == style
