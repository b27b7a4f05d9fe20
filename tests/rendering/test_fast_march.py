"""The compiled march against fields evaluated by torch and composited densely, for one and two avatars."""

import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.fields.field_programs import head_program, torso_program
from dialogue_nerfstudio.fields.head_field import HeadField, HeadFieldConfig
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal
from dialogue_nerfstudio.fields.torso_field import TorsoField, TorsoFieldConfig
from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.compositing import Samples, composite
from dialogue_nerfstudio.rendering.fast_march import FastSource, fast_march
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid, OccupancyGridConfig
from dialogue_nerfstudio.rendering.placements import Placement
from dialogue_nerfstudio.rendering.rays import axis_angle_to_matrix, rays_into
from dialogue_nerfstudio.rendering.sampling import points_along, stratified

GRID = HashGridConfig(num_levels=5, log2_hashmap_size=12, base_resolution=6, max_resolution=64, kernel="torch")
HEAD_BOX = torch.tensor([[-0.1, -0.12, -0.1], [0.1, 0.13, 0.1]])
TORSO_BOX = torch.tensor([[-0.25, -0.35, -0.15], [0.25, -0.05, 0.12]])
# With 16, 24, 48 or 64 samples a ray, no sample of a ray straight through the box lies exactly between two cells.
RESOLUTION = 15
NUM_RAYS = 700


def lively(field):
    """Random weights of the size that makes things half transparent, and changes them within centimetres."""
    for name, parameter in field.named_parameters():
        if name.endswith("table"):
            torch.nn.init.uniform_(parameter, -1.5, 1.5)
        elif parameter.ndim > 1 and "deformation" in name and "hidden" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return field


class Avatar:
    """Fields of two people, and what torch says of them at one frame."""

    def __init__(self, sharing="per-participant", head=None, torso=None):
        boxes = torch.stack([HEAD_BOX, HEAD_BOX * 1.1]), torch.stack([TORSO_BOX, TORSO_BOX * 0.9])
        self.boxes = boxes
        self.head = lively(
            HeadField(head or HeadFieldConfig(view_dependent=True, grid=GRID), sharing, boxes[0], face=8, eyes=4)
        )
        self.torso = lively(TorsoField(torso or TorsoFieldConfig(grid=GRID), sharing, boxes[1]))
        self.signal = HeadSignal(face=torch.randn(1, 8), eyes=torch.randn(1, 4))
        self.et = torch.rand(1, self.torso.config.pose_size) - 0.5

    def occupancy(self, part, row, share):
        grid = OccupancyGrid(self.boxes[part][row], OccupancyGridConfig(resolution=RESOLUTION))
        grid.occupied.copy_(torch.rand(RESOLUTION**3) < share)
        return grid

    def sources(self, row, placement, share=0.5, samples=(24, 16)):
        """(fast, reference) sources of one person: head, torso."""
        pose = axis_angle_to_matrix(torch.randn(3) * 0.2), torch.randn(3) * 0.02
        transforms = [
            (placement.rotation @ pose[0], placement.rotation @ pose[1] + placement.translation),
            (placement.rotation, placement.translation),
        ]
        programs = [head_program(self.head, row, self.signal), torso_program(self.torso, row, self.et)]
        grids = [self.occupancy(part, row, share) for part in (0, 1)]
        fast = [
            FastSource(program, *transform, grid, count)
            for program, transform, grid, count in zip(programs, transforms, grids, samples, strict=True)
        ]

        def head(points, directions):
            rays = torch.arange(len(points))
            sigma, geometry, gates = self.head.density(points, row, self.signal, [len(points)])
            return sigma, self.head.colour(geometry, gates, directions, rays, row, self.signal, [len(points)])

        def torso(points, directions):
            sigma, geometry, _ = self.torso.density(points, row, self.et, [len(points)])
            return sigma, self.torso.colour(geometry, row)

        return fast, [head, torso]


def brute_force(origins, directions, fast, evaluate, background, stop=None):
    """Every sample of every source, evaluated by torch, sorted and composited densely."""
    dense = []
    for source, field in zip(fast, evaluate, strict=True):
        o, d = rays_into(origins, directions, source.rotation, source.translation)
        near, far = intersect_box(o, d, *source.occupancy.box)
        t, width = stratified(near, far, RESOLUTION)
        hit = (far > near)[:, None]
        occupied = source.occupancy.query_along(o, d, t) & hit
        bins = torch.arange(RESOLUTION)
        first = torch.where(occupied, bins, RESOLUTION).amin(dim=1)
        last = torch.where(occupied, bins, -1).amax(dim=1)
        near, far = near + first * width[:, 0], near + (last + 1) * width[:, 0]
        far = far if stop is None else torch.minimum(far, stop)
        t, delta = stratified(near, far, source.num_samples)
        live = source.occupancy.query_along(o, d, t) & hit & ((last >= 0) & (far > near))[:, None]
        points = points_along(o, d, t).flatten(0, 1)
        sigma, rgb = field(points, d.repeat_interleave(source.num_samples, dim=0))
        sigma = torch.where(live, sigma.view(t.shape), 0.0)
        # What is culled must not decide the order either: it goes behind everything, with no depth of its own.
        dense.append(Samples(torch.where(live, t, 100.0), delta.clamp(min=0), sigma, rgb.view(*t.shape, 3)))
    return composite(dense, background)


def some_rays(num_rays=NUM_RAYS):
    """From about a metre in front, spread so widely that many miss, in random order."""
    origins = torch.tensor([0.0, -0.05, 1.0]) + 0.05 * torch.randn(num_rays, 3)
    aim = torch.randn(num_rays, 3) * torch.tensor([0.25, 0.25, 0.1])
    return origins, torch.nn.functional.normalize(aim - origins, dim=-1), torch.rand(num_rays, 3)


@torch.no_grad()
def check(fast, reference, stop=None):
    origins, directions, background = some_rays()
    expected = brute_force(origins, directions, fast, reference, background, stop)
    got = fast_march(origins, directions, fast, background, 0.0, 1e-5, stop)
    assert 0.05 < expected.accumulation.mean() < 0.95 and (expected.accumulation == 0).any()
    # A ray that grazes a cell may find it or not, by a rounding: the odd ray is allowed to differ.
    for name, value in (("rgb", got.rgb), ("opacity", got.opacity), ("accumulation", got.accumulation)):
        difference = (value - getattr(expected, name)).abs().reshape(len(origins), -1).amax(dim=1)
        assert difference.sort().values[-4] < 2e-4, name
    seen = expected.accumulation > 0.1
    assert ((got.depth - expected.depth).abs()[seen]).sort().values[-4] < 1e-3
    return got


@pytest.mark.parametrize("sharing", ["per-participant", "shared", "atlas"])
def test_one_avatar(sharing):
    torch.manual_seed(0)
    check(*Avatar(sharing).sources(1, Placement.identity()))


def test_an_atlas_of_planes():
    torch.manual_seed(0)
    head = HeadFieldConfig(view_dependent=True, grid=GRID, encoding="tri-plane")
    check(*Avatar("atlas", head=head).sources(1, Placement.identity()))


@pytest.mark.parametrize(
    "head, torso",
    [
        (dict(density_layers=1, colour_layers=2, face_regions=3, geometry_features=9), dict(deform=False)),
        (dict(hidden_width=20, latent_size=3), dict(pose_appearance=True, pose_history=6, sway=False, hidden_layers=1)),
        (dict(density_layers=3, eye_regions=1), dict(hidden_width=24, pose_frequencies=2)),
    ],
)
def test_sizes_and_options(head, torso):
    torch.manual_seed(1)
    grids = HashGridConfig(num_levels=3, features_per_level=4, log2_hashmap_size=10, kernel="torch")
    avatar = Avatar(
        head=HeadFieldConfig(view_dependent=True, grid=grids, **head), torso=TorsoFieldConfig(grid=GRID, **torso)
    )
    check(*avatar.sources(0, Placement.identity(), samples=(48, 64)))


def test_two_avatars_occlude_each_other():
    """Close enough that heads and torsos interleave along rays; the order of sources is of no matter."""
    torch.manual_seed(2)
    avatar = Avatar()
    placements = [Placement.at((-0.08, 0.0, 0.03), 0.5), Placement.at((0.08, 0.02, 0.0), -0.4)]
    parts = [avatar.sources(row, placement) for row, placement in enumerate(placements)]
    fast, reference = [s for p in parts for s in p[0]], [s for p in parts for s in p[1]]
    got = check(fast, reference)
    assert (got.opacity.mean(dim=0) > 0.01).all()
    origins, directions, background = some_rays(100)
    forwards = fast_march(origins, directions, fast, background)
    backwards = fast_march(origins, directions, fast[::-1], background)
    torch.testing.assert_close(backwards.rgb, forwards.rgb, atol=1e-5, rtol=0)


def test_rays_end_at_opaque_surfaces():
    torch.manual_seed(5)
    fast, reference = Avatar().sources(0, Placement.identity(), share=1.0)
    stop = 0.8 + 0.3 * torch.rand(NUM_RAYS)
    got = check(fast, reference, stop)
    assert (got.depth <= stop).all() and (got.depth > 0.5).any()


def test_nothing_there():
    torch.manual_seed(3)
    fast, _ = Avatar().sources(0, Placement.identity(), share=0.0)
    origins, directions, background = some_rays()
    got = fast_march(origins, directions, fast, background)
    assert torch.equal(got.rgb, background) and not got.opacity.any() and not got.depth.any()
    full, _ = Avatar().sources(0, Placement.identity())
    got = fast_march(origins, -directions, full, background)
    assert torch.equal(got.rgb, background) and got.num_evaluated == 0


def test_light_ends_at_opaque_surfaces():
    """What lies behind them is not evaluated, and hardly changes the picture."""
    torch.manual_seed(4)
    avatar = Avatar(head=HeadFieldConfig(view_dependent=True, grid=GRID, initial_density=300.0))
    fast, reference = avatar.sources(0, Placement.identity(), share=1.0)
    origins, directions, background = some_rays()
    all_light = fast_march(origins, directions, fast, background, 5e-3, 0.0)
    got = fast_march(origins, directions, fast, background, 5e-3, 1e-2)
    assert got.num_evaluated < 0.8 * all_light.num_evaluated
    expected = brute_force(origins, directions, fast, reference, background)
    assert (got.rgb - expected.rgb).abs().max() < 0.05
    assert (got.rgb - expected.rgb).square().mean() < 1e-5
    assert got.opacity.sum(dim=-1).max() <= 1 + 1e-5


def test_what_a_program_does_not_know_is_refused():
    avatar = Avatar()
    avatar.head.gaze_layer = torch.nn.Linear(2, 2)
    assert head_program(avatar.head, 0, avatar.signal) is None
    avatar.torso.double()
    assert torso_program(avatar.torso, 0, avatar.et) is None


def test_too_many_samples():
    fast, _ = Avatar().sources(0, Placement.identity(), samples=(24, 65))
    with pytest.raises(DialogueError, match="up to 64 samples"):
        fast_march(*some_rays()[:2], fast, some_rays()[2])
