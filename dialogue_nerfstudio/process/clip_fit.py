"""One fit of a whole clip: F_geo of the person, F_exp and the head's pose of every frame (DialogueNeRF eq. 1).

Conventions. `T` frames, `N` landmarks, `G` modes of identity, `E` of expression. A frame's shape is
S_t = S̄ + B_geo g + B_exp c_t, metres in head space, its landmarks p_t = π(R_t S_t + t_t), pixels (see head_pose for
the camera and for what a pose is). What is minimised is

    Σ_t Σ_n w_n ρ(‖p_tn − π(R_t S_tn + t_t)‖) / σ²  +  ‖g‖² / s_g²  +  Σ_t ‖c_t‖² / s_c²,    lower ≤ c ≤ upper,

with Huber's ρ: robust least squares with Gaussian priors on the coefficients (Tikhonov's, and the statistical prior of
a morphable model; Blanz & Vetter 1999). Rotations are updated on the left, R ← exp(ω) R. Every frame's unknowns
f_t = (ω, t, c) meet the others only through g, so Gauss–Newton's system is an arrow: the frames are eliminated one by
one (Schur complement) and time and memory grow linearly with T. A coefficient at a bound that the step would push
further out is held there (active set); a step that does not lower the cost is damped (Levenberg–Marquardt).
"""

from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import ExpressionBasis, expression_basis, eye_centers
from dialogue_nerfstudio.process.expression import EXPRESSION_NOISE, landmark_weights
from dialogue_nerfstudio.process.head_pose import (
    HUBER,
    LANDMARK_NOISE,
    ROTATION_SMOOTHING,
    HeadTrack,
    cross_matrices,
    fit_poses,
    project,
    projection_jacobian,
    rigid_landmarks,
    rotation_jitter,
    smooth_rotations,
    smooth_translations,
)
from dialogue_nerfstudio.process.landmarks import LandmarkTrack


@dataclass
class ClipFitConfig:
    """Options of `fit_clip`."""

    noise: Optional[float] = None
    """σ, pixels: how well one landmark tells about the face; None is EXPRESSION_NOISE at the face's distance."""
    huber: float = HUBER * LANDMARK_NOISE
    """Pixels beyond which residuals count linearly."""
    geometry_prior: float = 1.0
    """s_g, standard deviations of identity."""
    iterations: int = 25
    """Most Gauss–Newton steps."""
    tolerance: float = 1e-6
    """Relative decrease of the cost at which it ends."""
    chunk: int = 200
    """Frames whose Jacobians are in memory at once."""


@dataclass
class ClipFit:
    """What `fit_clip` finds."""

    geometry: Float[np.ndarray, " num_geometry"]
    """F_geo."""
    expression: Float[np.ndarray, "num_frames num_expressions"]
    """F_exp."""
    rotations: Float[np.ndarray, "num_frames 3 3"]
    translations: Float[np.ndarray, "num_frames 3"]
    """Head to camera space."""
    residuals: Float[np.ndarray, " num_frames"]
    """Root mean square over the weighted landmarks, pixels."""
    costs: List[float]
    """What is minimised, before every step and at the end."""


def pose_weights() -> Float[np.ndarray, " 478"]:
    """How much each landmark counts where pose and expression are fitted together: as for expression alone, and the
    rigid ones fully."""
    weights = landmark_weights().copy()
    weights[rigid_landmarks()] = 1.0
    return weights


@dataclass
class _Problem:
    points: Float[np.ndarray, "t n 2"]
    weights: Float[np.ndarray, "t n"]
    mean: Float[np.ndarray, "n 3"]
    geometry: Float[np.ndarray, "g n 3"]
    expression: Float[np.ndarray, "e n 3"]
    lower: float
    upper: float
    prior: float
    focal: float
    center: Tuple[float, float]
    config: ClipFitConfig


@dataclass
class _State:
    geometry: Float[np.ndarray, " g"]
    expression: Float[np.ndarray, "t e"]
    rotations: Float[np.ndarray, "t 3 3"]
    translations: Float[np.ndarray, "t 3"]


def fit_clip(
    points: Float[np.ndarray, "num_frames n 2"],
    weights: Float[np.ndarray, "num_frames n"],
    mean: Float[np.ndarray, "n 3"],
    basis: ExpressionBasis,
    rotations: Float[np.ndarray, "num_frames 3 3"],
    translations: Float[np.ndarray, "num_frames 3"],
    focal: float,
    center: Tuple[float, float],
    config: Optional[ClipFitConfig] = None,
    geometry: Optional[Float[np.ndarray, "g n 3"]] = None,
    expression: Optional[Float[np.ndarray, "num_frames num_expressions"]] = None,
) -> ClipFit:
    """Fits identity, expressions and poses together.

    Args:
        points: landmarks, pixels.
        weights: of each landmark in each frame; 0 where it was not seen or does not count.
        mean: S̄, metres; a person's own neutral shape where that is known better than any basis has it.
        basis: B_geo, B_exp, and the bounds and prior of F_exp.
        rotations, translations: poses to start from.
        focal, center: of the camera, pixels.
        config: options.
        geometry: modes of identity in place of the basis' (`[0, n, 3]` for none).
        expression: coefficients to start from; 0 if None.
    """
    config = config or ClipFitConfig()
    if config.noise is None:
        config = replace(config, noise=EXPRESSION_NOISE * focal / -float(np.median(translations[:, 2])))
    modes = basis.geometry if geometry is None else geometry
    problem = _Problem(
        points, weights, mean, modes, basis.expression, basis.lower, basis.upper, basis.prior, focal, center, config
    )
    start = np.zeros((len(points), len(basis.expression))) if expression is None else expression
    state = _State(np.zeros(len(modes)), np.clip(start, basis.lower, basis.upper), rotations, translations)
    damping, cost = 1e-6, _cost(problem, state)
    costs = [cost]
    for _ in range(config.iterations):
        blocks = _normal_equations(problem, state)
        for _ in range(10):
            trial = _stepped(problem, state, *_arrow_step(problem, state, blocks, damping))
            new = _cost(problem, trial)
            if new < cost:
                damping = max(damping / 10, 1e-9)
                break
            damping = max(damping * 10, 1e-6)
        else:
            break
        decrease, state, cost = cost - new, trial, new
        costs.append(cost)
        if decrease < config.tolerance * cost:
            break
    return ClipFit(state.geometry, state.expression, state.rotations, state.translations, _rms(problem, state), costs)


def _chunks(problem: _Problem) -> List[slice]:
    size = problem.config.chunk
    return [slice(start, start + size) for start in range(0, len(problem.points), size)]


def _shapes(problem: _Problem, state: _State, part: slice) -> Float[np.ndarray, "t n 3"]:
    neutral = problem.mean + np.tensordot(state.geometry, problem.geometry, axes=1)
    return neutral + np.tensordot(state.expression[part], problem.expression, axes=1)


def _distances(problem: _Problem, state: _State) -> Float[np.ndarray, "t n"]:
    return np.concatenate(
        [
            np.linalg.norm(
                problem.points[part]
                - project(
                    _shapes(problem, state, part),
                    state.rotations[part],
                    state.translations[part],
                    problem.focal,
                    problem.center,
                ),
                axis=-1,
            )
            for part in _chunks(problem)
        ]
    )


def _cost(problem: _Problem, state: _State) -> float:
    distance, huber = _distances(problem, state), problem.config.huber
    robust = np.where(distance < huber, distance**2, 2 * huber * distance - huber**2)
    data = (problem.weights * robust).sum() / problem.config.noise**2
    priors = (state.geometry**2).sum() / problem.config.geometry_prior**2
    return float(data + priors + (state.expression**2).sum() / problem.prior**2)


def _rms(problem: _Problem, state: _State) -> Float[np.ndarray, " t"]:
    squares = _distances(problem, state) ** 2 * problem.weights
    return np.sqrt(squares.sum(axis=1) / np.maximum(problem.weights.sum(axis=1), 1e-12))


def clip_jacobian(
    problem: _Problem, state: _State, part: slice
) -> Tuple[Float[np.ndarray, "t n 2 f"], Float[np.ndarray, "t n 2 g"], Float[np.ndarray, "t n 2"]]:
    """∂p/∂(ω, t, c) of each frame, ∂p/∂g, and the residual p_seen − p (pixels)."""
    rotations, translations = state.rotations[part], state.translations[part]
    turned = _shapes(problem, state, part) @ np.swapaxes(rotations, 1, 2)
    placed = turned + translations[:, None]
    camera = projection_jacobian(placed, problem.focal)
    local = camera @ rotations[:, None]
    frame = np.concatenate(
        [-camera @ cross_matrices(turned), camera, local @ np.moveaxis(problem.expression, 0, -1)], axis=-1
    )
    x, y, z = np.moveaxis(placed, -1, 0)
    seen = np.stack([problem.center[0] - problem.focal * x / z, problem.center[1] + problem.focal * y / z], axis=-1)
    return frame, local @ np.moveaxis(problem.geometry, 0, -1), problem.points[part] - seen


Blocks = Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _normal_equations(problem: _Problem, state: _State) -> Blocks:
    """Hessian blocks of frames [t, f, f], of frames with identity [t, f, g], of identity [g, g], and the gradients
    [t, f], [g] (downhill)."""
    num_modes = len(problem.geometry)
    frames, crosses, shared, frame_gradients = [], [], np.zeros((num_modes, num_modes)), []
    shared_gradient = np.zeros(num_modes)
    for part in _chunks(problem):
        frame, mode, residual = clip_jacobian(problem, state, part)
        count = len(frame)
        distance = np.linalg.norm(residual, axis=-1)
        robust = np.minimum(1.0, problem.config.huber / np.maximum(distance, 1e-12))
        weight = np.repeat(problem.weights[part] * robust, 2, axis=1) / problem.config.noise**2
        flat = np.concatenate([frame, mode], axis=-1).reshape(count, weight.shape[1], -1)
        weighted = np.swapaxes(flat * weight[..., None], 1, 2)
        hessian = weighted @ flat
        gradient = (weighted @ residual.reshape(count, -1, 1))[..., 0]
        size = frame.shape[-1]
        frames.append(hessian[:, :size, :size])
        crosses.append(hessian[:, :size, size:])
        frame_gradients.append(gradient[:, :size])
        shared += hessian[:, size:, size:].sum(axis=0)
        shared_gradient += gradient[:, size:].sum(axis=0)
    frame_block, frame_gradient = np.concatenate(frames), np.concatenate(frame_gradients)
    index = np.arange(6, frame_block.shape[1])
    frame_block[:, index, index] += 1.0 / problem.prior**2
    frame_gradient[:, 6:] -= state.expression / problem.prior**2
    shared += np.eye(num_modes) / problem.config.geometry_prior**2
    shared_gradient -= state.geometry / problem.config.geometry_prior**2
    return frame_block, np.concatenate(crosses), shared, frame_gradient, shared_gradient


def _arrow_step(
    problem: _Problem, state: _State, blocks: Blocks, damping: float
) -> Tuple[Float[np.ndarray, "t f"], Float[np.ndarray, " g"]]:
    """The damped step of every frame and of identity."""
    frame, cross, shared, frame_gradient, shared_gradient = blocks
    held = np.zeros(frame_gradient.shape, bool)
    held[:, 6:] = ((state.expression <= problem.lower) & (frame_gradient[:, 6:] < 0)) | (
        (state.expression >= problem.upper) & (frame_gradient[:, 6:] > 0)
    )
    # The bounds that the step itself would cross are found in a few rounds; what is left over is cut off at the bound.
    for _ in range(3):
        frame_step, shared_step = _schur(frame, cross, shared, frame_gradient, shared_gradient, held, damping)
        target = state.expression + frame_step[:, 6:]
        at_bound = ((state.expression <= problem.lower) & (target < problem.lower)) | (
            (state.expression >= problem.upper) & (target > problem.upper)
        )
        if not (at_bound & ~held[:, 6:]).any():
            break
        held[:, 6:] |= at_bound
    return frame_step, shared_step


def _schur(frame, cross, shared, frame_gradient, shared_gradient, held, damping) -> Tuple[np.ndarray, np.ndarray]:
    free = ~held
    index = np.arange(frame.shape[1])
    system = frame * free[:, :, None] * free[:, None, :]
    diagonal = frame[:, index, index]
    system[:, index, index] = np.where(free, diagonal * (1.0 + damping) + 1e-12, 1.0)
    right = np.concatenate([(frame_gradient * free)[..., None], cross * free[..., None]], axis=-1)
    solved = np.linalg.solve(system, right)
    eliminated, through = solved[..., 0], solved[..., 1:]
    if not len(shared):
        return eliminated, np.zeros(0)
    masked = cross * free[..., None]
    reduced = shared + damping * np.diag(np.diag(shared)) - np.einsum("tfg,tfh->gh", masked, through)
    step = np.linalg.solve(reduced, shared_gradient - np.einsum("tfg,tf->g", masked, eliminated))
    return eliminated - through @ step, step


def _stepped(
    problem: _Problem, state: _State, frame_step: Float[np.ndarray, "t f"], shared_step: Float[np.ndarray, " g"]
) -> _State:
    return _State(
        state.geometry + shared_step,
        np.clip(state.expression + frame_step[:, 6:], problem.lower, problem.upper),
        Rotation.from_rotvec(frame_step[:, :3]).as_matrix() @ state.rotations,
        state.translations + frame_step[:, 3:6],
    )


IDENTITY_FRAMES = 600
"""Most frames from which identity is fitted; more would cost memory and tell nothing new."""

OWN_SHAPE_PRIOR = 0.3
"""s_g where S̄ is the person's own shape, which identity only corrects …"""

ENOUGH_FRAMES = 250
"""… in a clip of so many frames; in proportion less in a shorter one, which shows the face from fewer sides: there a
free correction bends the shape to what little was seen (measured on clips of 2, 4 and 20 seconds)."""


def refine_head(track: LandmarkTrack, head: HeadTrack) -> HeadTrack:
    """The head's shape and poses once more, fitted together with the expressions of the shared basis by all landmarks.

    `track_head` takes poses from the landmarks that move with the skull, and the shape from frames at rest; what the
    others show of the pose once their expression is known, and what of the shape an expression had hidden, is used
    here. Poses are smoothed as there.

    Args:
        track: landmarks without gaps.
        head: where to start.
    """
    points, basis, rigid = track.points.astype(np.float64), expression_basis(), rigid_landmarks()
    seen = track.visible.astype(np.float64)
    weights = pose_weights()
    visible = np.flatnonzero(track.visible)
    prior = OWN_SHAPE_PRIOR * min(1.0, len(visible) / ENOUGH_FRAMES)
    config = ClipFitConfig(geometry_prior=prior, tolerance=1e-2, chunk=50)
    some = visible[np.unique(np.linspace(0, len(visible) - 1, IDENTITY_FRAMES).round().astype(int))]

    def fit(frames: np.ndarray, shape: np.ndarray, modes: np.ndarray) -> ClipFit:
        return fit_clip(
            points[frames],
            weights * seen[frames, None],
            shape,
            basis,
            head.rotations[frames],
            head.translations[frames],
            head.focal,
            head.center,
            config,
            modes,
        )

    identity = fit(some, head.shape, basis.geometry)
    shape = head.shape + np.tensordot(identity.geometry, basis.geometry, axes=1)
    rotations, translations = head.rotations.copy(), head.translations.copy()
    rotations[some], translations[some] = identity.rotations, identity.translations
    others = np.setdiff1d(visible, some)
    for frames in np.array_split(others, -(-len(others) // IDENTITY_FRAMES)) if len(others) else []:
        rest = fit(frames, shape, basis.geometry[:0])
        rotations[frames], translations[frames] = rest.rotations, rest.translations

    # The scene keeps its scale, which is the distance between the eyes.
    scale = _eye_distance(head.shape) / _eye_distance(shape)
    shape, translations = scale * shape, scale * translations
    rotations = smooth_rotations(rotations, seen, ROTATION_SMOOTHING)
    _, translations = fit_poses(
        points[:, rigid], shape[rigid], rotations, translations, head.focal, head.center, translation_only=True
    )
    translations = smooth_translations(translations, seen)
    residual = points[:, rigid] - project(shape[rigid], rotations, translations, head.focal, head.center)
    error = np.sqrt((residual**2).sum(axis=-1).mean(axis=-1))
    return HeadTrack(
        shape, rotations, translations, error, head.focal, head.center, rotation_jitter(rotations[visible])
    )


def _eye_distance(shape: Float[np.ndarray, "478 3"]) -> float:
    return float(np.linalg.norm(np.diff(eye_centers(shape), axis=0)))
