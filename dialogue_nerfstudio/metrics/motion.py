"""Generated motion against true motion: the metrics of the listening-head literature, each under its protocol's name.

Conventions. A *clip* is one person's motion, float `[T, D]`, T frames at `fps`; pose (D = 6, axis-angle in radians and
metres) and expression (D coefficients) are scored apart. In formulas Y is the truth, Ŷ the prediction, X the partner.
"Per clip" metrics are means over clips. A correlation with something that never changes is 0. Protocol names and the
papers behind them: `PROTOCOLS`.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh
from sklearn.cluster import KMeans

from dialogue_nerfstudio.metrics.tracking import position_difference, rotation_difference

PROTOCOLS: Dict[str, str] = {
    "d_rot": "MakeItTalk: mean |Y − Ŷ| of the axis-angle numbers, rad, divided by nothing",
    "d_rot_percent": "the same, % of the truth's range (largest − smallest of each number, then the mean)",
    "d_pos": "MakeItTalk: mean |Y − Ŷ| of the translation's numbers, m, divided by nothing",
    "d_pos_percent": "the same, % of the truth's range",
    "l1_rlhg": "RLHG, ViCo board: mean |Y − Ŷ| over frames and numbers (they call it FD)",
    "fd_frechet": "DIM, DualTalk, TIMAR: Fréchet distance of Gaussians over frames, per clip",
    "p_fd": "the same of [X, Y] against [X, Ŷ], per clip",
    "v_d": "L2L: variance over time, mean over numbers, per clip",
    "v_d_flattened": "DIM: variance of all of a clip's numbers together",
    "si_d_l2l": "L2L: −Σ p·log2(p + 1e-6) over k-means clusters of the truth; k = 15 expression, 9 pose",
    "si_d_dim": "DIM: the same, k = 40 expression, 20 pose",
    "si_d_dualtalk": "DualTalk: the same, k = 40 expression, 10 pose",
    "rpcc": "mean over numbers of |PCC(Y, X) − PCC(Ŷ, X)|, per clip",
    "rpcc_flattened": "DIM: |PCC(Y, X) − PCC(Ŷ, X)| of all of a clip's numbers together",
    "wtlcc": "mean |WTLCC(Y, X) − WTLCC(Ŷ, X)| over windows and lags; windows of 4 s every 2 s, lags to ±1 s (ours)",
    "tlcc_reactface": "REACT, ReactFace: |lag| of the largest correlation, lags −49 … +49, mean over numbers first",
    "sts": "sqrt(Σ (ΔY − ΔŶ)² / 0.1), per clip",
    "sts_joined": "DIM: the same over all clips put one after the other, steps across the joins included",
    "diversity": "mean L2 distance a frame between pairs of samples of the same moment (ours)",
    "frozen": "share of 1 s windows in which no number's deviation reaches 5 % of the truth's over the clip (ours)",
    "blinks_per_second_closure": "runs of closure ≥ 0.4 (mean of both eyes, at most 1 s) over seconds",
    "blinks_per_second_ear": "runs of the eye aspect ratio below 0.2 (mean of both eyes) over seconds",
    "blink_wtlcc": "largest correlation of predicted and true blinks within ±1 s, mean over windows of 4 s every 2 s",
}
"""What every key of the tables says."""

CLUSTERS: Dict[str, Tuple[int, int]] = {"l2l": (15, 9), "dim": (40, 20), "dualtalk": (40, 10)}
"""k of expression and of pose, by protocol of SI-D."""

WINDOW, HOP, LAG = 4.0, 2.0, 1.0
"""Seconds of a window of WTLCC, from one to the next, and of the longest lag either way."""

STS_STEP = 0.1
"""What squared differences of steps are divided by."""

Clip = Float[np.ndarray, "T D"]


def _percent_of_range(difference: float, true: Clip) -> float:
    extent = float(np.ptp(true, axis=0).mean())
    return 100.0 * difference / extent if extent > 0 else 0.0


def l1_rlhg(predicted: Clip, true: Clip) -> float:
    """(1 / TD) Σ |Y − Ŷ|."""
    return float(np.abs(predicted - true).mean(dtype=np.float64))


def frechet_distance(predicted: Float[np.ndarray, "N D"], true: Float[np.ndarray, "M D"]) -> float:
    """‖μ − μ̂‖² + Tr(Σ + Σ̂ − 2 (Σ Σ̂)^½), Gaussians over frames.

    Tr (Σ Σ̂)^½ is the sum of the square roots of the eigenvalues of Σ^½ Σ̂ Σ^½, which is symmetric: no complex numbers
    arise where a covariance is singular.
    """
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    mean, covariance = true.mean(0), np.atleast_2d(np.cov(true, rowvar=False))
    other_mean, other_covariance = predicted.mean(0), np.atleast_2d(np.cov(predicted, rowvar=False))
    values, vectors = eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(eigh(root @ other_covariance @ root, eigvals_only=True), 0.0)).sum()
    distance = np.sum((mean - other_mean) ** 2) + np.trace(covariance) + np.trace(other_covariance) - 2.0 * cross
    return float(max(distance, 0.0))


def paired_frechet_distance(predicted: Clip, true: Clip, partner: Float[np.ndarray, "T C"]) -> float:
    """P-FD: the Fréchet distance between [X, Ŷ] and [X, Y]."""
    return frechet_distance(np.concatenate([partner, predicted], 1), np.concatenate([partner, true], 1))


def variance_over_time(clip: Clip) -> float:
    """V-D: mean over numbers of the variance over time."""
    return float(clip.var(axis=0, dtype=np.float64).mean())


def flattened_variance(clip: Clip) -> float:
    """V-D as DIM's code takes it: the variance of all numbers of the clip together."""
    return float(clip.var(dtype=np.float64))


def shannon_diversity(
    predicted: Float[np.ndarray, "N D"], true: Float[np.ndarray, "M D"], clusters: int, seed: int = 0
) -> Tuple[float, float]:
    """SI-D of the prediction and of the truth: −Σ p log2(p + 1e-6) of the histogram over k-means clusters of the truth.

    Raises:
        ValueError: the truth has fewer frames than there are clusters.
    """
    if len(true) < clusters:
        raise ValueError(f"SI-D with {clusters} clusters needs as many frames of truth, not {len(true)}")
    found = KMeans(clusters, n_init=10, random_state=seed).fit(true.astype(np.float64))
    return (
        _entropy(found.predict(predicted.astype(np.float64)), clusters),
        _entropy(found.labels_, clusters),
    )


def _entropy(labels: np.ndarray, clusters: int) -> float:
    share = np.bincount(labels, minlength=clusters) / len(labels)
    return float(-(share * np.log2(share + 1e-6)).sum())


def correlation(
    first: Float[np.ndarray, "frames ..."], second: Float[np.ndarray, "frames ..."]
) -> Float[np.ndarray, "..."]:
    """Pearson's correlation along the first axis; 0 where one of the two never changes."""
    first = first - first.mean(axis=0, dtype=np.float64)
    second = second - second.mean(axis=0, dtype=np.float64)
    scale = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return np.where(scale > 1e-12, (first * second).sum(axis=0) / np.maximum(scale, 1e-12), 0.0)


def rpcc(predicted: Clip, true: Clip, partner: Clip) -> float:
    """Mean over numbers of |PCC(Y, X) − PCC(Ŷ, X)|."""
    return float(np.abs(correlation(true, partner) - correlation(predicted, partner)).mean())


def rpcc_flattened(predicted: Clip, true: Clip, partner: Clip) -> float:
    """|PCC(Y, X) − PCC(Ŷ, X)| of all numbers of the clip as one sequence."""
    return float(abs(correlation(true.ravel(), partner.ravel()) - correlation(predicted.ravel(), partner.ravel())))


def lagged_correlation(first: Clip, second: Clip, longest: int) -> Float[np.ndarray, " lags"]:
    """Mean over numbers of the correlation of first[t + lag] with second[t], lags −longest … +longest; a lag of which
    fewer than two frames are left is 0."""
    values = np.zeros(2 * longest + 1)
    for column, lag in enumerate(range(-longest, longest + 1)):
        early, late = max(0, -lag), max(0, lag)
        kept = len(first) - abs(lag)
        if kept >= 2:
            values[column] = correlation(first[late : late + kept], second[early : early + kept]).mean()
    return values


def windowed_lagged_correlation(
    first: Clip, second: Clip, fps: float, window: float = WINDOW, hop: float = HOP, longest: float = LAG
) -> Float[np.ndarray, "windows lags"]:
    """WTLCC: mean over numbers of the correlation of first[t + lag] with second[t] in windows of `window` seconds, one
    every `hop` seconds, at all lags up to ±`longest` seconds; a clip shorter than a window is one window.

    A window is a piece of `second`; where first[t + lag] lies outside the clip those frames do not count.
    """
    length, step, reach = round(window * fps), max(1, round(hop * fps)), round(longest * fps)
    starts = np.arange(0, max(1, len(second) - length + 1), step)
    curves = np.zeros((len(starts), 2 * reach + 1))
    for row, start in enumerate(starts.tolist()):
        stop = min(start + length, len(second))
        for column, lag in enumerate(range(-reach, reach + 1)):
            begin, end = max(start, -lag), min(stop, len(first) - lag)
            if end - begin >= 2:
                curves[row, column] = correlation(first[begin + lag : end + lag], second[begin:end]).mean()
    return curves


def wtlcc_difference(predicted: Clip, true: Clip, partner: Clip, fps: float) -> float:
    """Mean |WTLCC(Y, X) − WTLCC(Ŷ, X)| over windows and lags."""
    curves = [windowed_lagged_correlation(clip, partner, fps) for clip in (true, predicted)]
    return float(np.abs(curves[0] - curves[1]).mean())


def blink_wtlcc(predicted: Clip, true: Clip, fps: float) -> float:
    """The largest correlation between the generated and the real blinks within the lags, mean over windows."""
    return float(windowed_lagged_correlation(predicted, true, fps).max(axis=1).mean())


def tlcc_offset(clip: Clip, partner: Clip, longest: int = 49) -> int:
    """|argmax| over lags −49 … +49 frames of the mean correlation of Y[t + lag] with X[t]."""
    return abs(int(lagged_correlation(clip, partner, longest).argmax()) - longest)


def spatiotemporal_distance(predicted: Clip, true: Clip) -> float:
    """STS: sqrt(Σ_d Σ_t (ΔY − ΔŶ)² / 0.1), Δ from one frame to the next."""
    steps = np.diff(true.astype(np.float64), axis=0) - np.diff(predicted.astype(np.float64), axis=0)
    return float(np.sqrt((steps**2).sum() / STS_STEP))


def diversity(samples: Float[np.ndarray, "N T D"]) -> float:
    """Mean over frames and over all pairs of samples of the L2 distance between the two.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError("diversity needs two samples or more")
    pairs = [(i, j) for i in range(len(samples)) for j in range(i)]
    return float(np.mean([np.linalg.norm(samples[i] - samples[j], axis=-1).mean() for i, j in pairs]))


def frozen_share(predicted: Clip, true: Clip, fps: float, window: float = 1.0, least: float = 0.05) -> float:
    """Share of windows of `window` seconds, one after the other, in which no number's standard deviation reaches
    `least` times the truth's over the whole clip; the truth's windows do so now and then, too."""
    length = max(2, round(window * fps))
    scale = true.std(axis=0, dtype=np.float64)
    count = max(1, len(predicted) // length)
    windows = [predicted[k * length : (k + 1) * length].std(axis=0, dtype=np.float64) for k in range(count)]
    return float(np.mean([(deviation <= least * scale).all() for deviation in windows]))


def eye_aspect_ratio(points: Float[np.ndarray, "*batch 6 dims"]) -> Float[np.ndarray, "*batch"]:
    """(‖p2 − p6‖ + ‖p3 − p5‖) / (2 ‖p1 − p4‖) of an eye's six points: corner, two above, corner, two below (Soukupová &
    Čech 2016)."""
    p1, p2, p3, p4, p5, p6 = np.moveaxis(points, -2, 0)
    height = np.linalg.norm(p2 - p6, axis=-1) + np.linalg.norm(p3 - p5, axis=-1)
    return height / (2.0 * np.linalg.norm(p1 - p4, axis=-1))


def ear_blinks_per_second(ratio: Float[np.ndarray, " T"], fps: float, threshold: float = 0.2) -> float:
    """Runs of the eye aspect ratio below `threshold` (0.18 … 0.25 in the literature) over the clip's seconds; NaN
    (unseen) is not below."""
    closed = np.concatenate([[False], np.asarray(ratio) < threshold])
    return float((closed[1:] & ~closed[:-1]).sum() / (len(ratio) / fps))


@dataclass(frozen=True)
class Score:
    """One number of a table."""

    value: float
    truth: Optional[float] = None
    """The same of the truth, where a metric is not a comparison."""


@dataclass
class ClipPair:
    """A prediction with its truth, and the partner's motion where there is a partner."""

    predicted: Clip
    true: Clip
    partner: Optional[Clip] = None


def score_clips(clips: Sequence[ClipPair], kind: str, fps: float, seed: int = 0) -> Dict[str, Score]:
    """Every metric of `PROTOCOLS` that applies to these clips, by its key.

    Those with a partner are left out where a clip has none, SI-D where the truth has fewer frames than clusters.

    Args:
        clips: all of the same D.
        kind: "pose" or "expression".
        seed: of the k-means.
    """

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    scores: Dict[str, Score] = {}
    if kind == "pose":
        for name, part, difference in (
            ("d_rot", slice(0, 3), rotation_difference),
            ("d_pos", slice(3, 6), position_difference),
        ):
            values = [difference(clip.predicted[:, part], clip.true[:, part]) for clip in clips]
            scores[name] = Score(mean(values))
            scores[f"{name}_percent"] = Score(
                mean([_percent_of_range(v, clip.true[:, part]) for v, clip in zip(values, clips, strict=True)])
            )
    scores["l1_rlhg"] = Score(mean([l1_rlhg(clip.predicted, clip.true) for clip in clips]))
    scores["fd_frechet"] = Score(mean([frechet_distance(clip.predicted, clip.true) for clip in clips]))
    for name, spread in (("v_d", variance_over_time), ("v_d_flattened", flattened_variance)):
        scores[name] = Score(mean([spread(c.predicted) for c in clips]), mean([spread(c.true) for c in clips]))
    scores.update(_diversity_of_clusters(clips, kind, seed))
    scores["sts"] = Score(mean([spatiotemporal_distance(clip.predicted, clip.true) for clip in clips]))
    joined = [np.concatenate([getattr(clip, side) for clip in clips]) for side in ("predicted", "true")]
    scores["sts_joined"] = Score(spatiotemporal_distance(*joined))
    scores["frozen"] = Score(
        mean([frozen_share(clip.predicted, clip.true, fps) for clip in clips]),
        mean([frozen_share(clip.true, clip.true, fps) for clip in clips]),
    )
    if all(clip.partner is not None for clip in clips):
        triples = [(clip.predicted, clip.true, clip.partner) for clip in clips]
        scores["p_fd"] = Score(mean([paired_frechet_distance(*triple) for triple in triples]))
        scores["rpcc"] = Score(mean([rpcc(*triple) for triple in triples]))
        scores["rpcc_flattened"] = Score(mean([rpcc_flattened(*triple) for triple in triples]))
        scores["wtlcc"] = Score(mean([wtlcc_difference(*triple, fps) for triple in triples]))
        scores["tlcc_reactface"] = Score(
            mean([tlcc_offset(predicted, partner) for predicted, _, partner in triples]),
            mean([tlcc_offset(true, partner) for _, true, partner in triples]),
        )
    return scores


def _diversity_of_clusters(clips: Sequence[ClipPair], kind: str, seed: int) -> Dict[str, Score]:
    predicted = np.concatenate([clip.predicted for clip in clips])
    true = np.concatenate([clip.true for clip in clips])
    found: Dict[int, Score] = {}
    scores: Dict[str, Score] = {}
    for protocol, (of_expression, of_pose) in CLUSTERS.items():
        clusters = of_pose if kind == "pose" else of_expression
        if clusters not in found and len(np.unique(true, axis=0)) >= clusters:
            found[clusters] = Score(*shannon_diversity(predicted, true, clusters, seed))
        if clusters in found:
            scores[f"si_d_{protocol}"] = found[clusters]
    return scores


def cut_clips(clips: Sequence[ClipPair], length: int) -> List[ClipPair]:
    """Clips cut into pieces of `length` frames; a rest shorter than that is left out, unless it is all there is."""
    pieces: List[ClipPair] = []
    for clip in clips:
        count = len(clip.true) // length
        if count == 0:
            pieces.append(clip)
        for start in range(0, count * length, length):
            part = slice(start, start + length)
            partner = None if clip.partner is None else clip.partner[part]
            pieces.append(ClipPair(clip.predicted[part], clip.true[part], partner))
    return pieces
