"""The written sample: a valid Conversation, a playable video, the same truth every time."""

from dataclasses import replace

import av
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_conversation, simulate_people

CONFIG = SimulationConfig(seconds=3.0, size=64, num_people=2, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample")
    seen = []
    assert (
        simulate_conversation(CONFIG, root, progress=lambda done, total: seen.append((done, total)))
        == root / "video.mp4"
    )
    assert seen[0] == (1, 75) and seen[-1] == (75, 75)
    return root


def test_folder_is_a_conversation(folder):
    conversation = load_conversation(folder / "truth")
    assert conversation.num_frames == 75 and conversation.participant_ids == ["p0", "p1"]
    samples, rate = conversation.audio()
    assert rate == 16000 and len(samples) == 48000
    assert conversation.speaking.any(axis=0).all()
    for participant in conversation.participants:
        frames, labels = conversation.frames(participant.id), conversation.labels(participant.id)
        assert len(frames) == len(labels) == 75 and frames[10].shape == (64, 64, 3)
        assert set(np.unique(labels[10])) <= {0, 1, 2, 3}
        assert conversation.background(participant.id).shape == (64, 64, 3)
        np.testing.assert_allclose(participant.motion.head_pose[:, 3:].mean(axis=0), 0.0, atol=1e-6)
        assert (folder / "truth" / "audio" / f"{participant.id}.wav").is_file()


def test_truth_can_be_rendered_again(folder):
    """What the folder holds is what the renderer draws from the reloaded motion, up to the codec."""
    conversation = load_conversation(folder / "truth")
    people, _ = simulate_people(CONFIG)
    for participant, simulated in zip(conversation.participants, people, strict=True):
        simulated.motion = participant.motion
        image, labels, _ = simulated.render(30, participant.camera)
        np.testing.assert_array_equal(conversation.labels(participant.id)[30], labels)
        # Brightness: the codec keeps colour at half the resolution.
        assert np.abs(conversation.frames(participant.id)[30].mean(axis=-1) - image.mean(axis=-1)).mean() < 4.0


def test_boxes_hold_the_body(folder):
    conversation = load_conversation(folder / "truth")
    people, _ = simulate_people(CONFIG)
    for participant, simulated in zip(conversation.participants, people, strict=True):
        for frame in (0, 40, 74):
            _, labels, depth = simulated.render(frame)
            camera = participant.camera
            rows, columns = np.nonzero(labels > 0)
            rays = np.stack(
                [
                    (columns + 0.5 - camera.cx) / camera.focal,
                    -(rows + 0.5 - camera.cy) / camera.focal,
                    -np.ones(len(rows)),
                ],
                1,
            )
            rays /= np.linalg.norm(rays, axis=1, keepdims=True)
            points = camera.camera_to_person[:, 3] + depth[rows, columns, None] * rays
            is_head = labels[rows, columns] == 3
            pose = participant.motion.head_pose[frame]
            in_head = Rotation.from_rotvec(pose[:3]).inv().apply(points[is_head] - pose[3:])
            assert (in_head > participant.head_box[0]).all() and (in_head < participant.head_box[1]).all()
            assert (points[~is_head] > participant.torso_box[0]).all() and (
                points[~is_head] < participant.torso_box[1]
            ).all()


def test_video_plays_with_sound(folder):
    with av.open(str(folder / "video.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, float(video.average_rate)) == (64 * 2 + 8, 64, 25.0)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        assert len(frames) == 75
        assert float(sound.duration * sound.time_base) == pytest.approx(3.0, abs=0.07)
    conversation = load_conversation(folder / "truth")
    for participant in conversation.participants:
        left, top, width, height = participant.source["crop"]
        panel = frames[20][top : top + height, left : left + width].astype(float)
        assert np.abs(panel - conversation.frames(participant.id)[20]).mean() < 6.0


def test_same_config_same_truth(folder, tmp_path):
    simulate_conversation(CONFIG, tmp_path)
    for name in ("roles.rttm", "audio.wav", "conversation.json", "simulation.json", "participants/p1/background.png"):
        assert (folder / "truth" / name).read_bytes() == (tmp_path / "truth" / name).read_bytes(), name
    ours, theirs = load_conversation(folder / "truth"), load_conversation(tmp_path / "truth")
    for a, b in zip(ours.participants, theirs.participants, strict=True):
        np.testing.assert_array_equal(a.motion.head_pose, b.motion.head_pose)
        np.testing.assert_array_equal(a.motion.expression, b.motion.expression)
        np.testing.assert_array_equal(ours.frames(a.id)[40], theirs.frames(a.id)[40])
        np.testing.assert_array_equal(ours.labels(a.id)[40], theirs.labels(a.id)[40])


@pytest.mark.parametrize(
    "change", [dict(num_people=0), dict(num_people=5), dict(seconds=0.5), dict(size=63), dict(size=32)]
)
def test_options_out_of_range_are_refused(change, tmp_path):
    with pytest.raises(DialogueError, match=next(iter(change)).replace("_", "-")):
        simulate_conversation(replace(CONFIG, **change), tmp_path)
    assert not list(tmp_path.iterdir())
