"""The viewer panel: found by nerfstudio, and consistent about which frame is shown."""

from types import SimpleNamespace

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.nerf.panel import SCENE, DialoguePanel
from dialogue_nerfstudio.nerf.scene_cameras import look_at


@pytest.fixture
def panel():
    def camera(distance):
        return Camera(128, 128, 256.0, 64.0, 64.0, np.hstack([np.eye(3), [[0.0], [0.0], [distance]]]))

    cameras = [camera(0.6), camera(0.8)]
    made = DialoguePanel(["a", "b"], ("role", "audio"), "role", lambda: 101, 25.0, cameras)
    made.offer_scene(False, "arc", front_of_scene)
    return made


def front_of_scene(aspect, field_of_view):
    return look_at(np.array([0.0, 0.0, aspect]), np.zeros(3), field_of_view)


class Widget:
    """A viser handle whose callbacks a test can call."""

    def __init__(self, value=None):
        self.value, self.label = value, ""

    def on_update(self, callback):
        self.callback = callback
        return callback

    on_click = on_update

    def set(self, value):
        self.value = value
        self.callback(None)


class Machine:
    def __init__(self):
        self.actions = []

    def action(self, action):
        self.actions.append(action.action)


def attach(panel):
    widgets = {}

    def add(name, value):
        widgets[name] = Widget(value)
        return widgets[name]

    gui = SimpleNamespace(
        add_slider=lambda name, min, max, step, initial_value: add(name, initial_value),
        add_dropdown=lambda name, options, initial: add(name, initial),
        add_button=lambda name: add(name, None),
        add_markdown=lambda content: widgets.setdefault("view", SimpleNamespace(content=content)),
    )
    machine = Machine()
    client = SimpleNamespace(camera=SimpleNamespace(aspect=2.0, fov=1.0))
    viewer = SimpleNamespace(
        viser_server=SimpleNamespace(
            gui=gui,
            scene=SimpleNamespace(set_up_direction=lambda _: None),
            get_clients=lambda: {0: client},
            on_client_connect=lambda callback: callback(client),
        ),
        render_statemachines={0: machine},
        get_camera_state=lambda client: None,
        ready=True,
        config=SimpleNamespace(max_num_display_images=512),
    )
    panel._setup(viewer)
    # Pictures of recorded frames would hang where the view starts.
    assert viewer.config.max_num_display_images == 0
    widgets["camera"] = client.camera
    return widgets, machine


def test_without_a_viewer_it_only_holds_state(panel):
    assert not panel.has_viewer
    panel._show("move")
    assert panel.frame_at(0.0) == 0


def test_widgets_change_the_state_and_ask_for_a_picture(panel):
    widgets, machine = attach(panel)
    widgets["Frame"].set(42)
    widgets["Participant"].set("b")
    widgets["Drive"].set("audio")
    assert (panel.frame, panel.participant, panel.drive) == (42, 1, "audio")
    assert machine.actions == ["move"] * 3


def test_the_view_starts_at_the_recording_camera_and_follows_the_participant(panel):
    widgets, _ = attach(panel)
    camera = widgets["camera"]
    # nerfstudio's viewer shows the world ten times as large.
    np.testing.assert_allclose(camera.position, [0, 0, 6])
    np.testing.assert_allclose(camera.look_at, [0, 0, 0], atol=1e-9)
    # As high as the recorded picture: 128 pixels at a focal length of 256.
    assert camera.fov == pytest.approx(2.0 * np.arctan(64.0 / 256.0))
    widgets["Participant"].set("b")
    np.testing.assert_allclose(camera.position, [0, 0, 8])
    camera.position = np.array([1.0, 2.0, 3.0])
    widgets["Front view"].callback(None)
    np.testing.assert_allclose(camera.position, [0, 0, 8])


def test_the_switch_to_the_scene(panel):
    widgets, machine = attach(panel)
    assert not widgets["Placement"].visible and not panel.shows_scene
    widgets["Participant"].set(SCENE)
    assert panel.shows_scene and widgets["Placement"].visible and panel.participant == 0
    np.testing.assert_allclose(widgets["camera"].position, [0, 0, 20])
    widgets["Placement"].set("facing")
    assert panel.placement == "facing"
    widgets["Participant"].set("b")
    assert not panel.shows_scene and panel.participant == 1 and not widgets["Placement"].visible
    np.testing.assert_allclose(widgets["camera"].position, [0, 0, 8])
    assert machine.actions == ["move"] * 3


def test_arrangements_that_do_not_fit_are_not_offered(panel):
    assert panel._placements() == ["arc", "side-by-side", "facing", "around"]
    panel.participant_ids = ["a", "b", "c"]
    assert "facing" not in panel._placements()
    panel.placement = "seats.yml"
    assert panel._placements()[-1] == "seats.yml"


def test_the_newer_of_frame_slider_and_viewer_time_wins(panel):
    widgets, _ = attach(panel)
    widgets["Frame"].set(42)
    assert panel.frame_at(0.0) == 42
    assert panel.frame_at(0.5) == 50 and widgets["Frame"].value == 50
    widgets["Frame"].set(7)
    assert panel.frame_at(0.5) == 7
    assert panel.frame_at(3.0) == 100


def test_a_shorter_timeline_holds_its_last_frame(panel):
    panel.frame = 80
    panel._num_frames = lambda: 10
    assert panel.frame_at(0.0) == 9


def test_nerfstudio_finds_the_panel_in_the_pipeline(pipeline):
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerControl

    found = parse_object(pipeline, ViewerControl, "Custom Elements")
    assert pipeline.model.panel in [element for _, element in found]


def test_the_view_is_shown_with_how_it_departs(panel):
    from dialogue_nerfstudio.nerf.view_range import ViewRange, swung

    widgets, _ = attach(panel)
    recorded = panel._cameras[0].camera_to_person
    view_range = ViewRange.of("a", panel._cameras[0], np.eye(3)[None], np.zeros((1, 3)))
    panel.show_view(view_range, swung(recorded, 0.5), None)
    assert "+29° sideways, +0° up" in widgets["view"].content
    panel.show_view(view_range, recorded, "Too far.")
    assert "**Too far.**" in widgets["view"].content
