"""Viewer panel: which frame, which participant, driven by what, and playback.

The panel also holds that state where there is no viewer: it is what a camera without frame and time is rendered with.
"""

import math
import threading
import time
from typing import Any, Callable, List, Optional, Tuple

import numpy as np
from jaxtyping import Float
from nerfstudio.viewer.viewer_elements import ViewerControl

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.nerf.scene_cameras import FIELD_OF_VIEW, View
from dialogue_nerfstudio.nerf.view_range import ViewRange
from dialogue_nerfstudio.rendering.placements import PLACEMENTS

SCENE = "everybody, in one scene"
"""What the participant menu calls the co-located scene."""


class DialoguePanel(ViewerControl):
    """Integer frame slider, participant and drive menus, play and front-view buttons.

    Args:
        participant_ids: choices of the participant menu.
        drives: choices of the drive menu.
        drive: the chosen drive.
        num_frames: called for the length of the timeline, which changes when signals are swapped.
        fps: frames of playback a second.
        cameras: that recorded each participant; views start there.
    """

    def __init__(
        self,
        participant_ids: List[str],
        drives: Tuple[str, ...],
        drive: str,
        num_frames: Callable[[], int],
        fps: float,
        cameras: List[Camera],
    ):
        self._cameras = cameras
        self.shows_scene, self.placement = False, PLACEMENTS[0]
        self._front_of_scene: Optional[Callable[[float, float], View]] = None
        self.participant_ids, self.drives, self.drive = participant_ids, drives, drive
        self.participant, self.frame, self.fps = 0, 0, fps
        self._num_frames = num_frames
        self._viewer: Optional[Any] = None
        self._slider: Optional[Any] = None
        self._view_text: Optional[Any] = None
        self._last_time = 0.0
        self._playing = False

    def offer_scene(self, shows_scene: bool, placement: str, front_of_scene: Callable[[float, float], View]) -> None:
        """Adds the scene of everybody to what can be shown; called before the viewer takes the panel.

        Args:
            shows_scene: whether everybody is shown together at first.
            placement: how people are placed then, at first.
            front_of_scene: called with aspect and vertical field of view (rad) for the camera that sees everybody.
        """
        self.shows_scene, self.placement, self._front_of_scene = shows_scene, placement, front_of_scene

    @property
    def has_viewer(self) -> bool:
        """Whether a viewer shows this panel."""
        return self._viewer is not None

    def frame_at(self, viewer_time: float) -> int:
        """The frame to show in the viewer.

        The viewer passes its own time slider (or the time of its camera path preview) with every camera. When that has
        moved it decides, else this panel's frame does.
        """
        if viewer_time != self._last_time:
            self._last_time = viewer_time
            last = self._num_frames() - 1
            self.frame = round(min(max(viewer_time, 0.0), 1.0) * last)
            if self._slider is not None:
                self._slider.value = self.frame
        return min(self.frame, self._num_frames() - 1)

    def _setup(self, viewer: Any) -> None:
        """Called by nerfstudio's viewer once; builds the widgets."""
        super()._setup(viewer)
        self._viewer = viewer
        # ns-viewer would hang a picture of every recorded frame where the view starts: there is one camera a person.
        viewer.config.max_num_display_images = 0
        server = self.viser_server
        server.scene.set_up_direction("+y")
        self._slider = server.gui.add_slider(
            "Frame", min=0, max=max(1, self._num_frames() - 1), step=1, initial_value=self.frame
        )
        choices = [*self.participant_ids, *([SCENE] if self._front_of_scene else [])]
        shown = SCENE if self.shows_scene else self.participant_ids[self.participant]
        participant_menu = server.gui.add_dropdown("Participant", choices, shown)
        placement_menu = server.gui.add_dropdown("Placement", self._placements(), self.placement)
        placement_menu.visible = self.shows_scene
        drive_menu = server.gui.add_dropdown("Drive", self.drives, self.drive)
        play = server.gui.add_button("Play")
        front = server.gui.add_button("Front view")
        self._view_text = server.gui.add_markdown("")
        server.on_client_connect(self._face)

        @self._slider.on_update
        def _(_: Any) -> None:
            if self.frame != int(self._slider.value):
                self.frame = int(self._slider.value)
                self._show("move")

        @participant_menu.on_update
        def _(_: Any) -> None:
            self.shows_scene = placement_menu.visible = participant_menu.value == SCENE
            if not self.shows_scene:
                self.participant = self.participant_ids.index(participant_menu.value)
            self._face_all()
            self._show("move")

        @placement_menu.on_update
        def _(_: Any) -> None:
            self.placement = placement_menu.value
            self._face_all()
            self._show("move")

        @front.on_click
        def _(_: Any) -> None:
            self._face_all()

        @drive_menu.on_update
        def _(_: Any) -> None:
            self.drive = drive_menu.value
            self._show("move")

        @play.on_click
        def _(_: Any) -> None:
            self._playing = not self._playing
            play.label = "Pause" if self._playing else "Play"
            if self._playing:
                threading.Thread(target=self._play, daemon=True).start()

    def show_view(
        self, view_range: ViewRange, camera_to_person: Float[np.ndarray, "3 4"], departure: Optional[str]
    ) -> None:
        """Shows from where the participant is seen, relative to the recording, and whether training saw it so."""
        if self._view_text is None:
            return
        yaw, pitch = (math.degrees(angle) for angle in view_range.angles_from_recording(camera_to_person[:, 3]))
        where = f"{yaw:+.0f}° sideways, {pitch:+.0f}° up from the recording camera"
        text = f"View: {where}." if departure is None else f"View: {where}. **{departure}**"
        if text != self._view_text.content:
            self._view_text.content = text

    def show_departures(self, sentences: List[str]) -> None:
        """Shows how the view of a scene leaves what training saw of the people in it; nothing where it does not."""
        text = "  \n".join(f"**{sentence}**" for sentence in sentences)
        if self._view_text is not None and text != self._view_text.content:
            self._view_text.content = text

    def _placements(self) -> List[str]:
        """Arrangements for this many people, and the configured one, which may be a file."""
        fitting = [name for name in PLACEMENTS if name != "facing" or len(self.participant_ids) == 2]
        fitting = [name for name in fitting if name != "around" or len(self.participant_ids) > 1]
        return fitting if self.placement in fitting else [*fitting, self.placement]

    def _face_all(self) -> None:
        for client in self.viser_server.get_clients().values():
            self._face(client)

    def _face(self, client: Any) -> None:
        """Gives a client's camera the view that the participant was recorded in: nobody knows how they look from
        elsewhere, or what is beside the picture. In the scene, its front."""
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        if self.shows_scene:
            view = self._front_of_scene(client.camera.aspect, FIELD_OF_VIEW)
            pose, field_of_view = view.camera_to_scene, view.field_of_view
        else:
            camera = self._cameras[self.participant]
            pose, field_of_view = camera.camera_to_person, 2.0 * math.atan(0.5 * camera.height / camera.focal)
        rotation, position = pose[:, :3], pose[:, 3]
        # A space has its origin in the mean head, or in the middle of the scene, which the camera turns around.
        target = position - float(np.linalg.norm(position)) * rotation[:, 2]
        client.camera.fov = field_of_view
        client.camera.position = position * VISER_NERFSTUDIO_SCALE_RATIO
        client.camera.look_at = target * VISER_NERFSTUDIO_SCALE_RATIO

    def _play(self) -> None:
        """Moves the playhead with the clock, so that a slow renderer drops frames instead of falling behind."""
        start_time, start_frame = time.monotonic(), self.frame
        while self._playing:
            length = self._num_frames()
            self.frame = (start_frame + int((time.monotonic() - start_time) * self.fps)) % length
            self._slider.value = self.frame
            self._show("step")
            time.sleep(1.0 / self.fps)

    def _show(self, action: str) -> None:
        """Asks every client for a new picture: "move" interrupts and starts coarse, "step" is full size."""
        from nerfstudio.viewer.render_state_machine import RenderAction

        if self._viewer is None or not self._viewer.ready:
            return
        for client_id, client in self._viewer.viser_server.get_clients().items():
            machine = self._viewer.render_statemachines.get(client_id)
            if machine is not None:
                machine.action(RenderAction(action, self._viewer.get_camera_state(client)))
