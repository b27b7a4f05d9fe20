"""Label geometry on a synthetic silhouette with known landmarks."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import JAW_LINE, eye_centers, mean_face
from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, NECK, TORSO
from dialogue_nerfstudio.process import labels
from dialogue_nerfstudio.process.head_pose import project

SIZE = 256


def _landmarks(roll: float = 0.0) -> np.ndarray:
    rotation = Rotation.from_rotvec([0.0, 0.0, roll]).as_matrix()
    return project(mean_face(), rotation, np.array([0.0, 0.02, -0.9]), 2.0 * SIZE, (SIZE / 2, SIZE / 2))


def _silhouette() -> np.ndarray:
    """A head with ears and hair, a neck, and shoulders to the picture's bottom."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(mask, (128, 112), (60, 74), 0, 0, 360, 1, -1)
    cv2.rectangle(mask, (100, 150), (156, 215), 1, -1)
    cv2.ellipse(mask, (128, 256), (110, 58), 0, 0, 360, 1, -1)
    return mask.astype(bool)


@pytest.mark.parametrize("roll", [0.0, 0.2, -0.2])
def test_parts_lie_where_they_should(roll):
    landmarks = _landmarks(roll)
    parts = labels.part_labels(_silhouette(), landmarks)
    assert parts.dtype == np.uint8 and set(np.unique(parts)) == {BACKGROUND, TORSO, NECK, HEAD}
    assert ((parts > 0) == _silhouette()).all()

    def at(point):
        u, v = np.floor(point).astype(int)
        return parts[v, u]

    _, down, span = labels.face_axes(landmarks)
    for index in (1, 10, 13, 33, 263, 152):
        assert at(landmarks[index]) == HEAD
    chin = landmarks[152]
    assert at(chin + 0.15 * span * down) == NECK
    assert at(chin + 1.6 * span * down) == TORSO
    assert parts[250, 40] == TORSO and parts[40, 128] == HEAD


def test_hair_beside_the_face_is_head_down_to_the_lobes():
    landmarks = _landmarks()
    wide = np.zeros((SIZE, SIZE), bool)
    wide[20:, 40:216] = True
    parts = labels.part_labels(wide, landmarks)
    lobe = int(landmarks[132, 1])
    assert (parts[20 : lobe - 2, 40:216] == HEAD).all()
    assert (parts[lobe + 8 :, 42:50] == TORSO).all()


def test_head_reaches_just_below_the_jaw():
    landmarks = _landmarks()
    _, _, span = labels.face_axes(landmarks)
    parts = labels.part_labels(np.ones((SIZE, SIZE), bool), landmarks)
    column = parts[:, int(landmarks[152, 0])]
    last = np.flatnonzero(column == HEAD)[-1]
    assert (
        landmarks[152, 1] + 0.5 * labels.JAW_MARGIN * span - 1
        <= last
        <= landmarks[152, 1] + 2 * labels.JAW_MARGIN * span + 1
    )


def test_the_whole_jaw_line_is_head():
    landmarks = _landmarks(0.1)
    parts = labels.part_labels(np.ones((SIZE, SIZE), bool), landmarks)
    pixels = np.floor(landmarks[list(JAW_LINE)]).astype(int)
    assert (parts[pixels[:, 1], pixels[:, 0]] == HEAD).all()


def test_axes_follow_the_face():
    landmarks = _landmarks(0.3)
    right, down, span = labels.face_axes(landmarks)
    np.testing.assert_allclose(right @ down, 0.0, atol=1e-12)
    assert span == pytest.approx(np.linalg.norm(np.diff(eye_centers(landmarks), axis=0)))
    # A head leaning towards its right ear goes up on the picture's right.
    assert right[1] < 0


def test_guided_filter_keeps_flat_masks_and_snaps_to_edges():
    guide = np.zeros((64, 64), np.float32)
    guide[:, 32:] = 1.0
    flat = np.full((64, 64), 0.7, np.float32)
    np.testing.assert_allclose(labels.guided_filter(guide, flat, 4), 0.7, atol=1e-5)
    soft = np.clip((np.arange(64) - 26) / 12, 0, 1).astype(np.float32)
    sharp = labels.guided_filter(guide, np.tile(soft, (64, 1)), 8)
    assert sharp[32, 33] - sharp[32, 30] > 2 * (soft[33] - soft[30])


def test_largest_component_and_holes():
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True
    mask[10:12, 10:12] = False
    mask[35:38, 35:38] = True
    kept = labels.largest_component(mask)
    assert not kept[36, 36] and kept[6, 6]
    filled = labels.fill_holes(kept, 10)
    assert filled[11, 11] and not filled[36, 36] and not filled[0, 0]
    assert not labels.fill_holes(kept, 3)[11, 11]


def test_the_face_is_always_part_of_the_person():
    landmarks = _landmarks()
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    mask = labels.person_mask(image, np.zeros((SIZE, SIZE), np.float32), landmarks)
    u, v = np.floor(landmarks[1]).astype(int)
    assert mask[v, u] and not mask[5, 5]


def test_things_the_segmenter_doubts_are_no_person():
    landmarks = _landmarks()
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    probability = _silhouette().astype(np.float32)
    probability[180:, 232:] = 0.7
    mask = labels.person_mask(image, probability, landmarks)
    assert not mask[200:, 244:].any() and mask[250, 40]
    probability[180:, 232:] = 1.0
    assert labels.person_mask(image, probability, landmarks)[200:250, 244:].all()


def test_hair_that_ends_in_the_air_is_head():
    landmarks = _landmarks()
    lobe = int(landmarks[132, 1])
    bob = _silhouette()
    bob[60 : lobe + 16, 58:198] = True
    parts = labels.part_labels(bob, landmarks)
    assert (parts[60 : lobe + 16, 60:66] == HEAD).all() and (parts[60 : lobe + 16, 190:196] == HEAD).all()
    assert parts[250, 40] == TORSO and parts[250, 216] == TORSO
    long = bob.copy()
    long[60:, 58:84] = True
    assert labels.part_labels(long, landmarks)[lobe + 10, 62] == TORSO, "shoulders are not told from hair on them"


def test_a_torso_that_the_neck_cuts_in_two_stays_torso():
    landmarks = _landmarks() + np.array([0.0, 60.0])
    wide = np.zeros((SIZE, SIZE), bool)
    wide[60:, 20:236] = True
    parts = labels.part_labels(wide, landmarks)
    assert (parts[-1, 20:40] == TORSO).all() and (parts[-1, 216:236] == TORSO).all()


def test_probabilities_between_segmented_pictures_move_along_with_what_they_show():
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (SIZE, 2 * SIZE)).astype(np.uint8), (0, 0), 2)
    speed, looks = 3, []

    def person(index: int) -> np.ndarray:
        mask = np.zeros((SIZE, SIZE), np.float32)
        mask[60:, 60 + speed * index : 150 + speed * index] = 1.0
        return mask

    def picture(index: int) -> np.ndarray:
        ground = texture[:, :SIZE]
        moving = np.roll(texture[:, SIZE:], speed * index, axis=1)
        return np.repeat(np.where(person(index) > 0, moving, ground)[..., None], 3, axis=2)

    def segment(image: np.ndarray) -> np.ndarray:
        looks.append(next(i for i in range(8) if (picture(i) == image).all()))
        return person(looks[-1])

    found = list(labels.person_probabilities(map(picture, range(8)), segment, step=2))
    assert looks == [0, 2, 4, 6, 7]
    for index, (image, probability) in enumerate(found):
        assert (image == picture(index)).all()
        wrong = ((probability > 0.5) != (person(index) > 0.5)).sum()
        # A neighbour's probability as it is would be wrong on both sides of the person.
        assert wrong == 0 if index in looks else wrong < 0.5 * 2 * speed * (SIZE - 60)
    assert list(labels.person_probabilities([], segment)) == []


def test_steady_labels_keep_what_moves_and_drop_what_jumps():
    size, count = 24, 12
    moving = np.zeros((count, size, size), np.uint8)
    for index in range(count):
        moving[index, :, : 4 + index] = HEAD
    np.testing.assert_array_equal(list(labels.steady(moving)), moving)
    jumping = moving.copy()
    jumping[5, 10:12, 20:] = TORSO
    np.testing.assert_array_equal(list(labels.steady(jumping)), moving)
    blinking = np.zeros((count, 2, 2), np.uint8)
    blinking[1::2] = HEAD
    steadied = np.array(list(labels.steady(blinking)))
    assert (steadied[:-1] == 0).all(), "alternating labels settle"
    assert list(labels.steady([])) == [] and len(list(labels.steady(moving[:1]))) == 1


def test_slivers_of_neck_between_jaw_and_hair_are_head():
    landmarks = _landmarks()
    _, _, span = labels.face_axes(landmarks)
    thin = max(round(labels.HAIR_BRIDGE * span), 1)
    parts = np.full((SIZE, SIZE), HEAD, np.uint8)
    parts[100:140, 60 : 60 + thin] = NECK
    parts[150:, 80:160] = NECK
    parts[200:, :80] = parts[200:, 160:] = TORSO
    found = labels.without_slivers(parts, landmarks)
    assert (found[100:140, 60 : 60 + thin] == HEAD).all() and (found[160:, 90:150] == NECK).all()
    np.testing.assert_array_equal(found == TORSO, parts == TORSO)


def test_a_smaller_mask_snaps_to_the_same_edges():
    y, x = np.mgrid[:SIZE, :SIZE]
    shape = (x - 130) ** 2 + (y - 120) ** 2 < 70**2
    guide = np.where(shape, 0.8, 0.2).astype(np.float32)
    soft = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 5)
    small = cv2.resize(soft, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    whole, fast = (labels.guided_filter(guide, mask, 8) > 0.5 for mask in (soft, small))
    assert (whole != shape).mean() < 0.002 and (fast != shape).mean() < 0.002


@pytest.mark.parametrize("radius", [1, 2, 5, 9])
def test_opening_keeps_what_holds_a_disc_and_drops_what_is_thinner(radius):
    mask = np.zeros((120, 160), np.uint8)
    mask[:, : 4 * radius + 4] = 1
    mask[60 : 60 + 2 * radius - 1, :] = 1
    cv2.circle(mask, (120, 25), 2 * radius, 1, -1)
    opened = labels._opened(mask, radius)
    assert (opened <= mask).all() and opened[:, : 4 * radius].all(), "the picture's border cuts nothing off"
    assert not opened[60 + radius, 100:].any()
    disc = np.hypot(*(np.mgrid[:120, :160] - np.array([25, 120])[:, None, None])) <= 2 * radius
    assert (opened[disc] > 0).mean() > 0.9
