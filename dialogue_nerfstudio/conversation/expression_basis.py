"""The project's own face basis on the 478-landmark mesh: S = S̄ + B_geo F_geo + B_exp F_exp (DialogueNeRF eq. 1).

Conventions. All positions are metres in head space: x towards the person's left, y up, z out of the nose, origin 20 mm
below and 70 mm behind the point midway between the eyes. `N` is 478. B_geo `[G, N, 3]` holds displacement at
coefficient 1 for each authored mode of identity, B_exp `[E, N, 3]` for each of EXPRESSION_NAMES. "left" and "right" are
the person's; every mode "…_right" is the mirror image of its "…_left". The fields are smooth and written by hand from
what each movement does to a face, so a coefficient means the same on every face. Lids are not in B_exp: blink is a
field of its own in a `Motion`.

The outlines below (which landmarks lie on the lips, the lids, the brows) are facts of MediaPipe's mesh.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Callable, Dict, Tuple, Union

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_npz, write_npz
from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, EXPRESSION_NAMES

NUM_LANDMARKS = 478

BASIS_FORMAT = "dialogue-nerfstudio face basis 1"
"""What a basis file says it is."""

# Outlines, each from the person's right to left.
UPPER_LIP_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_LIP_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
UPPER_LIP_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_LIP_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
# Rows of vertices between the outer and inner outlines of the red of the lips.
UPPER_LIP_BETWEEN = (62, 76, 184, 183, 74, 42, 73, 41, 72, 38, 11, 12, 302, 268, 303, 271, 304, 272, 408, 407, 306, 292)
LOWER_LIP_BETWEEN = (77, 96, 90, 89, 180, 179, 85, 86, 16, 15, 315, 316, 404, 403, 320, 319, 307, 325)
RIGHT_EYE_UPPER = (33, 246, 161, 160, 159, 158, 157, 173, 133)
RIGHT_EYE_LOWER = (33, 7, 163, 144, 145, 153, 154, 155, 133)
LEFT_EYE_UPPER = (362, 398, 384, 385, 386, 387, 388, 466, 263)
LEFT_EYE_LOWER = (362, 382, 381, 380, 374, 373, 390, 249, 263)
RIGHT_BROW = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107)
LEFT_BROW = (276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176,
    149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
JAW_LINE = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454)
RIGHT_IRIS = (468, 469, 470, 471, 472)
LEFT_IRIS = (473, 474, 475, 476, 477)
EYE_CORNERS = ((362, 263), (33, 133))
"""(one corner, other corner) of the left and the right eye."""

MESH_OF_68 = (
    127, 234, 132, 58, 172, 136, 149, 176, 152, 400, 378, 365, 397, 288, 361, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 5, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
"""The mesh's landmark at each of the 68: jaw, brows, nose, eyes, outer lips, inner lips, in the mark-up's order."""

JAW_AXIS = np.array([0.0, 0.003, 0.015])
"""A point on the line through both jaw joints, which runs along x."""

JAW_OPEN_ANGLE = 0.28
"""Radians of jaw_open at 1: about 25 mm at the lower lip."""

Points = Float[np.ndarray, "478 3"]
Weights = Float[np.ndarray, " 478"]


@lru_cache(maxsize=1)
def _canonical() -> Tuple[np.ndarray, np.ndarray]:
    data = resources.files("dialogue_nerfstudio.conversation").joinpath("data/canonical_face.npz")
    with resources.as_file(data) as path, np.load(path, allow_pickle=False) as archive:
        vertices, triangles = archive["vertices"].astype(np.float64), archive["triangles"].astype(np.int64)
    vertices.setflags(write=False)
    triangles.setflags(write=False)
    return vertices, triangles


def mean_face() -> Points:
    """S̄: the canonical mesh at an inter-pupillary distance of 63 mm (origin and licence: data/canonical_face.md)."""
    return _canonical()[0]


def face_triangles() -> Int[np.ndarray, "898 3"]:
    """The mesh's faces (without the irises)."""
    return _canonical()[1]


@lru_cache(maxsize=1)
def mirror_pairs() -> Int[np.ndarray, " 478"]:
    """For each landmark, its mirror image's number."""
    face = mean_face()[:468]
    pairs = np.linalg.norm(face[:, None] - face[None] * [-1.0, 1.0, 1.0], axis=2).argmin(axis=1)
    return np.concatenate([pairs, [473, 476, 475, 474, 477, 468, 471, 470, 469, 472]])


def eye_centers(points: Float[np.ndarray, "*batch 478 dims"]) -> Float[np.ndarray, "*batch 2 dims"]:
    """The middle between the two corners of the left and of the right eye."""
    return np.stack([(points[..., a, :] + points[..., b, :]) / 2 for a, b in EYE_CORNERS], axis=-2)


def mirror(field: Float[np.ndarray, "*batch 478 3"]) -> Float[np.ndarray, "*batch 478 3"]:
    """The mirror image of points or displacements, landmark by landmark."""
    return field[..., mirror_pairs(), :] * np.array([-1.0, 1.0, 1.0])


# Weights: smooth functions of the position on the mean face, 0 … 1.


def smoothstep(low: Union[float, np.ndarray], high: Union[float, np.ndarray], values: np.ndarray) -> np.ndarray:
    """0 at `low`, 1 at `high` (which may be the smaller one), with a continuous slope."""
    u = np.clip((values - low) / (high - low), 0.0, 1.0)
    return u * u * (3.0 - 2.0 * u)


def bump(center: Tuple[float, float, float], radius: Tuple[float, float, float]) -> Weights:
    """A Gaussian about `center` with one standard deviation an axis."""
    return np.exp(-0.5 * np.sum(((mean_face() - center) / radius) ** 2, axis=1))


def _only(indices: Tuple[int, ...]) -> Weights:
    weights = np.zeros(NUM_LANDMARKS)
    weights[list(indices)] = 1.0
    return weights


@lru_cache(maxsize=1)
def _mouth() -> Dict[str, float]:
    face = mean_face()
    return {
        "corner_x": float(face[291, 0]),
        "corner_y": float(face[291, 1]),
        "corner_z": float(face[291, 2]),
        "line_y": float((face[13, 1] + face[14, 1]) / 2),
        "z": float(face[13, 2]),
        "chin_y": float(face[152, 1]),
        "nose_y": float(face[2, 1]),
    }


def _left_side() -> Weights:
    """1 on the person's left, 0 on the right, passing through ½ within about 1 cm of the middle."""
    return smoothstep(-0.012, 0.012, mean_face()[:, 0])


def _along_lip() -> Weights:
    """1 above and below the mouth's middle, 0 at and beyond its corners."""
    return np.clip(1.0 - (np.abs(mean_face()[:, 0]) / _mouth()["corner_x"]) ** 2, 0.0, 1.0)


def _upper_lip() -> Weights:
    """The upper lip and the skin to the nose; 0 on the lower lip, though the two touch."""
    mouth, face = _mouth(), mean_face()
    skin = smoothstep(mouth["line_y"], mouth["line_y"] + 0.004, face[:, 1]) * bump(
        (0.0, mouth["line_y"] + 0.004, mouth["z"]), (0.022, 0.010, 0.03)
    )
    red = np.maximum(_only(UPPER_LIP_OUTER + UPPER_LIP_INNER + UPPER_LIP_BETWEEN), 0.0) * (0.15 + 0.85 * _along_lip())
    lower = _only(LOWER_LIP_OUTER + LOWER_LIP_INNER + LOWER_LIP_BETWEEN) * (
        1.0 - _only(UPPER_LIP_OUTER + UPPER_LIP_INNER)
    )
    return np.maximum(skin, red) * (1.0 - lower)


def _lower_lip() -> Weights:
    """The lower lip and the skin to the chin's dimple; 0 on the upper lip."""
    mouth, face = _mouth(), mean_face()
    skin = smoothstep(mouth["line_y"], mouth["line_y"] - 0.004, face[:, 1]) * bump(
        (0.0, mouth["line_y"] - 0.006, mouth["z"]), (0.022, 0.011, 0.03)
    )
    red = _only(LOWER_LIP_OUTER + LOWER_LIP_INNER + LOWER_LIP_BETWEEN) * (0.15 + 0.85 * _along_lip())
    upper = _only(UPPER_LIP_OUTER + UPPER_LIP_INNER + UPPER_LIP_BETWEEN) * (
        1.0 - _only(LOWER_LIP_OUTER + LOWER_LIP_INNER)
    )
    return np.maximum(skin, red) * (1.0 - upper)


def _jaw() -> Weights:
    """How much a point goes along with the lower jaw: chin and lower lip fully, the mouth's corners half, cheeks less
    and less towards the ear."""
    mouth, face = _mouth(), mean_face()
    x = np.abs(face[:, 0])
    ear_x, ear_y = 0.0766, 0.0005
    rise = np.clip((x - mouth["corner_x"]) / (ear_x - mouth["corner_x"]), 0.0, 1.0)
    dividing_line = mouth["line_y"] + rise * (ear_y - mouth["line_y"])
    weights = smoothstep(dividing_line + 0.010, dividing_line - 0.018, face[:, 1])
    corner = 0.45
    lower = _only(LOWER_LIP_OUTER + LOWER_LIP_INNER + LOWER_LIP_BETWEEN)
    upper = _only(UPPER_LIP_OUTER + UPPER_LIP_INNER + UPPER_LIP_BETWEEN)
    along = np.sqrt(_along_lip())
    weights = np.where(lower > 0, corner + (1.0 - corner) * along, weights)
    return np.where(upper > 0, corner * (1.0 - along), weights)


def _lips() -> Weights:
    """Both lips and a little skin around them."""
    mouth = _mouth()
    around = bump((0.0, mouth["line_y"], mouth["z"]), (0.020, 0.012, 0.03))
    red = _only(
        UPPER_LIP_OUTER + LOWER_LIP_OUTER + UPPER_LIP_INNER + LOWER_LIP_INNER + UPPER_LIP_BETWEEN + LOWER_LIP_BETWEEN
    )
    return np.maximum(around, red)


def _corner_left() -> Weights:
    mouth = _mouth()
    return bump((mouth["corner_x"], mouth["corner_y"], mouth["corner_z"]), (0.011, 0.012, 0.02))


def _brow(middle: float, spread: float) -> Weights:
    """The left brow and the forehead above it, centred `middle` metres from the face's middle."""
    face = mean_face()
    height = float(face[list(LEFT_BROW), 1].mean())
    vertical = np.where(face[:, 1] > height, 0.014, 0.007)
    return np.exp(-0.5 * ((face[:, 0] - middle) / spread) ** 2 - 0.5 * ((face[:, 1] - height) / vertical) ** 2) * (
        face[:, 2] > 0.02
    )


def _along(weights: Weights, direction: Tuple[float, float, float], millimetres: float) -> Points:
    """A displacement along one direction, its largest weight moving by `millimetres`."""
    unit = np.asarray(direction, float) / np.linalg.norm(direction)
    return weights[:, None] / max(float(weights.max()), 1e-9) * unit * (millimetres * 1e-3)


def _rotation_field(axis: Tuple[float, float, float], angle: float, center: np.ndarray, weights: Weights) -> Points:
    """The displacement of a rotation about an axis through `center`, weighted; its chord, so that coefficient 1 is
    exact."""
    moved = Rotation.from_rotvec(np.asarray(axis) * angle).apply(mean_face() - center) + center
    return weights[:, None] * (moved - mean_face())


# The fields of B_exp for the person's left side or for both sides.


def _jaw_open() -> Points:
    return _rotation_field((1.0, 0.0, 0.0), JAW_OPEN_ANGLE, JAW_AXIS, _jaw())


def _jaw_left() -> Points:
    # The jaw swings about the joint of the other side and drops a little either way.
    return _rotation_field((0.0, 1.0, 0.0), 0.10, JAW_AXIS, _jaw()) + _along(_jaw(), (0.0, -1.0, 0.0), 1.2)


def _jaw_forward() -> Points:
    return _along(_jaw(), (0.0, -0.15, 1.0), 7.0)


def _mouth_left() -> Points:
    return _along(_lips(), (1.0, 0.0, -0.15), 8.0)


def _lip_corner_out_left() -> Points:
    mouth, face = _mouth(), mean_face()
    # The whole half of the mouth is stretched, from nothing at its middle.
    stretch = np.clip(face[:, 0] / mouth["corner_x"], 0.0, 1.0) * _lips()
    return _along(np.maximum(_corner_left(), stretch), (1.0, 0.0, -0.45), 9.0)


def _lip_corner_up_left() -> Points:
    return _along(_corner_left(), (0.35, 1.0, -0.1), 9.0)


def _lip_corner_down_left() -> Points:
    return _along(_corner_left(), (0.1, -1.0, -0.05), 8.0)


def _pucker() -> Points:
    face, lips = mean_face(), _lips()
    displacement = np.zeros_like(face)
    displacement[:, 0] = -0.32 * face[:, 0] * lips
    displacement[:, 2] = 0.008 * lips * np.maximum(_along_lip(), 0.35)
    return displacement


def _funnel() -> Points:
    face, lips = mean_face(), _lips()
    displacement = np.zeros_like(face)
    displacement[:, 0] = -0.20 * face[:, 0] * lips
    displacement[:, 1] = 0.005 * _upper_lip() - 0.006 * _lower_lip()
    displacement[:, 2] = 0.006 * lips
    return displacement


def _upper_lip_raise() -> Points:
    return _along(_upper_lip(), (0.0, 1.0, 0.1), 7.0)


def _lower_lip_drop() -> Points:
    return _along(_lower_lip(), (0.0, -1.0, 0.1), 7.0)


def _lip_press() -> Points:
    """The closed lips pushed against each other from outside: the chin's pad rises and the lower lip with it, the upper
    lip comes down."""
    mouth, face = _mouth(), mean_face()
    chin = bump((0.0, mouth["chin_y"] + 0.018, face[152, 2]), (0.018, 0.012, 0.03))
    displacement = np.zeros_like(face)
    displacement[:, 1] = -0.002 * _upper_lip() + 0.003 * _lower_lip() + 0.004 * chin
    displacement[:, 2] = -0.0005 * _lips()
    return displacement


def _lip_roll_in() -> Points:
    """The red of the lips turned inwards: the outer outlines come towards the mouth's line, which stays."""
    mouth, face = _mouth(), mean_face()
    displacement = np.zeros_like(face)
    towards_line = np.clip(mouth["line_y"] - face[:, 1], -0.007, 0.007)
    displacement[:, 1] = 0.55 * towards_line * _lips() * np.maximum(_along_lip(), 0.1)
    displacement[:, 2] = -0.003 * _lips() * _along_lip()
    return displacement


def _brow_raise_left() -> Points:
    return _along(_brow(0.036, 0.020), (0.0, 1.0, 0.0), 9.0)


def _brow_inner_raise() -> Points:
    return _along(_brow(0.012, 0.011) + mirror_weights(_brow(0.012, 0.011)), (0.0, 1.0, 0.05), 8.0)


def _brow_furrow_left() -> Points:
    return _along(_brow(0.020, 0.013), (-0.7, -1.0, 0.1), 6.0)


def _squint_left() -> Points:
    face = mean_face()
    eye = eye_centers(face)[0]
    lower = _only(LEFT_EYE_LOWER) * bump((eye[0], eye[1], eye[2]), (0.012, 0.02, 0.03))
    pouch = bump((eye[0], eye[1] - 0.014, eye[2]), (0.014, 0.007, 0.02)) * (1.0 - _only(LEFT_EYE_UPPER + LEFT_IRIS))
    return _along(np.maximum(lower, pouch), (0.0, 1.0, 0.1), 4.0)


def _cheek_raise_left() -> Points:
    return _along(bump((0.043, -0.012, 0.06), (0.014, 0.013, 0.03)), (0.15, 1.0, 0.35), 6.0)


def _nose_wrinkle() -> Points:
    face = mean_face()
    wing = bump((float(face[358, 0]), float(face[358, 1]) + 0.003, float(face[358, 2])), (0.010, 0.010, 0.02))
    return _along(wing + mirror_weights(wing), (0.0, 1.0, -0.1), 5.0)


def mirror_weights(weights: Weights) -> Weights:
    """The mirror image of a weight per landmark."""
    return weights[mirror_pairs()]


_FIELDS: Dict[str, Callable[[], Points]] = {
    "jaw_open": _jaw_open,
    "jaw_left": _jaw_left,
    "jaw_forward": _jaw_forward,
    "mouth_left": _mouth_left,
    "lip_corner_out_left": _lip_corner_out_left,
    "lip_corner_up_left": _lip_corner_up_left,
    "lip_corner_down_left": _lip_corner_down_left,
    "pucker": _pucker,
    "funnel": _funnel,
    "upper_lip_raise": _upper_lip_raise,
    "lower_lip_drop": _lower_lip_drop,
    "lip_press": _lip_press,
    "lip_roll_in": _lip_roll_in,
    "brow_raise_left": _brow_raise_left,
    "brow_inner_raise": _brow_inner_raise,
    "brow_furrow_left": _brow_furrow_left,
    "squint_left": _squint_left,
    "cheek_raise_left": _cheek_raise_left,
    "nose_wrinkle": _nose_wrinkle,
}


def _expression_field(name: str) -> Points:
    if name.endswith("_right"):
        return mirror(_FIELDS[name.removesuffix("_right") + "_left"]())
    return _FIELDS[name]()


# The modes of B_geo: each symmetric, at coefficient 1 a clearly different face.


def _geometry_fields() -> Dict[str, Points]:
    face = mean_face()
    x, y, z = face.T
    zero = np.zeros(NUM_LANDMARKS)
    mouth = _mouth()
    eye = eye_centers(face)[0]

    def both(weights: Weights) -> Weights:
        return np.maximum(weights, mirror_weights(weights))

    def field(dx: np.ndarray = zero, dy: np.ndarray = zero, dz: np.ndarray = zero) -> Points:
        return np.stack([dx, dy, dz], axis=1)

    lower = smoothstep(-0.02, -0.10, y)
    upper = smoothstep(0.02, 0.075, y)
    nose = bump((0.0, -0.012, 0.10), (0.012, 0.020, 0.02))
    eye_region = both(bump((eye[0], eye[1], eye[2]), (0.015, 0.010, 0.03)))
    brow = both(_brow(0.032, 0.024))
    cheek = both(bump((0.055, -0.005, 0.05), (0.018, 0.018, 0.03)))
    lips = _lips()
    side = np.sign(x) * smoothstep(0.0, 0.01, np.abs(x))
    return {
        "width": field(dx=0.10 * x),
        "height": field(dy=0.10 * y),
        "depth": field(dz=0.12 * (z - 0.06)),
        "lower_face_length": field(dy=-0.010 * lower),
        "jaw_width": field(dx=0.16 * x * smoothstep(-0.01, -0.07, y)),
        "chin_forward": field(dz=0.010 * smoothstep(-0.05, -0.10, y)),
        "forehead_height": field(dy=0.010 * upper),
        "forehead_slope": field(dz=-0.010 * upper),
        "nose_length": field(dy=-0.006 * bump((0.0, -0.020, 0.10), (0.014, 0.012, 0.03))),
        "nose_width": field(dx=0.25 * x * bump((0.0, -0.018, 0.09), (0.02, 0.012, 0.03))),
        "nose_forward": field(dz=0.008 * nose),
        "eye_distance": field(dx=0.004 * side * eye_region),
        "eye_opening": field(dy=0.45 * (y - eye[1]) * eye_region),
        "eye_depth": field(dz=-0.006 * eye_region),
        "brow_height": field(dy=0.006 * brow),
        "brow_forward": field(dz=0.005 * brow),
        "cheekbones": field(dx=0.006 * side * cheek, dz=0.006 * cheek),
        "mouth_width": field(dx=0.20 * x * lips),
        "mouth_height": field(dy=0.006 * bump((0.0, mouth["line_y"], mouth["z"]), (0.025, 0.014, 0.04))),
        "lip_thickness": field(dy=0.35 * (y - mouth["line_y"]) * lips, dz=0.002 * lips),
    }


@dataclass(frozen=True)
class ExpressionBasis:
    """A mean face with modes of identity and of expression."""

    name: str
    mean: Points
    """S̄, metres."""
    geometry: Float[np.ndarray, "num_geometry 478 3"]
    """B_geo, metres at coefficient 1."""
    geometry_names: Tuple[str, ...]
    expression: Float[np.ndarray, "num_expressions 478 3"]
    """B_exp, metres at coefficient 1."""
    expression_names: Tuple[str, ...]
    lower: float = 0.0
    """Smallest coefficient of expression: 0 for a movement, negative for a principal component."""
    upper: float = 1.5
    """Largest coefficient: half as much again as the full movement."""
    prior: float = 0.6
    """Standard deviation of a coefficient of expression before any frame is seen."""

    @property
    def hash(self) -> str:
        """A fingerprint of the numbers (to the micrometre), for provenance."""
        digest = hashlib.sha256(" ".join((self.name, *self.geometry_names, *self.expression_names)).encode())
        for array in (self.mean, self.geometry, self.expression):
            digest.update(np.round(array * 1e6).astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes the basis as .npz, atomically."""
        write_npz(
            path,
            format=np.array(BASIS_FORMAT),
            name=np.array(self.name),
            mean=self.mean.astype(np.float32),
            geometry=self.geometry.astype(np.float32),
            geometry_names=np.array(self.geometry_names, dtype=np.str_),
            expression=self.expression.astype(np.float32),
            expression_names=np.array(self.expression_names, dtype=np.str_),
            limits=np.array([self.lower, self.upper, self.prior]),
        )

    @classmethod
    def load(cls, path: Path) -> "ExpressionBasis":
        """Reads what `save` wrote.

        Raises:
            DialogueError: the file is missing, damaged, of another kind, or holds a bad number.
        """
        arrays = read_npz(path)
        if str(arrays.get("format")) != BASIS_FORMAT:
            raise DialogueError(f"{path} is not a face basis: make it with `ns-dialogue face-model`.")
        try:
            numbers = {name: arrays[name].astype(np.float64) for name in ("mean", "geometry", "expression", "limits")}
            names = {n: tuple(str(v) for v in arrays[n]) for n in ("geometry_names", "expression_names")}
            lower, upper, prior = (float(value) for value in numbers.pop("limits"))
            basis = cls(name=str(arrays["name"]), **numbers, **names, lower=lower, upper=upper, prior=prior)
        except (KeyError, ValueError, TypeError) as error:
            raise DialogueError(f"{path} is damaged ({error}): make it again with `ns-dialogue face-model`.") from error
        shapes = [(NUM_LANDMARKS, 3)] + [(len(names[n]), NUM_LANDMARKS, 3) for n in names]
        if [basis.mean.shape, basis.geometry.shape, basis.expression.shape] != shapes or not all(
            np.isfinite(array).all() for array in numbers.values()
        ):
            raise DialogueError(f"{path} is damaged (shapes or numbers): make it again with `ns-dialogue face-model`.")
        return basis

    def shape(
        self,
        geometry: Float[np.ndarray, "*batch num_geometry"],
        expression: Float[np.ndarray, "*batch num_expressions"],
    ) -> Float[np.ndarray, "*batch 478 3"]:
        """S = S̄ + B_geo F_geo + B_exp F_exp (DialogueNeRF eq. 1), metres in head space."""
        return (
            self.mean
            + np.tensordot(geometry, self.geometry, axes=(-1, 0))
            + np.tensordot(expression, self.expression, axes=(-1, 0))
        )


@lru_cache(maxsize=1)
def expression_basis() -> ExpressionBasis:
    """The project's basis, "dialogue-28"."""
    geometry = _geometry_fields()
    return ExpressionBasis(
        name=EXPRESSION_BASIS,
        mean=mean_face(),
        geometry=np.stack(list(geometry.values())),
        geometry_names=tuple(geometry),
        expression=np.stack([_expression_field(name) for name in EXPRESSION_NAMES]),
        expression_names=EXPRESSION_NAMES,
    )
