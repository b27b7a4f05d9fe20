"""The truth renderer redraws what a folder holds, and the same person from elsewhere, in other poses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.conversation.simulate import SimulationConfig, TruthRenderer, simulate_conversation


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    simulate_conversation(SimulationConfig(seconds=2.0, size=64, num_people=2, seed=5), folder)
    return folder / "truth"


@pytest.fixture(scope="module")
def truth(root):
    return TruthRenderer(root)


def test_recorded_frames_come_out_as_recorded(truth):
    conversation = truth.conversation
    for index, participant in enumerate(conversation.participants):
        view = truth.render(index, 30)
        np.testing.assert_array_equal(view.labels, conversation.labels(participant.id)[30])
        recorded = conversation.frames(participant.id)[30].mean(axis=-1)
        assert np.abs(recorded - view.rgb.mean(axis=-1)).mean() < 4.0
        # The plate shows where nobody is.
        nobody = ~view.silhouette
        np.testing.assert_allclose(view.rgb[nobody].mean(), view.background[nobody].mean(), atol=2.0)


def test_depth_of_another_camera_lies_on_the_same_surface(truth):
    """A point of the nose seen by one camera has the other's depth where that camera sees it."""
    camera = truth.people[0].camera
    front = truth.render(0, 10)
    row, column = np.argwhere(front.labels == 3).mean(axis=0).astype(int)
    ray = np.array([(column + 0.5 - camera.cx) / camera.focal, -(row + 0.5 - camera.cy) / camera.focal, -1.0])
    origin = camera.camera_to_person[:, 3]
    point = origin + front.depth[row, column] * ray / np.linalg.norm(ray)

    turn = Rotation.from_euler("y", 12, degrees=True).as_matrix()
    side = replace(camera, camera_to_person=turn @ camera.camera_to_person)
    local = (point - side.camera_to_person[:, 3]) @ side.camera_to_person[:, :3]
    x = side.focal * local[0] / -local[2] + side.cx
    y = -side.focal * local[1] / -local[2] + side.cy
    seen = truth.render(0, 10, side)
    assert abs(seen.depth[int(y), int(x)] - np.linalg.norm(local)) < 0.008


def test_another_pose_turns_the_head_and_leaves_the_body(truth):
    pose = truth.people[0].motion.head_pose[10].astype(np.float64)
    turned = np.concatenate([(Rotation.from_euler("y", 0.3) * Rotation.from_rotvec(pose[:3])).as_rotvec(), pose[3:]])
    before, after = truth.render(0, 10), truth.render(0, 10, head_pose=turned)
    face, body = before.labels == 3, (before.labels == 1) & (after.labels == 1)
    assert np.abs(before.rgb[face].astype(int) - after.rgb[face]).mean() > 5.0
    # The march stops within a millimetre or two of a surface.
    np.testing.assert_allclose(before.depth[body], after.depth[body], atol=3e-3)
    expression = np.zeros_like(truth.people[0].motion.expression[10])
    expression[0] = 1.0
    assert (truth.render(0, 10, expression=expression).rgb != before.rgb).any()


def test_what_is_no_truth_is_refused(truth, root, tmp_path):
    with pytest.raises(DialogueError, match="no frame 999"):
        truth.render(0, 999)
    with pytest.raises(DialogueError, match="no participant 2"):
        truth.render(2, 0)
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    manifest = json.loads((copy / "conversation.json").read_text())
    manifest["provenance"] = {"made_by": "somebody"}
    (copy / "conversation.json").write_text(json.dumps(manifest))
    with pytest.raises(DialogueError, match="not the truth of a simulation"):
        TruthRenderer(copy)
