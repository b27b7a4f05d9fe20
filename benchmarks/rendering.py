"""Milliseconds a frame of a synthetic head and torso: marching live samples against evaluating every sample, as JSON.

    python benchmarks/rendering.py --size 128

Both render the same two opaque ellipsoids through hash grids and 32-wide networks of the shape the avatars have. The
baseline evaluates density and colour at every sample of both boxes and composites them densely; the march culls with
occupancy grids that have been looked at from the camera. Repeats are interleaved; medians are reported.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig
from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.compositing import Composite, Samples, composite
from dialogue_nerfstudio.rendering.march import Source, march
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid, OccupancyGridConfig
from dialogue_nerfstudio.rendering.pixels import pixel_centres, pixel_rays
from dialogue_nerfstudio.rendering.sampling import points_along, stratified


@dataclass
class Options:
    size: int = 128
    """Width and height of the frame."""
    repeats: int = 15
    """Timed repeats of each; the median counts."""
    threads: int | None = None
    """torch and numba threads; all cores if not given."""
    device: str = "cpu"
    """Where to render: cpu or cuda."""
    output: Path | None = None
    """Also write the JSON here."""


class EllipsoidField(nn.Module):
    """Work like an avatar's, a hash grid and two small networks, over the density of an opaque ellipsoid."""

    def __init__(self, box: Tensor, centre: Tensor, radii: Tensor) -> None:
        super().__init__()
        for name, value in (("box", box), ("centre", centre), ("radii", radii)):
            self.register_buffer(name, value)
        self.grid = HashGrid(HashGridConfig())
        self.geometry = nn.Sequential(
            nn.Linear(self.grid.out_dim, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16)
        )
        self.radiance = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3), nn.Sigmoid())
        self.occupancy = OccupancyGrid(box, OccupancyGridConfig())

    def solid(self, points: Tensor) -> Tensor:
        return torch.where(((points - self.centre) / self.radii).norm(dim=-1) < 1.0, 300.0, 0.0)

    def density(self, points: Tensor, rays: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        features = self.geometry(self.grid((points - self.box[0]) / (self.box[1] - self.box[0])))
        return self.solid(points) + 0.0 * features[:, 0], (features,)

    def colour(self, geometry: tuple[Tensor, ...], points: Tensor, rays: Tensor) -> Tensor:
        return self.radiance(geometry[0])

    def source(self, origins: Tensor, directions: Tensor, num_samples: int) -> Source:
        near, far = intersect_box(origins, directions, self.box[0], self.box[1])
        return Source(origins, directions, near, far, num_samples, self.density, self.colour, self.occupancy)


def render_everything(sources: list[Source], background: Tensor) -> Composite:
    """The baseline: every sample of every ray that hits a box, coloured and composited densely."""
    listed = []
    for source in sources:
        t, delta = stratified(source.near, source.far, source.num_samples)
        points = points_along(source.origins, source.directions, t).reshape(-1, 3)
        hit = (delta > 0).flatten().nonzero().squeeze(-1)
        density, geometry = source.density(points[hit], hit)
        sigma, rgb = torch.zeros_like(points[:, 0]), torch.zeros_like(points)
        sigma[hit], rgb[hit] = density, source.colour(geometry, points[hit], hit)
        listed.append(Samples(t, delta, sigma.view(t.shape), rgb.view(*t.shape, 3)))
    return composite(listed, background)


def head_and_torso(device: str) -> tuple[EllipsoidField, EllipsoidField]:
    head_box, torso_box = ([-0.13, -0.17, -0.16], [0.13, 0.17, 0.14]), ([-0.35, -0.5, -0.25], [0.35, -0.08, 0.15])
    head = EllipsoidField(torch.tensor(head_box), torch.zeros(3), torch.tensor([0.085, 0.12, 0.1]))
    torso = EllipsoidField(torch.tensor(torso_box), torch.tensor([0.0, -0.35, -0.05]), torch.tensor([0.25, 0.2, 0.12]))
    return head.to(device), torso.to(device)


@torch.no_grad()
def measure(options: Options) -> dict:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = options.size
    camera = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, -0.05], [0, 0, 1.0, 1.1]])
    pixels = pixel_centres(size, size).reshape(-1, 2)
    origins, directions = pixel_rays(pixels, 2.0 * size, size / 2, size / 2, camera)
    origins, directions = origins.to(options.device).contiguous(), directions.to(options.device)
    background = torch.rand(size * size, 3, device=options.device)
    fields = head_and_torso(options.device)

    def sources() -> list[Source]:
        return [field.source(origins, directions, samples) for field, samples in zip(fields, (24, 12), strict=True)]

    for _ in range(30):
        looked_at = sources()
        march(looked_at, background, perturb=True).mark_visible(looked_at)
        for field in fields:
            field.occupancy.update(field.solid)

    ways: dict[str, Callable[[], Composite]] = {
        "march": lambda: march(sources(), background).composite,
        "every_sample": lambda: render_everything(sources(), background),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    images = {name: render().rgb for name, render in ways.items()}
    for _ in range(options.repeats):
        for name, render in ways.items():
            start = time.perf_counter()
            render().rgb.sum().item()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    live = march(sources(), background)
    return {
        "options": {**vars(options), "output": None},
        "threads": torch.get_num_threads(),
        "milliseconds": {name: round(1e3 * value, 2) for name, value in median.items()},
        "frames_per_second": {name: round(1.0 / value, 1) for name, value in median.items()},
        "march_over_every_sample": round(median["every_sample"] / median["march"], 2),
        "samples": {
            "in_boxes": sum(int((s.far > s.near).sum()) * s.num_samples for s in sources()),
            "live": sum(len(s.t) for s in live.samples),
            "coloured": sum(int((w > 1e-3).sum()) for w in live.composite.weights),
        },
        "largest_colour_difference": round((images["march"] - images["every_sample"]).abs().max().item(), 5),
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    text = json.dumps(measure(options), indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
