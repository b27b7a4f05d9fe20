"""Several people on the same rays, against brute force: thousands of steps through all of them at once."""

import math

import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.rendering.backdrop import Backdrop, BackdropConfig, Footprint
from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.joint import spread
from dialogue_nerfstudio.rendering.march import Source, march
from dialogue_nerfstudio.rendering.placements import Placement, arc, boxes_meet, clearance, facing, side_by_side

HEAD = torch.tensor([[-0.1, -0.1, -0.1], [0.1, 0.15, 0.1]])
TORSO = torch.tensor([[-0.25, -0.4, -0.15], [0.25, 0.02, 0.12]])
COLOURS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.8, 0.2], [0.2, 0.3, 0.9], [0.9, 0.9, 0.2]])
SKY = torch.tensor([0.5, 0.6, 0.7])


def density_of(box, points, strength):
    """Densest in the box's middle, none at its sides: smooth, so that a quadrature converges."""
    scaled = (points - box.mean(dim=0)) / (0.5 * (box[1] - box[0]))
    return strength * (1.0 - scaled.square()).clamp(min=0.0).prod(dim=-1)


def bodies(placements, turns):
    """(placement of the part, box, strength, colour): a head, nodding, and a torso of each person."""
    parts = []
    for index, (placement, turn) in enumerate(zip(placements, turns, strict=True)):
        nod = Placement.at((0.01, 0.02, 0.03), turn)
        head = Placement(placement.rotation @ nod.rotation, placement.to_scene(nod.translation))
        parts += [(head, HEAD, 60.0, COLOURS[2 * index % 4]), (placement, TORSO, 25.0, COLOURS[(2 * index + 1) % 4])]
    return parts


def rays(num_rays=200):
    generator = torch.Generator().manual_seed(0)
    origins = torch.tensor([0.1, 0.1, 2.0]) + 0.3 * torch.randn(num_rays, 3, generator=generator)
    targets = torch.tensor([0.6, 0.25, 0.4]) * torch.randn(num_rays, 3, generator=generator)
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def marched(parts, origins, directions, stop=None, num_samples=400, threshold=0.0):
    sources, asked = [], 0
    for placement, box, strength, colour in parts:
        o, d = placement.rays_to_person(origins, directions)
        near, far = intersect_box(o, d, box[0], box[1])
        hit = (far > near).nonzero().squeeze(-1)
        o, d, count = o[hit], d[hit], len(hit)

        def density(points, of, box=box, strength=strength, count=count):
            # A source is asked about its own rays only.
            assert not len(of) or int(of.max()) < count
            return density_of(box, points, strength), ()

        def paint(_, points, of, colour=colour):
            return colour.expand(len(points), 3)

        source = Source(o, d, near[hit], far[hit], num_samples, density, paint)
        sources.append(spread(source, hit, len(origins), stop))
        asked += len(hit) * num_samples
    return march(sources, SKY, 0.0, threshold), asked


def brute_force(parts, origins, directions, stop=None, steps=3000, length=4.0):
    delta = length / steps
    t = (torch.arange(steps) + 0.5) * delta
    points = origins[:, None] + t[:, None] * directions[:, None]
    densities = torch.stack([density_of(box, place.to_person(points), s) for place, box, s, _ in parts], dim=-1)
    if stop is not None:
        densities = torch.where((t < stop[:, None])[..., None], densities, 0.0)
    tau = densities.sum(dim=-1).double() * delta
    through = torch.exp(-torch.nn.functional.pad(tau.cumsum(dim=-1), (1, 0)))
    share = densities / densities.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    opacity = ((through[:, :-1] - through[:, 1:])[..., None] * share).sum(dim=1)
    depth = ((through[:, :-1] - through[:, 1:]) * t).sum(dim=1)
    colours = torch.stack([colour for *_, colour in parts]).double()
    return opacity @ colours + through[:, -1:] * SKY, opacity, depth


APART = facing(1.2)
BEHIND = [Placement.at((0.0, 0.0, 0.4)), Placement.at((0.08, 0.03, -0.4), 0.5)]
INTERLEAVED = [Placement.at((-0.05, 0.0, 0.0), 0.4), Placement.at((0.08, 0.05, 0.05), -0.7)]


@pytest.mark.parametrize("places", [APART, BEHIND, INTERLEAVED], ids=["apart", "one behind another", "interleaved"])
def test_depth_merging_is_brute_force_compositing(places):
    """Heads and torsos of two people, also within each other, agree with small steps through all at once."""
    parts = bodies(places, (0.3, -0.4))
    origins, directions = rays()
    seen = marched(parts, origins, directions)[0].composite
    rgb, opacity, depth = brute_force(parts, origins, directions)
    assert (opacity.sum(dim=-1) > 0.5).sum() > 20 and (opacity > 0.2).any(dim=0).all()
    torch.testing.assert_close(seen.rgb.double(), rgb, atol=5e-3, rtol=0)
    torch.testing.assert_close(seen.opacity.double(), opacity, atol=5e-3, rtol=0)
    torch.testing.assert_close((seen.depth * seen.accumulation).double(), depth, atol=2e-2, rtol=0)


def test_whoever_is_in_front_hides_who_is_behind():
    parts = [(place, box, 50 * strength, colour) for place, box, strength, colour in bodies(BEHIND, (0.0, 0.0))]
    origins = torch.tensor([[0.0, -0.15, 2.0], [0.0, -0.15, -2.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    for order in (parts, parts[2:] + parts[:2]):
        opacity = marched(order, origins, directions)[0].composite.opacity
        person = opacity.view(2, 2, 2).sum(dim=-1)
        nearest = 0 if order is parts else 1
        assert person[0, nearest] > 0.999 and person[1, 1 - nearest] > 0.999


def test_what_is_hidden_is_not_evaluated_and_not_missed():
    parts = [(place, box, 20 * strength, colour) for place, box, strength, colour in bodies(BEHIND, (0.3, -0.4))]
    origins, directions = rays()
    full, fast = (marched(parts, origins, directions, num_samples=64, threshold=t)[0] for t in (0.0, 1e-3))
    assert sum(len(s.t) for s in fast.samples) < 0.9 * sum(len(s.t) for s in full.samples)
    torch.testing.assert_close(fast.composite.rgb, full.composite.rgb, atol=5e-3, rtol=0)


def test_rays_that_miss_cost_no_sample():
    parts = bodies(APART, (0.0, 0.0))
    origins, directions = rays(100)
    away = torch.cat([directions, -directions])
    seen, asked = marched(parts, torch.cat([origins, origins]), away, num_samples=16)
    assert asked == marched(parts, origins, directions, num_samples=16)[1]
    assert all(int(samples.rays.max()) < 100 for samples in seen.samples if len(samples.rays))
    torch.testing.assert_close(seen.composite.rgb[100:], SKY.expand(100, 3))
    assert not seen.composite.depth[100:].any()


def test_a_ground_ends_rays():
    parts = bodies(APART, (0.3, -0.4))
    origins, directions = rays()
    ground = Backdrop(BackdropConfig(), -0.2, []).distance(origins, directions)
    seen = marched(parts, origins, directions, ground)[0].composite
    rgb, opacity, _ = brute_force(parts, origins, directions, ground)
    torch.testing.assert_close(seen.rgb.double(), rgb, atol=1e-2, rtol=0)
    assert (opacity.sum(dim=-1) < brute_force(parts, origins, directions)[1].sum(dim=-1) - 0.05).any()


# Places ---------------------------------------------------------------------------------------------------------------


def test_people_on_an_arc_are_apart_and_turned_inwards():
    places = arc(3, 0.7, math.radians(30.0))
    heads = torch.stack([place.translation for place in places])
    torch.testing.assert_close((heads[1:] - heads[:-1]).norm(dim=-1), torch.full((2,), 0.7))
    torch.testing.assert_close(heads.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    looks = torch.stack([place.rotation[:, 2] for place in places])
    torch.testing.assert_close(looks[:, 0], torch.tensor([0.5, 0.0, -0.5]), atol=1e-6, rtol=0)
    # All look at one point: what is across from it is nothing.
    point = heads[0] + looks[0] * 0.7 / (2 * math.sin(math.radians(15.0)))
    across = torch.linalg.cross(point - heads, looks)
    torch.testing.assert_close(across, torch.zeros(3, 3), atol=1e-5, rtol=0)
    flat = arc(2, 0.7, 0.0)
    assert all(torch.equal(a.translation, b.translation) for a, b in zip(flat, side_by_side(2, 0.7), strict=True))
    with pytest.raises(DialogueError, match="0 to 90 degrees"):
        arc(2, 0.7, -0.1)


def test_boxes_that_meet_and_how_far_apart_they_must_be():
    box = torch.tensor([[-0.3, -1.0, -0.1], [0.3, 0.0, 0.1]])
    here = Placement.identity()
    assert clearance(here, [box], Placement.at((0.2, 0.0, 0.0)), [box]) == pytest.approx(0.6, abs=2e-3)
    assert clearance(here, [box], Placement.at((0.0, 0.0, -1.0)), [box]) == pytest.approx(0.2, abs=2e-3)
    # A quarter turn lays the long side across.
    turned = Placement.at((0.1, 0.0, 0.0), math.pi / 2)
    assert clearance(here, [box], turned, [box]) == pytest.approx(0.4, abs=2e-3)
    # Two squares corner to corner: their circles' bounding boxes meet, they do not.
    square = torch.tensor([[-0.1, -1.0, -0.1], [0.1, 0.0, 0.1]])
    assert not boxes_meet(
        Placement.at((0, 0, 0), math.pi / 4), square, Placement.at((0.2, 0, 0.2), math.pi / 4), square
    )
    assert boxes_meet(Placement.at((0, 0, 0), math.pi / 4), square, Placement.at((0.19, 0, 0.0), math.pi / 4), square)
    assert not boxes_meet(here, box, Placement.at((0.0, 1.5, 0.0)), box)


def test_a_backdrop_is_the_same_from_everywhere():
    foot = Footprint(torch.tensor([0.3, 0.0]), torch.eye(2), torch.tensor([0.2, 0.1]))
    backdrop = Backdrop(BackdropConfig(), -0.5, [foot])
    spot = torch.tensor([0.3, -0.5, 0.05])
    origins = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.3, -1.0]])
    directions = torch.nn.functional.normalize(spot - origins, dim=-1)
    colour, distance = backdrop(origins, directions)
    torch.testing.assert_close(colour[0], colour[1])
    torch.testing.assert_close(origins + directions * distance[:, None], spot.expand(2, 3))
    beside, _ = backdrop(origins, torch.nn.functional.normalize(spot + torch.tensor([0.5, 0.0, 0.0]) - origins, dim=-1))
    assert (beside > colour).all()
    up = torch.tensor([[0.0, 0.6, -0.8]]).expand(2, 3)
    sky, far = backdrop(origins, up)
    torch.testing.assert_close(sky[0], sky[1])
    assert torch.isinf(far).all()
