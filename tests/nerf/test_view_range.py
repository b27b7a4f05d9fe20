"""What training saw: angles against known cameras, departures, clamping, the warning, and the checkpoint."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.nerf.view_range import SeenViews, ViewRange, swung

RECORDING = np.hstack([np.eye(3), [[0.0], [-0.04], [0.85]]])
FRONT, ORIGIN = np.eye(3), np.zeros(3)


def turned(yaw):
    return Rotation.from_euler("y", yaw, degrees=True).as_matrix()


@pytest.fixture
def view_range():
    """A head that turns 10° to either side before a camera slightly below it."""
    camera = Camera(128, 128, 256.0, 64.0, 64.0, RECORDING)
    return ViewRange.of("ada", camera, np.stack([turned(-10), turned(0), turned(10)]), np.zeros((3, 3)))


def test_range_of_a_recording(view_range):
    np.testing.assert_allclose(np.degrees(view_range.head_yaw), [-10, 10], atol=1e-5)
    np.testing.assert_allclose(view_range.body_pitch, -math.atan(0.04 / 0.85), atol=1e-6)
    np.testing.assert_allclose(view_range.distance, math.hypot(0.04, 0.85))


@pytest.mark.parametrize("yaw, pitch", [(0, 0), (25, 10), (-60, 5), (120, -30)])
def test_a_swung_camera_stands_where_it_says_and_keeps_its_distance_and_aim(view_range, yaw, pitch):
    camera = swung(RECORDING, math.radians(yaw), math.radians(pitch))
    found = np.degrees(view_range.angles_from_recording(camera[:, 3]))
    np.testing.assert_allclose(found, [yaw, pitch], atol=1e-6)
    np.testing.assert_allclose(camera[:, :3] @ camera[:, :3].T, np.eye(3), atol=1e-9)
    # The origin keeps its place in the picture.
    np.testing.assert_allclose(camera[:, :3].T @ camera[:, 3], RECORDING[:, :3].T @ RECORDING[:, 3], atol=1e-9)


def test_departures_name_the_side(view_range):
    inside = swung(RECORDING, math.radians(20))
    assert view_range.departure(inside[:, 3], FRONT, ORIGIN) is None
    right = swung(RECORDING, math.radians(50), math.radians(5))
    assert "50° right of and 5° above" in view_range.departure(right[:, 3], FRONT, ORIGIN)
    # A head that turns as far away as the camera would have had to go.
    assert "yaw of -45°" in view_range.departure(RECORDING[:, 3], turned(45), ORIGIN)
    assert view_range.departure(right[:, 3], turned(50), ORIGIN) is not None
    assert view_range.departure(RECORDING[:, 3], turned(30), ORIGIN) is None


def test_clamping_goes_to_the_nearest_allowed_view(view_range):
    far = swung(RECORDING, math.radians(70), math.radians(10))
    clamped = view_range.clamp(far)
    np.testing.assert_allclose(np.degrees(view_range.angles_from_recording(clamped[:, 3])), [30, 10], atol=1e-6)
    assert view_range.departure(clamped[:, 3], FRONT, ORIGIN) is None
    near = swung(RECORDING, math.radians(-20))
    np.testing.assert_array_equal(view_range.clamp(near), near)


def test_the_warning_comes_once_and_the_state_goes_round(view_range, capsys):
    views = SeenViews([view_range])
    far = swung(RECORDING, math.radians(70))[:, 3]
    # Where a panel shows the sentence, it is not used up.
    assert views.check(0, far, FRONT, ORIGIN, announce=False) == views.check(0, far, FRONT, ORIGIN)
    assert views.check(0, far, FRONT, ORIGIN) is not None
    assert capsys.readouterr().out.count("Warning") == 1
    other = SeenViews([ViewRange("ada", 0.0, 0.0, 1.0, (0.0, 0.0), (0.0, 0.0))])
    other.load_state(views.state())
    assert other[0] == view_range


def test_the_model_stores_its_range_and_warns(pipeline, capsys):
    model = pipeline.model
    model.eval()
    state = model.get_extra_state()
    assert [stored["participant"] for stored in state["seen_views"]] == model.participant_ids
    state["seen_views"][0]["distance"] = 3.0
    model.set_extra_state(state)
    assert model.view_range(0).distance == 3.0

    camera = pipeline.datamanager.eval_dataset.cameras[0]
    model.render_frame(camera, 0, 0)
    assert "Warning" not in capsys.readouterr().out
    recorded = camera.camera_to_worlds.clone()
    far = torch.tensor(swung(recorded.numpy(), math.radians(80)), dtype=torch.float32)
    camera.camera_to_worlds = far
    moved = model.render_frame(camera, 0, 0)["rgb"]
    assert "Warning" in capsys.readouterr().out
    model.config.clamp_views = True
    clamped = model.render_frame(camera, 0, 0)["rgb"]
    assert not torch.equal(moved, clamped)
    torch.testing.assert_close(camera.camera_to_worlds, far)
