"""The bridge between face models: a conversation's motion measured again in another expression basis.

Where the tracker's landmarks are stored the new coefficients come from them, with the recorded head poses; otherwise
the displacement of the face in the old basis is approximated in the new one. The old conversation is only read: the new
one is a folder of its own whose unchanged files are hard links (copies where the disk has none).

Conventions. T frames. Errors are root mean squares over the landmarks, weighted as in `expression`: pixels where
landmarks are compared, millimetres where displacements are.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.conversation import (
    Conversation,
    Participant,
    load_conversation,
    save_conversation,
)
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import ExpressionBasis, expression_basis
from dialogue_nerfstudio.conversation.files import read_npz, write_npz
from dialogue_nerfstudio.conversation.least_squares import bounded_least_squares
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.process.expression import (
    EXPRESSION_NOISE,
    fit_geometry,
    landmark_weights,
    measure_face,
)
from dialogue_nerfstudio.process.head_pose import HeadTrack, project
from dialogue_nerfstudio.process.landmarks import LandmarkTrack
from dialogue_nerfstudio.process.pipeline import FACE_MODEL_NAME, WORK_FOLDER

NOT_TAKEN_OVER = ("conversation.json", "process.json", "report.html", FACE_MODEL_NAME, WORK_FOLDER)
"""What of the old folder is about the old basis, or is written anew."""


@dataclass
class Refit:
    """What became of one participant's expressions."""

    participant: str
    source: str
    """`landmarks` or `displacements`."""
    unit: str
    """px or mm."""
    before: Float[np.ndarray, " num_frames"]
    """Error of every frame in the old basis (landmarks), or how far the face moved (displacements)."""
    after: Float[np.ndarray, " num_frames"]
    """Error of every frame in the new basis."""


def refit_conversation(
    root: Path,
    output: Path,
    basis: ExpressionBasis,
    num_residuals: int = 8,
    progress: Optional[Callable[[float], None]] = None,
) -> List[Refit]:
    """Writes a conversation like the one at `root` whose expressions are in `basis`.

    Args:
        root: the conversation folder; it is only read.
        output: the folder to make.
        basis: the new basis.
        num_residuals: components of the personal residual, where landmarks are stored.
        progress: told the part that is done.

    Raises:
        DialogueError: there is no such conversation, `output` is taken or inside of it, or neither landmarks nor the
            old basis are known.
    """
    root, output = Path(root), Path(output)
    conversation = load_conversation(root)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DialogueError(f"{output} exists already: give the name of a new folder.")
    if root.resolve() in output.resolve().parents:
        raise DialogueError(f"{output} is inside of {root}, which is only read; give another folder.")
    temporary = output.parent / f".{output.name}-{os.getpid()}"
    temporary.mkdir(parents=True)
    try:
        changed = {Path(n) for n in NOT_TAKEN_OVER}
        for participant in conversation.participants:
            changed |= {Path("participants", participant.id, name) for name in ("motion.npz", "face.npz")}
        link_tree(root, temporary, changed)
        results, participants = [], []
        for index, participant in enumerate(conversation.participants):
            motion, result, face = refit_participant(conversation, participant, basis, num_residuals)
            participants.append(replace(participant, motion=motion))
            results.append(result)
            write_npz(temporary / "participants" / participant.id / "face.npz", **face)
            if progress is not None:
                progress((index + 1) / len(conversation.participants))
        if basis.name != expression_basis().name:
            basis.save(temporary / FACE_MODEL_NAME)
        new = replace(conversation, participants=participants, provenance=_provenance(conversation, basis, results))
        save_conversation(new, temporary)
        if output.is_dir():
            output.rmdir()
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return results


def _provenance(conversation: Conversation, basis: ExpressionBasis, results: List[Refit]) -> dict:
    return {
        **conversation.provenance,
        "expression_basis": basis.name,
        "expression_basis_hash": basis.hash,
        "refit": {
            "from": conversation.participants[0].motion.expression_basis,
            **{r.participant: {"source": r.source, "unit": r.unit, **_summary(r)} for r in results},
        },
    }


def _summary(result: Refit) -> dict:
    return {
        name: float(np.sqrt(np.mean(getattr(result, name).astype(np.float64) ** 2))) for name in ("before", "after")
    }


def link_tree(root: Path, target: Path, without: set) -> None:
    """The files under `root` in `target`, as hard links where the disk allows it; what `without` names is left out."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if relative in without or any(parent in without for parent in relative.parents) or not path.is_file():
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target / relative)
        except OSError:
            # Another disk, or one without hard links.
            shutil.copyfile(path, target / relative)


def basis_of_conversation(conversation: Conversation) -> Optional[ExpressionBasis]:
    """The basis a conversation's expressions are in; None where only its name is known."""
    name = conversation.participants[0].motion.expression_basis
    if name == expression_basis().name:
        return expression_basis()
    path = conversation.path(FACE_MODEL_NAME)
    if path.is_file() and (stored := ExpressionBasis.load(path)).name == name:
        return stored
    return None


def refit_participant(
    conversation: Conversation, participant: Participant, basis: ExpressionBasis, num_residuals: int
) -> Tuple[Motion, Refit, dict]:
    """The participant's motion in another basis, how well it fits, and the arrays of face.npz.

    Raises:
        DialogueError: neither landmarks nor the old basis are known.
    """
    old, motion = basis_of_conversation(conversation), participant.motion
    face_path = conversation.participant_path(participant.id, "face.npz")
    face = read_npz(face_path) if face_path.is_file() else {}
    face |= {"expression_basis": np.array(basis.name), "expression_basis_hash": np.array(basis.hash)}
    if "neutral" in face:
        face["geometry"] = fit_geometry(face["neutral"].astype(np.float64), basis).astype(np.float32)
    tracking_path = conversation.participant_path(participant.id, "tracking.npz")
    if tracking_path.is_file() and "neutral" in face:
        tracking = read_npz(tracking_path)
        head = head_track(participant, face["neutral"].astype(np.float64))
        points = tracking["landmarks"].astype(np.float64)
        track = LandmarkTrack(tracking["landmarks"], np.zeros(points.shape[:2], np.float32), tracking["visible"])
        found = measure_face(track, head, basis, conversation.fps, num_residuals)
        before = (
            landmark_error(points, head, old, motion.expression)
            if old is not None
            else np.full(len(points), np.nan, np.float32)
        )
        after = landmark_error(points, head, basis, found.expression)
        face |= {
            "residual_basis": found.residual_basis.astype(np.float32),
            "fit_error_mm": np.array(found.fit_error, np.float32),
        }
        expression, residual, result = (
            found.expression,
            found.residual,
            Refit(participant.id, "landmarks", "px", before, after),
        )
    elif old is not None:
        expression, before, after = refit_displacements(motion.expression.astype(np.float64), old, basis)
        residual, result = motion.expression_residual, Refit(participant.id, "displacements", "mm", before, after)
    else:
        raise DialogueError(
            f"{conversation.root}: the expressions of {participant.id} are in the basis '{motion.expression_basis}', "
            f"which is not stored with them, and there are no landmarks; process the recording again."
        )
    face |= {"refit_error": result.after.astype(np.float32), "refit_unit": np.array(result.unit)}
    new = replace(
        motion,
        expression=expression.astype(np.float32),
        expression_residual=residual.astype(np.float32),
        expression_basis=basis.name,
        expression_names=basis.expression_names,
        sources={**motion.sources, "expression": f"refit from {motion.expression_basis} ({result.source})"},
    )
    return new, result, face


def head_track(participant: Participant, neutral: Float[np.ndarray, "478 3"]) -> HeadTrack:
    """What the tracker knew of the head, from what a conversation keeps."""
    camera, pose = participant.camera, participant.motion.head_pose.astype(np.float64)
    turn, place = camera.camera_to_person[:, :3], camera.camera_to_person[:, 3]
    rotations = turn.T @ Rotation.from_rotvec(pose[:, :3]).as_matrix()
    translations = (pose[:, 3:] - place) @ turn
    none = np.zeros(len(pose))
    return HeadTrack(neutral, rotations, translations, none, camera.focal, (camera.cx, camera.cy), 0.0)


def landmark_error(
    points: Float[np.ndarray, "num_frames 478 2"],
    head: HeadTrack,
    basis: ExpressionBasis,
    expression: Float[np.ndarray, "num_frames num_expressions"],
) -> Float[np.ndarray, " num_frames"]:
    """How far the landmarks are from the face that shape, poses and expressions predict, pixels (weighted rms)."""
    weights = landmark_weights()
    shapes = head.shape + np.tensordot(expression.astype(np.float64), basis.expression, axes=1)
    predicted = project(shapes, head.rotations, head.translations, head.focal, head.center)
    squares = ((points - predicted) ** 2).sum(axis=-1)
    return np.sqrt(squares @ weights / weights.sum())


def refit_displacements(
    expression: Float[np.ndarray, "num_frames num_old"], old: ExpressionBasis, new: ExpressionBasis
) -> Tuple[Float[np.ndarray, "num_frames num_new"], Float[np.ndarray, " num_frames"], Float[np.ndarray, " num_frames"]]:
    """Coefficients of `new` that move the landmarks as those of `old` do, and how far (millimetres, weighted rms) the
    face moved and what of that is missed: least squares with the new basis' prior and bounds."""
    weights = landmark_weights()
    design = new.expression.reshape(len(new.expression), -1)
    weighted = design * np.repeat(weights, 3) / EXPRESSION_NOISE**2
    moved = expression @ old.expression.reshape(len(old.expression), -1)
    # Displacements are free of noise: the prior only decides what they leave open.
    hessian = weighted @ design.T + 1e-2 * np.eye(len(design)) / new.prior**2
    gradient = moved @ weighted.T
    found = bounded_least_squares(hessian[None], gradient, new.lower, new.upper)
    missed = moved - found @ design

    def rms(displacement: np.ndarray) -> np.ndarray:
        squares = (displacement.reshape(len(expression), -1, 3) ** 2).sum(axis=-1)
        return 1e3 * np.sqrt(squares @ weights / weights.sum())

    return found, rms(moved), rms(missed)
