"""Dialogue model: head and torso fields of all participants, composited together over the recorded background.

Conventions: rays are in person space (metres) of the participant they show, sorted by participant and then frame while
they are rendered. P participants, T frames of the timeline, F frames in a batch, R rays, S samples a ray.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Literal, Optional, Sequence, Tuple, Type, Union

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor, nn
from torch.nn import Parameter

from dialogue_nerfstudio.conversation import Camera, DialogueError
from dialogue_nerfstudio.fields.frame_codes import FrameCodes
from dialogue_nerfstudio.fields.head_field import HeadField, HeadFieldConfig
from dialogue_nerfstudio.fields.participant_grids import GridSharing
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal, SignalEncoder, SignalEncoderConfig
from dialogue_nerfstudio.fields.torso_field import TorsoField, TorsoFieldConfig
from dialogue_nerfstudio.nerf.avatar_model import AvatarModel, AvatarModelConfig, Drive, FrameConditions
from dialogue_nerfstudio.nerf.compatibility import GRID_LAYOUT, check_compatible, grid_size
from dialogue_nerfstudio.nerf.dataparser import RecordedPerson
from dialogue_nerfstudio.nerf.fast_rendering import PictureRays, fast_outputs, fast_sources
from dialogue_nerfstudio.nerf.geometry_priors import BodyProxies, GeometryPriorConfig, opacity_loss, yaw_pitch_roll
from dialogue_nerfstudio.nerf.graphed_rendering import GraphedPictures
from dialogue_nerfstudio.nerf.losses import binary_entropy, mask_loss
from dialogue_nerfstudio.nerf.panel import DialoguePanel
from dialogue_nerfstudio.nerf.patch_losses import PatchLoss, PatchLossName, patch_loss
from dialogue_nerfstudio.nerf.pose_refinement import PoseRefinement, PoseRefinementConfig, corrected
from dialogue_nerfstudio.nerf.scene import Scene, SceneConfig, make_scene, render_scene
from dialogue_nerfstudio.nerf.scene_cameras import View, front
from dialogue_nerfstudio.nerf.signals import ConversationSignals
from dialogue_nerfstudio.nerf.sources import head_source, torso_source
from dialogue_nerfstudio.nerf.user_errors import exit_on_user_error
from dialogue_nerfstudio.nerf.weight_average import WeightAverage
from dialogue_nerfstudio.rendering.distortion import distortion
from dialogue_nerfstudio.rendering.march import Source, march
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid, OccupancyGridConfig
from dialogue_nerfstudio.rendering.placements import Placement
from dialogue_nerfstudio.rendering.rays import rays_into

Show = Literal["participant", "scene"]


@dataclass
class DialogueModelConfig(AvatarModelConfig):
    """The avatars of a conversation in one network; the defaults suit a CPU."""

    _target: Type = field(default_factory=lambda: DialogueModel)
    fast_inference: bool = True
    """Whether whole pictures on a CPU go through a compiled march, front to back, no ray further than light gets; ours.
    Models that it cannot render (it says why), and all others, go through torch."""
    cuda_graphs: bool = False
    """Whether whole pictures of one person on a GPU are recorded once as a CUDA graph and replayed for every frame
    (nerf/graphed_rendering.py), for a camera that stands still; ours. Off until it was measured on a GPU."""

    drive_dropout: float = 0.3
    """In training by role, how often a speaker's face follows expression instead of audio, so that the trained avatars
    can be driven by either."""
    grid_sharing: GridSharing = "per-participant"
    """Hash tables for each participant with shared networks; one table told apart by latent codes only; or an atlas,
    one table in which each participant has a place of their own."""
    head: HeadFieldConfig = field(default_factory=HeadFieldConfig)
    """The head field."""
    torso: TorsoFieldConfig = field(default_factory=TorsoFieldConfig)
    """The torso field."""
    signals: SignalEncoderConfig = field(default_factory=SignalEncoderConfig)
    """The signal encoder."""

    head_samples: int = 24
    """Samples along a ray within the head's box."""
    torso_samples: int = 12
    """Samples along a ray within the torso's box."""
    view: Show = "participant"
    """What a camera that names no participant shows (ns-viewer, ns-render camera-path): one participant, in whose
    person space it stands, or all of them in the scene, in scene space. The viewer's panel can change it."""
    scene: SceneConfig = field(default_factory=SceneConfig)
    """Where everybody is in the scene."""
    colour_threshold: float = 5e-3
    """Samples that weigh less than this get no colour of their own."""
    termination_threshold: float = 1e-2
    """While rendering, torso samples of which less than this can be seen past the head are not evaluated."""
    light_threshold: float = 3e-2
    """Compositing weight under which a sample counts as dark; what is behind every ray's last lit sample is culled."""
    occupancy: OccupancyGridConfig = field(default_factory=lambda: OccupancyGridConfig(updates_to_forget=12, warm_up=4))
    """Which cells of a box are evaluated at all."""
    occupancy_interval: int = 16
    """Steps that show a participant from one update of their occupancy grids to the next."""
    signal_noise: float = 0.2
    """In training, deviation of noise added to expression and residual, in their own deviations over the recording:
    against reading more from a coefficient than the tracker knows. Half a decibel for mouths; ours."""
    eyes_swap: float = 0.0
    """In training, share of the frames that are shown with blink and gaze of another frame; what then lies in the box
    of the eyes does not count, and all the rest learns to leave eyes' signals alone. Ours."""
    refinement: PoseRefinementConfig = field(default_factory=PoseRefinementConfig)
    """Corrections of the tracked head poses."""
    frame_appearance: bool = False
    """Whether training frames have an appearance code of their own, added to z_app; all others take the codes' mean,
    which is z_app itself (NeRF in the Wild, section 4.1)."""
    average_decay: float = 0.0
    """Decay a step of the moving average of the weights, which is what rendering shows; 0 for no average (RAD-NeRF and
    ER-NeRF: 0.95)."""
    average_interval: int = 8
    """Steps between updates of that average."""

    geometry: GeometryPriorConfig = field(default_factory=GeometryPriorConfig)
    """What is known of a body's shape beyond what one camera saw."""

    mask_coefficient: float = 5e-3
    """Cross entropy of head and torso opacity against the labels, so that neither explains the other; ours."""
    spread_coefficient: float = 1.0
    """Variance, in m², of the depth that a ray sees, so that surfaces are thin and what lies behind them can be culled;
    a simpler form of Mip-NeRF 360's distortion loss."""
    entropy_coefficient: float = 1e-4
    """Binary entropy of a ray's opacity, against half-transparent silhouettes: RAD-NeRF."""
    gate_coefficient: float = 1e-4
    """Mean region attention, so that the signal reaches only where it is needed: ER-NeRF's off-face gate norm."""
    deformation_coefficient: float = 1e-3
    """Squared length of the torso's deformation, in box halves, against drift of the canonical torso; ours."""
    distortion_coefficient: float = 0.0
    """Distortion of a ray's weights, metres: Mip-NeRF 360, equation 15."""
    appearance_coefficient: float = 1e-3
    """Mean squared appearance codes of frames, so that they hold only what z_app cannot."""
    lip_patch_coefficient: float = 0.02
    """The loss of lip patches, where the datamanager draws any (`lip_stage_share`)."""
    lip_patch_loss: PatchLossName = "edges"
    """edges: gradients at several scales and SSIM, without weights; lpips: AlexNet's features, as RAD-NeRF and ER-NeRF
    have it."""
    lpips_weights: Optional[Path] = None
    """File of AlexNet's weights as torchvision publishes them, for lpips."""


@dataclass
class GridConditions(FrameConditions):
    """What is constant over each frame of a batch, of one participant."""

    signal: HeadSignal
    et: Float[Tensor, "F pose"]
    """Euler angles and translation, scaled to about [−½, ½] over the frames of training, now and lately; and the sway
    of the shoulders, scaled likewise."""
    foreign_eyes: Optional[Bool[Tensor, " F"]] = None
    """Frames that are shown with another frame's blink and gaze; None for none."""
    correction: Optional[Float[Tensor, "F 6"]] = None
    """What pose refinement changed, already in rotation and translation; None without refinement."""


class DialogueModel(AvatarModel):
    """DialogueNeRF's renderer: one pair of fields for everybody, one compositing for head, torso and background."""

    config: DialogueModelConfig
    culls = True

    def populate_modules(self) -> None:
        super().populate_modules()
        signals, num_people = self._signal_facts, len(self.participant_ids)
        self.proxies: Optional[BodyProxies] = None
        trained = torch.zeros(self.num_frames, dtype=torch.bool)
        trained[self.train_frames] = True
        if self.config.refinement.enabled:
            self.pose_refinement = PoseRefinement(
                self.config.refinement, num_people, trained, self.et_range.shape[-1] + signals.expression.shape[-1]
            )
        if self.config.frame_appearance:
            if self.config.head.latent_size != self.config.torso.latent_size:
                raise DialogueError(
                    "frame appearance adds to the latent codes of head and torso alike; give both the same latent-size."
                )
            self.appearance_codes = FrameCodes(num_people, trained, self.config.head.latent_size)
        if self.config.torso.sway:
            sway = signals.sway[:, self.train_frames, : self.config.torso.sway_size]
            self.register_buffer("sway_range", (sway.amax(dim=1) - sway.amin(dim=1)).clamp_min(1e-3))
        # In a tuple, out of nn.Module's sight: LPIPS is no part of the avatars, nor of their checkpoints.
        self._patch_loss: Tuple[PatchLoss, ...] = ()
        if self.config.average_decay > 0:
            self.weight_average = WeightAverage(list(self.parameters()))

    def build_panel(self) -> DialoguePanel:
        panel = super().build_panel()
        panel.offer_scene(self.config.view == "scene", self.config.scene.placement, self._front_of_scene)
        return panel

    def build_fields(self, people: List[RecordedPerson], signals: ConversationSignals) -> None:
        """Makes what is trained, and what culls it."""
        head_boxes = torch.tensor(np.stack([person.head_box for person in people]), dtype=torch.float32)
        torso_boxes = torch.tensor(np.stack([person.torso_box for person in people]), dtype=torch.float32)
        self.signal_encoder = SignalEncoder(
            self.config.signals,
            len(people),
            signals.expression.shape[-1],
            signals.residual.shape[-1],
            torch.as_tensor(signals.silence),
        )
        self.head_field = HeadField(
            self.config.head,
            self.config.grid_sharing,
            head_boxes,
            self.config.signals.audio.code_size,
            self.config.signals.eyes_code_size,
        )
        self.torso_field = TorsoField(self.config.torso, self.config.grid_sharing, torso_boxes)

        self.head_occupancy = nn.ModuleList(OccupancyGrid(box, self.config.occupancy) for box in head_boxes)
        self.torso_occupancy = nn.ModuleList(OccupancyGrid(box, self.config.occupancy) for box in torso_boxes)

        self._graphed_pictures = GraphedPictures(self)
        self._steps_since_update = [0] * len(people)
        for name, grids in (("head_hull", self.head_occupancy), ("torso_hull", self.torso_occupancy)):
            self.register_buffer(name, torch.ones(len(people), len(grids[0].occupied), dtype=torch.bool))

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Dict[str, Any]:
        grid = self.head_field.grid.grids[0]
        return {
            **super().get_extra_state(),
            "grid_layout": GRID_LAYOUT,
            "kernel": grid.kernel,
            "head_grid": grid_size(self.config.head.grid, self.config.head.encoding),
            "torso_grid": grid_size(self.config.torso.grid, self.config.torso.encoding),
            "grid_sharing": self.config.grid_sharing,
        }

    def check_compatible(self, state: Optional[Dict[str, Any]]) -> None:
        check_compatible(state, self.get_extra_state())

    # Signals ----------------------------------------------------------------------------------------------------------

    def conditions(self, participant: int, frames: Int[Tensor, " F"], drive: Drive) -> GridConditions:
        from_audio, audible = self.from_audio(participant, frames, drive)
        if self.training and self.config.drive == "role" and self.config.drive_dropout > 0:
            from_audio = from_audio & (torch.rand(len(frames), device=frames.device) >= self.config.drive_dropout)
        self._check_trained(from_audio)
        expression = (self.signal_expression[participant, frames] - self.expression_mean) / self.expression_scale
        expression = expression.clamp(-5.0, 5.0)
        residual = self.signal_residual[participant, frames] / self.residual_scale[participant]
        if self.training and self.config.signal_noise > 0:
            expression = expression + self.config.signal_noise * torch.randn_like(expression)
            residual = residual + self.config.signal_noise * torch.randn_like(residual)
        eye_frames, foreign_eyes = frames, None
        if self.training and self.config.eyes_swap > 0:
            foreign_eyes = torch.rand(len(frames), device=frames.device) < self.config.eyes_swap
            others = torch.randint(len(self.train_frames), frames.shape, device=frames.device)
            eye_frames = torch.where(foreign_eyes, self.train_frames[others], frames)
        signal = self.signal_encoder(
            participant,
            frames,
            from_audio,
            audible,
            self.signal_audio,
            expression,
            residual,
            self.signal_blink[participant, eye_frames],
            self.signal_gaze[participant, eye_frames],
        )
        et = self._scaled_pose(participant, frames)
        rotation, translation = self.signal_rotation[participant, frames], self.signal_translation[participant, frames]
        correction = None
        if self.config.refinement.enabled:
            # A face that audio moves must not follow an expression, not even by the pose.
            shown = expression * ~from_audio.unsqueeze(-1)
            correction = self.pose_refinement(participant, frames, torch.cat([et, shown], dim=-1))
            rotation, translation = corrected(rotation, translation, correction)
        if self.config.frame_appearance and self.training:
            signal.appearance = self.appearance_codes(participant, frames)
        history = self.config.torso.pose_history
        if history > 0:
            past = (frames.unsqueeze(1) - torch.arange(history // 3, history + 1, device=frames.device)).clamp_min(0)
            et = torch.cat([et, self._scaled_pose(participant, past).mean(dim=1)], dim=-1)
        if self.config.torso.sway:
            known = self.signal_sway[participant, frames, : self.config.torso.sway_size]
            sway = known / self.sway_range[participant]
            et = torch.cat([et, sway.clamp(-0.75, 0.75)], dim=-1)
        return GridConditions(
            participant=participant,
            signal=signal,
            rotation=rotation,
            translation=translation,
            et=et,
            correction=correction,
            foreign_eyes=foreign_eyes,
        )

    def _scaled_pose(self, participant: int, frames: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch 6"]:
        """et of frames, scaled; beyond the poses of training the torso holds still rather than guess."""
        et = torch.cat([self.signal_euler[participant, frames], self.signal_translation[participant, frames]], dim=-1)
        return self._scale_pose(participant, et)

    def _scale_pose(self, participant: int, et: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 6"]:
        return ((et - self.et_middle[participant]) / self.et_range[participant]).clamp(-0.75, 0.75)

    # Rendering --------------------------------------------------------------------------------------------------------

    def render_rays(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: GridConditions,
        background: Float[Tensor, "R 3"],
        background_depth: Float[Tensor, " R"],
    ) -> Dict[str, Tensor]:
        regularised: Dict[str, Tensor] = {}
        sources = self.sources(origins, directions, ray_frames, conditions, regularised)
        marched = march(
            sources,
            background,
            weight_threshold=self.config.colour_threshold,
            transmittance_threshold=0.0 if self.training else self.config.termination_threshold,
            perturb=self.training,
        )
        if self.training:
            reach = marched.light_reach(self.config.light_threshold)
            for source in sources:
                source.occupancy.mark_visible(source.origins, source.directions, reach)
            if self.config.spread_coefficient > 0:
                regularised["spread"] = sum(
                    (weights * (samples.t - marched.composite.depth.detach()[samples.rays]).square()).sum()
                    for samples, weights in zip(marched.samples, marched.composite.weights, strict=True)
                ) / len(origins)
            if self.config.distortion_coefficient > 0:
                regularised["distortion"] = distortion(
                    [samples.rays for samples in marched.samples],
                    [samples.t for samples in marched.samples],
                    [samples.delta for samples in marched.samples],
                    marched.composite.weights,
                    len(origins),
                )
            if conditions.foreign_eyes is not None:
                regularised["foreign_eyes"] = conditions.foreign_eyes[ray_frames]
            if conditions.correction is not None:
                regularised["correction_squared"] = conditions.correction.square().mean()
            if conditions.signal.appearance is not None:
                regularised["appearance_squared"] = conditions.signal.appearance.square().mean()
            if self.proxies is not None:
                regularised["surface"] = sum(
                    self.proxies.surface_loss(part, samples.points, weights, conditions.participant)
                    for part, (samples, weights) in enumerate(
                        zip(marched.samples, marched.composite.weights, strict=True)
                    )
                ) / len(origins)
        seen = marched.composite
        remaining = 1.0 - seen.accumulation
        return {
            "rgb": seen.rgb,
            "depth": (seen.accumulation * seen.depth + remaining * background_depth).unsqueeze(-1),
            "accumulation": seen.accumulation.unsqueeze(-1),
            "head": seen.opacity[:, :1],
            "torso": seen.opacity[:, 1:],
            **(regularised if self.training else {}),
        }

    def sources(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: GridConditions,
        regularised: Optional[Dict[str, Tensor]] = None,
        fixed: bool = False,
    ) -> List[Source]:
        """A participant's head and torso, for rays in person space; in training `regularised` receives what is. `fixed`
        as in `nerf.sources.lit_interval`."""
        arguments = (origins, directions, ray_frames, conditions, {} if regularised is None else regularised, fixed)
        return [head_source(self, *arguments), torso_source(self, *arguments)]

    def get_outputs(self, ray_bundle: Union[RayBundle, Cameras]) -> Dict[str, Any]:
        outputs = super().get_outputs(ray_bundle)
        if not self.training:
            return outputs
        assert isinstance(ray_bundle, RayBundle)
        rows = torch.unique(ray_bundle.metadata["participant"]).tolist()
        for row in rows:
            self._steps_since_update[row] += 1
        if self._virtual_step():
            participant = rows[int(torch.randint(len(rows), ()))]
            outputs["virtual"], outputs["virtual_count"] = self._virtual_opacity(participant)
        return outputs

    def render_picture(self, rays: PictureRays, conditions: GridConditions) -> Dict[str, Float[Tensor, "R _"]]:
        if self.config.cuda_graphs and self.device.type == "cuda" and self._graphed_pictures.pays(rays):
            return self._graphed_pictures(rays, conditions)
        sources = fast_sources(self, conditions)
        if sources is None:
            return super().render_picture(rays, conditions)
        return fast_outputs(self, rays.origins, rays.directions, sources, rays.background, rays.distance)

    def _virtual_step(self) -> bool:
        """Whether this training step has a virtual camera, by chance."""
        geometry = self.config.geometry
        if not self.training or self.proxies is None or geometry.virtual_coefficient <= 0:
            return False
        return float(torch.rand((), generator=self.share.common)) * geometry.virtual_interval < 1.0

    def _virtual_opacity(self, participant: int) -> Tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """How wrongly rays of a camera and head pose that nobody recorded stop or pass, and how many have to."""
        assert self.proxies is not None
        frame = torch.randint(self.num_frames, (1,), device=self.device)
        conditions = self.conditions(participant, frame, self._drive())
        with torch.autocast(self.device.type, enabled=False):
            rotation = self.proxies.turned(conditions.rotation[0])
            pose = torch.cat([yaw_pitch_roll(rotation), conditions.translation[0]])
            et = self._scale_pose(participant, pose[None])
            conditions = replace(
                conditions,
                rotation=rotation[None],
                # A history of the pose, and the sway, where there are any, stay.
                et=torch.cat([et, conditions.et[:, et.shape[-1] :]], dim=-1),
            )
            rays = self.proxies.virtual_rays(participant, self.share.portion(self.config.geometry.virtual_rays))
            in_head = rays_into(*rays, rotation, conditions.translation[0])
            stop, go = self.proxies.targets(*rays, *in_head, participant)
        nothing, first = torch.zeros_like(rays[0]), torch.zeros_like(stop, dtype=torch.int64)
        outputs = self.render_rays(*rays, first, conditions, nothing, nothing[:, 0])
        return opacity_loss(outputs["accumulation"][:, 0], stop, go), (stop | go).sum().float()

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """A whole picture, of one participant or, where the panel says so, of the whole scene.

        Returns:
            rgb [H, W, 3], depth, accumulation, head and torso [H, W, 1].
        """
        frame, participant = self.resolve_frame(camera.metadata, camera.times)
        if self.panel.shows_scene and "participant" not in (camera.metadata or {}):
            outputs = self.render_scene(camera, frame, self.make_scene(self.panel.placement))
            # One set of outputs for both views, or the viewer's menu would name what the other does not have.
            return {name: value for name, value in outputs.items() if name != "opacity"}
        return self.render_frame(camera, frame, participant)

    def make_scene(
        self,
        placement: Optional[str] = None,
        participants: Optional[Sequence[str]] = None,
        placements: Optional[Sequence[Placement]] = None,
        spacing: Optional[float] = None,
    ) -> Scene:
        return make_scene(self, placement, participants, placements, spacing)

    def render_scene(
        self, camera: Cameras, frame: int, scene: Optional[Scene] = None, drive: Optional[Drive] = None
    ) -> Dict[str, Float[Tensor, "H W _"]]:
        """See `nerf.scene.render_scene`; the scene is the configuration's if not given."""
        return render_scene(self, camera, frame, scene or self.make_scene(), drive)

    def _front_of_scene(self, aspect: float, field_of_view: float) -> View:
        return front(self.make_scene(self.panel.placement), aspect, field_of_view)

    # Training ---------------------------------------------------------------------------------------------------------

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """The hash tables and everything else: they need different learning rates."""
        tables = [parameter for name, parameter in self.named_parameters() if name.endswith(".table")]
        known = {id(parameter) for parameter in tables} | {id(self.device_indicator_param)}
        return {
            "grids": tables,
            "networks": [parameter for parameter in self.parameters() if id(parameter) not in known],
        }

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        with exit_on_user_error():
            # Now, not when the lip stage begins: a missing file should end training before it starts.
            _ = self.patch_loss
        return [
            TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                self.update_occupancy,
                update_every_num_iters=1,
            ),
            TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                self.update_average,
                update_every_num_iters=self.config.average_interval,
            ),
        ]

    @property
    def patch_loss(self) -> PatchLoss:
        """The loss of lip patches, made when training begins: rendering needs no perceptual weights.

        Raises:
            DialogueError: it needs weights that are missing.
        """
        if not self._patch_loss:
            loss = patch_loss(self.config.lip_patch_loss, self.config.lpips_weights)
            self._patch_loss = (loss.to(self.device) if isinstance(loss, nn.Module) else loss,)
        return self._patch_loss[0]

    def update_average(self, step: int) -> None:
        """Takes the weights of now into their moving average, if there is one."""
        if self.config.average_decay > 0:
            self.weight_average.update(self.config.average_decay**self.config.average_interval)

    def train(self, mode: bool = True) -> "DialogueModel":
        """As for any module; where weights are averaged, evaluation shows the average."""
        super().train(mode)
        # The weights that are shown may lie elsewhere now.
        self._graphed_pictures.forget()
        if "weight_average" in self._modules:
            self.weight_average.show(not mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """As for any module; the weights and their average, whichever of both is shown."""
        with self._weights_in_place():
            return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for any module."""
        with self._weights_in_place():
            return super().load_state_dict(*args, **kwargs)

    def _weights_in_place(self) -> ContextManager[None]:
        return self.weight_average.hidden() if "weight_average" in self._modules else nullcontext()

    def set_proxies(self, volumes: List[Tuple[np.ndarray, np.ndarray]], cameras: List[Camera]) -> None:
        """Takes the proxies of all participants' (head, torso), for training; see nerf/geometry_priors.py."""
        boxes = [torch.stack([grid.box for grid in grids]) for grids in (self.head_occupancy, self.torso_occupancy)]
        self.proxies = BodyProxies(self.config.geometry, *boxes, volumes, cameras)

    @torch.no_grad()
    def carve(self, participant: int, head: Bool[Tensor, " cells"], torso: Bool[Tensor, " cells"]) -> None:
        """Rules out, for ever, the cells outside a participant's visual hulls, and away from the proxies' surfaces."""
        for part, (hulls, grids, hull) in enumerate(
            ((self.head_hull, self.head_occupancy, head), (self.torso_hull, self.torso_occupancy, torso))
        ):
            hulls[participant] = hull.to(self.device)
            if self.proxies is not None:
                hulls[participant] &= self.proxies.shell(part, participant, self.config.occupancy.resolution)
            grids[participant].occupied &= hulls[participant]

    @torch.no_grad()
    def update_occupancy(self, step: int) -> None:
        """Meets the fields of whom enough steps have shown, at one random frame, in every cell of their grids.

        The more people take turns, the rarer a step shows each of them: their grids wait for it, or they would forget
        what is merely not shown.
        """
        for participant, steps in enumerate(self._steps_since_update):
            if steps >= self.config.occupancy_interval:
                self._steps_since_update[participant] = 0
                self._update_occupancy_of(participant)

    def _update_occupancy_of(self, participant: int) -> None:
        frame = torch.randint(self.num_frames, (1,), device=self.device)
        conditions = self.conditions(participant, frame, self.config.drive)

        def head_density(points: Tensor) -> Tensor:
            return self.head_field.density(points, participant, conditions.signal, [len(points)])[0]

        def torso_density(points: Tensor) -> Tensor:
            return self.torso_field.density(points, participant, conditions.et, [len(points)])[0]

        self.head_occupancy[participant].update(head_density, within=self.head_hull[participant])
        self.torso_occupancy[participant].update(torso_density, within=self.torso_hull[participant])

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        config = self.config
        image, labels = batch["image"].to(self.device), batch["label"].to(self.device)
        squared = (outputs["rgb"] - image).square()
        if "foreign_eyes" in outputs:
            squared = squared * ~(outputs["foreign_eyes"] & batch["in_eyes"].to(self.device)).unsqueeze(-1)
        losses = {"photometric": config.photometric_coefficient * squared.mean()}
        head, torso = outputs["head"].squeeze(-1), outputs["torso"].squeeze(-1)
        if config.mask_coefficient > 0:
            losses["mask"] = config.mask_coefficient * mask_loss(head, torso, labels)
        if config.entropy_coefficient > 0:
            losses["entropy"] = config.entropy_coefficient * binary_entropy(outputs["accumulation"])
        if "spread" in outputs and config.spread_coefficient > 0:
            losses["spread"] = config.spread_coefficient * outputs["spread"]
        if "surface" in outputs:
            losses["surface"] = outputs["surface"]
        if "virtual" in outputs:
            losses["virtual"] = config.geometry.virtual_coefficient * outputs["virtual"]
        if "gate_mean" in outputs and config.gate_coefficient > 0:
            losses["gate"] = config.gate_coefficient * outputs["gate_mean"]
        if "shift_squared" in outputs and config.deformation_coefficient > 0:
            losses["deformation"] = config.deformation_coefficient * outputs["shift_squared"]
        for name, quantity, coefficient in (
            ("distortion", "distortion", config.distortion_coefficient),
            ("refinement", "correction_squared", config.refinement.coefficient),
            ("appearance", "appearance_squared", config.appearance_coefficient),
        ):
            if quantity in outputs and coefficient > 0:
                losses[name] = coefficient * outputs[quantity]
        if (side := int(batch.get("patch_size", 0))) > 0:
            patches = [colours.view(-1, side, side, 3) for colours in (outputs["rgb"], image)]
            losses["lip_patches"] = config.lip_patch_coefficient * self.patch_loss(*patches)
        return losses
