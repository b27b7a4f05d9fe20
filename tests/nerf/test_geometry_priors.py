"""Geometry priors: inflation against closed forms, distances against an ellipsoid, rays that must stop or pass."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from short_training import train
from tiny_conversation import DISTANCE, HEAD_RADII

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.nerf.geometry_priors import (
    BodyProxies,
    GeometryPriorConfig,
    Solid,
    distance_volume,
    inflate,
    mean_silhouettes,
    opacity_loss,
    turn,
    with_hidden_neck,
    yaw_pitch_roll,
)
from dialogue_nerfstudio.nerf.hull import cell_centres, visual_hull
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline


def disc(size, radius):
    rows, columns = np.mgrid[0:size, 0:size] + 0.5 - size / 2
    return np.hypot(rows, columns) < radius


def test_a_disc_becomes_a_half_sphere():
    depth = inflate(disc(64, 20), 0.005, 100.0)
    rows, columns = np.mgrid[0:64, 0:64] + 0.5 - 32
    sphere = 0.005 * np.sqrt(np.maximum(20**2 - rows**2 - columns**2, 0.0))
    inner = disc(64, 18)
    np.testing.assert_allclose(depth[inner], sphere[inner], atol=0.006)
    assert (depth[~disc(64, 20)] == 0).all()


def test_a_strip_cut_by_the_picture_goes_on_and_the_thickness_bounds_it():
    mask = np.zeros((40, 64), dtype=bool)
    mask[:, 12:52] = True
    depth = inflate(mask, 0.01, 1e6)
    # A half-cylinder over a strip of half-width w is √2 w deep, the same in every row.
    np.testing.assert_allclose(depth[:, 31], np.sqrt(2) * 0.2, rtol=0.06)
    np.testing.assert_allclose(depth, depth[:1].repeat(40, axis=0), atol=1e-6)
    bounded = inflate(mask, 0.01, 0.1)
    assert bounded.max() < 0.1 and bounded.max() > 0.09
    assert not inflate(np.zeros((8, 8), dtype=bool), 0.01, 0.1).any()


def test_a_neck_goes_on_behind_the_chin():
    head, body = np.zeros((40, 40), dtype=bool), np.zeros((40, 40), dtype=bool)
    head[5:20, 10:30] = True
    body[20:26, 16:24] = True
    body[26:, 4:36] = True
    whole = with_hidden_neck(body, head, 20.0, 8.0, 12)
    expected = body.copy()
    expected[12:20, 16:24] = True
    np.testing.assert_array_equal(whole, expected)


@pytest.fixture(scope="module")
def camera():
    return Camera(64, 64, 128.0, 32.0, 32.0, np.hstack([np.eye(3), [[0.0], [0.0], [DISTANCE]]]))


def test_silhouettes_follow_the_head(camera):
    """A square head that moves by eight pixels averages to a sharp square."""
    frames = []
    for shift in (-4, 4):
        labels = np.zeros((64, 64), dtype=np.uint8)
        labels[20:40, 22 + shift : 42 + shift] = HEAD
        labels[44:] = TORSO
        labels[40:44, 28:36] = NECK
        metres = shift / 128.0 * DISTANCE
        frames.append((np.hstack([np.eye(3), [[metres], [0.0], [0.0]]]), labels))
    head, body, neck, standing = mean_silhouettes(camera, frames)
    expected = np.zeros((64, 64))
    expected[20:40, 22:42] = 1.0
    np.testing.assert_allclose(head, expected, atol=1e-3)
    assert body[50, 3] == 1.0 and body[42, 30] == 1.0 and standing[30, 20] == 0.5
    assert neck[42, 30] == 1.0 and not neck[50].any()


@pytest.fixture(scope="module")
def proxies(camera):
    """A sphere of 8 cm in both boxes, about the origin."""
    box = np.array([[-0.12, -0.12, -0.12], [0.12, 0.12, 0.12]])
    pixel = DISTANCE / 128.0
    depths = inflate(disc(64, 0.08 / pixel), pixel, 100.0)
    volume = distance_volume(box, 48, camera, [Solid(depths, 0.0)])
    boxes = torch.tensor(box, dtype=torch.float32)[None]
    config = GeometryPriorConfig(
        head_outside=0.03, head_inside=0.04, head_surface_coefficient=1.0, torso_surface_coefficient=2.0
    )
    return BodyProxies(config, boxes, boxes, [(volume, volume)], [camera])


def test_solids_lean_and_unite(camera):
    """A slab 2 cm thick whose middle comes forward by half a metre a metre further down, and a second one behind it."""
    box = np.array([[-0.1, -0.1, -0.1], [0.1, 0.1, 0.1]])
    slab = np.full((64, 64), 0.01)
    volume = distance_volume(box, 40, camera, [Solid(slab, 0.01, 0.5), Solid(slab, -0.08)])
    z, y, _ = np.meshgrid(*[np.linspace(-0.0975, 0.0975, 40)] * 3, indexing="ij")
    # Away from the faces by more than a cell, which is what the volume is smoothed by.
    leaning, upright = np.abs(z - 0.01 + 0.5 * y), np.abs(z + 0.08)
    inside = (leaning < 0.004) | (upright < 0.004)
    outside = (leaning > 0.02) & (upright > 0.02)
    assert (volume[inside] < 0).all() and (volume[outside] > 0).all()


def test_a_flat_solid_is_flat():
    depth = inflate(disc(64, 20), 0.005, 100.0, 0.5)
    assert abs(depth[31, 31] - 0.5 * 0.1) < 0.003


def test_distances_are_a_spheres(proxies):
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    points = points / points.norm(dim=-1, keepdim=True) * torch.linspace(0.03, 0.11, 200)[:, None]
    found = proxies.distance(0, points, 0)
    assert (found - (points.norm(dim=-1) - 0.08)).abs().max() < 0.012
    # Far outside the box it goes on growing.
    assert proxies.distance(0, torch.tensor([[0.0, 0.0, 0.5]]), 0) > 0.35
    weights = torch.ones(1)
    near, far = (proxies.surface_loss(1, torch.tensor([[0.0, 0.0, z]]), weights, 0) for z in (0.08, 0.11))
    assert near < 1e-4 < far
    # Each part has its own coefficient.
    assert torch.isclose(2.0 * proxies.surface_loss(0, torch.tensor([[0.0, 0.0, 0.11]]), weights, 0), far)
    shell = proxies.shell(0, 0, 16)
    radius = np.linalg.norm(cell_centres(np.array([[-0.12] * 3, [0.12] * 3]), 16), axis=1)
    assert not shell[torch.from_numpy(radius < 0.02)].any() and not shell[torch.from_numpy(radius > 0.14)].any()
    assert shell[torch.from_numpy(np.abs(radius - 0.08) < 0.01)].all()


def test_virtual_rays_stop_at_the_body_and_pass_beside_it(proxies):
    torch.manual_seed(0)
    origins, directions = proxies.virtual_rays(0, 400)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(400))
    torch.testing.assert_close(origins.norm(dim=-1), torch.full((400,), DISTANCE))
    stop, go = proxies.targets(origins, directions, origins, directions, 0)
    # Distance of each ray from the sphere's centre.
    miss = (origins - (origins * directions).sum(-1, keepdim=True) * directions).norm(dim=-1)
    assert (miss[stop] < 0.085).all() and (miss[go] > 0.085).all()
    assert stop[miss < 0.06].all() and go[miss > 0.115].all()
    right = opacity_loss(stop.float(), stop, go)
    wrong = opacity_loss(go.float(), stop, go)
    assert right < 1e-6 < wrong
    assert opacity_loss(stop.float(), ~(stop | go) & False, go & False) == 0.0


def test_below_the_picture_a_body_can_go_on_but_not_beside_it(camera):
    """A torso that fills the picture: its hull has all cells that the camera sees and those under the picture."""
    box = np.array([[-0.6, -0.6, -0.1], [0.6, 0.6, 0.1]])
    labels = np.full((64, 64), TORSO, dtype=np.uint8)
    frames = [(np.hstack([np.eye(3), np.zeros((3, 1))]), labels)]
    hull = visual_hull(box, 24, camera, frames, (TORSO,), keep_below=True)
    centres = cell_centres(box, 24)
    ahead = DISTANCE - centres[:, 2]
    across, up = centres[:, 0] / ahead, centres[:, 1] / ahead
    inside, under = (np.abs(across) < 0.25) & (np.abs(up) < 0.25), (np.abs(across) < 0.24) & (up < -0.26)
    assert hull[inside].all() and hull[under].all()
    assert not hull[(np.abs(across) > 0.26) | (up > 0.26)].any()
    assert not visual_hull(box, 24, camera, frames, (TORSO,))[under].any()


def test_turns_are_views(proxies):
    yaw, pitch = torch.tensor(0.3), torch.tensor(0.2)
    expected = Rotation.from_euler("YX", [0.3, -0.2]).as_matrix()
    np.testing.assert_allclose(turn(yaw, pitch), expected, atol=1e-6)
    turned = proxies.turned(torch.eye(3))
    torch.testing.assert_close(turned @ turned.T, torch.eye(3), atol=1e-6, rtol=0)
    matrix = Rotation.from_euler("YXZ", [0.3, -0.2, 0.1]).as_matrix()
    np.testing.assert_allclose(yaw_pitch_roll(torch.tensor(matrix)), [0.3, -0.2, 0.1], atol=1e-6)
    assert Rotation.from_matrix(turned.numpy()).magnitude() < np.radians(2 * proxies.config.virtual_turn)


def test_the_proxy_of_a_known_head_and_its_training(small_config):
    """Ellipsoid heads: the proxy's sides are where the head's are, and virtual views have no holes after training."""
    geometry = small_config.model.geometry
    geometry.virtual_interval, geometry.head_outside, geometry.head_inside = 1, 0.03, 0.04
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    model = pipeline.model
    side = torch.tensor([[HEAD_RADII[0], 0.0, 0.0], [0.0, HEAD_RADII[1], 0.0], [0.0, 0.0, 0.0]], dtype=torch.float32)
    distance = model.proxies.distance(0, side, 0)
    assert distance[:2].abs().max() < 0.025 and distance[2] < -0.04
    assert model.head_hull[0].float().mean() < 0.9
    assert not any("proxies" in name for name in model.state_dict())
    torch.manual_seed(0)
    train(pipeline, 40)
    model.train()
    outputs = model(pipeline.datamanager.next_train(0)[0])
    assert outputs["virtual"] < 0.5 and outputs["surface"] < 4.0 * 0.01**2 * 9


def test_without_priors_nothing_is_built(small_config):
    small_config.model.geometry.enabled = False
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    assert pipeline.model.proxies is None
    _, losses, _ = pipeline.get_train_loss_dict(0)
    assert not {"surface", "virtual"} & set(losses)
