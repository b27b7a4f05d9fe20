"""The renderer against what it was asked to show: silhouettes, depth, mouths, lids, poses, any camera."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import EXPRESSION_NAMES, Camera
from dialogue_nerfstudio.conversation.simulate import PersonState, cast, render_background, render_person

SIZE = 96
DISTANCE = 0.85


def camera(size: int = SIZE, position=(0.0, -0.035, DISTANCE), rotation=None) -> Camera:
    rotation = np.eye(3) if rotation is None else rotation
    return Camera(
        size, size, 2.0 * size, size / 2, size / 2, np.concatenate([rotation, np.array(position)[:, None]], axis=1)
    )


def close_up(height: float, size: int = SIZE) -> Camera:
    return camera(size, (0.0, height, 0.35))


def state(blink: float = 0.0, yaw: float = 0.0, gaze: float = 0.0, **expression: float) -> PersonState:
    result = PersonState(blink=np.full(2, blink), gaze=np.array([[gaze, 0.0], [gaze, 0.0]]))
    result.head_pose[:3] = Rotation.from_euler("Y", yaw).as_rotvec()
    for name, value in expression.items():
        result.expression[EXPRESSION_NAMES.index(name)] = value
    return result


@pytest.fixture(scope="module", params=[0, 1], ids=["Ada", "Bruno"])
def person(request):
    return cast(2, 0)[request.param]


def test_labels_are_the_silhouette(person):
    image, labels, depth = render_person(person, state(), camera())
    plate = render_background(person, camera())
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(labels == 0, depth == 0.0)
    inner = np.ones_like(labels, bool)
    # Where no pixel of the neighbourhood is the person, the picture is exactly the plate.
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        inner &= np.roll(labels, shift, (0, 1)) == 0
    inner &= labels == 0
    inner[[0, -1]] = inner[:, [0, -1]] = False
    np.testing.assert_array_equal(image[inner], plate[inner])
    assert (np.abs(image.astype(int) - plate)[labels > 0].max(axis=-1) > 8).mean() > 0.9


def test_body_is_stacked(person):
    _, labels, depth = render_person(person, state(), camera())
    rows = np.arange(SIZE)[:, None] * np.ones(SIZE)
    head, neck, torso = (rows[labels == label].mean() for label in (3, 2, 1))
    assert head < neck < torso
    nose = depth[SIZE // 2 - 3 : SIZE // 2 + 3, SIZE // 2].min()
    assert DISTANCE - 0.13 < nose < DISTANCE - 0.08
    # Neck and head join without a hole: every row of the centre column below the hair is somebody.
    assert (labels[SIZE // 2 :, SIZE // 2] > 0).all()


def test_neck_has_no_gap_when_head_and_torso_move(person):
    moved = state()
    moved.head_pose[:] = [0.2, 0.25, 0.2, 0.03, 0.02, 0.02]
    moved.torso_pose[:] = [0.0, -0.1, -0.05, -0.02, 0.0, 0.0]
    _, labels, _ = render_person(person, moved, camera(160))
    for row in range(60, 140):
        assert (labels[row] > 0).any()
        columns = np.flatnonzero(labels[row] > 0)
        if (labels[row] == 2).any():
            assert (labels[row, columns[0] : columns[-1] + 1] == 2).any()


def test_mouth_opens_with_the_jaw(person):
    def darkness(jaw: float) -> float:
        image, _, _ = render_person(person, state(jaw_open=jaw), close_up(-0.055))
        patch = image[SIZE // 3 : 2 * SIZE // 3, SIZE // 3 : 2 * SIZE // 3].max(axis=-1)
        return float((patch < 45).mean())

    opened = [darkness(jaw) for jaw in (0.0, 0.3, 0.6, 1.0)]
    assert opened[0] < 0.03
    assert np.all(np.diff(opened) > 0)


def test_pressed_lips_stay_shut(person):
    shut, _, _ = render_person(person, state(jaw_open=0.05, lip_press=1.0), close_up(-0.05))
    wide, _, _ = render_person(person, state(jaw_open=0.7), close_up(-0.05))
    middle = slice(SIZE // 3, 2 * SIZE // 3)
    assert (shut[middle, middle].max(axis=-1) < 40).mean() < 0.02 < (wide[middle, middle].max(axis=-1) < 40).mean()


def test_blink_covers_the_eyes(person):
    def bright_eye(blink: float) -> int:
        """Pixels of sclera: light and grey."""
        image, _, _ = render_person(person, state(blink=blink), close_up(0.02))
        # The background shows at the sides.
        image = image[SIZE // 3 : 2 * SIZE // 3, SIZE // 8 : -SIZE // 8].astype(int)
        return int(((image.min(axis=-1) > 120) & (np.ptp(image, axis=-1) < 40)).sum())

    counts = [bright_eye(blink) for blink in (0.0, 0.4, 1.0)]
    assert counts[0] > counts[1] > counts[2]
    assert counts[2] <= 0.05 * counts[0]


def test_gaze_moves_the_iris(person):
    left, _, _ = render_person(person, state(gaze=0.35), close_up(0.02))
    right, _, _ = render_person(person, state(gaze=-0.35), close_up(0.02))
    eyes = slice(int(0.38 * SIZE), int(0.62 * SIZE))

    def dark_centre(image: np.ndarray) -> float:
        weight = np.clip(70 - image[eyes].max(axis=-1).astype(float), 0, None)
        return float((weight * np.arange(SIZE)).sum() / weight.sum())

    # Yaw above 0 looks towards the person's left, which is right in the picture.
    assert dark_centre(left) > dark_centre(right) + 1.0


def test_yaw_turns_the_nose_to_the_right_of_the_picture(person):
    # The nearest point of the head is the nose.
    def nose(yaw: float) -> int:
        _, labels, depth = render_person(person, state(yaw=yaw), camera())
        near = np.where((labels == 3) & (depth > 0), depth, np.inf)
        return int(np.unravel_index(np.argmin(near), near.shape)[1])

    assert nose(0.3) > nose(0.0) > nose(-0.3)


def test_head_pose_equals_moving_the_camera(person):
    """Turning and shifting head and torso together is the same view as moving the camera the other way, but for light
    and background."""
    angle, shift = 0.25, np.array([0.01, 0.0, -0.02])
    turn = Rotation.from_euler("Y", angle)
    moved = state()
    moved.head_pose[:3], moved.head_pose[3:] = turn.as_rotvec(), shift
    _, labels, depth = render_person(person, moved, camera())
    back = turn.inv()
    _, labels_camera, depth_camera = render_person(
        person,
        state(),
        camera(position=back.apply(np.array([0.0, -0.035, DISTANCE]) - shift), rotation=back.as_matrix()),
    )
    head, head_camera = labels == 3, labels_camera == 3
    # The neck and torso differ, so compare where both see the head.
    both = head & head_camera
    assert both.sum() > 0.93 * max(head.sum(), head_camera.sum())
    # A ray that grazes an edge may stop on either side of it.
    assert np.percentile(np.abs(depth - depth_camera)[both], 99) < 1e-4


def test_people_differ():
    images = [render_person(person, state(), camera())[0].astype(float) for person in cast(4, 0)]
    for i in range(4):
        for j in range(i):
            assert np.abs(images[i] - images[j]).mean() > 12
    assert [p.name for p in cast(4, 1)[:2]] == ["Ada", "Bruno"]
    assert cast(4, 1)[2:] != cast(4, 0)[2:]
    assert cast(4, 0) == cast(4, 0)


def test_unknown_shape_is_refused(person):
    import dataclasses

    with pytest.raises(ValueError, match="unknown shape"):
        dataclasses.replace(person, shape={"horns": 1.0})
