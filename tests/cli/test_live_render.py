"""Pictures rendered while motion is generated are those of the finished motion, and the first ones come early."""

import numpy as np
import pytest
import soundfile
from motion_generators import LoudnessNods, OpenMouths, recorded_person

from dialogue_nerfstudio.cli.live_render import render_while_generating
from dialogue_nerfstudio.cli.render import Render, choose_driving, render_frames, training_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.motion.animation import NamedGenerator
from dialogue_nerfstudio.output import animation as animation_module
from dialogue_nerfstudio.output.animation import AnimationModel, AnimationOptions, SoundAnimation
from dialogue_nerfstudio.output.driving import Hearing

FRAMES = 140


@pytest.fixture
def avatars(trained):
    from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering

    config, pipeline = load_pipeline_for_rendering(trained.config)
    return training_conversation(config), pipeline


@pytest.fixture
def animation(tmp_path, monkeypatch):
    monkeypatch.setattr(animation_module, "BLOCK_FRAMES", 30)
    monkeypatch.setattr(animation_module, "FIRST_BLOCK", 10)
    sound = 0.1 * np.random.default_rng(0).standard_normal(FRAMES * 640)
    soundfile.write(tmp_path / "new.wav", sound, 16000)
    models = [
        AnimationModel(NamedGenerator("nods", LoudnessNods(late=3))),
        AnimationModel(NamedGenerator("mouths", OpenMouths())),
    ]
    people = [recorded_person("p0"), recorded_person("p1", seed=1)]
    return SoundAnimation(tmp_path / "new.wav", tmp_path / "out", people, models, "x", AnimationOptions("p1"))


def test_pictures_are_those_of_the_finished_motion_and_come_as_it_is_generated(avatars, animation, tmp_path):
    conversation, pipeline = avatars
    live, generated_by_then = [], []

    def consume(blocks):
        generated = 0

        def counted():
            nonlocal generated
            for block in blocks:
                generated += block["p0"].num_frames
                yield block

        hearing, ids = Hearing("mel"), ["p0", "p1"]
        for frame in render_while_generating(
            pipeline, conversation, counted(), animation.heard, hearing, ids, resolution=16
        ):
            live.append(frame)
            generated_by_then.append(generated)

    animation.run(consume)
    assert len(live) == FRAMES and generated_by_then[0] < 60 and generated_by_then[-1] == FRAMES
    options = Render(tmp_path / "config.yml", motion=tmp_path / "out", resolution=16)
    driving = choose_driving(conversation, options)
    finished = list(render_frames(pipeline, conversation, driving, ["p0", "p1"], options, lambda *_: None))
    differences = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(live, finished, strict=True)]
    # Sound in blocks is the sound but for rounding.
    assert max(differences) <= 2
    assert np.abs(live[0].astype(int) - live[70]).max() > 10, "something moves"


def test_avatars_at_another_rate_are_refused(avatars, animation):
    conversation, pipeline = avatars
    conversation.fps = 30.0
    animation.prepare()
    with pytest.raises(DialogueError, match=r"30 frames a second.*render the folder"):
        next(render_while_generating(pipeline, conversation, iter([]), animation.heard, Hearing(), ["p0"]))
