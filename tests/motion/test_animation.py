"""Generators side by side make whole motions, whatever the blocks, within limits, completed by each person's habits."""

import numpy as np
import pytest
from motion_generators import LoudnessNods, OpenMouths, recorded_person
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.metrics.tracking import blink_events
from dialogue_nerfstudio.motion.animation import Animation, NamedGenerator
from dialogue_nerfstudio.motion.generator import join_parts
from dialogue_nerfstudio.motion.personal_habits import DrawnBlinks, lines_of_sight
from dialogue_nerfstudio.motion.signals import MotionSignals


def signals(num_frames: int, seed: int = 0) -> MotionSignals:
    rng = np.random.default_rng(seed)
    speaking = np.repeat(rng.random((2, num_frames // 10 + 1)) < 0.5, 10, axis=1)[:, :num_frames]
    prosody = (0.05 * rng.random((2, num_frames, 2))).astype(np.float32)
    return MotionSignals(("a", "b"), prosody, np.full((2, round(num_frames * 3.2), 80), -1, np.float32), speaking)


@pytest.fixture(scope="module")
def people():
    return [recorded_person("a"), recorded_person("b", seed=1)]


def animate(generators, people, heard, length=None, seed=0) -> tuple[dict[str, Motion], Animation]:
    animation = Animation(generators, people, seed)
    length = length or heard.num_frames
    pieces = [
        animation.advance(heard.frames(start, min(start + length, heard.num_frames)))
        for start in range(0, heard.num_frames, length)
    ] + [animation.finish()]
    joined = {}
    for name in ("a", "b"):
        parts = [piece[name] for piece in pieces]
        joined[name] = Motion(
            *[
                np.concatenate([getattr(part, field) for part in parts])
                for field in ("head_pose", "expression", "blink", "gaze", "expression_residual")
            ],
            sources=parts[0].sources,
        )
    return joined, animation


def test_blocks_leave_no_trace_and_late_generators_are_waited_for(people):
    heard = signals(133)
    generators = [NamedGenerator("nods", LoudnessNods(late=7)), NamedGenerator("mouths", OpenMouths())]
    whole, _ = animate(generators, people, heard)
    pieces, animation = animate(generators, people, heard, length=20)
    assert animation.num_frames == 133
    for name in whole:
        whole[name].validate(name)
        for field in whole[name].array_names:
            np.testing.assert_array_equal(getattr(whole[name], field), getattr(pieces[name], field), err_msg=field)
        assert (whole[name].expression[:, 0] == heard.speaking[heard.participant_ids.index(name)]).all()


class AllAtOnce(LoudnessNods):
    """Says nothing of anybody until everything is heard."""

    def begin(self, characters, seed):
        stream, blocks = super().begin(characters, seed), []
        advance, finish = stream.advance, stream.finish
        stream.advance = lambda heard: blocks.append(advance(heard)) or {}
        stream.finish = lambda: join_parts([*blocks, finish()])
        return stream


def test_a_generator_that_has_decided_nothing_yet_is_waited_for(people):
    heard = signals(133)
    expected, _ = animate([NamedGenerator("nods", LoudnessNods())], people, heard)
    animation = Animation([NamedGenerator("late nods", AllAtOnce())], people, 0)
    first = animation.advance(heard.frames(0, 60))
    assert [first[name].num_frames for name in ("a", "b")] == [0, 0]
    first["a"].validate("a")
    motions, _ = animate([NamedGenerator("late nods", AllAtOnce())], people, heard, length=20)
    for name in ("a", "b"):
        np.testing.assert_array_equal(motions[name].head_pose, expected[name].head_pose)


def test_seeds_decide(people):
    generators = [NamedGenerator("nods", LoudnessNods())]
    first, _ = animate(generators, people, signals(500), seed=3)
    again, _ = animate(generators, people, signals(500), seed=3)
    other, _ = animate(generators, people, signals(500), seed=4)
    np.testing.assert_array_equal(first["a"].blink, again["a"].blink)
    assert (first["a"].blink != other["a"].blink).any()
    assert (first["a"].head_pose != other["a"].head_pose).any()
    assert (first["a"].blink != first["b"].blink).any(), "two people do not blink together"


def test_the_later_generator_of_a_field_counts_and_the_other_is_named(people):
    generators = [NamedGenerator("first", LoudnessNods()), NamedGenerator("second", LoudnessNods(scale=0.0))]
    motions, animation = animate(generators, people, signals(50))
    assert animation.unused == ["first"]
    assert motions["a"].sources["head_pose"] == "generated: second"
    assert np.ptp(motions["a"].head_pose[:, 0]) < 1e-6


def test_wild_poses_are_limited_to_what_was_recorded_and_counted(people):
    wild = [NamedGenerator("wild", LoudnessNods(scale=20.0))]
    motions, animation = animate(wild, people, signals(500))
    figures = animation.steadiness()["a"]
    assert figures.share_beyond > 0.3 and figures.largest_radius <= 1.0 + 1e-5
    assert np.degrees(np.ptp(motions["a"].head_pose[:, 0])) < 40.0
    tame = animate([NamedGenerator("tame", LoudnessNods())], people, signals(500))[1].steadiness()["a"]
    assert tame.share_beyond < 0.02 and tame.frozen_share == 0.0


def test_drift_and_freezing_are_measured(people):
    class Drifting(LoudnessNods):
        def begin(self, characters, seed):
            stream = super().begin(characters, seed)
            give = stream._give

            def drifting(count):
                start = stream._frame
                parts = give(count)
                for fields in parts.values():
                    fields["head_pose"][:] = 0.0
                    fields["head_pose"][:, 1] = np.radians(0.1) * (start + np.arange(count)) / 25.0
                return parts

            stream._give = drifting
            return stream

    _, animation = animate([NamedGenerator("drifting", Drifting())], people, signals(1000), length=100)
    figures = animation.steadiness()["a"]
    assert figures.drift_degrees_per_10s == pytest.approx(1.0, rel=0.01)
    assert figures.frozen_share == 1.0, "0.1 degrees a second is no movement for somebody who turns by 8 degrees"
    assert figures.seconds == 40.0


def test_habits_fill_what_nothing_generates(people):
    motions, _ = animate([NamedGenerator("nods", LoudnessNods())], people, signals(250))
    motion = motions["a"]
    assert motion.sources["expression"] == "the person's median while listening"
    assert "own recorded blinks" in motion.sources["blink"]
    np.testing.assert_allclose(motion.expression[:, 0], 0.03, atol=1e-6)
    np.testing.assert_allclose(motion.expression[:, 18], 0.2, atol=1e-6)
    sight = lines_of_sight(motion.gaze[:, 0])
    held = Rotation.from_rotvec(motion.head_pose[:, :3]).apply(sight)
    target = np.array([0.3, -0.1, 1.0]) / np.linalg.norm([0.3, -0.1, 1.0])
    assert np.degrees(np.arccos(np.clip(held @ target, -1, 1))).max() < 1.0
    alone, animation = animate([], people, signals(100))
    assert animation.num_frames == 100
    # Nothing but habits: the recorded poses, but for those at the rim.
    assert np.abs(alone["a"].head_pose - people[0].reference.head_pose[:100]).max() < 0.05


def test_blinks_come_as_often_as_the_person_blinks():
    person = recorded_person("a", 3000)
    drawn = DrawnBlinks(person, [0, 0])
    pieces = [drawn.frames(count) for count in (7, 1, 4992, 10000)]
    closure = np.concatenate(pieces)
    events = blink_events(closure, 25.0)
    recorded = blink_events(person.reference.blink, 25.0)
    assert len(events) / 600 == pytest.approx(len(recorded) / 120, rel=0.05)
    assert closure.min() >= 0.05 - 1e-6 and closure.max() > 0.95
    np.testing.assert_array_equal(DrawnBlinks(person, [0, 0]).frames(15000), closure)


def test_who_hardly_blinked_blinks_like_anybody():
    person = recorded_person("a", 60)
    drawn = DrawnBlinks(person, [0, 0])
    assert "typical" in drawn.statement
    events = blink_events(drawn.frames(25 * 600), 25.0)
    assert 12 < len(events) / 10 < 30, "a minute"


def test_generators_that_do_not_fit_are_refused_by_name(people):
    with pytest.raises(DialogueError, match=r"mouths makes expression of \(5,\) numbers.*a has \(28,\).*dialogue-28"):
        animate([NamedGenerator("mouths", OpenMouths(size=5))], people, signals(20))

    class Broken(LoudnessNods):
        def begin(self, characters, seed):
            raise DialogueError("it was trained at 30 frames a second")

    with pytest.raises(DialogueError, match="broken: it was trained at 30"):
        Animation([NamedGenerator("broken", Broken())], people, 0)

    class Unable(LoudnessNods):
        def begin(self, characters, seed):
            stream = super().begin(characters, seed)
            give = stream._give
            stream._give = lambda count: {n: {"head_pose": v["head_pose"] * np.nan} for n, v in give(count).items()}
            return stream

    with pytest.raises(DialogueError, match="unable made a head_pose of a that is not a number"):
        animate([NamedGenerator("unable", Unable())], people, signals(20))

    class Silent(LoudnessNods):
        def begin(self, characters, seed):
            stream = super().begin(characters, seed)
            stream.finish = lambda: {}
            return stream

    with pytest.raises(DialogueError, match="silent made 13 frames of a's head_pose for 20 frames"):
        animate([NamedGenerator("silent", Silent(late=7))], people, signals(20))

    class Forgetful(OpenMouths):
        def begin(self, characters, seed):
            stream = super().begin(characters, seed)
            advance = stream.advance
            stream.advance = lambda heard: {"a": advance(heard)["a"], "b": {"blink": advance(heard)["b"]["blink"]}}
            return stream

    # The one to blame is named, not the one that waited for it.
    with pytest.raises(DialogueError, match="forgetful made 0 frames of b's expression for 20 frames"):
        generators = [NamedGenerator("nods", LoudnessNods()), NamedGenerator("forgetful", Forgetful())]
        animate(generators, people, signals(20))


def test_recordings_that_are_too_short_or_at_another_rate_are_refused():
    with pytest.raises(DialogueError, match="20 recorded frames of a"):
        Animation([], [recorded_person("a", 20)], 0)
    person = recorded_person("a")
    person.reference.fps = 30.0
    with pytest.raises(DialogueError, match="30 frames a second"):
        Animation([], [person], 0)


def test_names_of_the_basis_are_the_persons(people):
    motions, _ = animate([], people, signals(10))
    assert motions["a"].expression_names == EXPRESSION_NAMES and motions["a"].expression_basis == "dialogue-28"
