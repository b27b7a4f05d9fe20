"""Static backgrounds: painted once per person as a picture on a plane behind them.

Conventions: a texture is [size, size, 3] in linear light and covers the square of +-`BACKGROUND_EXTENT` metres around
the person-space origin in the plane z = `BACKGROUND_DEPTH`; row 0 is its upper edge. It is painted in sRGB and
softened as a lens would.
"""

from functools import lru_cache
from typing import Callable, Dict, Tuple

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

BACKGROUND_DEPTH = -0.6
BACKGROUND_EXTENT = 0.75
_SIZE = 768

Canvas = Float[np.ndarray, "size size 3"]


@lru_cache(maxsize=1)
def _grid() -> Tuple[np.ndarray, np.ndarray]:
    """Coordinates (x right, y up) in metres of every texel."""
    axis = (np.arange(_SIZE) + 0.5) / _SIZE * 2 * BACKGROUND_EXTENT - BACKGROUND_EXTENT
    return tuple(np.meshgrid(axis, -axis))


def _smooth_noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    noise = gaussian_filter(rng.standard_normal((_SIZE, _SIZE)), sigma, mode="wrap")
    return noise / noise.std()


def _window_of(x0: float, x1: float, y0: float, y1: float) -> Tuple[slice, slice]:
    """Rows and columns of the texels whose centres lie in a rectangle given in metres."""

    def index(value: float) -> int:
        return int(np.clip(np.ceil((value + BACKGROUND_EXTENT) / (2 * BACKGROUND_EXTENT) * _SIZE - 0.5), 0, _SIZE))

    return slice(index(-y1), index(-y0)), slice(index(x0), index(x1))


def _rectangle(canvas: Canvas, x0: float, x1: float, y0: float, y1: float, color) -> None:
    canvas[_window_of(x0, x1, y0, y1)] = color


def _disc(canvas: Canvas, cx: float, cy: float, radius: float, color, alpha: float = 1.0, edge: float = 0.004) -> None:
    window = _window_of(cx - radius - edge, cx + radius + edge, cy - radius - edge, cy + radius + edge)
    x, y = (axis[window] for axis in _grid())
    cover = np.clip((radius - np.hypot(x - cx, y - cy)) / edge + 0.5, 0, 1)[..., None] * alpha
    canvas[window] = canvas[window] * (1 - cover) + np.asarray(color) * cover


def _study(rng: np.random.Generator) -> Canvas:
    """A bookshelf in a dim, warm room."""
    canvas = np.full((_SIZE, _SIZE, 3), (0.30, 0.22, 0.17))
    hues = np.array(
        [
            (0.62, 0.23, 0.18),
            (0.20, 0.33, 0.45),
            (0.78, 0.66, 0.42),
            (0.25, 0.42, 0.33),
            (0.50, 0.32, 0.42),
            (0.84, 0.80, 0.70),
            (0.36, 0.28, 0.24),
            (0.80, 0.48, 0.22),
            (0.28, 0.46, 0.55),
        ]
    )
    pitch = 0.235
    for shelf in range(-4, 4):
        base = shelf * pitch - 0.03
        _rectangle(canvas, -1, 1, base, base + pitch, (0.19, 0.135, 0.10))
        x = -BACKGROUND_EXTENT
        while x < BACKGROUND_EXTENT:
            width, height = rng.uniform(0.018, 0.042), rng.uniform(0.13, 0.185)
            if rng.random() < 0.12:
                x += rng.uniform(0.02, 0.07)
                continue
            color = np.clip(hues[rng.integers(len(hues))] * rng.uniform(0.65, 1.05), 0, 1)
            _rectangle(canvas, x, x + width - 0.002, base + 0.012, base + 0.012 + height, color)
            _rectangle(
                canvas,
                x,
                x + width - 0.002,
                base + 0.012 + 0.78 * height,
                base + 0.012 + 0.83 * height,
                color * 0.6 + 0.35,
            )
            _rectangle(canvas, x, x + 0.004, base + 0.012, base + 0.012 + height, color * 0.75)
            x += width
        _rectangle(canvas, -1, 1, base - 0.012, base + 0.012, (0.47, 0.33, 0.22))
        _rectangle(canvas, -1, 1, base - 0.012, base - 0.008, (0.30, 0.20, 0.13))
    x, y = _grid()
    canvas *= (0.80 + 0.35 * np.exp(-((x + 0.35) ** 2 + (y - 0.3) ** 2) / 0.3))[..., None]
    return gaussian_filter(canvas, (2.6, 2.6, 0))


def _window(rng: np.random.Generator) -> Canvas:
    """A pale wall with a window onto trees, and a plant beside it."""
    x, y = _grid()
    canvas = np.full((_SIZE, _SIZE, 3), (0.70, 0.75, 0.74))
    canvas *= 1 + 0.015 * _smooth_noise(rng, 5)[..., None]
    left, right, low, high = -0.62, -0.04, -0.12, 0.60
    view = np.stack([0.62 + 0.25 * (y + 0.1), 0.78 + 0.15 * (y + 0.1), 0.90 + 0.08 * y], -1)
    leaves = _smooth_noise(rng, 14) + 0.7 * _smooth_noise(rng, 5) - 2.2 * (y - 0.14) / 0.25
    green = np.stack(
        [0.28 + 0.07 * _smooth_noise(rng, 6), 0.46 + 0.09 * _smooth_noise(rng, 6), 0.25 + 0.04 * _smooth_noise(rng, 6)],
        -1,
    )
    cover = np.clip(leaves + 0.5, 0, 1)[..., None]
    view = gaussian_filter(view * (1 - cover) + green * cover, (3, 3, 0))
    frame = (x > left) & (x < right) & (y > low) & (y < high)
    canvas[frame] = view[frame]
    for edge in (left, 0.5 * (left + right), right):
        _rectangle(canvas, edge - 0.014, edge + 0.014, low, high, (0.93, 0.93, 0.91))
    for edge in (low, 0.5 * (low + high) + 0.06, high):
        _rectangle(canvas, left - 0.014, right + 0.014, edge - 0.014, edge + 0.014, (0.93, 0.93, 0.91))
    _rectangle(canvas, left - 0.05, right + 0.05, low - 0.045, low - 0.012, (0.86, 0.85, 0.82))
    for _ in range(46):
        angle, length = rng.uniform(0.15, np.pi - 0.15), rng.uniform(0.10, 0.30)
        for step in np.linspace(0.2, 1, 9):
            _disc(
                canvas,
                0.40 + np.cos(angle) * length * step,
                -0.16 + np.sin(angle) * length * step - 0.10 * step**2,
                0.017 * (1 - 0.75 * abs(step - 0.6)),
                np.array((0.20, 0.42, 0.24)) * rng.uniform(0.7, 1.25),
                0.8,
            )
    _rectangle(canvas, 0.32, 0.48, -0.40, -0.17, (0.80, 0.52, 0.36))
    canvas *= (1.04 - 0.12 * (x + 0.6))[..., None]
    return gaussian_filter(canvas, (2.8, 2.8, 0))


def _gallery(rng: np.random.Generator) -> Canvas:
    """A coloured wall with framed pictures and a lamp."""
    x, y = _grid()
    wall = np.array(((0.36, 0.46, 0.50), (0.60, 0.44, 0.38), (0.44, 0.50, 0.40))[rng.integers(3)])
    canvas = np.tile(wall, (_SIZE, _SIZE, 1)) * (1 + 0.02 * _smooth_noise(rng, 3)[..., None])
    for cx, cy, width, height in (
        (-0.27, 0.13, 0.20, 0.26),
        (0.02, 0.30, 0.16, 0.16),
        (0.30, 0.10, 0.22, 0.22),
        (-0.55, 0.10, 0.2, 0.3),
    ):
        _rectangle(canvas, cx - width / 2, cx + width / 2, cy - height / 2, cy + height / 2, (0.17, 0.13, 0.11))
        _rectangle(
            canvas,
            cx - width / 2 + 0.012,
            cx + width / 2 - 0.012,
            cy - height / 2 + 0.012,
            cy + height / 2 - 0.012,
            (0.90, 0.88, 0.82),
        )
        inner = (np.abs(x - cx) < width / 2 - 0.032) & (np.abs(y - cy) < height / 2 - 0.032)
        ground, figure = rng.uniform(0.35, 0.85, 3), rng.uniform(0.2, 0.8, 3)
        blobs = (_smooth_noise(rng, 16) > 0.2)[..., None]
        canvas[inner] = np.where(blobs, ground, figure)[inner]
    canvas *= (0.82 + 0.55 * np.exp(-((x - 0.45) ** 2 + (y - 0.45) ** 2) / 0.16))[..., None] * np.array(
        (1.06, 1.0, 0.92)
    )
    return gaussian_filter(canvas, (2.4, 2.4, 0))


def _evening(rng: np.random.Generator) -> Canvas:
    """City lights out of focus behind a dark room."""
    _, y = _grid()
    canvas = np.stack([0.10 + 0.10 * (y + 0.7), 0.12 + 0.09 * (y + 0.7), 0.22 + 0.16 * (y + 0.7)], -1)
    colors = ((1.0, 0.75, 0.40), (0.95, 0.45, 0.30), (0.55, 0.75, 1.0), (1.0, 0.92, 0.75), (0.45, 0.90, 0.75))
    for _ in range(110):
        _disc(
            canvas,
            rng.uniform(-0.75, 0.75),
            rng.normal(-0.02, 0.25),
            rng.uniform(0.012, 0.040),
            colors[rng.integers(len(colors))],
            rng.uniform(0.15, 0.55),
            0.005,
        )
    return gaussian_filter(canvas, (1.6, 1.6, 0))


BACKGROUNDS: Dict[str, Callable[[np.random.Generator], Canvas]] = {
    "study": _study,
    "window": _window,
    "gallery": _gallery,
    "evening": _evening,
}


@lru_cache(maxsize=8)
def background_texture(name: str, seed: int) -> Tuple[Canvas, float]:
    """A background's texture in linear light, and half the width in metres that it covers."""
    canvas = BACKGROUNDS[name](np.random.default_rng(seed))
    return np.ascontiguousarray(np.clip(canvas, 0.0, 1.0) ** 2.2), BACKGROUND_EXTENT
