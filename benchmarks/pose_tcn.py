"""How well `dialogue-pose-tcn` foresees listeners' nods on simulated conversations whose ceiling is known, with and
without sound and the speaker's poses (DialogueNeRF, Fig. 7 and 8): a table and curves over the truth.

Run: python benchmarks/pose_tcn.py [--data FOLDER] [--seeds 5] [--steps 800] [--figure docs/images/pose_tcn.png]

Every variant is trained on the same conversations, once a seed, and looks at held-out conversations of the same people
from end to end: everything after the first ten seconds counts. Correlations are of the Euler pitch over listening
frames (the person silent, the partner speaking), each person and conversation around its own mean. The ceiling is the
correlation of the simulation's conditional mean with the same truth.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
import tyro
from common import default_cache_folder, device
from scipy import stats

from dialogue_nerfstudio.motion.dataset import MotionDataset
from dialogue_nerfstudio.motion.pose_tcn import PoseTcn, masked_correlation, pitch
from dialogue_nerfstudio.motion.training.config import METHODS
from dialogue_nerfstudio.motion.training.pipeline import MotionPipeline
from dialogue_nerfstudio.motion.windows import MotionWindows

VARIANTS = {
    "sound and poses": {},
    "without sound": {"use_audio": False},
    "without poses": {"use_partner_pose": False},
}


@dataclass
class PoseTcnBenchmark:
    """Trains and measures."""

    data: Optional[Path] = None
    """A folder of `ns-dialogue simulate --motion-only`; made in the cache folder if None."""
    hours: float = 1.6
    """How much to simulate where no data is given."""
    seeds: int = 5
    """Trainings of each variant."""
    steps: Optional[int] = None
    """Steps of each; None for the method's."""
    figure: Optional[Path] = None
    """Where the curves go."""
    table: Optional[Path] = None
    """Where the figures go as JSON."""

    def run(self) -> None:
        data = self.data or simulated(self.hours)
        held_out = whole_conversations(data)
        truth = pitch(held_out.own.head_pose)
        results: Dict[str, List[Dict[str, float]]] = {name: [] for name in VARIANTS}
        curves: Dict[str, torch.Tensor] = {}
        for seed in range(self.seeds):
            for name, changes in VARIANTS.items():
                started = time.process_time()
                model = self.train(data, seed, changes)
                seconds = time.process_time() - started
                with torch.no_grad():
                    expected = pitch(model.predict(held_out)[0])
                context = model.config.context
                listening = ~held_out.own.speaking[:, context:] & held_out.partner.speaking[:, context:]
                found = {
                    "correlation": masked_correlation(expected, truth[:, context:], listening),
                    "ceiling": masked_correlation(
                        pitch(held_out.own.expected_head_pose)[:, context:], truth[:, context:], listening
                    ),
                    "cpu_seconds": seconds,
                }
                found["share"] = found["correlation"] / found["ceiling"]
                results[name].append(found)
                curves.setdefault(name, expected)
                if not changes:
                    whole = model
                print(f"seed {seed}, {name}: {found}", flush=True)
        print(table(results))
        # The last seed's model that hears and sees, by itself.
        figures = {key: round(value, 3) for key, value in generation(whole, data).items()}
        print(f"generation: {figures}")
        if self.table:
            self.table.write_text(json.dumps(results, indent=2))
        if self.figure:
            draw(self.figure, held_out, curves, context)

    def train(self, data: Path, seed: int, changes: Dict[str, bool]) -> PoseTcn:
        """The method as ns-train would train it, without its log files."""
        config = METHODS["dialogue-pose-tcn"].config
        pipeline_config = replace(
            config.pipeline,
            datamanager=replace(config.pipeline.datamanager, data=data, seed=seed),
            model=replace(config.pipeline.model, **changes),
        )
        torch.manual_seed(seed)
        pipeline = MotionPipeline(pipeline_config, device=device())
        (parameters,) = pipeline.get_param_groups().values()
        group = config.optimizers["networks"]
        optimiser = group["optimizer"].setup(params=parameters)
        steps = self.steps or config.max_num_iterations
        scheduler = replace(group["scheduler"], max_steps=steps).setup().get_scheduler(optimiser, 0.0)
        pipeline.train()
        for step in range(steps):
            optimiser.zero_grad()
            _, losses, _ = pipeline.get_train_loss_dict(step)
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, group["optimizer"].max_norm)
            optimiser.step()
            scheduler.step()
        return pipeline.model.eval()


def simulated(hours: float) -> Path:
    """Hours of conversations in the cache folder."""
    from dialogue_nerfstudio.conversation.simulate.motion_hours import MotionHoursConfig, simulate_motion_hours

    folder = default_cache_folder() / "benchmarks" / f"motion_{hours:g}"
    simulate_motion_hours(MotionHoursConfig(hours=hours), folder, None, lambda done, total: None)
    return folder


def whole_conversations(data: Path) -> MotionWindows:
    """Every held-out conversation from end to end, from every person's side."""
    lengths = {len(each.motions[0].head_pose) for each in MotionDataset([data], "eval").sequences()}
    dataset = MotionDataset([data], "eval", min(lengths))
    return dataset.batch(range(len(dataset))).to(device())


def generation(model: PoseTcn, data: Path) -> Dict[str, float]:
    """Held-out conversations generated from their sound alone: speed, liveliness, and whether listeners still answer.

    Returns:
        frames of everybody a CPU second; deviation of the generated pitch over the true one, sampled and most likely;
        correlation of the most likely pitch of listeners with the truth where the speaker's poses are generated too;
        share of the characters whose code is mostly that of the right person.
    """
    frames, seconds, recognised = 0, 0.0, []
    pitches: Dict[str, List[torch.Tensor]] = {"truth": [], "likely": [], "sampled": [], "listening": []}
    for sequence in MotionDataset([data], "eval", 500).sequences():
        for name, sampled in (("sampled", True), ("likely", False)):
            started = time.process_time()
            parts = model.generator(sampled).generate(sequence.signals, sequence.characters, seed=0)
            seconds, frames = seconds + time.process_time() - started, frames + sequence.signals.num_frames
            pitches[name] += [pitch(torch.from_numpy(parts[who.id]["head_pose"])) for who in sequence.characters]
        pitches["truth"] += [pitch(torch.from_numpy(motion.head_pose)) for motion in sequence.motions]
        speaking = torch.from_numpy(sequence.signals.speaking)
        pitches["listening"] += list(~speaking & speaking.flip(0))
        rest = torch.stack([torch.from_numpy(who.reference.head_pose).mean(dim=0) for who in sequence.characters])
        found = model.known.recognise(rest.to(device()))
        recognised += [float(found[row, person] > 0.5) for row, person in enumerate(sequence.people)]
    joined = {name: torch.stack(parts) for name, parts in pitches.items()}
    truth = joined["truth"].std(dim=1).mean()
    return {
        "frames_per_cpu_second": frames / seconds,
        "sampled_deviation": float(joined["sampled"].std(dim=1).mean() / truth),
        "likely_deviation": float(joined["likely"].std(dim=1).mean() / truth),
        "listener_correlation": masked_correlation(joined["likely"], joined["truth"], joined["listening"]),
        "recognised": float(np.mean(recognised)),
    }


def table(results: Dict[str, List[Dict[str, float]]]) -> str:
    """The figures as Markdown, with paired tests of every ablation against the whole."""
    whole = np.array([found["correlation"] for found in results["sound and poses"]])
    lines = [
        "| input | listener pitch correlation | share of the ceiling | less than with both, p | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    for name, each in results.items():
        values = np.array([found["correlation"] for found in each])
        share = np.array([found["share"] for found in each])
        p = stats.ttest_rel(whole, values, alternative="greater").pvalue if values is not whole else np.nan
        tested = "" if name == "sound and poses" else f"{p:.2g}"
        spread = values.std(ddof=1) if len(values) > 1 else float("nan")
        seconds = np.mean([found["cpu_seconds"] for found in each])
        lines.append(f"| {name} | {values.mean():.3f} ± {spread:.3f} | {share.mean():.1%} | {tested} | {seconds:.0f} |")
    ceiling = results["sound and poses"][0]["ceiling"]
    return "\n".join([*lines, f"\nceiling {ceiling:.3f}; {len(whole)} seeds, paired t-test, one-sided"])


def draw(path: Path, windows: MotionWindows, curves: Dict[str, torch.Tensor], context: int) -> None:
    """Twenty seconds of the longest listening, predictions over the truth, one row a variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    listening = (~windows.own.speaking & windows.partner.speaking)[:, context:].float()
    frames = min(500, listening.shape[1])
    much = torch.nn.functional.avg_pool1d(listening.unsqueeze(1), frames, 1).squeeze(1)
    row, first = divmod(int(much.argmax()), much.shape[1])
    span = slice(first, first + frames)
    seconds = np.arange(frames) / 25.0

    def degrees(values: torch.Tensor) -> np.ndarray:
        return torch.rad2deg(values[row, span]).cpu().numpy()

    truth = pitch(windows.own.head_pose)[:, context:]
    ceiling = pitch(windows.own.expected_head_pose)[:, context:]
    figure, axes = plt.subplots(len(curves), 1, figsize=(9, 2.1 * len(curves)), sharex=True, sharey=True)
    for axis, (name, expected) in zip(axes, curves.items(), strict=True):
        axis.fill_between(
            seconds, 0, 1, where=listening[row, span].cpu().numpy() > 0, transform=axis.get_xaxis_transform(),
            color="0.92", label="listening", linewidth=0,
        )  # fmt: skip
        axis.plot(seconds, degrees(truth), color="tab:orange", label="truth")
        axis.plot(seconds, degrees(ceiling), color="0.45", linestyle=":", label="what can be known")
        axis.plot(seconds, degrees(expected), color="tab:blue", label="predicted")
        axis.set_title(name, fontsize=10)
        axis.set_ylabel("pitch, °")
    axes[-1].set_xlabel("seconds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", fontsize=8, ncols=4)
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 0.96))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    tyro.cli(PoseTcnBenchmark).run()
