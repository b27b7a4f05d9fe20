"""`ns-dialogue eval-motion`: generated motion against true motion in every metric of the literature, table and JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import numpy as np
import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError

if TYPE_CHECKING:
    from dialogue_nerfstudio.conversation.motion import Motion
    from dialogue_nerfstudio.output.driving import OtherMotion


@dataclass
class EvalMotion:
    """Measure predicted motion against true motion.

    Pose and expression are scored apart, each metric under its protocol's name, because the same name means different
    things in different papers. Both arguments are conversation folders, folders that animate wrote, folders of motions,
    or motion files; people are matched by id, else in their order.
    """

    predicted: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTED")]
    """What was generated."""
    truth: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRUTH")]
    """What really happened."""
    partner: Optional[Path] = None
    """The partner's true motion, a motion file, where the truth does not hold two people."""
    samples: tuple[Path, ...] = ()
    """More predictions of the same moment (other seeds), for diversity."""
    participants: tuple[str, ...] = ()
    """Whom to measure, by the truth's ids; everybody if not given."""
    clip_seconds: Optional[float] = None
    """Cut into clips of this length for what is measured per clip; a person's whole motion is a clip if not given."""
    json: Optional[Path] = None
    """Also write the numbers, with their protocols, here."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.conversation.files import write_json

        if self.clip_seconds is not None and not self.clip_seconds > 0:
            raise DialogueError(f"--clip-seconds {self.clip_seconds:g}: a clip is longer than nothing.")
        report = measure_motion(self)
        if self.json is not None:
            write_json(self.json, report)
        _print_tables(Console(), report)
        return 0


def measure_motion(options: EvalMotion) -> dict[str, Any]:
    """Everything that the table shows.

    Raises:
        DialogueError: a motion is missing, in another basis, or somebody has no partner where one is asked for.
    """
    from dialogue_nerfstudio.metrics.motion import PROTOCOLS, ClipPair, cut_clips, diversity, score_clips
    from dialogue_nerfstudio.output.driving import load_other_motion, map_motions

    predicted, truth = load_other_motion(options.predicted), load_other_motion(options.truth)
    samples = [load_other_motion(path) for path in options.samples]
    for name in options.participants:
        if name not in truth.motions:
            raise DialogueError(
                f"--participants {name}: {options.truth} has no motion of them, but of {', '.join(truth.motions)}."
            )
    ids = list(options.participants or truth.motions)
    pairs = map_motions(ids, list(predicted.motions), [])
    ids = [name for name in ids if name in pairs]
    partners = _partners(options, truth, ids)
    aligned = {
        name: _aligned(predicted.motions[pairs[name]], truth.motions[name], options.predicted, options.truth)
        for name in ids
    }
    fps = next(iter(aligned.values()))[1].fps
    length = None if options.clip_seconds is None else max(2, round(options.clip_seconds * fps))
    report: dict[str, Any] = {
        "predicted": str(options.predicted),
        "truth": str(options.truth),
        "fps": fps,
        "participants": {name: {"frames": aligned[name][1].num_frames, "predicted_as": pairs[name]} for name in ids},
        "clip_seconds": options.clip_seconds,
        "frames_compared": sum(true.num_frames for _, true in aligned.values()),
        "scores": {},
    }
    for kind, field in (("pose", "head_pose"), ("expression", "expression")):
        clips = []
        for name in ids:
            guess, true = aligned[name]
            partner = partners.get(name)
            rows = None if partner is None else getattr(partner, field)[: true.num_frames]
            if rows is not None and len(rows) < true.num_frames:
                raise DialogueError(
                    f"the partner of {name} has {len(rows)} frames of motion, {name} {true.num_frames}; give as many."
                )
            clips.append(ClipPair(getattr(guess, field), getattr(true, field), rows))
        clips = clips if length is None else cut_clips(clips, length)
        scores = score_clips(clips, kind, fps)
        report["scores"][kind] = {
            key: {"value": score.value, "truth": score.truth, "protocol": PROTOCOLS[key]}
            for key, score in scores.items()
        }
        if samples:
            values = []
            for name in ids:
                every = [predicted, *samples]
                rows = [getattr(one.motions[map_motions([name], list(one.motions), [])[name]], field) for one in every]
                frames = min(map(len, rows))
                values.append(diversity(np.stack([row[:frames] for row in rows])))
            report["scores"][kind]["diversity"] = {
                "value": float(np.mean(values)),
                "truth": None,
                "protocol": PROTOCOLS["diversity"],
            }
    report["scores"]["blinks"] = _blinks(options, aligned, fps)
    return report


def _aligned(predicted: "Motion", true: "Motion", predicted_path: Path, true_path: Path) -> "tuple[Motion, Motion]":
    """Both at the truth's rate and of the shorter one's length.

    Raises:
        DialogueError: they are in different bases, or have no second in common.
    """
    from dialogue_nerfstudio.output.driving import resample_motion

    if (predicted.expression_basis, predicted.expression_names) != (true.expression_basis, true.expression_names):
        raise DialogueError(
            f"{predicted_path} is in the expression basis '{predicted.expression_basis}', {true_path} in "
            f"'{true.expression_basis}': carry one over with `ns-dialogue refit`."
        )
    predicted = resample_motion(predicted, true.fps)
    frames = min(predicted.num_frames, true.num_frames)
    if frames < true.fps:
        raise DialogueError(f"{predicted_path} and {true_path} have {frames} frames in common: give a second or more.")
    return predicted.slice(0, frames), true.slice(0, frames)


def _partners(options: EvalMotion, truth: "OtherMotion", ids: list[str]) -> "dict[str, Motion]":
    """The true motion of whom each talks with, where that is known: of two people the other one."""
    from dialogue_nerfstudio.output.driving import load_other_motion, resample_motion

    if options.partner is not None:
        given = load_other_motion(options.partner)
        if len(given.motions) != 1 or len(ids) != 1:
            raise DialogueError(
                f"--partner {options.partner} holds {len(given.motions)} motion(s) for {len(ids)} people: give one "
                "motion file for one of them (--participants)."
            )
        partner = next(iter(given.motions.values()))
        truth.motions[ids[0]].check_same_basis(partner, str(options.partner))
        return {ids[0]: resample_motion(partner, truth.motions[ids[0]].fps)}
    if len(truth.motions) != 2:
        return {}
    first, second = truth.motions
    return {first: truth.motions[second], second: truth.motions[first]}


def _blinks(options: EvalMotion, aligned: "dict[str, tuple[Motion, Motion]]", fps: float) -> dict[str, dict[str, Any]]:
    from dialogue_nerfstudio.conversation.files import read_npz
    from dialogue_nerfstudio.metrics.motion import PROTOCOLS, blink_wtlcc, ear_blinks_per_second, eye_aspect_ratio
    from dialogue_nerfstudio.metrics.tracking import blinks_per_second
    from dialogue_nerfstudio.process.expression import EAR_POINTS

    rates = [
        (blinks_per_second(guess.blink, fps), blinks_per_second(true.blink, fps)) for guess, true in aligned.values()
    ]
    scores = {
        "blinks_per_second_closure": tuple(float(value) for value in np.mean(rates, axis=0)),
        "blink_wtlcc": (float(np.mean([blink_wtlcc(g.blink, t.blink, fps) for g, t in aligned.values()])), None),
    }
    # Only a recorded face has landmarks; the generated motion's own are those of the mesh.
    tracked = [options.truth / "participants" / name / "tracking.npz" for name in aligned]
    if all(path.is_file() for path in tracked):
        landmarks = [read_npz(path)["landmarks"] for path in tracked]
        ratios = [np.mean([eye_aspect_ratio(seen[:, list(p)]) for p in EAR_POINTS], axis=0) for seen in landmarks]
        rate = float(np.mean([ear_blinks_per_second(ratio, fps) for ratio in ratios]))
        scores["blinks_per_second_ear"] = (None, rate)
    return {key: {"value": value, "truth": true, "protocol": PROTOCOLS[key]} for key, (value, true) in scores.items()}


def _print_tables(console: Any, report: dict[str, Any]) -> None:
    from rich.table import Table

    def shown(value: Optional[float]) -> str:
        return "" if value is None else f"{value:.4g}"

    for kind, scores in report["scores"].items():
        table = Table(title=f"{kind}, {report['frames_compared']} frames of {', '.join(report['participants'])}")
        for column in ("metric", "predicted", "truth", "protocol"):
            table.add_column(column, justify="right" if column in ("predicted", "truth") else "left")
        for key, score in scores.items():
            table.add_row(key, shown(score["value"]), shown(score["truth"]), score["protocol"])
        console.print(table)
