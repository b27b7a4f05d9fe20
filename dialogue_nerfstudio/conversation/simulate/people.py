"""The cast: two designed people, and further ones drawn from a seed."""

from typing import Dict, List, Tuple

import numpy as np

from dialogue_nerfstudio.conversation.simulate.head_model import CLOTHING, PALETTE_NAMES, Person

Color = Tuple[float, float, float]


def _hex(code: str) -> Color:
    return tuple(int(code[i : i + 2], 16) / 255.0 for i in (0, 2, 4))  # type: ignore[return-value]


def _palette(**colors: str) -> Dict[str, Color]:
    return {name: _hex(colors[name]) for name in PALETTE_NAMES}


def _ada() -> Person:
    return Person(
        name="Ada",
        background="window",
        seed=11,
        shape=dict(
            skull_x=0.0735,
            face_x=0.0615,
            jaw_x=0.0425,
            jaw_corner_x=0.0380,
            chin_y=-0.0965,
            chin_r=0.0138,
            cheek_size=1.06,
            nose_width=0.0126,
            nose_r=0.0096,
            nose_tip_z=0.1070,
            nose_tip_y=-0.0175,
            eye_open_upper=0.42,
            eye_open_lower=0.29,
            eye_tilt=0.07,
            brow_thickness=0.0029,
            brow_arch=0.0060,
            brow_height=0.0380,
            lip_upper=0.0052,
            lip_lower=0.0068,
            mouth_half_width=0.0240,
            hair_volume=0.011,
            hair_nape=-0.12,
            hair_length=0.122,
            hair_flare=-0.003,
            hair_tip=0.020,
            hairline=0.090,
            part_x=-0.016,
            part_notch=0.010,
            window_x=0.0725,
            window_low=1.15,
            window_depth=0.118,
            strand_count=34.0,
            strand_bend=14.0,
            strand_depth=0.0008,
            ear_x=0.0700,
            ear_size=0.92,
            neck_r=0.0465,
            shoulder_x=0.132,
            shoulder_y=-0.222,
            chest_x=0.168,
            clothing=CLOTHING["sweater"],
            pattern=1.0,
            blush=0.75,
            makeup=0.8,
            freckles=0.55,
            seed=11.0,
        ),
        palette=_palette(
            skin="e9b796",
            blush="dd7f68",
            lip="b9504f",
            brow="5a321f",
            iris="4f8a5a",
            iris_rim="1d3326",
            hair="6b2f17",
            hair_light="b8642f",
            cloth="e6dfd2",
            cloth_alt="8299b8",
            collar="2f4b73",
            button="efe7da",
        ),
    )


def _bruno() -> Person:
    return Person(
        name="Bruno",
        background="study",
        seed=23,
        shape=dict(
            skull_x=0.0765,
            skull_y=0.0860,
            face_x=0.0655,
            jaw_x=0.0530,
            jaw_corner_x=0.0495,
            chin_y=-0.1020,
            chin_r=0.0190,
            chin_z=0.0775,
            nose_width=0.0142,
            nose_r=0.0108,
            nose_tip_z=0.1090,
            nose_tip_y=-0.0180,
            eye_open_upper=0.37,
            eye_open_lower=0.25,
            eye_tilt=0.0,
            brow_thickness=0.0038,
            brow_arch=0.0030,
            brow_height=0.0362,
            lip_upper=0.0044,
            lip_lower=0.0060,
            mouth_half_width=0.0265,
            hair_volume=0.0075,
            hair_nape=-0.015,
            quiff=0.010,
            hairline=0.086,
            part_x=0.022,
            part_notch=-0.004,
            window_x=0.0660,
            strand_count=42.0,
            strand_bend=10.0,
            strand_depth=0.0009,
            ear_x=0.0755,
            ear_size=1.08,
            neck_r=0.0575,
            shoulder_x=0.160,
            chest_x=0.195,
            clothing=CLOTHING["shirt"],
            buttons=1.0,
            pattern=2.0,
            stubble=0.55,
            blush=0.35,
            gray=0.25,
            seed=23.0,
        ),
        palette=_palette(
            skin="a86f4c",
            blush="a04f3c",
            lip="8f4f45",
            brow="1d1410",
            iris="6b4423",
            iris_rim="1c100a",
            hair="17110e",
            hair_light="4a372b",
            cloth="5f86a8",
            cloth_alt="c9dbe8",
            collar="6a91b2",
            button="f3f0e6",
        ),
    )


_DARK_HAIR = (("1a1412", "463a33"), ("2b1c14", "5d4331"))
_LIGHT_HAIR = (*_DARK_HAIR, ("3b2416", "80552f"), ("8a6a35", "d8bb74"), ("7a7672", "c8c5c0"), ("5a1f12", "a8512a"))
_DARK_EYES = (("5b3a1e", "1a0f08"), ("3d2614", "120a06"))
_LIGHT_EYES = (*_DARK_EYES, ("4d7fa6", "1c3047"), ("6d8a4a", "27331a"))
_COMPLEXIONS = (
    ("e6b591", "d98468", "b85a56", _LIGHT_HAIR, _LIGHT_EYES),
    ("d9a37c", "c77a5c", "a85a50", _LIGHT_HAIR, _LIGHT_EYES),
    ("8a5638", "8a4534", "7a3f3a", _DARK_HAIR, _DARK_EYES),
    ("6b4630", "763a2e", "6b3a34", _DARK_HAIR, _DARK_EYES),
    ("c68f63", "b66a4b", "9c5148", _DARK_HAIR, _DARK_EYES),
)
_CLOTHES = (
    ("7a3b4a", "e2c8b0", "5f2b38"),
    ("3f5f4a", "d8d3bd", "324c3b"),
    ("d9a441", "2f3a4a", "c28f33"),
    ("454a57", "8a90a0", "e9e6df"),
    ("b85c3e", "f0e2cf", "9c4a30"),
)


def _drawn(index: int, rng: np.random.Generator) -> Person:
    """A person whose looks are drawn at random, kept within proportions that a face tracker knows."""
    *skin, hairs, irises = _COMPLEXIONS[rng.integers(len(_COMPLEXIONS))]
    hair, iris = hairs[rng.integers(len(hairs))], irises[rng.integers(len(irises))]
    cloth = _CLOTHES[rng.integers(len(_CLOTHES))]
    style = ("hoodie", "blazer", "shirt", "sweater")[(index + int(rng.integers(2))) % 4]
    long_hair, soft = bool(rng.random() < 0.45), float(rng.random())
    wide = rng.uniform(0.96, 1.05)
    shape = dict(
        skull_x=0.0730 * wide,
        face_x=0.0650 * wide,
        jaw_x=0.0560 - 0.008 * soft,
        jaw_corner_x=0.0520 - 0.008 * soft,
        chin_y=rng.uniform(-0.102, -0.095),
        chin_r=rng.uniform(0.0150, 0.0190),
        cheek_size=rng.uniform(0.95, 1.1),
        nose_width=rng.uniform(0.0122, 0.0145),
        nose_r=rng.uniform(0.0094, 0.0110),
        nose_tip_z=rng.uniform(0.1055, 0.1095),
        eye_open_upper=rng.uniform(0.35, 0.42),
        eye_open_lower=rng.uniform(0.25, 0.30),
        eye_tilt=rng.uniform(0.0, 0.08),
        brow_thickness=0.0040 - 0.0015 * soft,
        brow_arch=rng.uniform(0.003, 0.006),
        lip_upper=rng.uniform(0.0044, 0.0054),
        lip_lower=rng.uniform(0.0058, 0.0070),
        mouth_half_width=rng.uniform(0.0238, 0.0265),
        ear_x=0.0735 * wide,
        hairline=rng.uniform(0.080, 0.090),
        part_x=rng.uniform(-0.025, 0.025),
        neck_r=0.0570 - 0.010 * soft,
        shoulder_x=0.160 - 0.028 * soft,
        chest_x=0.195 - 0.025 * soft,
        clothing=float(CLOTHING[style]),
        buttons=float(style == "shirt"),
        pattern=float({"hoodie": 0, "blazer": 0}.get(style, rng.integers(1, 4))),
        pattern_scale=rng.uniform(0.8, 1.4),
        stubble=float(rng.uniform(0.3, 0.8) if soft < 0.4 else 0.0),
        makeup=float(0.8 * (soft > 0.6)),
        freckles=float(rng.random() < 0.25) * 0.6,
        blush=rng.uniform(0.3, 0.8),
        gray=float(rng.random() < 0.3) * 0.6,
        seed=float(index * 7 + 3),
    )
    if long_hair:
        shape.update(
            hair_volume=rng.uniform(0.010, 0.013),
            hair_nape=-0.12,
            hair_length=rng.uniform(0.10, 0.15),
            hair_flare=rng.uniform(-0.004, 0.003),
            hair_tip=0.019,
            part_notch=0.008,
            window_x=0.0725,
            window_low=1.15,
            window_depth=0.118,
        )
    else:
        curly = bool(rng.random() < 0.5)
        shape.update(
            hair_volume=0.013 if curly else 0.008,
            curl=0.004 if curly else 0.0,
            strand_depth=0.0 if curly else 0.0008,
            quiff=0.0 if curly else rng.uniform(0.0, 0.014),
            bun=float(soft > 0.6 and not curly) * 0.031,
            window_x=0.0655,
        )
    palette = _palette(
        skin=skin[0],
        blush=skin[1],
        lip=skin[2],
        brow=hair[0],
        iris=iris[0],
        iris_rim=iris[1],
        hair=hair[0],
        hair_light=hair[1],
        cloth=cloth[0],
        cloth_alt=cloth[1],
        collar=cloth[2],
        button="efe9dc",
    )
    return Person(
        name=("Chidi", "Dana", "Emil", "Fumi")[index % 4],
        shape=shape,
        palette=palette,
        background=("gallery", "evening", "study", "window")[index % 4],
        seed=int(rng.integers(1 << 16)),
    )


def cast(num_people: int, seed: int) -> List[Person]:
    """The people of a conversation, left to right: the two designed ones first, the rest drawn from the seed."""
    rng = np.random.default_rng([seed, 0x7E0])
    return [_ada(), _bruno(), *(_drawn(i, rng) for i in range(max(num_people - 2, 0)))][:num_people]
