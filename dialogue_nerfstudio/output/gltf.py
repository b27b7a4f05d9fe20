"""Animated heads as binary glTF 2.0: a mesh whose morph targets are the expression's fields, a node for each person.

Conventions. glTF's axes are person space's: metres, y up, z towards the camera. Each person is a node, placed beside
the others, with one child that the head pose moves and that carries the mesh: person node → head node. Animation
channels are linear in time; frame t stands at t / fps seconds, where it begins to be shown.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import (
    LEFT_EYE_LOWER,
    LEFT_EYE_UPPER,
    RIGHT_EYE_LOWER,
    RIGHT_EYE_UPPER,
    ExpressionBasis,
    face_triangles,
)
from dialogue_nerfstudio.conversation.files import atomic_path
from dialogue_nerfstudio.conversation.motion import Motion

SPACING = 0.35
"""Metres between neighbours' heads."""
SKIN = ((0.76, 0.57, 0.46), (0.55, 0.62, 0.74), (0.62, 0.72, 0.55), (0.78, 0.68, 0.5))
"""Colours (linear RGB) that tell people apart."""

FLOAT, UNSIGNED_SHORT = 5126, 5123
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963


@dataclass(frozen=True)
class MorphingFace:
    """A mesh in head space with named morph targets."""

    vertices: Float32[np.ndarray, "V 3"]
    triangles: Int[np.ndarray, "F 3"]
    names: Tuple[str, ...]
    targets: Float32[np.ndarray, "W V 3"]
    """Displacement at weight 1."""


def landmark_face(basis: ExpressionBasis) -> MorphingFace:
    """The landmark mesh with the basis's fields and, after them, one target for each eye's lids."""
    lids = [_closed_lid(basis.mean, *outline) for outline in EYES]
    used = int(face_triangles().max()) + 1
    return MorphingFace(
        vertices=basis.mean[:used].astype(np.float32),
        triangles=face_triangles(),
        names=(*basis.expression_names, "blink_left", "blink_right"),
        targets=np.concatenate([basis.expression, np.stack(lids)])[:, :used].astype(np.float32),
    )


EYES = ((LEFT_EYE_UPPER, LEFT_EYE_LOWER), (RIGHT_EYE_UPPER, RIGHT_EYE_LOWER))
"""Lid outlines of the left and of the right eye, each upper and lower from the same corner to the same corner."""


def _closed_lid(
    mean: Float[np.ndarray, "478 3"], upper: Sequence[int], lower: Sequence[int]
) -> Float[np.ndarray, "478 3"]:
    """The upper lid drawn down to the lower one, point by point."""
    field = np.zeros_like(mean)
    field[list(upper)] = mean[list(lower)] - mean[list(upper)]
    return field


def vertex_normals(vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "F 3"]) -> Float32[np.ndarray, "V 3"]:
    """Unit normals, triangles weighted by their area."""
    corners = vertices[triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], faces)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.maximum(length, 1e-20), [0.0, 0.0, 1.0]).astype(np.float32)


def quaternions(rotations: Float[np.ndarray, "T 3"]) -> Float32[np.ndarray, "T 4"]:
    """x, y, z, w of axis-angle vectors, without the change of sign that would make an interpolation turn the long way
    round."""
    values = Rotation.from_rotvec(rotations.astype(np.float64)).as_quat()
    flips = np.concatenate([[1.0], np.where((values[1:] * values[:-1]).sum(axis=1) < 0, -1.0, 1.0)])
    return (values * np.cumprod(flips)[:, None]).astype(np.float32)


class _Buffer:
    """The binary part, and the views and accessors into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: List[Dict[str, Any]] = []
        self.accessors: List[Dict[str, Any]] = []

    def add(self, array: np.ndarray, kind: str, target: Optional[int] = None, bounds: bool = False) -> int:
        """The accessor's number of an array, float32 or uint16."""
        component = {"f": FLOAT, "u": UNSIGNED_SHORT}[array.dtype.kind]
        self.data += b"\0" * (-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes}
        if target is not None:
            view["target"] = target
        self.data += np.ascontiguousarray(array).tobytes()
        self.views.append(view)
        entry: Dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            flat = array.reshape(len(array), -1)
            entry["min"], entry["max"] = flat.min(axis=0).tolist(), flat.max(axis=0).tolist()
        self.accessors.append(entry)
        return len(self.accessors) - 1


def write_glb(path: Path, face: MorphingFace, motions: Dict[str, Motion], extras: Dict[str, Any]) -> None:
    """Writes everybody's motion as one .glb, atomically.

    Args:
        path: of the file.
        face: everybody's mesh; the motions' expression is in its basis.
        motions: by person.
        extras: what the file says about itself (JSON-serialisable).

    Raises:
        DialogueError: the disk is full.
    """
    buffer = _Buffer()
    normals = vertex_normals(face.vertices, face.triangles)
    shared = {
        "POSITION": buffer.add(face.vertices, "VEC3", ARRAY_BUFFER, bounds=True),
        "NORMAL": buffer.add(normals, "VEC3", ARRAY_BUFFER),
    }
    indices = buffer.add(face.triangles.astype(np.uint16).ravel(), "SCALAR", ELEMENT_ARRAY_BUFFER)
    targets = [{"POSITION": buffer.add(target, "VEC3", ARRAY_BUFFER, bounds=True)} for target in face.targets]
    nodes: List[Dict[str, Any]] = []
    meshes, materials, samplers, channels = [], [], [], []

    def animate(node: int, what: str, times: int, values: int) -> None:
        samplers.append({"input": times, "output": values, "interpolation": "LINEAR"})
        channels.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": what}})

    for number, (name, motion) in enumerate(motions.items()):
        materials.append(
            {
                "name": name,
                "doubleSided": True,
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*SKIN[number % len(SKIN)], 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.8,
                },
            }
        )
        meshes.append(
            {
                "name": name,
                "primitives": [
                    {"attributes": shared, "indices": indices, "material": number, "targets": targets, "mode": 4}
                ],
                "weights": [0.0] * len(face.names),
                "extras": {"targetNames": list(face.names)},
            }
        )
        head = len(nodes) + 1
        beside = SPACING * (number - (len(motions) - 1) / 2)
        nodes += [
            {"name": name, "translation": [beside, 0.0, 0.0], "children": [head]},
            {"name": f"{name}_head", "mesh": number},
        ]
        seconds = (np.arange(motion.num_frames) / motion.fps).astype(np.float32)
        times = buffer.add(seconds, "SCALAR", bounds=True)
        weights = np.concatenate([motion.expression, motion.blink], axis=1).astype(np.float32)
        animate(head, "rotation", times, buffer.add(quaternions(motion.head_pose[:, :3]), "VEC4"))
        animate(head, "translation", times, buffer.add(motion.head_pose[:, 3:].astype(np.float32), "VEC3"))
        animate(head, "weights", times, buffer.add(weights.ravel(), "SCALAR"))
    document = {
        "asset": {"version": "2.0", "generator": "dialogue-nerfstudio", "extras": extras},
        "scene": 0,
        "scenes": [{"name": "conversation", "nodes": list(range(0, len(nodes), 2))}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": materials,
        "animations": [{"name": "conversation", "samplers": samplers, "channels": channels}],
        "buffers": [{"byteLength": len(buffer.data) + (-len(buffer.data) % 4)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    _write_container(path, document, bytes(buffer.data))


def _write_container(path: Path, document: Dict[str, Any], data: bytes) -> None:
    """Header and two chunks of the binary form (glTF 2.0, 4.4)."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    data += b"\0" * (-len(data) % 4)
    length = 12 + 8 + len(text) + 8 + len(data)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(struct.pack("<4sII", b"glTF", 2, length))
        stream.write(struct.pack("<I4s", len(text), b"JSON") + text)
        stream.write(struct.pack("<I4s", len(data), b"BIN\0") + data)
