"""What a lip-sync run reached: in-sync retrieval with intervals, leakage of its codes, and its mouths against the
truth.

    python benchmarks/lip_sync.py outputs/…/dialogue-lip-sync/…/config.yml --data simulated_motion data/anchor

Retrieval chooses among lags of −15 … 15 frames, from single frames (200 ms) and from several together. Simulated
folders are measured on held-out conversations and on people whom training does not know, recorded ones on their last
part. Intervals are of 95 %, from stretches of a second drawn again with replacement: frames of one second repeat each
other. Closed lips are the gap between the inner lips of the landmarks, relative to /aa ae ah/, in the middle of /m b
p/.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from measuring import report

from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, MOUTH_NAMES, Motion
from dialogue_nerfstudio.conversation.roles import segments_to_frames
from dialogue_nerfstudio.conversation.simulate.dialogue import act_dialogue, speak_dialogue
from dialogue_nerfstudio.motion.dataset import MotionDataset, MotionSequence
from dialogue_nerfstudio.motion.face_codes import leakage
from dialogue_nerfstudio.motion.generator import Character
from dialogue_nerfstudio.motion.lip_sync import MOUTH_FRAMES, REACH, LipSync, retrieved_lags
from dialogue_nerfstudio.motion.signals import MotionSignals, window_steps
from dialogue_nerfstudio.motion.training.load import load_motion_model
from dialogue_nerfstudio.process.audio_features import mel_spectrogram, prosody_features

INNER_LIPS = ((61, 67), (62, 66), (63, 65))
"""Points of the upper and the lower inner lip, one above the other."""

CLOSED, OPEN = ("m", "b", "p"), ("aa", "ae", "ah")


@dataclass
class LipSyncBenchmark:
    """Measure a run of `ns-train dialogue-lip-sync`."""

    load_config: tyro.conf.Positional[Path]
    """Its config.yml."""
    data: tuple[Path, ...] = ()
    """Folders of simulated motion and of conversations."""
    evidence: tuple[int, ...] = (1, 5, 25)
    """Successive frames that a choice is made from, odd numbers."""
    eval_fraction: float = 0.25
    """Part of a recorded conversation, at its end, that was held out."""
    resamples: int = 2000
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap and of the simulation in which lips close."""


@torch.no_grad()
def sync_lags(model: LipSync, sequence: MotionSequence, person: int, evidence: int) -> tuple[np.ndarray, np.ndarray]:
    """Lag found at each anchor that speaks for four fifths of the evidence, and the anchors' frames."""
    motion, signals, half = sequence.motions[person], sequence.signals, MOUTH_FRAMES // 2
    length = motion.num_frames
    expression, blink = (torch.as_tensor(a, dtype=torch.float32)[None] for a in (motion.expression, motion.blink))
    mouth = F.normalize(model.mouth_encoder(model.mouth_codes(expression, blink)), dim=-1)[0]
    first = torch.from_numpy(window_steps(range(half, length - half))[:, 0])
    sound = model.audio_encoder.along(torch.from_numpy(signals.mel[person])[None], first)[0]
    lags = retrieved_lags(sound, mouth, evidence).numpy()
    anchors = np.arange(len(lags)) + half + REACH + evidence // 2
    speaking = np.convolve(signals.speaking[person], np.ones(evidence) / evidence, "same")[anchors] >= 0.8
    return lags[speaking], anchors[speaking]


def share_with_interval(hits: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Mean of hits and its 95 % interval, whole seconds drawn again."""
    groups = np.unique(second, return_inverse=True)[1]
    sums, counts = np.bincount(groups, hits), np.bincount(groups)
    draws = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    return [float(hits.mean()), *(float(value) for value in np.quantile(means, [0.025, 0.975]))]


def measure_retrieval(model: LipSync, dataset: MotionDataset, options: LipSyncBenchmark) -> dict[str, Any]:
    """Exact hits and hits within a frame, by evidence."""
    figures = {}
    for evidence in options.evidence:
        lags, seconds = [], []
        for number, sequence in enumerate(dataset.sequences()):
            for person in range(len(sequence.people)):
                found, anchors = sync_lags(model, sequence, person, evidence)
                lags.append(found)
                seconds.append((number * 100 + person) * 100_000 + anchors // 25)
        lag, second = np.concatenate(lags), np.concatenate(seconds)
        figures[str(evidence)] = {
            "anchors": len(lag),
            **{
                name: share_with_interval(np.abs(lag) <= reach, second, options.resamples, options.seed)
                for name, reach in (("exact", 0), ("within_1", 1))
                if len(lag)
            },
        }
    return figures


@torch.no_grad()
def measure_mouths(model: LipSync, dataset: MotionDataset) -> dict[str, Any]:
    """Leakage, and correlation of generated with true mouth coefficients over frames of speech, by name."""
    generator, faces = model.generator(), []
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in MOUTH_NAMES}
    for sequence in dataset.sequences():
        parts = generator.generate(sequence.signals, sequence.characters, 0)
        for row, (person, motion) in enumerate(zip(sequence.signals.participant_ids, sequence.motions, strict=True)):
            speaking = sequence.signals.speaking[row]
            faces.append(model.landmarks(torch.tensor(motion.expression).float(), torch.tensor(motion.blink).float()))
            for name in MOUTH_NAMES:
                column = EXPRESSION_NAMES.index(name)
                pair = parts[person]["expression"][speaking, column], motion.expression[speaking, column]
                found[name].append(pair)
    correlations = {}
    for name, pairs in found.items():
        moved = [(a - a.mean(), b - b.mean()) for a, b in pairs if len(a)]
        made, true = (np.concatenate(column) for column in zip(*moved, strict=True))
        # Movements that nobody makes in this data have no correlation.
        if true.std() > 0.02:
            correlations[name] = float(made @ true / max(np.linalg.norm(made) * np.linalg.norm(true), 1e-9))
    all_faces = torch.cat(faces)
    return {
        "leakage": leakage(model.autoencoder, all_faces, all_faces.roll(len(all_faces) // 2, 0)),
        "correlation": correlations,
    }


@torch.no_grad()
def measure_closure(model: LipSync, seed: int, conversations: int = 3, num_frames: int = 1000) -> dict[str, float]:
    """Gap between the lips in the middle of CLOSED over that in the middle of OPEN, generated and true."""
    generator = model.generator()
    gaps: dict[str, dict[str, list[float]]] = {kind: {"closed": [], "open": []} for kind in ("generated", "true")}
    for number in range(conversations):
        dialogue = act_dialogue(2, num_frames, 25.0, 1000 + seed + number)
        tracks, _ = speak_dialogue(dialogue, num_frames * 640, 1000 + seed + number)
        names = ("p0", "p1")
        signals = MotionSignals(
            names,
            np.stack([prosody_features(track, 16_000, num_frames) for track in tracks]),
            np.stack([mel_spectrogram(track)[: num_frames * 16 // 5] for track in tracks]),
            segments_to_frames(dialogue.segments, names, num_frames, 25.0).T,
        )
        motions = [
            Motion(act.head_pose, act.expression.astype(np.float32), act.blink, act.gaze, np.zeros((num_frames, 0)))
            for act in dialogue.performances
        ]
        people = [
            Character(name, motion, speaking)
            for name, motion, speaking in zip(names, motions, signals.speaking, strict=True)
        ]
        parts = generator.generate(signals, people, 0)
        for row, (name, motion) in enumerate(zip(names, motions, strict=True)):
            made = {"generated": parts[name]["expression"], "true": motion.expression}
            for kind, expression in made.items():
                points = model.landmarks(torch.tensor(expression).float(), torch.zeros(num_frames, 2)).numpy()
                gap = np.mean([points[:, a, 1] - points[:, b, 1] for a, b in INNER_LIPS], axis=0)
                for state, phones in (("closed", CLOSED), ("open", OPEN)):
                    gaps[kind][state] += [
                        float(gap[int((turn.start + 0.5 * (phone.start + phone.end)) * 25.0)])
                        for turn in dialogue.turns
                        if turn.participant == row
                        for phone in turn.utterance.phones
                        if phone.name in phones and (turn.start + phone.end) * 25.0 < num_frames
                    ]
    return {f"{kind}_closed_over_open": float(np.mean(g["closed"]) / np.mean(g["open"])) for kind, g in gaps.items()}


def measure(options: LipSyncBenchmark) -> dict[str, Any]:
    config, model = load_motion_model(options.load_config, "cpu")
    figures: dict[str, Any] = {"step": config.load_step, "contrast": config.pipeline.model.contrast, "data": {}}
    for path in options.data:
        splits = ("eval",) if (path / "conversation.json").is_file() else ("eval", "unseen")
        for split in splits:
            dataset = MotionDataset([path], split, model.config.window, True, options.eval_fraction)
            figures["data"][f"{path.name} {split}"] = {
                "retrieval": measure_retrieval(model, dataset, options),
                **measure_mouths(model, dataset),
            }
    return {**figures, **measure_closure(model, options.seed)}


def main(options: LipSyncBenchmark) -> None:
    figures = measure(options)
    rows = []
    for name, data in figures["data"].items():
        for evidence, row in data["retrieval"].items():
            for hit in ("exact", "within_1"):
                if hit in row:
                    value, low, high = row[hit]
                    rows.append([f"{name}: {hit}, {evidence} frames", f"{value:.3f} ({low:.3f} … {high:.3f})"])
        rows += [[f"{name}: {leak}", value] for leak, value in data["leakage"].items()]
        rows += [[f"{name}: correlation of {mouth}", value] for mouth, value in data["correlation"].items()]
    rows += [[kind, figures[kind]] for kind in ("generated_closed_over_open", "true_closed_over_open")]
    report(figures, ("figure", "value"), rows)


if __name__ == "__main__":
    main(tyro.cli(LipSyncBenchmark))
