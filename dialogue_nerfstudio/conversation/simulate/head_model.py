"""Procedural people: what each looks like, and how a pose, expression, blink and gaze move the parts of their surfaces.

Conventions: metres and radians. Head space has x towards the person's left, y up, z out of the nose and its origin
0.07 m behind and 0.02 m below the midpoint of the eyes; person space has the recording camera's axes and its origin
at the mean head position; torso space is person space shifted by `TORSO_OFFSET` while the torso does not sway. A
`rig` is one float64 record (`RIG_DTYPE`) holding a person's proportions after the expression has moved them;
`surfaces.py` and `ray_marcher.py` read nothing else.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Tuple, no_type_check

import numba as nb
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.simulate import surfaces

EYE_HEIGHT = 0.020
"""Height of the eyes in head space (m)."""
TORSO_PIVOT = np.array([0.0, -0.50, -0.03])
"""Point in person space about which the torso sways (m)."""
TORSO_OFFSET = np.array([0.0, 0.012, 0.0])
"""Origin of torso space in person space while the torso does not sway (m)."""

_SHAPE_DEFAULTS: Dict[str, float] = dict(
    skull_x=0.0750,
    skull_y=0.085,
    skull_z=0.096,
    face_x=0.0640,
    face_z=0.068,
    jaw_x=0.0480,
    jaw_corner_x=0.0450,
    chin_y=-0.0985,
    chin_z=0.0765,
    chin_r=0.0165,
    cheek_size=1.0,
    muzzle_z=0.0345,
    nose_tip_y=-0.0165,
    nose_tip_z=0.1045,
    nose_r=0.0098,
    nose_width=0.0125,
    eye_x=0.0315,
    eye_y=EYE_HEIGHT,
    eye_z=0.0550,
    eye_r=0.0162,
    eye_half_width=0.0146,
    eye_tilt=0.04,
    eye_open_upper=0.37,
    eye_open_lower=0.27,
    iris_r=0.47,
    brow_start=0.0115,
    brow_length=0.041,
    brow_height=0.0375,
    brow_arch=0.0045,
    brow_thickness=0.0030,
    mouth_y=-0.0485,
    mouth_half_width=0.0250,
    lip_out=0.0022,
    lip_upper=0.0056,
    lip_lower=0.0070,
    ear_x=0.0735,
    ear_size=1.0,
    head_bound=0.155,
    hair_volume=0.011,
    hair_nape=-0.020,
    hair_length=0.0,
    hair_flare=0.0,
    hair_tip=0.018,
    quiff=0.0,
    bun=0.0,
    hairline=0.082,
    part_x=0.0,
    part_notch=0.0,
    window_x=0.064,
    window_low=0.97,
    window_depth=0.082,
    curl=0.0,
    strand_count=40.0,
    strand_bend=30.0,
    strand_depth=0.0006,
    neck_r=0.053,
    chest_x=0.185,
    shoulder_x=0.150,
    shoulder_y=-0.218,
    clothing=0.0,
    buttons=0.0,
    neckline_r=0.0,
    stubble=0.0,
    freckles=0.0,
    blush=0.5,
    makeup=0.0,
    pattern=0.0,
    pattern_scale=1.0,
    gray=0.0,
    seed=0.0,
)
_POSED = [
    "lip_z",
    "lip_curve",
    "lip_curve_more",
    "jaw_drop",
    "jaw_back",
    "jaw_side",
    "mouth_x",
    "corner_x_left",
    "corner_x_right",
    "corner_y_left",
    "corner_y_right",
    "open_up",
    "open_low",
    "lower_back",
    "teeth_y",
    "teeth_low_y",
    "cheek_left",
    "cheek_right",
    "brow_raise_left",
    "brow_raise_right",
    "brow_inner_left",
    "brow_inner_right",
    "brow_shift_left",
    "brow_shift_right",
    "lid_upper_left",
    "lid_upper_right",
    "lid_lower_left",
    "lid_lower_right",
    "nose_wrinkle",
    "smile_left",
    "smile_right",
    "gaze_left_x",
    "gaze_left_y",
    "gaze_left_z",
    "gaze_right_x",
    "gaze_right_y",
    "gaze_right_z",
    "neck_base_x",
    "neck_base_y",
    "neck_base_z",
    "neck_mid_x",
    "neck_mid_y",
    "neck_mid_z",
    "neck_top_x",
    "neck_top_y",
    "neck_top_z",
]


def _sources_digest() -> str:
    """Digest of the kernels' sources.

    Numba's cache notices a change of the file of the function it compiled, not of the files of the functions that one
    calls; as part of the rig's type the digest makes every kernel compile again when any of them changed.
    """
    sources = [Path(__file__).with_name(name).read_bytes() for name in ("surfaces.py", "shading.py", "ray_marcher.py")]
    return hashlib.sha1(b"".join(sources)).hexdigest()[:12]


RIG_DTYPE = np.dtype([(name, "f8") for name in (*_SHAPE_DEFAULTS, *_POSED, f"sources_{_sources_digest()}")], align=True)
"""One person in one pose, as the compiled kernels read it."""

PALETTE_NAMES = (
    "skin",
    "blush",
    "lip",
    "brow",
    "iris",
    "iris_rim",
    "hair",
    "hair_light",
    "cloth",
    "cloth_alt",
    "collar",
    "button",
)
"""Rows of a person's colour table, sRGB in [0, 1]."""

CLOTHING = {"sweater": 0, "shirt": 1, "hoodie": 2, "blazer": 3}


@dataclass(frozen=True)
class Person:
    """The looks and the voice-independent habits of one procedural person."""

    name: str
    """Human-readable name."""
    shape: Dict[str, float]
    """Proportions that differ from the average head, by field of `RIG_DTYPE`."""
    palette: Dict[str, Tuple[float, float, float]]
    """sRGB colours in [0, 1] for every name of `PALETTE_NAMES`."""
    background: str = "study"
    """Which background is behind the person (see `background.py`)."""
    seed: int = 0
    """Draws the person's textures."""

    def __post_init__(self) -> None:
        unknown = set(self.shape) - set(_SHAPE_DEFAULTS)
        if unknown or set(self.palette) != set(PALETTE_NAMES):
            raise ValueError(f"Person {self.name}: unknown shape fields {sorted(unknown)} or an incomplete palette.")

    def palette_array(self) -> Float[np.ndarray, "colours 3"]:
        """The colour table in linear light."""
        return np.array([self.palette[name] for name in PALETTE_NAMES], np.float64) ** 2.2


@dataclass
class PersonState:
    """Everything that moves, in one instant."""

    head_pose: Float[np.ndarray, "6"] = field(default_factory=lambda: np.zeros(6))
    """Axis-angle (rad) and translation (m) from head to person space."""
    expression: Float[np.ndarray, " E"] = field(default_factory=lambda: np.zeros(len(EXPRESSION_NAMES)))
    """Coefficients in the order of `EXPRESSION_NAMES`."""
    blink: Float[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2))
    """Lid closure of the person's left and right eye, 0 open to 1 closed."""
    gaze: Float[np.ndarray, "2 2"] = field(default_factory=lambda: np.zeros((2, 2)))
    """(left, right) x (yaw, pitch) in head space (rad); yaw is positive towards the person's left, pitch upwards."""
    torso_pose: Float[np.ndarray, "6"] = field(default_factory=lambda: np.zeros(6))
    """Axis-angle (rad) about `TORSO_PIVOT` and translation (m) of the torso in person space."""


@dataclass(frozen=True)
class PosedPerson:
    """A rig with the rigid transforms that place its head and torso."""

    rig: np.ndarray
    """Array of shape [1] and dtype `RIG_DTYPE`."""
    head_rotation: Float[np.ndarray, "3 3"]
    head_translation: Float[np.ndarray, "3"]
    torso_rotation: Float[np.ndarray, "3 3"]
    torso_translation: Float[np.ndarray, "3"]


def _gaze_direction(yaw_pitch: Float[np.ndarray, "2"]) -> Float[np.ndarray, "3"]:
    yaw, pitch = yaw_pitch
    return np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])


@nb.njit(cache=True)
@no_type_check
def lip_depths(rigs: np.ndarray) -> Tuple[float, float, float]:
    """Depth of the skin where the lips meet: in the middle, half-way to the corners (mean of both) and at the
    corners."""
    rig = rigs[0]
    found = np.zeros(3)
    for i, s in enumerate((0.0, -0.5, 0.5, -1.0, 1.0)):
        x = rig.mouth_x + s * (rig.corner_x_left if s > 0.0 else rig.corner_x_right)
        z = 0.14
        for _ in range(40):
            z -= surfaces.skin(x, surfaces.lip_line(s, rig), z, rig)
        found[(i + 1) // 2] += z if i == 0 else 0.5 * z
    return found[0], found[1], found[2]


def pose_person(person: Person, state: PersonState) -> PosedPerson:
    """Move a person's surfaces as a state says.

    Args:
        person: Proportions.
        state: Pose, expression, blink and gaze; expression coefficients outside [0, 1] are extrapolated, not clipped.

    Returns:
        The rig and the transforms x_person = rotation @ x + translation of head and torso.
    """
    rig = np.zeros(1, RIG_DTYPE)
    r = {**_SHAPE_DEFAULTS, **person.shape}
    e = dict(zip(EXPRESSION_NAMES, np.asarray(state.expression, np.float64), strict=True))

    jaw = e["jaw_open"]
    r["jaw_drop"] = 0.021 * jaw
    r["jaw_back"] = 0.007 * jaw - 0.006 * e["jaw_forward"]
    r["jaw_side"] = 0.008 * (e["jaw_left"] - e["jaw_right"])
    seal = 1.0 - 0.85 * min(max(e["lip_press"], e["lip_roll_in"], 0.0), 1.0)
    r["open_up"] = seal * (0.0030 * jaw + 0.0045 * e["upper_lip_raise"] + 0.0035 * e["funnel"])
    r["open_low"] = seal * (0.0190 * jaw + 0.0060 * e["lower_lip_drop"] + 0.0035 * e["funnel"])
    r["lower_back"] = 0.004 * jaw - 0.004 * e["jaw_forward"]
    r["teeth_y"] = r["mouth_y"] + 0.0035
    r["teeth_low_y"] = r["mouth_y"] - 0.0060 - 0.85 * r["jaw_drop"]
    r["mouth_x"] = 0.009 * (e["mouth_left"] - e["mouth_right"]) + 0.5 * r["jaw_side"]
    mean_out = 0.5 * (e["lip_corner_out_left"] + e["lip_corner_out_right"])
    rest_y, half_width = r["mouth_y"], r["mouth_half_width"]
    for side in ("left", "right"):
        out, up, down = (e[f"lip_corner_{way}_{side}"] for way in ("out", "up", "down"))
        r[f"corner_x_{side}"] = (
            half_width * (1.0 - 0.30 * e["pucker"] - 0.14 * e["funnel"] - 0.07 * jaw) + 0.0075 * out + 0.002 * up
        )
        r[f"corner_y_{side}"] = rest_y + 0.0016 + 0.0085 * up - 0.0080 * down - 0.0055 * jaw
        r[f"smile_{side}"] = up
        r[f"cheek_{side}"] = 0.007 * e[f"cheek_raise_{side}"] + 0.004 * up
        furrow, raise_ = e[f"brow_furrow_{side}"], e[f"brow_raise_{side}"]
        r[f"brow_raise_{side}"] = 0.0085 * raise_ - 0.0030 * furrow
        r[f"brow_inner_{side}"] = 0.0055 * raise_ + 0.0080 * e["brow_inner_raise"] - 0.0055 * furrow
        r[f"brow_shift_{side}"] = 0.0035 * furrow
        index = 0 if side == "left" else 1
        pitch = float(state.gaze[index, 1])
        squint, cheek = e[f"squint_{side}"], e[f"cheek_raise_{side}"]
        low = r["eye_open_lower"] * (1.0 - 0.40 * squint - 0.25 * cheek) - 0.25 * pitch
        up_angle = r["eye_open_upper"] * (1.0 - 0.25 * squint + 0.16 * raise_) + 0.55 * pitch
        closure = float(state.blink[index])
        low_closed = r["eye_open_lower"] * 0.72
        r[f"lid_lower_{side}"] = (1.0 - closure) * low + closure * low_closed
        r[f"lid_upper_{side}"] = (1.0 - closure) * up_angle - closure * (low_closed + 0.05)
        for axis, value in zip("xyz", _gaze_direction(state.gaze[index]), strict=True):
            r[f"gaze_{side}_{axis}"] = value
    r["nose_wrinkle"] = 0.0030 * e["nose_wrinkle"]
    r["lip_z"], r["lip_curve"], r["lip_curve_more"] = 0.0, 0.0, 0.0
    thick = (1.0 + 0.18 * e["pucker"] + 0.10 * e["funnel"] - 0.16 * mean_out) * (
        1.0 - 0.30 * e["lip_press"] - 0.50 * e["lip_roll_in"]
    )
    r["lip_upper"] *= thick
    r["lip_lower"] *= thick
    r["muzzle_z"] += 0.002 * e["pucker"]

    head_rotation = Rotation.from_rotvec(state.head_pose[:3]).as_matrix()
    head_translation = np.asarray(state.head_pose[3:], np.float64).copy()
    torso_rotation = Rotation.from_rotvec(state.torso_pose[:3]).as_matrix()
    torso_translation = TORSO_PIVOT - torso_rotation @ TORSO_PIVOT + state.torso_pose[3:] + TORSO_OFFSET
    base = torso_rotation @ np.array([0.0, -0.190, -0.042]) + torso_translation
    top = head_rotation @ np.array([0.0, -0.040, -0.028]) + head_translation
    middle = 0.55 * base + 0.45 * top + np.array([0.0, 0.0, -0.005])
    for name, point in (("base", base), ("mid", middle), ("top", top)):
        for axis, value in zip("xyz", point, strict=True):
            r[f"neck_{name}_{axis}"] = value
    for name, value in r.items():
        rig[name] = value
    # The lips lie on the skin, wherever this person's is: its depth in the middle, half-way and at the corners fixes
    # their curve.
    middle_z, half_z, corner_z = lip_depths(rig)
    near, far = middle_z - half_z, middle_z - corner_z
    rig["lip_curve"], rig["lip_curve_more"] = (16.0 * near - far) / 3.0, (4.0 * far - 16.0 * near) / 3.0
    rig["lip_z"] = middle_z + r["lip_out"] + 0.0045 * e["pucker"] + 0.0040 * e["funnel"] - 0.0010 * mean_out
    return PosedPerson(rig, head_rotation, head_translation, torso_rotation, torso_translation)
