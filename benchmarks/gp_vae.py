"""VAEs of head pose and blinks (DFA-NeRF Table 4), and whether style separates in the latent space (Fig. 6).

    python benchmarks/gp_vae.py gp_vae_results                      # simulates its data; about 3 CPU minutes a model
    python benchmarks/gp_vae.py gp_vae_results --data data/motion --seeds 0 1 2

MLP VAE, LSTM VAE, Transformer VAE (independent frames as prior) and Transformer GP-VAE: the same steps, data, widths
and losses, nothing but `network` and `prior` differs; and the last once more with poses relative to everybody
(`frame`), as published. A finished model and its figures are files in the output folder: what was interrupted goes on
where it stopped. Prints Markdown, keeps JSON.

People are known by `--reference-seconds` of motion from training (of people whom training does not know, from before
what is measured). *Windows*: the last τ frames and what is heard, then the next T − τ frames against the truth.
*Long*: the whole of a held-out conversation in one stream.
"""

import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Optional

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dialogue_nerfstudio.conversation.simulate.motion_hours import MotionHoursConfig, simulate_motion_hours
from dialogue_nerfstudio.metrics.motion import diversity, frozen_share
from dialogue_nerfstudio.metrics.tracking import position_difference, rotation_difference
from dialogue_nerfstudio.motion.blinks import blink_starts
from dialogue_nerfstudio.motion.dataset import MotionDataset, MotionSequence
from dialogue_nerfstudio.motion.generator import Character
from dialogue_nerfstudio.motion.gp_vae import GpVae, GpVaeConfig
from dialogue_nerfstudio.nerf.frame_store import default_cache_folder

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("MLP VAE", {"network": "mlp", "prior": "normal"}),
    "lstm": ("LSTM VAE", {"network": "lstm", "prior": "normal"}),
    "transformer": ("Transformer VAE", {"network": "transformer", "prior": "normal"}),
    "gp": ("Transformer GP-VAE", {"network": "transformer", "prior": "gp"}),
    "shared": ("Transformer GP-VAE, poses relative to everybody", {"frame": "everybody"}),
}


@dataclass
class Comparison:
    """Trains and measures the models."""

    output: tyro.conf.Positional[Path]
    """Folder of models and figures."""
    data: Optional[Path] = None
    """Folder of `ns-dialogue simulate --motion-only`; one is simulated if not given."""
    hours: float = 1.6
    """How much is simulated."""
    split: str = "eval"
    """eval: other conversations of the people of training; unseen: other people."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Which models."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training; each is a model."""
    steps: int = 1500
    """Of training."""
    windows_per_batch: int = 16
    """Windows of a step."""
    samples: int = 4
    """Seeds of generation for each window."""
    windows: int = 12
    """Windows of each conversation."""
    reference_seconds: float = 60.0
    """Motion by which people are known."""
    style: bool = True
    """Also the probe of personal style, and its picture `style_….png` in the output folder."""

    def run(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        folder = self.data or self._simulated()
        config = _config({}, self.steps)
        train = MotionDataset([folder], "train", config.window)
        sequences = list(MotionDataset([folder], self.split, config.window).sequences(self.reference_seconds))
        results: dict[str, list[dict[str, float]]] = defaultdict(list)
        for seed in self.seeds:
            for kind in self.kinds:
                path = self.output / f"{kind}_{seed}_{self.split}.json"
                if not path.is_file():
                    model = self._trained(kind, seed, train)
                    path.write_text(json.dumps(self._measured(model, sequences, train)), encoding="utf-8")
                results[kind].append(json.loads(path.read_text(encoding="utf-8")))
                print(f"{kind} {seed}: {results[kind][-1]}", flush=True)
        print_table(results)
        for kind in ("gp", "shared"):
            if self.style and kind in self.kinds:
                print(KINDS[kind][0])
                print_style(self._trained(kind, self.seeds[0], train), train, self.output / f"style_{kind}.png")

    def _simulated(self) -> Path:
        folder = default_cache_folder() / "benchmarks" / f"motion_{self.hours:g}h"
        simulate_motion_hours(MotionHoursConfig(hours=self.hours), folder, workers=1)
        return folder

    def _trained(self, kind: str, seed: int, train: MotionDataset) -> GpVae:
        config = _config(KINDS[kind][1], self.steps)
        torch.manual_seed(seed)
        model = config.build(train.statistics)
        path = self.output / f"{kind}_{seed}.pt"
        if path.is_file():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        begun = time.process_time()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.05 ** (step / self.steps))
        for step in range(self.steps):
            torch.manual_seed(seed * 1_000_003 + step)
            optimizer.zero_grad()
            windows = train.draw(self.windows_per_batch, np.random.default_rng([seed, step]))
            sum(model.losses(windows, step).values()).backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimizer.step()
            scheduler.step()
        print(f"{kind} {seed}: trained in {time.process_time() - begun:.0f} CPU seconds", flush=True)
        torch.save(model.state_dict(), path)
        return model.eval()

    def _measured(self, model: GpVae, sequences: list[MotionSequence], train: MotionDataset) -> dict[str, float]:
        figures: dict[str, list[float]] = defaultdict(list)
        for sequence in sequences:
            self._measure_windows(model, sequence, figures)
        events: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for sequence in sequences:
            for seed in range(max(self.samples // 2, 1)):
                self._measure_long(model, sequence, figures, events, seed)
        deviations = []
        for person, (made, seconds) in ((p, np.sum(rows, axis=0)) for p, rows in events.items()):
            deviations.append(made / seconds / train.styles[person]["blink_rate"] - 1.0)
        return {
            **{name: float(np.mean(values)) for name, values in figures.items()},
            "blinks_of_persons_percent": 100.0 * float(np.mean(deviations)) + 100.0,
            "blinks_deviation_percent": 100.0 * float(np.mean(np.abs(deviations))),
        }

    def _measure_windows(self, model: GpVae, sequence: MotionSequence, figures: dict[str, list[float]]) -> None:
        generator = model.generator()
        central = replace(generator, deviation=0.0)
        length = model.config.window_frames - model.config.beginning_frames
        tau = model.config.beginning_frames
        total = sequence.signals.num_frames
        for start in map(int, np.linspace(tau, total - length, self.windows).astype(int) // 5 * 5):
            people = [
                _until(character, motion, sequence.signals.speaking[index], start)
                for index, (character, motion) in enumerate(zip(sequence.characters, sequence.motions, strict=True))
            ]
            heard = sequence.signals.frames(start, start + length)
            made = [generator.generate(heard, people, seed) for seed in range(self.samples)]
            mean = central.generate(heard, people, 0)
            for index, person in enumerate(people):
                whole = sequence.motions[index].head_pose
                true = whole[start : start + length]
                poses = np.stack([sample[person.id]["head_pose"] for sample in made])
                _add_differences(figures, "", poses, true, whole)
                _add_differences(figures, "mean_", mean[person.id]["head_pose"][None], true, whole)
                scale = whole.std(axis=0)
                figures["diversity"].append(diversity((poses / scale)[..., :3]))
                error = np.abs(poses - true).mean(axis=0) / scale
                pairs = [np.abs(poses[i] - poses[j]) / scale for i in range(len(poses)) for j in range(i)]
                figures["crps"].append(float((error - 0.5 * np.mean(pairs, axis=0)).mean()))

    def _measure_long(
        self,
        model: GpVae,
        sequence: MotionSequence,
        figures: dict[str, list[float]],
        events: dict[int, list[tuple[float, float]]],
        seed: int,
    ) -> None:
        begun = time.process_time()
        made = model.generator().generate(sequence.signals, sequence.characters, seed)
        spent = time.process_time() - begun
        figures["frames_a_cpu_second"].append(sequence.signals.num_frames / spent)
        for index, person in enumerate(sequence.characters):
            pose, true = made[person.id]["head_pose"], sequence.motions[index].head_pose
            figures["frozen_percent"].append(100.0 * frozen_share(pose, true, 25.0))
            figures["true_frozen_percent"].append(100.0 * frozen_share(true, true, 25.0))
            speed = np.abs(np.diff(pose[:, :3], axis=0)).mean() / np.abs(np.diff(true[:, :3], axis=0)).mean()
            figures["speed_of_persons_percent"].append(100.0 * float(speed))
            spread = pose[:, :3].std(axis=0).mean() / true[:, :3].std(axis=0).mean()
            figures["spread_of_persons_percent"].append(100.0 * float(spread))
            blinks = float(blink_starts(torch.from_numpy(made[person.id]["blink"])).sum())
            events[sequence.people[index]].append((blinks, len(pose) / 25.0))


def _config(changes: dict[str, Any], steps: int) -> GpVaeConfig:
    return GpVaeConfig(**{**asdict(GpVaeConfig()), "latent_steps": round(0.4 * steps), **changes})


def _until(character: Character, motion: Any, speaking: np.ndarray, start: int) -> Character:
    """A person known by their reference, whose last frames are those before `start`."""
    recent = motion.slice(0, start)
    joined = {name: np.concatenate([getattr(character.reference, name), getattr(recent, name)]) for name in _FIELDS}
    return Character(
        character.id,
        replace(character.reference, **joined),
        np.concatenate([character.was_speaking, speaking[:start]]),
    )


_FIELDS = ("head_pose", "expression", "blink", "gaze", "expression_residual")


def _add_differences(
    figures: dict[str, list[float]], prefix: str, poses: np.ndarray, true: np.ndarray, whole: np.ndarray
) -> None:
    """D-Rot and D-Pos, % of the range (largest − smallest, mean of the three numbers) of the person's true motion in
    this conversation."""
    for name, part, difference in (
        ("d_rot_percent", slice(0, 3), rotation_difference),
        ("d_pos_percent", slice(3, 6), position_difference),
    ):
        extent = float(np.ptp(whole[:, part], axis=0).mean())
        figures[prefix + name] += [100.0 * difference(pose[:, part], true[:, part]) / extent for pose in poses]


COLUMNS = {
    "D-Rot %": "d_rot_percent",
    "D-Pos %": "d_pos_percent",
    "D-Rot % of the mean": "mean_d_rot_percent",
    "D-Pos % of the mean": "mean_d_pos_percent",
    "CRPS": "crps",
    "diversity": "diversity",
    "frozen %": "frozen_percent",
    "speed, % of the person's": "speed_of_persons_percent",
    "spread, % of the person's": "spread_of_persons_percent",
    "blinks/s, % of the person's": "blinks_of_persons_percent",
    "deviation of blinks/s, %": "blinks_deviation_percent",
    "frames a CPU second": "frames_a_cpu_second",
}
"""Title → figure."""


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
    """Means over training seeds, ± their standard deviation where there are several."""
    print("| model | " + " | ".join(COLUMNS) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for kind, rows in results.items():
        cells = []
        for figure in COLUMNS.values():
            values = [row[figure] for row in rows]
            spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4g}{spread}")
        print(f"| {KINDS[kind][0]} | " + " | ".join(cells) + " |")


# Personal style -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def latent_codes(model: GpVae, dataset: MotionDataset, hears: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, people, conversations) of the windows that lie end to end: mean and deviation over time of E_ah's μ′."""
    codes, people, starts = [], [], []
    for first in range(0, len(dataset), 64):
        windows = dataset.batch(range(first, min(first + 64, len(dataset))))
        _, beginning = model.observe(windows)
        heard = model.hear(windows, torch.full(windows.own.speaking.shape, hears))
        mean = model.predict(beginning, heard).mean()
        codes.append(torch.cat([mean.mean(-1), mean.std(-1)], dim=-1).numpy())
        people.append(windows.person.numpy())
        starts.append(windows.start.numpy())
    # Windows of one person in one conversation follow one another, then come the partner's.
    runs = np.cumsum(np.diff(np.concatenate(starts), prepend=0) < 0)
    return np.concatenate(codes), np.concatenate(people), runs // 2


def print_style(model: GpVae, dataset: MotionDataset, picture: Path, together: int = 5) -> None:
    """Accuracy of a linear probe that names the person, cross-validated over conversations, and the codes' first two
    principal components.

    Args:
        model: a trained model.
        dataset: whose windows are coded.
        picture: the figure to write.
        together: windows one after the other whose mean code is a point of the figure.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.6))
    for panel, hears in zip(panels, (True, False), strict=True):
        codes, people, conversations = latent_codes(model, dataset, hears)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
        folds = GroupKFold(min(5, len(np.unique(conversations))))
        accuracy = cross_val_score(probe, codes, people, groups=conversations, cv=folds)
        number = len(np.unique(people))
        title = "with sound" if hears else "without sound"
        print(
            f"style {title}: a linear probe names the person of a window in {100 * accuracy.mean():.1f} % "
            f"(± {100 * accuracy.std(ddof=1):.1f} over folds; {number} people, chance {100 / number:.1f} %)"
        )
        points, names = [], []
        for conversation in np.unique(conversations):
            for person in np.unique(people[conversations == conversation]):
                rows = codes[(conversations == conversation) & (people == person)]
                parts = np.array_split(rows, max(len(rows) // together, 1))
                points += [part.mean(axis=0) for part in parts]
                names += [person] * len(parts)
        flat = PCA(2).fit_transform(StandardScaler().fit_transform(np.array(points)))
        panel.scatter(flat[:, 0], flat[:, 1], c=names, cmap="tab20", s=14)
        panel.set(title=f"{title}: probe {100 * accuracy.mean():.0f} %", xlabel="component 1", ylabel="component 2")
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    tyro.cli(Comparison).run()
