"""Expressions of the mouth made finer by the pictures: frames of like expression look alike, so each frame's is moved
to where its lips look like those of its neighbours.

Conventions as in `process.head_pose`: T frames, head space in metres, pixels with v downwards, brightness in grey
levels. A signal is a coefficient of an expression that moves lips, or a score of the personal residual, in its own
standard deviations: S of them. Frames are compared by their inputs: the signals, which move, and how the head is
turned, which does not.

Landmarks tell how far lips are apart too coarsely to say whether teeth show. What a mouth looks like is a smooth
function of its signals, plus noise: a Gaussian process over frames. Signals and function are found together, as in the
Gaussian process latent variable model (Lawrence, JMLR 6, 2005), with the tracked signals as the latent variables'
prior. Of two simulated people, whose expressions are known, coefficients came closer to the truth; a real one's avatar
gained 0.8 dB at the mouth (docs/ablation.md).
"""

from dataclasses import dataclass, replace
from typing import Callable, Iterable, Optional, Tuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import LOWER_LIP_OUTER, UPPER_LIP_OUTER, ExpressionBasis
from dialogue_nerfstudio.process.expression import FaceMotion
from dialogue_nerfstudio.process.head_pose import HeadTrack, pieces, project
from dialogue_nerfstudio.process.head_registration import blurred_around

LIPS = UPPER_LIP_OUTER + LOWER_LIP_OUTER

LEAST_MOVEMENT = 0.001
"""Metres (root mean square over the lips) that a full expression has to move them by to count as one of the mouth."""

PATCH = (0.036, 0.030, 0.036)
"""Metres that the mouth's patch reaches to each side, up and down from the middle of the neutral lips."""

STEP = 0.0015
"""Metres between the patch's points."""

BLUR = 0.0006
"""Standard deviation (metres) of the smoothing before brightness is read."""

LEAST_BLUR = 0.3
"""The same in pixels, for faces so small that their pixels are coarser."""

NUM_MODES = 24
"""Modes of the patch that are explained. More begin to show noise: simulated expressions came closer to the truth with
24 than with 12, and one person's less so with 40."""

SIGNAL_ERROR = 0.3
"""Standard deviation of the tracked signals' error, in those of the signals; of 0.1, 0.2, 0.3 and 0.5 the one that
served an avatar best without spoiling it for signals from landmarks."""

MAX_MOVE = 3.0
"""Most that a signal moves, in standard deviations of its error."""

NUM_LEARNED = 400
"""Frames that the function is learned from, spread evenly; the cost grows with their cube. The others follow it."""

LEAST_LEARNED = 50
"""Visible frames under which there is nothing to learn from."""

STRANGE = 3.0
"""A frame further from what the function says than this many medians counts for less: a hand, a microphone."""

LEAST_CHANGE = 0.5
"""Grey levels (root mean square over points and frames) by which patches have to change to say anything."""

MIN_DEVIATION = 1e-3
"""A signal that moves less is as good as still."""

LENGTHS = (0.5, 1.0, 2.0, 4.0)
"""Squared length scales that are tried, in median squared distances of frames."""

TURNS = (0.0, 8.0, 16.0, 32.0)
"""How many deviations of a signal a radian of the head's turning is worth; tried too. Seen from the side a mouth looks
different without another expression."""

NOISES = tuple(np.exp(np.arange(-10.0, 0.0, 0.5)))
"""Shares of noise in the modes that are tried."""

ITERATIONS = 40
"""Of the search for signals; what is gained beyond is below the tracker's noise."""

FOLLOWING_ROUNDS = 4
"""Steps of Gauss and Newton by which a frame that was not learned from follows."""


@dataclass(frozen=True)
class Likeness:
    """The Gaussian process's kernel: how alike two frames look, given their signals."""

    turn: float
    """Deviations of a signal that a radian is worth."""
    length: float
    """Squared length scale."""
    noise: float
    """Share of what signals do not explain."""
    scale: float
    """Variance of the modes."""

    def between(self, a: Float[np.ndarray, "a d"], b: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "a b"]:
        """The kernel of two sets of inputs, 0 … 1."""
        return np.exp(-0.5 * cdist(a, b, "sqeuclidean") / self.length)

    def inputs(self, signals: Float[np.ndarray, "n s"], turned: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n d"]:
        """What frames are compared by."""
        return np.concatenate([signals, self.turn * turned], axis=1)


def mouth_coefficients(basis: ExpressionBasis) -> Int[np.ndarray, " count"]:
    """The expressions that move lips."""
    moved = np.sqrt((basis.expression[:, list(LIPS)] ** 2).sum(axis=-1).mean(axis=-1))
    return np.flatnonzero(moved >= LEAST_MOVEMENT)


def patch_points(shape: Float[np.ndarray, "478 3"]) -> Float[np.ndarray, "rows columns 3"]:
    """A grid over the mouth, upright, at the depth of the neutral lips (head space)."""
    lips = shape[list(LIPS)]
    middle, (side, up, down) = lips.mean(axis=0), PATCH
    x = middle[0] + np.arange(-side, side + STEP / 2, STEP)
    y = middle[1] + np.arange(up, -down - STEP / 2, -STEP)
    return np.stack([*np.meshgrid(x, y), np.full((len(y), len(x)), middle[2])], axis=-1)


def mouth_patches(
    frames: Iterable[UInt8[np.ndarray, "height width"]],
    head: HeadTrack,
    progress: Optional[Callable[[float], None]] = None,
) -> UInt8[np.ndarray, "num_frames p"]:
    """What every frame shows at the patch's points, read one after the other."""
    points = patch_points(head.shape)
    rows, columns = points.shape[:2]
    flat, num_frames = points.reshape(-1, 3), len(head.rotations)
    blur = max(BLUR * head.focal / float(-np.median(head.translations[:, 2])), LEAST_BLUR)
    result = np.empty((num_frames, rows * columns), np.uint8)
    for index, frame in enumerate(frames):
        places = project(flat, head.rotations[index], head.translations[index], head.focal, head.center) - 0.5
        grey, (u, v) = blurred_around(frame, places, blur)
        patch = cv2.remap(
            grey, u.reshape(rows, columns), v.reshape(rows, columns), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        result[index] = np.rint(patch).reshape(-1)
        if progress is not None and index % 25 == 0:
            progress(index / num_frames)
    return result


def modes(
    patches: UInt8[np.ndarray, "num_frames p"], chosen: Int[np.ndarray, " k"]
) -> Float[np.ndarray, "num_frames m"]:
    """Scores of the chosen frames' largest modes, after offset and gain are taken out: light is no expression."""
    mean = patches[chosen].mean(axis=0)
    light = np.linalg.qr(np.stack([np.ones_like(mean), mean], axis=1))[0]

    def without_light(rows: np.ndarray) -> np.ndarray:
        varying = rows - mean
        return varying - (varying @ light) @ light.T

    directions = np.linalg.svd(without_light(patches[chosen]), full_matrices=False)[2][:NUM_MODES].T
    return np.concatenate([without_light(patches[part]) @ directions for part in pieces(len(patches))])


def likeness(
    signals: Float[np.ndarray, "n s"],
    turned: Float[np.ndarray, "n 3"],
    scores: Float[np.ndarray, "n m"],
) -> Likeness:
    """The kernel under which the scores are likeliest."""
    size, best, result = scores.size, -np.inf, None
    for turn in TURNS:
        inputs = np.concatenate([signals, turn * turned], axis=1)
        distances = cdist(inputs, inputs, "sqeuclidean")
        typical = max(float(np.median(distances)), 1e-12)
        for share in LENGTHS:
            values, vectors = np.linalg.eigh(np.exp(-0.5 * distances / (share * typical)))
            energies = ((vectors.T @ scores) ** 2).sum(axis=1)
            for noise in NOISES:
                spectrum = np.maximum(values, 0.0) + noise
                scale = max(float((energies / spectrum).sum()) / size, 1e-12)
                likelihood = -0.5 * (scores.shape[1] * np.log(spectrum).sum() + size * np.log(scale))
                if likelihood > best:
                    best, result = likelihood, Likeness(turn, share * typical, float(noise), scale)
    assert result is not None
    return result


def surprises(
    inputs: Float[np.ndarray, "n d"], scores: Float[np.ndarray, "n m"], kernel: Likeness
) -> Float[np.ndarray, " n"]:
    """How far each frame's scores are (grey levels) from what all the others say of them."""
    inverse = np.linalg.inv(kernel.between(inputs, inputs) + kernel.noise * np.eye(len(inputs)))
    return np.linalg.norm(inverse @ scores, axis=1) / np.diag(inverse)


def strangeness(distances: Float[np.ndarray, " n"], typical: float) -> Float[np.ndarray, " n"]:
    """By how much the noise of frames so far from what others say is larger than the typical one's, 1 or more."""
    return np.maximum(1.0, distances / (STRANGE * max(typical, 1e-12))) ** 2


def move_together(
    inputs: Float[np.ndarray, "n d"],
    num_signals: int,
    scores: Float[np.ndarray, "n m"],
    kernel: Likeness,
    noise: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n d"]:
    """Inputs whose first columns, the signals, are moved to where the scores are likeliest, tracked ones being
    `SIGNAL_ERROR` off; `noise` of each frame in shares."""
    num_modes, products = scores.shape[1], scores @ scores.T / kernel.scale
    identity, tracked, moved = np.eye(len(inputs)), inputs[:, :num_signals], inputs.copy()

    def unlikelihood(flat: np.ndarray) -> Tuple[float, np.ndarray]:
        signals = moved[:, :num_signals] = flat.reshape(tracked.shape)
        alike = kernel.between(moved, moved)
        factor = cho_factor(alike + np.diag(noise), lower=True)
        inverse = cho_solve(factor, identity)
        explained = inverse @ products
        value = num_modes * np.log(np.diag(factor[0])).sum() + 0.5 * np.trace(explained)
        by_alike = 0.5 * (num_modes * inverse - explained @ inverse) * alike
        slope = -2.0 / kernel.length * (by_alike.sum(axis=1)[:, None] * signals - by_alike @ signals)
        moves = (signals - tracked) / SIGNAL_ERROR
        return value + 0.5 * (moves**2).sum(), (slope + moves / SIGNAL_ERROR).ravel()

    found = minimize(unlikelihood, tracked.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    moved[:, :num_signals] = found.x.reshape(tracked.shape)
    return moved


@dataclass(frozen=True)
class LearnedLook:
    """What frames look like, learned: inputs, scores, and each frame's noise (shares)."""

    kernel: Likeness
    inputs: Float[np.ndarray, "k d"]
    scores: Float[np.ndarray, "k m"]
    noise: Float[np.ndarray, " k"]
    typical: float
    """Median of what `surprises` says of them."""

    def follow(
        self, inputs: Float[np.ndarray, "n d"], num_signals: int, scores: Float[np.ndarray, "n m"]
    ) -> Float[np.ndarray, "n d"]:
        """Other frames' signals moved, each frame's by itself, to where the learned function gives their scores."""
        kernel = self.kernel
        factor = cho_factor(kernel.between(self.inputs, self.inputs) + np.diag(self.noise), lower=True)
        weights, identity = cho_solve(factor, self.scores), np.eye(num_signals)
        tracked, moved, strange = inputs[:, :num_signals], inputs.copy(), None
        for _ in range(FOLLOWING_ROUNDS):
            alike = kernel.between(moved, self.inputs)
            left = scores - alike @ weights
            if strange is None:
                strange = strangeness(np.linalg.norm(left, axis=1), self.typical)
            known = np.einsum("nk,kn->n", alike, cho_solve(factor, alike.T))
            variance = (np.maximum(1.0 - known, 0.0) + kernel.noise * strange) * kernel.scale
            for index, signals in enumerate(moved[:, :num_signals]):
                away = (self.inputs[:, :num_signals] - signals) * alike[index][:, None]
                slope = away.T @ weights / kernel.length
                hessian = slope @ slope.T / variance[index] + identity / SIGNAL_ERROR**2
                back = (tracked[index] - signals) / SIGNAL_ERROR**2
                moved[index, :num_signals] += np.linalg.solve(hessian, slope @ left[index] / variance[index] + back)
        return moved


def moved_signals(
    signals: Float[np.ndarray, "num_frames s"],
    turned: Float[np.ndarray, "num_frames 3"],
    patches: UInt8[np.ndarray, "num_frames p"],
    visible: Bool[np.ndarray, " num_frames"],
) -> Float[np.ndarray, "num_frames s"]:
    """Signals (each with deviation 1) moved to where they explain the patches best; those of frames in which no face
    was seen stay. `turned` is how the head is, about its mean (radians)."""
    frames, num_signals = np.flatnonzero(visible), signals.shape[1]
    chosen = frames[np.unique(np.linspace(0, len(frames) - 1, min(NUM_LEARNED, len(frames))).round().astype(int))]
    scores = modes(patches, chosen)
    if np.sqrt((scores[chosen] ** 2).sum(axis=1).mean() / patches.shape[1]) < LEAST_CHANGE:
        return signals
    kernel = likeness(signals[chosen], turned[chosen], scores[chosen])
    inputs = kernel.inputs(signals, turned)
    distances = surprises(inputs[chosen], scores[chosen], kernel)
    typical = float(np.median(distances))
    noise = kernel.noise * strangeness(distances, typical)
    moved = inputs.copy()
    moved[chosen] = move_together(inputs[chosen], num_signals, scores[chosen], kernel, noise)
    look = LearnedLook(kernel, moved[chosen], scores[chosen], noise, typical)
    others = np.setdiff1d(frames, chosen)
    for part in pieces(len(others)):
        moved[others[part]] = look.follow(inputs[others[part]], num_signals, scores[others[part]])
    limit = MAX_MOVE * SIGNAL_ERROR
    return signals + np.clip(moved[:, :num_signals] - signals, -limit, limit)


def register_lips(
    frames: Iterable[UInt8[np.ndarray, "height width"]],
    head: HeadTrack,
    face: FaceMotion,
    basis: ExpressionBasis,
    visible: Bool[np.ndarray, " num_frames"],
    progress: Optional[Callable[[float], None]] = None,
) -> FaceMotion:
    """The face with expression and residual registered; all else stays.

    Args:
        frames: the brightness of all of them, in order.
        head: the poses at which `frames` show the head.
        visible: frames in which the face was seen.
    """
    columns = mouth_coefficients(basis)
    tracked = np.concatenate([face.expression[:, columns], face.residual], axis=1)
    deviations = tracked[visible].std(axis=0)
    moving = deviations > MIN_DEVIATION
    if visible.sum() < LEAST_LEARNED or not moving.any():
        return face
    rotations = Rotation.from_matrix(head.rotations)
    turned = (rotations[visible].mean().inv() * rotations).as_rotvec()
    found, signals = tracked.copy(), tracked[:, moving] / deviations[moving]
    patches = mouth_patches(frames, head, progress)
    found[:, moving] = moved_signals(signals, turned, patches, visible) * deviations[moving]
    expression = face.expression.copy()
    expression[:, columns] = found[:, : len(columns)]
    return replace(
        face,
        expression=np.clip(expression, basis.lower, basis.upper),
        residual=found[:, len(columns) :],
    )
