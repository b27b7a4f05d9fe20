"""Which audio feature moves lips best (DFA-NeRF Table 5's question): avatars that hear contrastive, mel or mfcc, one
table.

    python benchmarks/lip_features.py data/anchor --weights outputs/…/dialogue-lip-sync/…/config.yml

Every avatar is trained on the beginning of one conversation, driven by sound alone, and renders the rest, which neither
it nor, if its run held out as much, the audio encoder saw. Both the rendered and the recorded frames, at the same
resolution, go through the same face tracker. LMD `talking-head` is in pixels of that resolution; the sync offset is
ours, from mouth opening and sound, with the recording's own beside it. A finished training is a file in the output
folder: what was interrupted goes on.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import torch
import tyro
from common import conversation_or_sample
from measuring import report

from dialogue_nerfstudio.cli.training import measure_held_out, train_avatars
from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.conversation.expression_basis import eye_centers
from dialogue_nerfstudio.metrics.lips import landmark_distance, landmark_distance_normalised, mouth_points, sync_offset
from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
from dialogue_nerfstudio.process.expression import mouth_opening
from dialogue_nerfstudio.process.features import FeatureExtractor, write_feature
from dialogue_nerfstudio.process.landmarks import LandmarkTrack
from dialogue_nerfstudio.process.quality import speech_envelope
from dialogue_nerfstudio.process.trackers.registry import TrackerConfig, make_tracker

TRACKED_SIZE = 384
"""Pixels that small pictures are enlarged to for the tracker, which was made for faces of a few hundred."""


@dataclass
class LipFeaturesBenchmark:
    """Compare audio features by the lips they make."""

    conversation: tyro.conf.Positional[Optional[Path]] = None
    """A conversation folder; a simulated one if not given."""
    output: Path = Path("lip_features")
    """Folder for the results; what is there already is not measured again."""
    weights: Optional[Path] = None
    """config.yml, checkpoint or .safetensors file of a lip-sync run, for contrastive."""
    features: tuple[str, ...] = ("contrastive", "mel", "mfcc")
    """What avatars hear."""
    iterations: int = 400
    """Training steps of each."""
    resolution: int = 128
    """Pixels."""
    eval_fraction: float = 0.25
    """Part at the end that is rendered and compared."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the trainings."""
    sample_seconds: float = 20.0
    """Length of the simulated conversation."""


@dataclass
class Lips:
    """Mouths of successive frames."""

    points: np.ndarray
    """Mouth points 48-67 `[T, 20, 2]`, pixels of the compared resolution."""
    opening: np.ndarray
    """`[T]`, over the distance between the eyes."""
    inter_ocular: np.ndarray
    """`[T]`, pixels."""
    visible: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def track_lips(frames: np.ndarray) -> Lips:
    """The default tracker on uint8 frames `[T, H, W, 3]`."""
    scale = TRACKED_SIZE / frames.shape[1]
    enlarged = [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for frame in frames]
    tracker = make_tracker(TrackerConfig())
    tracker.require()
    track: LandmarkTrack = tracker.track(enlarged, len(enlarged))
    points = track.points / scale
    eyes = eye_centers(points)
    distance = np.linalg.norm(eyes[:, 0] - eyes[:, 1], axis=-1)
    return Lips(mouth_points(points), mouth_opening(points), distance, track.visible)


def compare(rendered: Lips, recorded: Lips, envelope: np.ndarray, fps: float) -> dict[str, float]:
    """LMD against the recording and the sync offset of both, over frames whose face was found in both."""
    both = rendered.visible & recorded.visible
    frames = np.arange(len(both))

    def filled(values: np.ndarray) -> np.ndarray:
        return np.interp(frames, frames[both], values[both])

    opening, true = filled(rendered.opening), filled(recorded.opening)
    offset, own = (sync_offset(signal, envelope, fps) for signal in (opening, true))
    return {
        "lmd": landmark_distance(rendered.points[both], recorded.points[both]),
        "lmd_over_inter_ocular": landmark_distance_normalised(
            rendered.points[both], recorded.points[both], recorded.inter_ocular[both]
        ),
        "opening_correlation": float(np.corrcoef(opening, true)[0, 1]),
        "sync_offset": offset.seconds,
        "sync_peak": offset.peak,
        "recording_sync_offset": own.seconds,
        "recording_sync_peak": own.peak,
        "frames_compared": float(both.mean()),
    }


@torch.no_grad()
def render_held_out(pipeline: Any, participant: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rendered and recorded held-out frames of one person, uint8 `[T, H, W, 3]`, and their numbers."""
    model, dataset = pipeline.model, pipeline.datamanager.eval_dataset
    rendered, recorded, numbers = [], [], []
    for row, (shown, frame) in enumerate(zip(dataset.participants, dataset.frames, strict=True)):
        if shown != participant:
            continue
        picture = model.render_frame(dataset.cameras[row : row + 1], frame, participant, "audio")["rgb"]
        rendered.append((picture.clamp(0, 1) * 255).round().byte().cpu().numpy())
        recorded.append((dataset[row]["image"] * 255).round().byte().cpu().numpy())
        numbers.append(frame)
    return np.stack(rendered), np.stack(recorded), np.array(numbers)


def measure_one(options: LipFeaturesBenchmark, data: Path, feature: str, seed: int) -> dict[str, Any]:
    """Trains one avatar and measures its lips."""
    scratch = options.output / "training" / f"{feature}_{seed}"

    def configure(config: Any) -> None:
        config.pipeline.datamanager.dataparser.audio_feature = feature
        config.pipeline.datamanager.dataparser.eval_fraction = options.eval_fraction

    config_path = train_avatars(
        data, scratch, options.iterations, seed, options.resolution, drive="audio", configure=configure
    )
    _, pipeline = load_pipeline_for_rendering(config_path)
    conversation = load_conversation(data)
    audio, rate = conversation.audio()
    envelope = speech_envelope(audio, conversation.num_frames, conversation.fps, rate)
    people = {}
    for participant, name in enumerate(pipeline.model.participant_ids):
        rendered, recorded, frames = render_held_out(pipeline, participant)
        lips = [track_lips(pictures) for pictures in (rendered, recorded)]
        # Only what somebody says themselves moves their lips.
        speaking = conversation.speaking[frames, participant]
        people[name] = compare(*lips, np.where(speaking, envelope[frames], envelope.min()), conversation.fps)
    images = measure_held_out(pipeline)
    for name, row in people.items():
        row["psnr_mouth"] = images[name]["psnr_mouth"]
    shutil.rmtree(scratch)
    return {"people": people}


def with_features(options: LipFeaturesBenchmark) -> Path:
    """A copy of the conversation that has every feature to be compared.

    Raises:
        DialogueError: contrastive is asked for without weights.
    """
    data = options.output / "data"
    source = conversation_or_sample(options.conversation, options.sample_seconds)
    if not data.is_dir():
        shutil.copytree(source, data)
    conversation = load_conversation(data)
    audio, rate = conversation.audio()
    for feature in options.features:
        extractor = FeatureExtractor(feature, str(options.weights) if feature == "contrastive" else None)
        write_feature(data, extractor.feature(audio, rate, conversation.num_frames, conversation.fps))
    return data


def measure(options: LipFeaturesBenchmark) -> dict[str, Any]:
    if "contrastive" in options.features and options.weights is None:
        raise DialogueError("the feature contrastive needs a lip-sync run: give its config.yml with --weights.")
    options.output.mkdir(parents=True, exist_ok=True)
    data = with_features(options)
    settings = {"iterations": options.iterations, "resolution": options.resolution, "held_out": options.eval_fraction}
    figures: dict[str, Any] = {**settings, "features": {}}
    # Seeds outside, so that what was measured so far always compares features.
    for seed in options.seeds:
        for feature in options.features:
            path = options.output / f"{feature}_{seed}.json"
            if not path.is_file():
                path.write_text(
                    json.dumps({"settings": settings, **measure_one(options, data, feature, seed)}, indent=2)
                )
            row = json.loads(path.read_text())
            if row["settings"] != settings:
                raise DialogueError(f"{path} was measured with other settings; give another --output.")
            figures["features"].setdefault(feature, {})[str(seed)] = row["people"]
    return figures


def main(options: LipFeaturesBenchmark) -> None:
    figures = measure(options)
    titles = ("lmd", "lmd_over_inter_ocular", "opening_correlation", "sync_offset", "sync_peak", "psnr_mouth")
    rows = []
    for feature, seeds in figures["features"].items():
        people = [row for of_seed in seeds.values() for row in of_seed.values()]
        rows.append([feature, *(float(np.mean([row[title] for row in people])) for title in titles)])
    rows.append(["recording", 0.0, 0.0, 1.0, people[0]["recording_sync_offset"], people[0]["recording_sync_peak"], "–"])
    report(figures, ("feature", *titles), rows)


if __name__ == "__main__":
    main(tyro.cli(LipFeaturesBenchmark))
