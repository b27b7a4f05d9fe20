"""Exported motion says to other programs what the motion says here; the .glb is read back by an independent reader."""

import csv
import json
import struct

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation, Slerp

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import expression_basis, face_triangles
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.output.arkit import ARKIT_OF_FIELD, Weights, arkit_weights, tracked_weights
from dialogue_nerfstudio.output.gltf import landmark_face, quaternions, vertex_normals
from dialogue_nerfstudio.output.motion_export import export_motions, write_csv, write_plain_npz

# fmt: off
ARKIT = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight", "tongueOut",
)
# fmt: on


def moving(num_frames: int = 30, seed: int = 0) -> Motion:
    rng = np.random.default_rng(seed)
    return Motion(
        rng.normal(0, 0.2, (num_frames, 6)).astype(np.float32),
        rng.uniform(0, 1.4, (num_frames, len(EXPRESSION_NAMES))).astype(np.float32),
        rng.uniform(0, 1, (num_frames, 2)).astype(np.float32),
        rng.normal(0, 0.2, (num_frames, 2, 2)).astype(np.float32),
        np.zeros((num_frames, 0), np.float32),
    )


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_field_has_an_arkit_name_of_its_side():
    assert set(ARKIT_OF_FIELD) == set(EXPRESSION_NAMES)
    names = [name for names in ARKIT_OF_FIELD.values() for name in names]
    assert len(set(names)) == len(names) and set(names) <= set(ARKIT)
    for field, arkit in ARKIT_OF_FIELD.items():
        for side in ("left", "right"):
            assert not field.endswith(side) or [name.lower().endswith(side) for name in arkit] == [True]


def test_csv_has_arkit_names_within_arkits_range(tmp_path):
    motion = moving()
    write_csv(tmp_path / "p0.csv", motion)
    rows = rows_of(tmp_path / "p0.csv")
    assert len(rows) == 30 and float(rows[10]["time"]) == 0.4
    jaw = EXPRESSION_NAMES.index("jaw_open")
    for frame in (0, 17):
        assert float(rows[frame]["jawOpen"]) == pytest.approx(min(motion.expression[frame, jaw], 1.0), rel=1e-4)
        assert float(rows[frame]["eyeBlinkRight"]) == pytest.approx(motion.blink[frame, 1], rel=1e-4)
        assert float(rows[frame]["head_position_z"]) == pytest.approx(motion.head_pose[frame, 5], rel=1e-4)
        assert float(rows[frame]["gaze_right_yaw"]) == pytest.approx(motion.gaze[frame, 1, 0], rel=1e-4)
    weights = set(rows[0]) - {"frame", "time"}
    assert all(name in ARKIT or name.startswith(("head_", "gaze_")) for name in weights)


def test_the_trackers_own_weights_come_first_and_other_bases_keep_their_names(tmp_path):
    motion = moving()
    tracked = Weights(("jawOpen", "cheekPuff"), np.full((30, 2), 0.25, np.float32), "tracker")
    write_csv(tmp_path / "p0.csv", motion, tracked)
    row = rows_of(tmp_path / "p0.csv")[3]
    assert row["jawOpen"] == row["cheekPuff"] == "0.25" and float(row["jaw_open"]) > 0
    motion.expression_basis, motion.expression_names = "FLAME", tuple(f"e{i}" for i in range(len(EXPRESSION_NAMES)))
    write_csv(tmp_path / "p1.csv", motion)
    row = rows_of(tmp_path / "p1.csv")[3]
    assert "jawOpen" not in row and float(row["e0"]) == pytest.approx(motion.expression[3, 0], rel=1e-4)
    assert "eyeBlinkLeft" in row
    assert arkit_weights(motion).names == ("eyeBlinkLeft", "eyeBlinkRight")


def test_the_trackers_weights_are_checked():
    names = np.array(["jawOpen"])
    assert tracked_weights({"landmarks": np.zeros(3)}, 3, "t") is None
    assert tracked_weights({"blendshapes": np.zeros((3, 1)), "blendshape_names": names}, 3, "t").names == ("jawOpen",)
    with pytest.raises(DialogueError, match="p0/tracking"):
        tracked_weights({"blendshapes": np.zeros((4, 1)), "blendshape_names": names}, 3, "p0/tracking.npz")


def test_plain_arrays(tmp_path):
    motion = moving()
    write_plain_npz(tmp_path / "p0.npz", motion)
    with np.load(tmp_path / "p0.npz", allow_pickle=False) as arrays:
        matrix = arrays["head_matrix"][7]
        np.testing.assert_allclose(matrix[:3, :3], Rotation.from_rotvec(motion.head_pose[7, :3]).as_matrix(), atol=1e-6)
        np.testing.assert_allclose(matrix[:, 3], [*motion.head_pose[7, 3:], 1.0], atol=1e-6)
        assert arrays["arkit"].shape == (30, len(arrays["arkit_names"])) and arrays["arkit"].max() == 1.0
        np.testing.assert_array_equal(arrays["expression"], motion.expression)


def test_quaternions_never_flip():
    turn = np.linspace(-4.0, 4.0, 200)[:, None] * [0.0, 1.0, 0.0]
    values = quaternions(turn)
    assert (np.sum(values[1:] * values[:-1], axis=1) > 0.99).all()
    np.testing.assert_allclose(
        Rotation.from_quat(values).as_matrix(), Rotation.from_rotvec(turn).as_matrix(), atol=1e-6
    )


def test_normals_point_out_of_the_face():
    face = landmark_face(expression_basis())
    normals = vertex_normals(face.vertices, face.triangles)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-5)
    nose = 4
    assert normals[nose, 2] > 0.8


class Glb:
    """A reader of .glb files that follows the standard's text."""

    def __init__(self, path):
        data = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON" and size % 4 == 0
        self.json = json.loads(data[20 : 20 + size])
        binary, kind = struct.unpack_from("<I4s", data, 20 + size)
        assert kind == b"BIN\0" and binary % 4 == 0
        self.data = data[28 + size : 28 + size + binary]

    def read(self, number: int) -> np.ndarray:
        accessor = self.json["accessors"][number]
        view = self.json["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        kind = {5126: "<f4", 5123: "<u2"}[accessor["componentType"]]
        values = np.frombuffer(self.data, kind, accessor["count"] * width, view["byteOffset"])
        return values.reshape(-1, width) if width > 1 else values

    def at(self, seconds: float, node: int, path: str) -> np.ndarray:
        """An animated property, interpolated linearly (rotations on the great arc)."""
        animation = self.json["animations"][0]
        channel = next(c for c in animation["channels"] if c["target"] == {"node": node, "path": path})
        sampler = animation["samplers"][channel["sampler"]]
        times, values = self.read(sampler["input"]), self.read(sampler["output"])
        if path == "rotation":
            return Slerp(times, Rotation.from_quat(values))(seconds).as_quat()
        values = values.reshape(len(times), -1)
        return np.array([np.interp(seconds, times, values[:, k]) for k in range(values.shape[1])])

    def positions(self, seconds: float, head: int) -> np.ndarray:
        """Where the vertices of a head are at a moment, in the space of its person."""
        node = self.json["nodes"][head]
        primitive = self.json["meshes"][node["mesh"]]["primitives"][0]
        weights = self.at(seconds, head, "weights")
        vertices = self.read(primitive["attributes"]["POSITION"]).astype(float)
        vertices = vertices + sum(
            weight * self.read(target["POSITION"]) for weight, target in zip(weights, primitive["targets"], strict=True)
        )
        turned = Rotation.from_quat(self.at(seconds, head, "rotation")).apply(vertices)
        return turned + self.at(seconds, head, "translation")


@pytest.fixture
def glb(tmp_path):
    motions = {"p0": moving(30), "p1": moving(20, seed=1)}
    assert export_motions(motions, "gltf", tmp_path / "chat.glb", {}, {"synthetic": True}) == [tmp_path / "chat.glb"]
    return tmp_path / "chat.glb", motions


def test_a_glb_moves_as_the_motion_does(glb):
    path, motions = glb
    file, basis = Glb(path), expression_basis()
    assert file.json["asset"]["extras"] == {"synthetic": True}
    for number, motion in enumerate(motions.values()):
        frame = 11
        shape = basis.shape(np.zeros(len(basis.geometry_names)), motion.expression[frame].astype(float))[:468]
        targets = file.json["meshes"][number]["extras"]["targetNames"]
        assert targets == [*EXPRESSION_NAMES, "blink_left", "blink_right"]
        primitive = file.json["meshes"][number]["primitives"][0]
        for eye, target in enumerate(primitive["targets"][-2:]):
            shape = shape + motion.blink[frame, eye] * file.read(target["POSITION"])
        expected = Rotation.from_rotvec(motion.head_pose[frame, :3]).apply(shape) + motion.head_pose[frame, 3:]
        np.testing.assert_allclose(file.positions(frame / 25, 2 * number + 1), expected, atol=1e-5)


def test_a_closed_eye_of_a_glb_is_closed(glb):
    face = landmark_face(expression_basis())
    for name, upper, lower in (("blink_left", 386, 374), ("blink_right", 159, 145)):
        moved = face.vertices + face.targets[face.names.index(name)]
        open_gap = np.linalg.norm(face.vertices[upper] - face.vertices[lower])
        assert np.linalg.norm(moved[upper] - moved[lower]) < 0.2 * open_gap


def test_another_reader_finds_the_heads_and_where_they_are(glb):
    scene = trimesh.load(glb[0], process=False)
    assert len(scene.geometry) == 2
    for mesh in scene.geometry.values():
        assert mesh.vertices.shape == (468, 3)
        np.testing.assert_array_equal(mesh.faces, face_triangles())
    assert {"p0", "p1", "p0_head", "p1_head"} <= set(scene.graph.nodes)
    assert scene.graph["p1"][0][0, 3] - scene.graph["p0"][0][0, 3] == pytest.approx(0.35)


def test_bounds_are_those_of_the_data(glb):
    file = Glb(glb[0])
    for number, accessor in enumerate(file.json["accessors"]):
        if "min" in accessor:
            values = file.read(number).reshape(accessor["count"], -1)
            np.testing.assert_allclose(values.min(axis=0), accessor["min"])
            np.testing.assert_allclose(values.max(axis=0), accessor["max"])


def test_a_basis_without_a_mesh_is_refused(tmp_path):
    motion = moving()
    motion.expression_basis = "BFM 2009"
    with pytest.raises(DialogueError, match=r"p0.*BFM 2009.*CSV or NPZ"):
        export_motions({"p0": motion}, "gltf", tmp_path / "a.glb", {}, {})
