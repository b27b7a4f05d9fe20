"""Pictures rendered while motion is generated are those of the finished motion, and the first ones come early."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
from motion_generators import LoudnessNods, OpenMouths, recorded_person
from short_training import train
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.cli.live_render import render_while_generating
from dialogue_nerfstudio.cli.render import (
    Render,
    choose_driving,
    drive_model,
    nerfstudio_camera,
)
from dialogue_nerfstudio.cli.training import to_picture
from dialogue_nerfstudio.conversation import load_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.motion.animation import NamedGenerator
from dialogue_nerfstudio.output import animation as animation_module
from dialogue_nerfstudio.output.animation import AnimationModel, AnimationOptions, SoundAnimation
from dialogue_nerfstudio.output.driving import Hearing
from dialogue_nerfstudio.output.layout import side_by_side

FRAMES = 85
COMPARED = (0, 1, 9, 24, 25, 40, 59, 60, 61, 70, 84)


@pytest.fixture(scope="module")
def avatars(tmp_path_factory):
    """A conversation, and avatars of it that a few steps have made visible."""
    from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
    from dialogue_nerfstudio.fields.audio_net import AudioNetConfig
    from dialogue_nerfstudio.nerf.config import cpu_pipeline
    from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline

    folder = tmp_path_factory.mktemp("avatars")
    config = cpu_pipeline()
    config.datamanager.data = write_tiny_conversation(folder / "tiny")
    config.datamanager.cache_folder = folder / "cache"
    config.datamanager.train_num_rays_per_batch, config.datamanager.frames_per_batch = 256, 4
    grid = HashGridConfig(num_levels=4, log2_hashmap_size=12, base_resolution=8, max_resolution=32, kernel="torch")
    config.model.head.grid = config.model.torso.grid = grid
    config.model.head_samples, config.model.torso_samples = 12, 8
    config.model.occupancy.resolution = 16
    config.model.signals.audio = AudioNetConfig(base_width=4, code_size=16)
    pipeline = DialoguePipeline(config, device="cpu", test_mode="val")
    train(pipeline, 20)
    return load_conversation(folder / "tiny"), pipeline


@pytest.fixture
def animation(tmp_path, monkeypatch):
    monkeypatch.setattr(animation_module, "BLOCK_FRAMES", 25)
    monkeypatch.setattr(animation_module, "FIRST_BLOCK", 10)
    sound = 0.1 * np.random.default_rng(0).standard_normal(FRAMES * 640)
    soundfile.write(tmp_path / "new.wav", sound, 16000)
    models = [
        AnimationModel(NamedGenerator("nods", LoudnessNods(late=3, scale=5.0))),
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

        hearing, ids = Hearing("mel"), ["p1"]
        for frame in render_while_generating(
            pipeline, conversation, counted(), animation.heard, hearing, ids, resolution=16
        ):
            live.append(frame)
            generated_by_then.append(generated)

    animation.run(consume)
    assert len(live) == FRAMES and generated_by_then[0] < 60 and generated_by_then[-1] == FRAMES
    driving = choose_driving(conversation, Render(tmp_path / "config.yml", motion=tmp_path / "out"))
    model, camera = drive_model(pipeline, driving), nerfstudio_camera(conversation.participant("p1").camera, 16)
    finished = [side_by_side([to_picture(model.render_frame(camera, frame, 1)["rgb"])]) for frame in COMPARED]
    differences = [np.abs(live[f].astype(int) - b.astype(int)).max() for f, b in zip(COMPARED, finished, strict=True)]
    # Sound in blocks is the sound but for rounding.
    assert max(differences) <= 1
    assert np.ptp(np.stack(live).astype(int), axis=0).max() > 5, "something moves"


def test_avatars_at_another_rate_are_refused(avatars, animation):
    conversation, pipeline = avatars
    conversation = replace(conversation, fps=30.0)
    animation.prepare()
    with pytest.raises(DialogueError, match=r"30 frames a second.*render the folder"):
        next(render_while_generating(pipeline, conversation, iter([]), animation.heard, Hearing(), ["p0"]))
