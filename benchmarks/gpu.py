"""The GPU's numerics where nerfstudio cannot be installed: grid, fused network, pictures and training steps, as JSON.

    python benchmarks/gpu.py --output gpu.json      # on a GPU: about two minutes, most of it compiling
    python benchmarks/gpu.py --tiny                 # anywhere: that everything runs, not how fast

Needs torch, NumPy and jaxtyping, triton for our kernels, tinycudann for the comparison with it; nothing else. Every
figure comes with the baseline measured beside it, repeats of all candidates interleaved, medians. Bandwidths are
compared with what copying a large tensor reaches in the same run. Pictures are of initialised fields at the sizes of
the GPU preset, with ellipsoids for densities, so that rays meet opaque heads and torsos as they do once trained.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig, is_installed, triton_interprets
from dialogue_nerfstudio.fields.audio_net import MEL_BINS, MEL_STEPS, AudioNetConfig
from dialogue_nerfstudio.fields.conditioning import hidden_layers
from dialogue_nerfstudio.fields.deformation import DeformationConfig
from dialogue_nerfstudio.fields.frame_mlp import frame_mlp
from dialogue_nerfstudio.fields.head_field import HeadField, HeadFieldConfig
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal, SignalEncoder, SignalEncoderConfig
from dialogue_nerfstudio.fields.torso_field import TorsoField, TorsoFieldConfig
from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.march import March, Source, march
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid, OccupancyGridConfig
from dialogue_nerfstudio.rendering.pixels import pixel_centres, pixel_rays
from dialogue_nerfstudio.rendering.placements import side_by_side
from dialogue_nerfstudio.rendering.rays import head_rays
from dialogue_nerfstudio.rendering.recorded_march import RecordedMarch

HEAD_BOX = ((-0.13, -0.17, -0.16), (0.13, 0.17, 0.14))
TORSO_BOX = ((-0.35, -0.5, -0.25), (0.35, -0.08, 0.15))
ELLIPSOIDS = {
    "head": ((0.0, 0.0, 0.0), (0.085, 0.12, 0.1)),
    "torso": ((0.0, -0.35, -0.05), (0.25, 0.2, 0.12)),
}
SOLID_DENSITY = 300.0


def preset_grid(log2_hashmap_size: int) -> HashGridConfig:
    return HashGridConfig(num_levels=12, log2_hashmap_size=log2_hashmap_size, max_resolution=1024)


@dataclass
class Sizes:
    """What is measured; the defaults are those of the GPU preset."""

    points: int = 1 << 20
    head_grid: HashGridConfig = field(default_factory=lambda: preset_grid(19))
    torso_grid: HashGridConfig = field(default_factory=lambda: preset_grid(18))
    width: int = 64
    regions: int = 8
    geometry_features: int = 32
    picture: int = 512
    head_samples: int = 48
    torso_samples: int = 24
    occupancy: int = 64
    audio_width: int = 32
    training_rays: int = 16384
    training_frames: int = 32
    frames: int = 20
    copy_bytes: int = 1 << 30
    repeats: int = 20


def tiny_sizes() -> Sizes:
    grid = HashGridConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4, max_resolution=16)
    return Sizes(
        points=64, head_grid=grid, torso_grid=grid, width=16, regions=2, geometry_features=4, picture=12,
        head_samples=6, torso_samples=4, occupancy=8, audio_width=2, training_rays=40, training_frames=2, frames=2,
        copy_bytes=1 << 16, repeats=1,
    )  # fmt: skip


class Clock:
    """Milliseconds of work on a device."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.warm_up = 2 if self.cuda else 0

    def once(self, work: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    def medians(self, candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
        """Of interleaved repeats, after those that compile and warm up."""
        taken: dict[str, list[float]] = {name: [] for name in candidates}
        for repeat in range(repeats + self.warm_up):
            for name, work in candidates.items():
                milliseconds = self.once(work)
                if repeat >= self.warm_up:
                    taken[name].append(milliseconds)
        return {name: statistics.median(values) for name, values in taken.items()}


def rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def ratios(milliseconds: dict[str, float], of: str) -> dict[str, float]:
    """How many times faster `of` is than every other."""
    return {f"over_{name}": round(t / milliseconds[of], 3) for name, t in milliseconds.items() if name != of}


def relative_difference(value: Tensor, reference: Tensor) -> float:
    return ((value.float() - reference.float()).norm() / reference.float().norm().clamp(min=1e-30)).item()


def copy_bandwidth(sizes: Sizes, device: torch.device) -> float:
    """Gigabytes a second that copying reads and writes together."""
    source = torch.zeros(sizes.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    milliseconds = Clock(device).medians({"copy": lambda: target.copy_(source)}, sizes.repeats)["copy"]
    return 2 * source.numel() * 4 / milliseconds / 1e6


# Hash grid ------------------------------------------------------------------------------------------------------------


def grid_kernels(device: torch.device) -> list[str]:
    kernels = ["torch"]
    if is_installed("triton") and (device.type == "cuda" or triton_interprets()):
        kernels.append("triton")
    if is_installed("tinycudann") and device.type == "cuda":
        kernels.append("tcnn")
    if is_installed("numba") and device.type == "cpu":
        kernels.append("numba")
    return kernels


def grid_bytes(config: HashGridConfig, entries: int, points: int, element: int) -> dict[str, int]:
    """Of one forward. requested: every corner's entry, every level's reading of the positions, the features.
    compulsory: what would cross the memory bus if caches were perfect."""
    features = config.num_levels * config.features_per_level
    corners = 2**config.num_dims * features * element
    requested = points * (corners + config.num_levels * config.num_dims * 4 + features * element)
    touched = min(entries * config.features_per_level * element, points * corners)
    return {"requested": requested, "compulsory": points * (config.num_dims * 4 + features * element) + touched}


def positions_of(kind: str, points: int, device: torch.device) -> Tensor:
    """random: nothing is shared between neighbours. rays: 32 samples along each, as marching makes them."""
    if kind == "random":
        return torch.rand(points, 3, device=device)
    rays = -(-points // 32)
    origins, directions = 0.3 + 0.4 * torch.rand(rays, 1, 3, device=device), torch.randn(rays, 1, 3, device=device)
    steps = torch.linspace(-0.29, 0.29, 32, device=device)[None, :, None]
    along = origins + steps * nn.functional.normalize(directions, dim=-1)
    return along.reshape(-1, 3)[:points].contiguous()


def measure_grid(sizes: Sizes, device: torch.device, bandwidth: float) -> dict:
    result = {}
    types = {"float32": torch.float32}
    if device.type == "cuda":
        types["float16"] = torch.float16
    for kind in ("random", "rays"):
        positions = positions_of(kind, sizes.points, device)
        for type_name, dtype in types.items():
            grids = {}
            for kernel in grid_kernels(device):
                grids[kernel] = HashGrid(replace(sizes.head_grid, kernel=kernel)).to(device, dtype)
            with torch.no_grad():
                nn.init.uniform_(grids["torch"].table, -1.0, 1.0)
                for grid in grids.values():
                    grid.table.copy_(grids["torch"].table)
            upstream = torch.randn(sizes.points, grids["torch"].out_dim, device=device).to(dtype)
            result[f"{kind}, {type_name}"] = measure_grids(sizes, device, grids, positions, upstream, bandwidth)
    return result


def measure_grids(
    sizes: Sizes,
    device: torch.device,
    grids: dict[str, HashGrid],
    positions: Tensor,
    upstream: Tensor,
    bandwidth: float,
) -> dict:
    moving = positions.clone().requires_grad_(True)

    def forward(grid: HashGrid) -> Tensor:
        with torch.no_grad():
            return grid(positions)

    def table_gradient(grid: HashGrid) -> Tensor:
        return torch.autograd.grad(grid(positions), grid.table, upstream)[0]

    def both_gradients(grid: HashGrid) -> Tensor:
        return torch.autograd.grad(grid(moving), (moving, grid.table), upstream)[0]

    ours = "triton" if "triton" in grids else "torch"
    result = {}
    for name, work in (
        ("forward", forward),
        ("forward_and_table_gradient", table_gradient),
        ("forward_and_both_gradients", both_gradients),
    ):
        reference = work(grids["torch"])
        milliseconds = Clock(device).medians(
            {kernel: (lambda grid=grid, work=work: work(grid)) for kernel, grid in grids.items()}, sizes.repeats
        )
        result[name] = {
            "milliseconds": rounded(milliseconds),
            "million_points_per_second": {k: significant(sizes.points / t / 1e3) for k, t in milliseconds.items()},
            ours: ratios(milliseconds, ours),
            "difference_to_torch": {k: relative_difference(work(g), reference) for k, g in grids.items()},
        }
    table = grids["torch"].table
    volume = grid_bytes(grids["torch"].config, table.shape[0], sizes.points, table.element_size())
    reached = {k: v / result["forward"]["milliseconds"][ours] / 1e6 for k, v in volume.items()}
    result["forward"]["bandwidth_of_" + ours] = {
        "gigabytes_per_second": rounded(reached, 1),
        "share_of_copy_bandwidth": rounded({k: v / bandwidth for k, v in reached.items()}, 3),
    }
    return result


# Fused network --------------------------------------------------------------------------------------------------------


def measure_network(sizes: Sizes, device: torch.device, bandwidth: float) -> dict:
    """The head's density network: torch in float32, torch under autocast, fused under autocast."""
    num_inputs = 2 * sizes.head_grid.num_levels * sizes.head_grid.features_per_level + sizes.regions + 3
    outputs, width = 1 + sizes.geometry_features, sizes.width
    hidden = nn.Sequential(*hidden_layers(width, 2), nn.Linear(width, outputs)).to(device)
    half = torch.float16
    fused = is_installed("triton") and (device.type == "cuda" or triton_interprets())
    result = {}
    for frames in (1, sizes.training_frames):
        counts = [sizes.points // frames + (1 if i < sizes.points % frames else 0) for i in range(frames)]
        inputs = torch.randn(sizes.points, num_inputs, device=device, requires_grad=True)
        matrices = (torch.randn(frames, num_inputs, width, device=device) / num_inputs**0.5).requires_grad_(True)

        def run(
            kernel: str, dtype: torch.dtype | None, inputs: Tensor = inputs, matrices: Tensor = matrices,
            counts: list[int] = counts,
        ) -> Tensor:  # fmt: skip
            with torch.autocast(device.type, dtype or half, enabled=dtype is not None):
                return frame_mlp(inputs, matrices, counts, hidden, kernel)

        ways = {"torch_float32": ("torch", None), "torch_float16": ("torch", half)}
        if fused:
            ways["fused_float16"] = ("triton", half)
        if fused and device.type == "cuda":
            ways["fused_tf32"] = ("triton", None)

        def forward(way: tuple, run: Callable = run) -> Tensor:
            with torch.no_grad():
                return run(*way)

        def with_gradients(
            way: tuple, run: Callable = run, inputs: Tensor = inputs, matrices: Tensor = matrices
        ) -> Tensor:
            value = run(*way)
            return torch.autograd.grad(value, (inputs, matrices, *hidden.parameters()), torch.ones_like(value))[0]

        best = "fused_float16" if fused else "torch_float16"
        measured = {}
        for name, work in (("forward", forward), ("forward_and_gradients", with_gradients)):
            reference = work(ways["torch_float32"])
            milliseconds = Clock(device).medians(
                {way: (lambda v=value, work=work: work(v)) for way, value in ways.items()}, sizes.repeats
            )
            measured[name] = {
                "milliseconds": rounded(milliseconds),
                best: ratios(milliseconds, best),
                "difference_to_torch_float32": {w: relative_difference(work(v), reference) for w, v in ways.items()},
            }
        reached = sizes.points * (num_inputs * 4 + outputs * 2) / measured["forward"]["milliseconds"][best] / 1e6
        measured["forward"]["bandwidth_of_" + best] = {
            "gigabytes_per_second": significant(reached),
            "share_of_copy_bandwidth": round(reached / bandwidth, 3),
        }
        result[f"{frames} frame{'s' if frames > 1 else ''}"] = measured
    return result


# Pictures and training steps ------------------------------------------------------------------------------------------


class Avatars(nn.Module):
    """Fields of some people at the preset's sizes, with ellipsoids for densities and their own cost."""

    def __init__(self, sizes: Sizes, people: int):
        super().__init__()
        self.sizes = sizes
        head_boxes, torso_boxes = torch.tensor([HEAD_BOX] * people), torch.tensor([TORSO_BOX] * people)
        audio = AudioNetConfig(
            base_width=sizes.audio_width, residual_blocks=2 if sizes.audio_width > 8 else 1, code_size=sizes.width
        )
        signals = SignalEncoderConfig(audio=audio)
        self.signals = SignalEncoder(signals, people, expression_size=32, residual_size=8)
        self.head = HeadField(
            HeadFieldConfig(
                grid=sizes.head_grid, hidden_width=sizes.width, colour_layers=2,
                geometry_features=sizes.geometry_features, face_regions=sizes.regions, half_inference=False,
            ),
            "per-participant", head_boxes, face=audio.code_size, eyes=signals.eyes_size,
        )  # fmt: skip
        self.torso = TorsoField(
            TorsoFieldConfig(
                grid=sizes.torso_grid, hidden_width=sizes.width,
                deformation=DeformationConfig(hidden_width=sizes.width, hidden_layers=3), half_inference=False,
            ),
            "per-participant", torso_boxes,
        )  # fmt: skip
        cells = OccupancyGridConfig(resolution=sizes.occupancy, updates_to_forget=12)
        self.head_occupancy = nn.ModuleList(OccupancyGrid(box, cells) for box in head_boxes)
        self.torso_occupancy = nn.ModuleList(OccupancyGrid(box, cells) for box in torso_boxes)
        self.register_buffer("mel", torch.randn(64, MEL_STEPS, MEL_BINS))
        for part, (centre, radii) in ELLIPSOIDS.items():
            self.register_buffer(f"{part}_centre", torch.tensor(centre))
            self.register_buffer(f"{part}_radii", torch.tensor(radii))

    def solid(self, part: str, points: Tensor) -> Tensor:
        scaled = (points - getattr(self, f"{part}_centre")) / getattr(self, f"{part}_radii")
        return torch.where(scaled.norm(dim=-1) < 1.0, SOLID_DENSITY, 0.0)

    def conditions(self, person: int, frames: Tensor) -> tuple[HeadSignal, Tensor, Tensor]:
        """(signal, head poses, et) of frames; the audio net runs here."""
        device, count = frames.device, len(frames)
        yes = torch.ones(count, dtype=torch.bool, device=device)
        signal = self.signals(
            person, frames, yes, yes, self.mel, torch.zeros(count, 32, device=device),
            torch.zeros(count, 8, device=device), torch.zeros(count, 2, device=device),
            torch.zeros(count, 4, device=device),
        )  # fmt: skip
        movement = 0.05 * torch.sin(0.2 * frames[:, None] + torch.arange(self.torso.config.pose_size, device=device))
        return signal, movement[:, :6], movement

    def sources(
        self, person: int, origins: Tensor, directions: Tensor, rows: Tensor, conditions: tuple, solid: bool = True
    ) -> list[Source]:
        """A person's head and torso; `rows` is the row of the conditions of each ray, ascending. solid=False leaves
        densities to the fields, as training does."""
        signal, pose, et = conditions
        frames = len(pose)
        head_origins, head_directions = head_rays(origins, directions, pose[rows] if frames > 1 else pose[0])

        def counts(rays: Tensor) -> list[int]:
            return [len(rays)] if frames == 1 else torch.bincount(rows[rays], minlength=frames).tolist()

        def head_density(points: Tensor, rays: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            density, geometry, gates = self.head.density(points, person, signal, counts(rays))
            return self.solid("head", points) + 0.0 * density if solid else density, (geometry, gates)

        def head_colour(geometry: tuple[Tensor, ...], _: Tensor, rays: Tensor) -> Tensor:
            return self.head.colour(*geometry, head_directions, rays, person, signal, counts(rays))

        def torso_density(points: Tensor, rays: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            density, geometry, _ = self.torso.density(points, person, et, counts(rays))
            return self.solid("torso", points) + 0.0 * density if solid else density, (geometry,)

        def torso_colour(geometry: tuple[Tensor, ...], _: Tensor, __: Tensor) -> Tensor:
            return self.torso.colour(*geometry, person)

        parts = []
        for o, d, samples, density, colour, occupancy in (
            (head_origins, head_directions, self.sizes.head_samples, head_density, head_colour, self.head_occupancy),
            (origins, directions, self.sizes.torso_samples, torso_density, torso_colour, self.torso_occupancy),
        ):
            grid = occupancy[person]
            near, far = intersect_box(o, d, grid.box[0], grid.box[1])
            parts.append(Source(o, d, near, far, samples, density, colour, grid))
        return parts

    @torch.no_grad()
    def settle(self, pictures: list[tuple[int, Tensor, Tensor]], background: Tensor) -> None:
        """Occupancy as after training: what is solid and lit."""
        for step in range(16):
            for person, origins, directions in pictures:
                rows = torch.zeros(len(origins), dtype=torch.long, device=origins.device)
                frame = torch.tensor([step % len(self.mel)], device=origins.device)
                marched = self.sources(person, origins, directions, rows, self.conditions(person, frame))
                march(marched, background).mark_visible(marched)
        for grids, part in ((self.head_occupancy, "head"), (self.torso_occupancy, "torso")):
            for grid in grids:
                for _ in range(14):
                    grid.update(lambda points, part=part: self.solid(part, points))
        for person, origins, directions in pictures:
            rows = torch.zeros(len(origins), dtype=torch.long, device=origins.device)
            for step in range(4):
                frame = torch.tensor([16 * step], device=origins.device)
                marched = self.sources(person, origins, directions, rows, self.conditions(person, frame))
                march(marched, background).mark_visible(marched)
        for grid in (*self.head_occupancy, *self.torso_occupancy):
            grid.refresh()


def camera_rays(size: int, device: torch.device, width: float, distance: float) -> tuple[Tensor, Tensor]:
    """Rays of a square picture that is `width` metres wide at the people, `distance` metres away."""
    camera = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, -0.05], [0, 0, 1.0, distance]])
    pixels = pixel_centres(size, size).reshape(-1, 2)
    origins, directions = pixel_rays(pixels, size * distance / width, size / 2, size / 2, camera)
    return origins.to(device).contiguous(), directions.to(device).contiguous()


def measure_pictures(sizes: Sizes, device: torch.device) -> dict:
    """Frames a second of two avatars with torsos: audio net, head and torso fields, joint compositing."""
    avatars = Avatars(sizes, people=2).to(device).eval()
    rays = sizes.picture**2
    background = torch.rand(rays, 3, device=device)
    close = camera_rays(sizes.picture, device, width=0.6, distance=1.1)
    together = camera_rays(sizes.picture, device, width=1.5, distance=2.0)
    seats = [placement.to(device) for placement in side_by_side(2)]
    seated = [placement.rays_to_person(*together) for placement in seats]
    rows = torch.zeros(rays, dtype=torch.long, device=device)
    avatars.settle([(0, *close), (1, *close), (0, *seated[0]), (1, *seated[1])], background)

    def own_picture(person: int, frame: Tensor) -> March:
        conditions = avatars.conditions(person, frame)
        sources = avatars.sources(person, *close, rows, conditions)
        return march(sources, background, weight_threshold=5e-3, transmittance_threshold=1e-2)

    def one(frame: Tensor) -> list[March]:
        return [own_picture(0, frame)]

    def two(frame: Tensor) -> list[March]:
        return [own_picture(person, frame) for person in (0, 1)]

    recordings: dict[tuple[int, str], tuple[tuple, RecordedMarch]] = {}

    def replayed(person: int, frame: Tensor) -> Tensor:
        """The person's own picture through a recording, one for each precision."""
        signal, pose, et = avatars.conditions(person, frame)
        key = (person, str(torch.is_autocast_enabled(device.type)))
        if key not in recordings:
            kept = (HeadSignal(signal.face.clone(), signal.eyes.clone()), pose.clone(), et.clone())
            recordings[key] = (
                kept,
                RecordedMarch(lambda: avatars.sources(person, *close, rows, kept), background, 5e-3, 1e-2),
            )
        (kept_signal, kept_pose, kept_et), recorded = recordings[key]
        for target, value in (
            (kept_signal.face, signal.face), (kept_signal.eyes, signal.eyes), (kept_pose, pose), (kept_et, et)
        ):  # fmt: skip
            target.copy_(value)
        return recorded().rgb

    def one_replayed(frame: Tensor) -> list[Tensor]:
        return [replayed(0, frame)]

    def two_replayed(frame: Tensor) -> list[Tensor]:
        return [replayed(person, frame) for person in (0, 1)]

    def joint(frame: Tensor) -> list[March]:
        sources = []
        for person in (0, 1):
            sources += avatars.sources(person, *seated[person], rows, avatars.conditions(person, frame))
        return [march(sources, background, weight_threshold=5e-3, transmittance_threshold=1e-2)]

    scenes = {
        "one_avatar": one,
        "one_avatar_replayed": one_replayed,
        "two_avatars_a_picture_each": two,
        "two_avatars_a_picture_each_replayed": two_replayed,
        "two_avatars_in_one_picture": joint,
    }
    precisions = {"float32": None} if device.type == "cpu" else {"float32": None, "float16": torch.float16}
    frame_numbers = [torch.tensor([index % len(avatars.mel)], device=device) for index in range(sizes.frames)]

    @torch.no_grad()
    def render_all(scene: Callable[[Tensor], list], dtype: torch.dtype | None) -> None:
        with mixed(device, dtype):
            for frame in frame_numbers:
                scene(frame)

    work = {
        f"{name}, {precision}": (lambda scene=scene, dtype=dtype: render_all(scene, dtype))
        for name, scene in scenes.items()
        for precision, dtype in precisions.items()
    }
    milliseconds = Clock(device).medians(work, max(2, sizes.repeats // 5))
    result: dict = {"frames_per_second": {k: significant(1e3 * sizes.frames / t) for k, t in milliseconds.items()}}
    if "float16" in precisions:
        result["float16_over_float32"] = {
            name: round(milliseconds[f"{name}, float32"] / milliseconds[f"{name}, float16"], 2) for name in scenes
        }
        with torch.no_grad():
            full = two(frame_numbers[0])[0].composite.rgb
            with mixed(device, torch.float16):
                result["float16_error"] = relative_difference(two(frame_numbers[0])[0].composite.rgb, full)
    with torch.no_grad():
        plain = one(frame_numbers[0])[0].composite.rgb
        result["replayed_error"] = relative_difference(one_replayed(frame_numbers[0])[0], plain)
        marched = joint(frame_numbers[0])[0]
    result["samples_in_one_picture"] = {
        "live": sum(len(part.t) for part in marched.samples),
        "coloured": sum(int((weights > 5e-3).sum()) for weights in marched.composite.weights),
        "picture": sizes.picture,
    }
    return result


def mixed(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def measure_training(sizes: Sizes, device: torch.device) -> dict:
    """Training steps a second of one avatar: rays of many frames, all samples evaluated, Adam over tables and nets."""
    precisions = {"float32": None} if device.type == "cpu" else {"float32": None, "float16": torch.float16}
    work, states = {}, {}
    origins, directions = camera_rays(sizes.picture, device, width=0.6, distance=1.1)
    for name, dtype in precisions.items():
        avatars = Avatars(sizes, people=1).to(device).train()
        optimizer = torch.optim.Adam(avatars.parameters(), lr=1e-3, eps=1e-15, fused=device.type == "cuda")
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is not None)
        states[name] = avatars

        def step(avatars=avatars, optimizer=optimizer, scaler=scaler, dtype=dtype) -> None:
            picked = torch.randint(len(origins), (sizes.training_rays,), device=device)
            rows = torch.arange(sizes.training_rays, device=device) * sizes.training_frames // sizes.training_rays
            frames = torch.arange(sizes.training_frames, device=device)
            with mixed(device, dtype):
                conditions = avatars.conditions(0, frames)
                sources = avatars.sources(0, origins[picked], directions[picked], rows, conditions, solid=False)
                background = torch.zeros(1, 3, device=device)
                rgb = march(sources, background, weight_threshold=5e-3, perturb=True).composite.rgb
                loss = (rgb - 0.5).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        work[name] = step
    milliseconds = Clock(device).medians(work, sizes.repeats)
    result: dict = {"steps_per_second": {k: significant(1e3 / t) for k, t in milliseconds.items()}}
    if "float16" in precisions:
        result["float16_over_float32"] = round(milliseconds["float32"] / milliseconds["float16"], 2)
    finite = all(p.isfinite().all() for avatars in states.values() for p in avatars.parameters())
    result["parameters_stay_finite"] = bool(finite)
    return result


def significant(value: float) -> float:
    """Four digits, however small: the tiny run on a busy CPU copies less than a tenth of a gigabyte a second."""
    return float(f"{value:.4g}")


def measure(tiny: bool, device_name: str | None) -> dict:
    """Everything, as one dictionary."""
    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    sizes = tiny_sizes() if tiny else Sizes()
    bandwidth = copy_bandwidth(sizes, device)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "tiny": tiny,
        "copy_gigabytes_per_second": significant(bandwidth),
        "hash_grid": measure_grid(sizes, device, bandwidth),
        "density_network": measure_network(sizes, device, bandwidth),
        "pictures": measure_pictures(sizes, device),
        "training": measure_training(sizes, device),
    }
    if device.type == "cuda":
        result["peak_memory_gigabytes"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: that everything runs, not how fast")
    parser.add_argument("--device", help="cuda where there is one, else cpu, if not given")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    text = json.dumps(measure(options.tiny, options.device), indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
