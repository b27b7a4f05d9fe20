"""The scene: everybody composited together as brute force would, what is shown when, and who cannot sit where."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.cameras import Cameras

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf import scene_cameras
from dialogue_nerfstudio.rendering.march import pack_samples
from dialogue_nerfstudio.rendering.placements import Placement

INTERLEAVED = [Placement.at((-0.04, 0.02, 0.05), 0.3), Placement.at((0.05, 0.0, -0.05), -0.5)]


@pytest.fixture
def model(pipeline):
    """Untrained avatars with something to see in them."""
    torch.manual_seed(1)
    model = pipeline.model.eval()
    for field in (model.head_field, model.torso_field):
        for parameter in field.grid.parameters():
            torch.nn.init.uniform_(parameter, -1.0, 1.0)
    model.trained_drives = {"audio", "expression"}
    return model


def overlapping_scene(model, placements=INTERLEAVED, monkeypatch=None):
    """A scene whose people sit within each other, which `make_scene` refuses."""
    monkeypatch.setattr("dialogue_nerfstudio.nerf.scene.Scene._check_room", lambda self: None)
    return model.make_scene(placements=placements)


def brute_force(model, scene, camera, frame):
    """Every sample of everybody on every ray, sorted by depth and composited one after another."""
    rays = camera.generate_rays(camera_indices=0)
    origins, directions = rays.origins.view(-1, 3), rays.directions.view(-1, 3)
    background, ground = scene.backdrop(origins, directions)
    samples = [[] for _ in origins]
    for person, (row, placement) in enumerate(zip(scene.rows, scene.placements, strict=True)):
        conditions = model.conditions(row, torch.tensor([frame]), "role")
        o, d = placement.rays_to_person(origins, directions)
        for part, source in enumerate(model.sources(o, d, torch.zeros(len(o), dtype=torch.long), conditions)):
            source.far = torch.minimum(source.far, ground)
            packed = pack_samples(source)
            density, geometry = source.density(packed.points, packed.rays)
            colour = source.colour(geometry, packed.points, packed.rays)
            for ray, t, tau, rgb in zip(packed.rays, packed.t, density * packed.delta, colour, strict=True):
                samples[ray].append((float(t), float(tau), rgb.double(), person, part))
    rgb, opacity = [], torch.zeros(len(origins), len(scene.rows), 2)
    for ray, listed in enumerate(samples):
        light, left = torch.zeros(3).double(), 1.0
        for _, tau, colour, person, part in sorted(listed, key=lambda sample: sample[0]):
            weight = left * (1.0 - math.exp(-tau))
            light, left = light + weight * colour, left - weight
            opacity[ray, person, part] += weight
        rgb.append(light + left * background[ray].double())
    size = int(camera.height), int(camera.width)
    return torch.stack(rgb).view(*size, 3), opacity.view(*size, len(scene.rows), 2)


@pytest.mark.parametrize("eye", [(0.1, 0.1, 1.2), (0.9, 0.2, 0.7)], ids=["front", "side"])
def test_a_scene_is_brute_force_compositing_of_everybody(model, monkeypatch, eye):
    model.config.colour_threshold = model.config.termination_threshold = 0.0
    model.config.eval_num_rays_per_chunk = 50
    model.config.fast_inference = False
    scene = overlapping_scene(model, monkeypatch=monkeypatch)
    camera = scene_cameras.look_at(np.array(eye), np.array([0.0, -0.1, 0.0])).camera(12, 16)
    with torch.no_grad():
        rgb, opacity = brute_force(model, scene, camera, 2)
    assert (opacity > 0.1).flatten(0, 1).any(dim=0).all(), "some part of somebody is not in the picture"
    seen = model.render_scene(camera, 2, scene, "role")
    torch.testing.assert_close(seen["rgb"].double(), rgb, atol=2e-4, rtol=0)
    torch.testing.assert_close(seen["opacity"], opacity.sum(dim=-1), atol=2e-4, rtol=0)
    torch.testing.assert_close(seen["head"], opacity[..., 0].sum(dim=-1, keepdim=True), atol=2e-4, rtol=0)
    torch.testing.assert_close(seen["accumulation"], opacity.sum(dim=(2, 3))[..., None], atol=2e-4, rtol=0)


@pytest.mark.parametrize("ground", [False, True])
def test_the_compiled_march_shows_the_same_scene(model, monkeypatch, ground):
    pytest.importorskip("numba", reason="the compiled march needs numba")
    model.config.scene = replace(model.config.scene, backdrop=replace(model.config.scene.backdrop, ground=ground))
    scene = overlapping_scene(model, monkeypatch=monkeypatch)
    camera = scene_cameras.look_at(np.array([0.6, 0.1, 1.2]), np.array([0.0, -0.1, 0.0])).camera(24, 32)
    pictures = {}
    for fast in (True, False):
        model.config.fast_inference = fast
        pictures[fast] = model.render_scene(camera, 2, scene)
    assert pictures[True]["opacity"].amax(dim=(0, 1)).min() > 0.3
    for name in ("rgb", "opacity", "head", "torso"):
        difference = (pictures[True][name] - pictures[False][name]).abs()
        # Rounding moves a sample across a cell's edge, or past one of the other person, on a few rays.
        assert difference.mean() < 1e-3 and difference.max() < (2e-2 if name == "rgb" else 0.1), name


def test_one_person_in_a_scene_looks_as_alone(model):
    """From the recording camera, only what is behind differs."""
    model.config.scene = replace(model.config.scene, backdrop=replace(model.config.scene.backdrop, ground=False))
    camera = model.cameras[1]
    transform = torch.tensor(camera.camera_to_person, dtype=torch.float32)[None]
    scale = 32 / camera.height
    view = Cameras(transform, camera.focal * scale, camera.focal * scale, 16.0, 16.0, 32, 32)
    scene = model.make_scene(participants=["p1"])
    alone, together = model.render_frame(view, 3, 1), model.render_scene(view, 3, scene)
    for name in ("accumulation", "head", "torso"):
        torch.testing.assert_close(together[name], alone[name], atol=2e-2, rtol=0)
    rays = view.generate_rays(camera_indices=0)
    origins, directions = rays.origins.view(-1, 3), rays.directions.view(-1, 3)
    plate, _ = model.plates(origins, directions, 1, model.plates.height_for(1, float(view.fy)))
    backdrop, _ = scene.backdrop(origins, directions)
    behind = 1.0 - alone["accumulation"]
    people = [seen["rgb"] - behind * colour.view(32, 32, 3) for seen, colour in ((alone, plate), (together, backdrop))]
    assert people[0].abs().max() > 0.2
    torch.testing.assert_close(people[1], people[0], atol=5e-2, rtol=0)


def test_pictures_have_every_output_and_rays_that_miss_see_the_backdrop(model):
    scene = model.make_scene()
    camera = scene_cameras.look_at(np.array([0.0, 0.2, 3.0]), np.array([0.0, 1.8, 0.0])).camera(8, 8)
    seen = model.render_scene(camera, 0, scene)
    assert {name: value.shape[-1] for name, value in seen.items()} == {
        "rgb": 3, "depth": 1, "accumulation": 1, "head": 1, "torso": 1, "opacity": 2,
    }  # fmt: skip
    assert not seen["accumulation"].any()
    rays = camera.generate_rays(camera_indices=0)
    backdrop, _ = scene.backdrop(rays.origins.view(-1, 3), rays.directions.view(-1, 3))
    torch.testing.assert_close(seen["rgb"].view(-1, 3), backdrop)
    with pytest.raises(DialogueError, match="no frame 24"):
        model.render_scene(camera, 24, scene)


def test_the_configuration_decides_what_a_camera_shows(model):
    camera = scene_cameras.front(model.make_scene(), 1.0).camera(8, 8)
    alone = model.get_outputs_for_camera(camera)
    model.panel.shows_scene = True
    together = model.get_outputs_for_camera(camera)
    assert set(together) == set(alone) and not torch.equal(together["rgb"], alone["rgb"])
    torch.testing.assert_close(together["rgb"], model.render_scene(camera, 0)["rgb"])
    model.panel.placement = "side-by-side"
    assert not torch.equal(model.get_outputs_for_camera(camera)["rgb"], together["rgb"])
    # A dataset's camera names whom it recorded.
    camera.metadata = {"frame": torch.tensor([[0]]), "participant": torch.tensor([[0]])}
    torch.testing.assert_close(model.get_outputs_for_camera(camera)["rgb"], alone["rgb"])


def path_file(folder, num_frames=24, **changes):
    views = [
        scene_cameras.look_at(np.array([x, 0.1, 1.6]), np.array([0.0, -0.05, 0.0]), math.radians(30 + 5 * x))
        for x in np.linspace(-0.5, 0.5, num_frames)
    ]
    frames = [
        {
            "camera_to_world": np.concatenate([v.camera_to_scene, [[0, 0, 0, 1]]]).ravel().tolist(),
            "fov": math.degrees(v.field_of_view),
            "aspect": 1.5,
            "render_time": index / (num_frames - 1),
        }
        for index, v in enumerate(views)
    ]
    path = {"camera_type": "perspective", "render_height": 16, "render_width": 24, "fps": 24, "seconds": 2.0}
    path.update({"camera_path": frames, "keyframes": [], **changes})
    file = folder / "path.json"
    file.write_text(json.dumps(path))
    return file


def test_stock_render_and_ours_show_the_same_along_a_camera_path(model, tmp_path):
    """What `ns-render camera-path` does with a path, frame by frame, against `ns-dialogue render --camera`."""
    file = path_file(tmp_path)
    model.panel.shows_scene = True
    stock = get_path_from_json(json.loads(file.read_text()))
    ours = scene_cameras.read_camera_path(file)
    views = ours.at(model.num_frames, 25.0)
    scene = model.make_scene()
    for index in (0, 7, 23):
        expected = model.get_outputs_for_camera(stock[index : index + 1])["rgb"]
        picture = model.render_scene(views[index].camera(ours.height, ours.width), index, scene)["rgb"]
        torch.testing.assert_close(picture, expected, atol=1e-4, rtol=0)


# Who is where ---------------------------------------------------------------------------------------------------------


def test_people_who_overlap_are_named_with_the_room_they_need(model):
    model.config.scene = replace(model.config.scene, spacing=0.1)
    with pytest.raises(
        DialogueError, match=r"p0 and p1 overlap: their heads are 0.10 m apart.* at least 0\.\d\d m"
    ) as error:
        model.make_scene("side-by-side")
    needed = float(str(error.value).split("at least ")[1].split(" m")[0])
    model.config.scene = replace(model.config.scene, spacing=needed)
    assert len(model.make_scene("side-by-side").rows) == 2


@pytest.mark.parametrize("placement", ["arc", "side-by-side", "facing", "around"])
def test_every_arrangement_leaves_room_by_itself(model, placement):
    scene = model.make_scene(placement)
    assert float((scene.heads()[0] - scene.heads()[1]).norm()) >= 0.6 - 1e-6


def test_placements_from_a_file(model, tmp_path):
    file = tmp_path / "seats.yml"
    file.write_text("p1: {position: [0.5, 0.1, -0.2], yaw: -30}\np0: {position: [-0.5, 0]}\n")
    scene = model.make_scene(str(file))
    assert scene.statement() == {
        "p0": {"position": [-0.5, 0.0, 0.0], "yaw": 0.0},
        "p1": {"position": [0.5, 0.1, -0.2], "yaw": -30.0},
    }
    (tmp_path / "list.json").write_text('[{"position": [0.7, 0, 0], "yaw": 10}]')
    alone = model.make_scene(str(tmp_path / "list.json"), ["p1"])
    assert alone.statement() == {"p1": {"position": [0.7, 0.0, 0.0], "yaw": 10.0}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("p0: {position: [0, 0]}", "does not say where p1 is"),
        ("[{position: [0, 0]}]", "places 1 people"),
        ("p0: {position: [0, x]}\np1: {position: [1, 0]}", "p0: a position of two"),
        ("{", "not readable"),
        ("7", "must hold a list"),
    ],
)
def test_placement_files_that_cannot_be_used(model, tmp_path, text, message):
    file = tmp_path / "seats.yml"
    file.write_text(text)
    with pytest.raises(DialogueError, match=message) as error:
        model.make_scene(str(file))
    assert "\n" not in str(error.value)


def test_arrangements_that_do_not_exist(model, tmp_path):
    for placement, message in (("sofa", "no placement 'sofa'"), (str(tmp_path / "no.json"), "no such file")):
        with pytest.raises(DialogueError, match=message):
            model.make_scene(placement)
    with pytest.raises(DialogueError, match="for two people, not 1"):
        model.make_scene("facing", ["p0"])
    with pytest.raises(DialogueError, match="no avatar 'x'"):
        model.make_scene(participants=["x"])


# Cameras --------------------------------------------------------------------------------------------------------------


def in_picture(view, points, aspect):
    local = (points - view.position) @ view.camera_to_scene[:, :3]
    tangent = math.tan(view.field_of_view / 2)
    return (local[:, 2] < 0) & (np.abs(local[:, :2] / -local[:, 2:]) <= [tangent * aspect, tangent]).all(axis=1)


@pytest.mark.parametrize("aspect", [0.6, 1.0, 16 / 9])
def test_the_front_view_and_the_orbit_show_everybody(model, aspect):
    scene = model.make_scene()
    corners = scene_cameras._outline(scene)
    views = [scene_cameras.front(scene, aspect), *scene_cameras.orbit(scene, aspect, 40, 25.0, 0.4)]
    for view in views:
        assert in_picture(view, corners, aspect).all()
        rotation = view.camera_to_scene[:, :3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-9)
    xs = [view.position[0] for view in views[1:]]
    assert max(xs) > 0.2 and min(xs) < -0.2


def test_an_orbit_stays_where_people_are_known(model):
    scene = model.make_scene()
    ranges = [model.view_range(row) for row in scene.rows]
    swing = scene_cameras.widest_swing(scene, 16 / 9, ranges)
    assert math.radians(5) <= swing <= scene_cameras.WIDEST_ORBIT
    for view in scene_cameras.orbit(scene, 16 / 9, 50, 25.0, swing):
        for placement, view_range in zip(scene.placements, ranges, strict=True):
            position = placement.to_person(torch.tensor(view.position, dtype=torch.float32)).numpy()
            assert abs(view_range.angles_from_recording(position)[0]) <= math.radians(31)


def test_over_a_shoulder_one_looks_at_the_others_face(model):
    scene = model.make_scene("facing", ["p1", "p0"])
    view = scene_cameras.over_shoulder(scene)
    first, second = (heads.numpy() for heads in scene.heads())
    assert in_picture(view, second[None], 1.5).all()
    assert np.linalg.norm(view.position - first) < 0.7 < np.linalg.norm(view.position - second)
    assert model.view_range(1).departure is not None
    local = scene.placements[1].to_person(torch.tensor(view.position, dtype=torch.float32))
    assert abs(math.atan2(local[0], local[2])) < math.radians(30)
    with pytest.raises(DialogueError, match="two participants"):
        scene_cameras.over_shoulder(model.make_scene(participants=["p0"]))


def test_a_path_without_render_times_lasts_its_seconds(tmp_path):
    file = path_file(tmp_path, 5)
    content = json.loads(file.read_text())
    for frame in content["camera_path"]:
        del frame["render_time"]
    file.write_text(json.dumps(content))
    views = scene_cameras.read_camera_path(file).at(75, 25.0)
    xs = np.array([view.position[0] for view in views])
    np.testing.assert_allclose(xs[[0, 25, 50, 74]], [-0.5, 0.0, 0.5, 0.5], atol=1e-9)
    assert views[25].field_of_view == pytest.approx(math.radians(30), abs=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"camera_path": []}, "has no frames"),
        ({"camera_path": None}, "no camera path"),
        ({"camera_type": "equirectangular"}, "only perspective"),
        ({"render_width": None}, "how large"),
        ({"camera_path": [{"fov": 50, "camera_to_world": [1, 2]}]}, "frame 0 needs"),
        ({"camera_path": [{"fov": 50, "camera_to_world": [2.0] * 16}]}, "no rotation"),
        ({"camera_path": [{"fov": 500, "camera_to_world": [1.0] * 16}]}, "no camera has"),
        (
            {"seconds": None, "camera_path": [{"fov": 50, "camera_to_world": np.eye(4).ravel().tolist()}]},
            "has no times",
        ),
    ],
)
def test_paths_that_cannot_be_used(tmp_path, changes, message):
    with pytest.raises(DialogueError, match=message) as error:
        scene_cameras.read_camera_path(path_file(tmp_path, **changes))
    assert "\n" not in str(error.value) and "path.json" in str(error.value)


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "text.json").write_text("not json")
    for name, message in (("text.json", "not JSON"), ("nowhere.json", "no such file")):
        with pytest.raises(DialogueError, match=message):
            scene_cameras.read_camera_path(tmp_path / name)
