"""Motions in other programs' formats: CSV with ARKit's names, NPZ of plain arrays, animated glTF."""

import csv
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import expression_basis
from dialogue_nerfstudio.conversation.files import atomic_path, write_npz
from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, Motion
from dialogue_nerfstudio.output.arkit import Weights, arkit_weights
from dialogue_nerfstudio.output.gltf import landmark_face, write_glb

POSE_COLUMNS = (
    "head_rotation_x",
    "head_rotation_y",
    "head_rotation_z",
    "head_position_x",
    "head_position_y",
    "head_position_z",
)
GAZE_COLUMNS = ("gaze_left_yaw", "gaze_left_pitch", "gaze_right_yaw", "gaze_right_pitch")


def write_csv(path: Path, motion: Motion, tracked: Optional[Weights] = None) -> None:
    """A row a frame: its number and time (s, its beginning), head pose (axis-angle in radians, metres), gaze (radians),
    then weights: ARKit's names, the tracker's own where it gave them, and, unless they all have an ARKit name, the
    expression under the basis's names.

    Raises:
        DialogueError: the disk is full.
    """
    weights = tracked or arkit_weights(motion)
    own = () if motion.expression_basis == EXPRESSION_BASIS and tracked is None else motion.expression_names
    columns = np.concatenate(
        [motion.head_pose, motion.gaze.reshape(motion.num_frames, 4), weights.values]
        + ([motion.expression] if own else []),
        axis=1,
    )
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["frame", "time", *POSE_COLUMNS, *GAZE_COLUMNS, *weights.names, *own])
        for frame, row in enumerate(columns.tolist()):
            writer.writerow([frame, f"{frame / motion.fps:.4f}", *(f"{value:.6g}" for value in row)])


def write_plain_npz(path: Path, motion: Motion, tracked: Optional[Weights] = None) -> None:
    """Arrays that need no other program of ours: `time` [T] s, `head_matrix` [T, 4, 4] head to person space,
    `head_pose`, `expression`, `blink` (left, right), `gaze` (left, right; yaw, pitch), `arkit` [T, W] with
    `arkit_names` and `arkit_source`, `expression_names`, `expression_basis`, `fps`.

    Raises:
        DialogueError: the disk is full.
    """
    weights = tracked or arkit_weights(motion)
    write_npz(
        path,
        time=np.arange(motion.num_frames) / motion.fps,
        head_matrix=head_matrices(motion.head_pose).astype(np.float32),
        head_pose=motion.head_pose.astype(np.float32),
        expression=motion.expression.astype(np.float32),
        blink=motion.blink.astype(np.float32),
        gaze=motion.gaze.astype(np.float32),
        arkit=weights.values,
        arkit_names=np.array(weights.names, dtype=np.str_),
        arkit_source=np.array(weights.source),
        expression_names=np.array(motion.expression_names, dtype=np.str_),
        expression_basis=np.array(motion.expression_basis),
        fps=np.array(motion.fps),
    )


def head_matrices(head_pose: Float[np.ndarray, "T 6"]) -> Float[np.ndarray, "T 4 4"]:
    """x_person = H x_head."""
    matrices = np.tile(np.eye(4), (len(head_pose), 1, 1))
    matrices[:, :3, :3] = Rotation.from_rotvec(head_pose[:, :3].astype(np.float64)).as_matrix()
    matrices[:, :3, 3] = head_pose[:, 3:]
    return matrices


def export_motions(
    motions: Dict[str, Motion], kind: str, output: Path, tracked: Dict[str, Weights], statement: Dict[str, Any]
) -> List[Path]:
    """Writes everybody's motion; the files made.

    Args:
        motions: by person.
        kind: "csv" or "npz", a file for each person in the folder `output`, or "gltf", the file `output`.
        output: folder or .glb file.
        tracked: the tracker's own ARKit weights, of whom it gave some.
        statement: what a glTF says of itself.

    Raises:
        DialogueError: the expression is in a basis whose mesh is not known here, or the disk is full.
    """
    if kind == "gltf":
        for name, motion in motions.items():
            if motion.expression_basis != EXPRESSION_BASIS:
                raise DialogueError(
                    f"the motion of {name} is in the expression basis '{motion.expression_basis}', of which a glTF "
                    "would need the mesh: export it as CSV or NPZ, or carry it over with `ns-dialogue refit`."
                )
        write_glb(output, landmark_face(expression_basis()), motions, statement)
        return [output]
    paths = []
    for name, motion in motions.items():
        paths.append(output / f"{name}.{kind}")
        (write_csv if kind == "csv" else write_plain_npz)(paths[-1], motion, tracked.get(name))
    return paths
