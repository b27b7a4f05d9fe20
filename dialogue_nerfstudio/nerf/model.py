"""Dialogue model: head and torso fields of all participants, composited together over the recorded background.

Conventions: rays are in person space (metres) of the participant they show, sorted by participant and then frame while
they are rendered. P participants, T frames of the timeline, F frames in a batch, R rays, S samples a ray.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Literal, Optional, Sequence, Set, Tuple, Type, Union

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor, nn
from torch.nn import Parameter

from dialogue_nerfstudio.conversation import Camera, DialogueError
from dialogue_nerfstudio.fields.frame_codes import FrameCodes
from dialogue_nerfstudio.fields.head_field import HeadField, HeadFieldConfig
from dialogue_nerfstudio.fields.participant_grids import GridSharing
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal, SignalEncoder, SignalEncoderConfig
from dialogue_nerfstudio.fields.torso_field import TorsoField, TorsoFieldConfig
from dialogue_nerfstudio.metrics.images import image_metrics, label_regions
from dialogue_nerfstudio.metrics.seam import seam_metrics
from dialogue_nerfstudio.nerf.compatibility import CHECKPOINT_FORMAT, GRID_LAYOUT, check_compatible, grid_size
from dialogue_nerfstudio.nerf.dataparser import RecordedPerson
from dialogue_nerfstudio.nerf.fast_rendering import PictureRays, RayCache, fast_outputs, fast_sources
from dialogue_nerfstudio.nerf.geometry_priors import BodyProxies, GeometryPriorConfig, opacity_loss, yaw_pitch_roll
from dialogue_nerfstudio.nerf.losses import binary_entropy, mask_loss
from dialogue_nerfstudio.nerf.panel import DialoguePanel
from dialogue_nerfstudio.nerf.patch_losses import PatchLoss, PatchLossName, patch_loss
from dialogue_nerfstudio.nerf.plates import Plates
from dialogue_nerfstudio.nerf.pose_refinement import PoseRefinement, PoseRefinementConfig, corrected
from dialogue_nerfstudio.nerf.scene import Scene, SceneConfig, make_scene, render_scene
from dialogue_nerfstudio.nerf.scene_cameras import View, front
from dialogue_nerfstudio.nerf.signals import ConversationSignals
from dialogue_nerfstudio.nerf.user_errors import exit_on_user_error
from dialogue_nerfstudio.nerf.view_range import SeenViews, ViewRange
from dialogue_nerfstudio.nerf.weight_average import WeightAverage
from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.distortion import distortion
from dialogue_nerfstudio.rendering.march import Source, march
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid, OccupancyGridConfig
from dialogue_nerfstudio.rendering.placements import Placement
from dialogue_nerfstudio.rendering.rays import rays_into
from dialogue_nerfstudio.rendering.sampling import stratified

Drive = Literal["role", "audio", "expression"]
Show = Literal["participant", "scene"]
DRIVES: Tuple[Drive, ...] = ("role", "audio", "expression")


@dataclass
class DialogueModelConfig(ModelConfig):
    """The avatars of a conversation in one network; the defaults suit a CPU."""

    _target: Type = field(default_factory=lambda: DialogueModel)
    enable_collider: bool = False
    eval_num_rays_per_chunk: int = 16384
    """Rays rendered at a time; more need more memory and are hardly faster. The compiled march needs no chunks."""
    fast_inference: bool = True
    """Whether whole pictures on a CPU go through a compiled march, front to back, no ray further than light gets; ours.
    Models that it cannot render (it says why), and all others, go through torch."""

    drive: Drive = "role"
    """What moves faces: audio for who speaks and expression for who listens (role, as in the paper), or one for all."""
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
    occupancy: OccupancyGridConfig = field(default_factory=lambda: OccupancyGridConfig(updates_to_forget=12))
    """Which cells of a box are evaluated at all."""
    occupancy_interval: int = 16
    """Steps between updates of the occupancy grids."""
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

    clamp_views: bool = False
    """Whether a camera beyond what training saw (see nerf/view_range.py) is swung back to where the body is known,
    instead of a warning."""

    geometry: GeometryPriorConfig = field(default_factory=GeometryPriorConfig)
    """What is known of a body's shape beyond what one camera saw."""

    photometric_coefficient: float = 1.0
    """Squared colour error: DFA-NeRF equation 11, DialogueNeRF section 4.2."""
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

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Configurations saved before an option existed take its default."""
        self.__dict__.update({**DialogueModelConfig().__dict__, **state})


@dataclass
class FrameConditions:
    """What is constant over each frame of a batch, of one participant."""

    participant: int
    signal: HeadSignal
    rotation: Float[Tensor, "F 3 3"]
    translation: Float[Tensor, "F 3"]
    et: Float[Tensor, "F pose"]
    """Euler angles and translation, scaled to about [−½, ½] over the frames of training, now and lately."""
    foreign_eyes: Optional[Bool[Tensor, " F"]] = None
    """Frames that are shown with another frame's blink and gaze; None for none."""
    correction: Optional[Float[Tensor, "F 6"]] = None
    """What pose refinement changed, already in rotation and translation; None without refinement."""


class DialogueModel(Model):
    """DialogueNeRF's renderer: one pair of fields for everybody, one compositing for head, torso and background.

    Keyword arguments from the dataset's metadata: `people` and `signals`. Signals are non-persistent buffers: replace
    them with `set_signals` to animate trained avatars to something else.
    """

    config: DialogueModelConfig
    culls = True
    """Whether training begins with what the labels rule out: visual hulls, and proxies of the bodies."""

    def populate_modules(self) -> None:
        super().populate_modules()
        people: List[RecordedPerson] = self.kwargs["metadata"]["people"]
        signals: ConversationSignals = self.kwargs["metadata"]["signals"]
        train_frames = torch.as_tensor(self.kwargs["metadata"]["train_frames"])
        if self.config.drive not in DRIVES:
            raise DialogueError(f"there is no drive '{self.config.drive}'; choose one of {', '.join(DRIVES)}.")
        self._training_heights: List[int] = self.kwargs["metadata"]["training_heights"]
        self.participant_ids = [person.id for person in people]
        self.cameras = [person.camera for person in people]
        self._signal_facts = signals
        for name, tensor in signals.tensors.items():
            self.register_buffer(f"signal_{name}", tensor, persistent=False)
        self.plates = Plates([person.camera for person in people], [person.plate for person in people])

        self.build_fields(people, signals)

        et = torch.cat([signals.euler, signals.translation], dim=-1)[:, train_frames]
        middle = 0.5 * (et.amax(dim=1) + et.amin(dim=1))
        self.register_buffer("et_middle", middle)
        self.register_buffer("et_range", (et.amax(dim=1) - et.amin(dim=1)).clamp_min(1e-3))
        # Coefficients of speech move by a few hundredths, a smile by a few tenths. Pooled over everybody, because a
        # coefficient means the same on every face.
        expression = signals.expression[:, train_frames].flatten(0, 1)
        self.register_buffer("expression_mean", expression.mean(dim=0))
        self.register_buffer("expression_scale", expression.std(dim=0, unbiased=False).clamp_min(0.02))
        self.register_buffer(
            "residual_scale", signals.residual[:, train_frames].std(dim=1, unbiased=False).clamp_min(1e-3)
        )
        self.proxies: Optional[BodyProxies] = None
        self.trained_drives: Set[str] = set()
        trained = torch.zeros(self.num_frames, dtype=torch.bool)
        trained[train_frames] = True
        self.register_buffer("train_frames", train_frames, persistent=False)
        if self.config.refinement.enabled:
            self.pose_refinement = PoseRefinement(
                self.config.refinement, len(people), trained, et.shape[-1] + signals.expression.shape[-1]
            )
        if self.config.frame_appearance:
            if self.config.head.latent_size != self.config.torso.latent_size:
                raise DialogueError(
                    "frame appearance adds to the latent codes of head and torso alike; give both the same latent-size."
                )
            self.appearance_codes = FrameCodes(len(people), trained, self.config.head.latent_size)
        # In a tuple, out of nn.Module's sight: LPIPS is no part of the avatars, nor of their checkpoints.
        self._patch_loss: Tuple[PatchLoss, ...] = ()
        if self.config.average_decay > 0:
            self.weight_average = WeightAverage(list(self.parameters()))
        self.seen_views = SeenViews(
            [
                ViewRange.of(
                    person.id, person.camera, rotation[train_frames].numpy(), translation[train_frames].numpy()
                )
                for person, rotation, translation in zip(people, signals.rotation, signals.translation, strict=True)
            ]
        )
        self._picture_rays = RayCache(self._cast_rays)
        self.panel = DialoguePanel(
            self.participant_ids,
            DRIVES,
            self.config.drive,
            lambda: self.num_frames,
            signals.fps,
            [person.camera for person in people],
            self.config.view == "scene",
            self.config.scene.placement,
            self._front_of_scene,
        )

    def build_fields(self, people: List[RecordedPerson], signals: ConversationSignals) -> None:
        """Makes what is trained, and what culls it."""
        head_boxes = torch.tensor(np.stack([person.head_box for person in people]), dtype=torch.float32)
        torso_boxes = torch.tensor(np.stack([person.torso_box for person in people]), dtype=torch.float32)
        self.signal_encoder = SignalEncoder(
            self.config.signals, len(people), signals.expression.shape[-1], signals.residual.shape[-1]
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

        for name, grids in (("head_hull", self.head_occupancy), ("torso_hull", self.torso_occupancy)):
            self.register_buffer(name, torch.ones(len(people), len(grids[0].occupied), dtype=torch.bool))

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Dict[str, Any]:
        """What a checkpoint must agree on with the model that loads it, and what its training saw."""
        grid = self.head_field.grid.grids[0]
        return {
            "format": CHECKPOINT_FORMAT,
            "grid_layout": GRID_LAYOUT,
            "kernel": grid.kernel,
            "head_grid": grid_size(self.config.head.grid, self.config.head.encoding),
            "torso_grid": grid_size(self.config.torso.grid, self.config.torso.encoding),
            "grid_sharing": self.config.grid_sharing,
            "participants": list(self.participant_ids),
            "expression_basis": self._signal_facts.expression_basis,
            "trained_drives": sorted(self.trained_drives),
            "seen_views": self.seen_views.state(),
        }

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        self.check_compatible(state)
        self.trained_drives = set(state["trained_drives"])
        # Absent from checkpoints of before; then what the dataset says stands.
        if "seen_views" in state:
            self.seen_views.load_state(state["seen_views"])

    def check_compatible(self, state: Optional[Dict[str, Any]]) -> None:
        """Compares a checkpoint's extra state with this model's.

        Raises:
            DialogueError: one sentence about the first thing that differs.
        """
        check_compatible(state, self.get_extra_state())

    # What training saw ------------------------------------------------------------------------------------------------

    def view_range(self, participant: int) -> ViewRange:
        """From where the recording saw a participant, and how far beyond that a camera may go."""
        return self.seen_views[participant]

    def check_view(self, participant: int, camera_to_person: Float[np.ndarray, "3 4"], frame: int) -> Optional[str]:
        """A sentence if a camera in person space sees a participant's frame from where training did not, else None.

        The first such sentence of each participant is printed; the viewer's panel shows the newest.
        """
        rotation = self.signal_rotation[participant, frame].cpu().numpy()
        translation = self.signal_translation[participant, frame].cpu().numpy()
        sentence = self.seen_views.check(participant, np.asarray(camera_to_person)[:, 3], rotation, translation)
        self.panel.show_view(self.view_range(participant), np.asarray(camera_to_person), sentence)
        return sentence

    # Signals ----------------------------------------------------------------------------------------------------------

    @property
    def num_frames(self) -> int:
        """Length of the timeline now."""
        return self.signal_mel.shape[0]

    @property
    def signals(self) -> ConversationSignals:
        """The timeline that frames are rendered from."""
        tensors = {name: getattr(self, f"signal_{name}") for name in self._signal_facts.tensors}
        return replace(self._signal_facts, **tensors)

    def set_signals(self, signals: ConversationSignals) -> None:
        """Animates the avatars to another timeline.

        Raises:
            DialogueError: it is for other participants, or in another expression basis.
        """
        facts = self._signal_facts
        if signals.participant_ids != facts.participant_ids:
            raise DialogueError(
                f"these signals are for {', '.join(signals.participant_ids)}; the avatars are "
                f"{', '.join(facts.participant_ids)}."
            )
        if signals.expression_basis != facts.expression_basis or signals.residual.shape[-1] != facts.residual.shape[-1]:
            raise DialogueError(
                f"these signals are in the expression basis '{signals.expression_basis}' with "
                f"{signals.residual.shape[-1]} residual components; the avatars use '{facts.expression_basis}' with "
                f"{facts.residual.shape[-1]}."
            )
        # All at once: a viewer may be rendering, and must never see half of each.
        self._buffers.update({f"signal_{name}": tensor.to(self.device) for name, tensor in signals.tensors.items()})

    def from_audio(
        self, participant: int, frames: Int[Tensor, " F"], drive: Drive
    ) -> Tuple[Bool[Tensor, " F"], Bool[Tensor, " F"]]:
        """(whether audio moves the face, whether that audio is this participant's) for each frame.

        Driven by audio, somebody who does not speak hears silence in place of the partner's voice.
        """
        speaking = self.signal_speaking[participant, frames]
        if drive == "role":
            return speaking, speaking
        if drive == "audio":
            return torch.ones_like(speaking), speaking
        return torch.zeros_like(speaking), speaking

    def conditions(self, participant: int, frames: Int[Tensor, " F"], drive: Drive) -> FrameConditions:
        """Everything constant over `frames` of a participant; the audio net runs here, once a frame."""
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
            self.signal_mel,
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
        return FrameConditions(
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

    def _check_trained(self, from_audio: Bool[Tensor, " F"]) -> None:
        """Notes in training which signals moved a face; at render time refuses one that never did."""
        for name, used in (("audio", from_audio.any()), ("expression", (~from_audio).any())):
            if not bool(used):
                continue
            if self.training:
                self.trained_drives.add(name)
            elif self.trained_drives and name not in self.trained_drives:
                raise DialogueError(
                    f"these avatars were trained without {name} (--pipeline.model.drive {self.config.drive}) and "
                    f"cannot be driven by it; use another drive, or train with --pipeline.model.drive role."
                )

    # Rendering --------------------------------------------------------------------------------------------------------

    def render_rays(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: FrameConditions,
        background: Float[Tensor, "R 3"],
        background_depth: Float[Tensor, " R"],
    ) -> Dict[str, Tensor]:
        """One participant over the background.

        Args:
            origins, directions: in person space, directions of unit length, sorted by frame.
            ray_frames: the row of `conditions` of each ray, ascending.
            conditions: of the frames.
            background: what the rays see behind the person, and its distance.

        Returns:
            rgb [R, 3], depth, accumulation, head, torso [R, 1]; in training also the regularised quantities.
        """
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
        conditions: FrameConditions,
        regularised: Optional[Dict[str, Tensor]] = None,
    ) -> List[Source]:
        """A participant's head and torso, for rays in person space; in training `regularised` receives what is."""
        arguments = (origins, directions, ray_frames, conditions, {} if regularised is None else regularised)
        return [self._head_source(*arguments), self._torso_source(*arguments)]

    def _head_source(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: FrameConditions,
        regularised: Dict[str, Tensor],
    ) -> Source:
        """A participant's head, with the rays carried into head space."""
        participant, signal, num_frames = conditions.participant, conditions.signal, len(conditions.et)
        head_origins, head_directions = rays_into(
            origins, directions, conditions.rotation[ray_frames], conditions.translation[ray_frames]
        )

        def density(points: Tensor, rays: Tensor) -> Tuple[Tensor, Tuple[Tensor, ...]]:
            counts = samples_per_frame(ray_frames, rays, num_frames)
            value, geometry, gates = self.head_field.density(points, participant, signal, counts)
            if self.training and len(gates):
                regularised["gate_mean"] = gates.mean()
            return value, (geometry, gates)

        def colour(geometry: Tuple[Tensor, ...], _: Tensor, rays: Tensor) -> Tensor:
            counts = samples_per_frame(ray_frames, rays, num_frames)
            return self.head_field.colour(*geometry, head_directions, rays, participant, signal, counts)

        occupancy = self.head_occupancy[participant]
        near, far = self._interval(occupancy, head_origins.detach(), head_directions.detach())
        return Source(head_origins, head_directions, near, far, self.config.head_samples, density, colour, occupancy)

    def _torso_source(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: FrameConditions,
        regularised: Dict[str, Tensor],
    ) -> Source:
        """A participant's neck and torso, in person space."""
        participant, num_frames = conditions.participant, len(conditions.et)

        def density(points: Tensor, rays: Tensor) -> Tuple[Tensor, Tuple[Tensor, ...]]:
            counts = samples_per_frame(ray_frames, rays, num_frames)
            value, geometry, shift = self.torso_field.density(points, participant, conditions.et, counts)
            if self.training and len(shift):
                regularised["shift_squared"] = shift.square().sum(dim=-1).mean()
            return value, (geometry,)

        def colour(geometry: Tuple[Tensor, ...], _: Tensor, rays: Tensor) -> Tensor:
            appearance = conditions.signal.appearance
            if appearance is not None:
                appearance = appearance.index_select(0, ray_frames.index_select(0, rays))
            return self.torso_field.colour(*geometry, participant, appearance)

        occupancy = self.torso_occupancy[participant]
        near, far = self._interval(occupancy, origins, directions)
        return Source(origins, directions, near, far, self.config.torso_samples, density, colour, occupancy)

    def _interval(
        self, occupancy: OccupancyGrid, origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"]
    ) -> Tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        """Where rays are within a box between its first and its last occupied cell.

        Looking cells up is far cheaper than evaluating fields there, and the samples that follow lie closer together.
        """
        near, far = intersect_box(origins, directions, occupancy.box[0], occupancy.box[1])
        probes = self.config.occupancy.resolution
        hit = (far > near).nonzero().squeeze(-1)
        t, width = stratified(near[hit], far[hit], probes)
        occupied = occupancy.query_along(origins[hit], directions[hit], t)
        last = probes - 1 - occupied.flip(-1).byte().argmax(dim=-1)
        first = occupied.byte().argmax(dim=-1)
        bin_width, any_occupied = width[:, 0], occupied.any(dim=-1)
        tight_near = near[hit] + first * bin_width
        tight_far = torch.where(any_occupied, near[hit] + (last + 1) * bin_width, tight_near)
        return near.index_copy(0, hit, tight_near), far.index_copy(0, hit, tight_far)

    def get_outputs(self, ray_bundle: Union[RayBundle, Cameras]) -> Dict[str, Any]:
        """Rays of any participants and frames; nerfstudio calls this in training."""
        assert isinstance(ray_bundle, RayBundle), "cameras go through get_outputs_for_camera"
        num_rays = len(ray_bundle)
        metadata = ray_bundle.metadata
        if "frame" in metadata:
            frames, participants = metadata["frame"].view(-1), metadata["participant"].view(-1)
        else:
            frame, participant = self.resolve_frame(None, None)
            frames = torch.full((num_rays,), frame, device=self.device)
            participants = torch.full((num_rays,), participant, device=self.device)
        origins, directions = ray_bundle.origins.view(-1, 3), ray_bundle.directions.view(-1, 3)
        keys = participants * self.num_frames + frames
        order = None
        if bool((keys[1:] < keys[:-1]).any()):
            keys, order = torch.sort(keys, stable=True)
            origins, directions = origins[order], directions[order]
        pairs, rows = torch.unique_consecutive(keys, return_inverse=True)
        pair_participants = torch.div(pairs, self.num_frames, rounding_mode="floor")
        parts = []
        for participant in torch.unique_consecutive(pair_participants).tolist():
            pair_rows = (pair_participants == participant).nonzero().squeeze(-1)
            first, last = int(pair_rows[0]), int(pair_rows[-1])
            rays = ((rows >= first) & (rows <= last)).nonzero().squeeze(-1)
            conditions = self.conditions(participant, pairs[pair_rows] - participant * self.num_frames, self._drive())
            background, distance = self.plates(
                origins[rays], directions[rays], participant, self._training_heights[participant]
            )
            parts.append(
                self.render_rays(origins[rays], directions[rays], rows[rays] - first, conditions, background, distance)
            )
        virtual = self._virtual_opacity(int(pair_participants[0])) if self._virtual_step() else None
        outputs = {
            name: torch.cat([part[name] for part in parts])
            if parts[0][name].ndim
            else sum(part[name] for part in parts)
            for name in parts[0]
        }
        if order is not None:
            back = torch.argsort(order)
            outputs = {name: value[back] if value.ndim else value for name, value in outputs.items()}
        if virtual is not None:
            outputs["virtual"] = virtual
        return outputs

    def _virtual_step(self) -> bool:
        """Whether this training step has a virtual camera, by chance."""
        geometry = self.config.geometry
        if not self.training or self.proxies is None or geometry.virtual_coefficient <= 0:
            return False
        return float(torch.rand(())) * geometry.virtual_interval < 1.0

    def _virtual_opacity(self, participant: int) -> Float[Tensor, ""]:
        """How wrongly rays of a camera and head pose that nobody recorded stop or pass."""
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
                # A history of the pose, where there is one, stays.
                et=torch.cat([et, conditions.et[:, et.shape[-1] :]], dim=-1),
            )
            rays = self.proxies.virtual_rays(participant, self.config.geometry.virtual_rays)
            in_head = rays_into(*rays, rotation, conditions.translation[0])
            stop, go = self.proxies.targets(*rays, *in_head, participant)
        nothing, first = torch.zeros_like(rays[0]), torch.zeros_like(stop, dtype=torch.int64)
        outputs = self.render_rays(*rays, first, conditions, nothing, nothing[:, 0])
        return opacity_loss(outputs["accumulation"][:, 0], stop, go)

    def _drive(self) -> Drive:
        return self.config.drive if self.training else self.panel.drive

    def resolve_frame(self, metadata: Optional[Dict[str, Any]], times: Optional[Tensor]) -> Tuple[int, int]:
        """(frame, participant) of a camera: its metadata, else its time, else the panel's state.

        In the viewer, which gives every camera a time, the panel decides which is newer, its own frame or that time.
        """
        metadata = metadata or {}
        participant = (
            int(metadata["participant"].reshape(-1)[0]) if "participant" in metadata else self.panel.participant
        )
        if "frame" in metadata:
            return int(metadata["frame"].reshape(-1)[0]), participant
        if times is None:
            return min(self.panel.frame, self.num_frames - 1), participant
        moment = float(times.reshape(-1)[0])
        if self.panel.has_viewer:
            return self.panel.frame_at(moment), participant
        return round(min(max(moment, 0.0), 1.0) * (self.num_frames - 1)), participant

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> Dict[str, Tensor]:
        """A whole picture; see `resolve_frame` for what it shows, and the panel for whether it is of the whole scene.

        Returns:
            rgb [H, W, 3], depth, accumulation, head and torso [H, W, 1].
        """
        frame, participant = self.resolve_frame(camera.metadata, camera.times)
        if self.panel.shows_scene and "participant" not in (camera.metadata or {}):
            outputs = self.render_scene(camera, frame, self.make_scene(self.panel.placement))
            # One set of outputs for both views, or the viewer's menu would name what the other does not have.
            return {name: value for name, value in outputs.items() if name != "opacity"}
        return self.render_frame(camera, frame, participant)

    @torch.no_grad()
    def render_frame(
        self, camera: Cameras, frame: int, participant: int, drive: Optional[Drive] = None
    ) -> Dict[str, Float[Tensor, "H W _"]]:
        """A frame of the timeline from a camera in the participant's person space.

        Args:
            camera: one camera, of any nerfstudio kind.
            frame: of the timeline that `set_signals` set.
            participant: row in `participant_ids`.
            drive: what moves the face; None for the panel's choice, which starts as the config's.

        Raises:
            DialogueError: there is no such frame or participant, or the avatars were not trained for that drive.
        """
        if not 0 <= frame < self.num_frames:
            raise DialogueError(f"there is no frame {frame}; the timeline has {self.num_frames}.")
        if not 0 <= participant < len(self.participant_ids):
            raise DialogueError(f"there is no participant {participant}; there are {len(self.participant_ids)}.")
        camera_to_person = camera.camera_to_worlds.reshape(3, 4).cpu().numpy()
        if self.config.clamp_views:
            camera_to_person = self.view_range(participant).clamp(camera_to_person)
            camera = camera.to(self.device)
            camera.camera_to_worlds = torch.as_tensor(camera_to_person, dtype=torch.float32, device=self.device).view(
                camera.camera_to_worlds.shape
            )
        self.check_view(participant, camera_to_person, frame)
        rays = self._picture_rays(camera, participant)
        frames = torch.tensor([frame], device=self.device)
        conditions = self.conditions(participant, frames, drive or self._drive())
        sources = fast_sources(self, conditions)
        if sources is not None:
            outputs = fast_outputs(self, rays.origins, rays.directions, sources, rays.background, rays.distance)
            return {name: value.view(rays.height, rays.width, -1) for name, value in outputs.items()}
        chunks: Dict[str, List[Tensor]] = {}
        for rows in torch.arange(len(rays.origins), device=self.device).split(self.config.eval_num_rays_per_chunk):
            outputs = self.render_rays(
                rays.origins[rows],
                rays.directions[rows],
                torch.zeros_like(rows),
                conditions,
                rays.background[rows],
                rays.distance[rows],
            )
            for name, value in outputs.items():
                if value.ndim:
                    chunks.setdefault(name, []).append(value)
        return {name: torch.cat(values).view(rays.height, rays.width, -1) for name, values in chunks.items()}

    def _cast_rays(self, camera: Cameras, participant: int) -> PictureRays:
        """A camera's rays and the participant's plate behind them, not cached."""
        plate_height = self.plates.height_for(participant, float(camera.fy.reshape(-1)[0]))
        camera = camera.to(self.device)
        # On a copy: rays need no metadata, and expanding it to every pixel takes time and warns on recent torch.
        camera.metadata = None
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
        height, width = bundle.origins.shape[:2]
        origins, directions = bundle.origins.view(-1, 3), bundle.directions.view(-1, 3)
        return PictureRays(
            height, width, origins, directions, *self.plates(origins, directions, participant, plate_height)
        )

    def make_scene(
        self,
        placement: Optional[str] = None,
        participants: Optional[Sequence[str]] = None,
        placements: Optional[Sequence[Placement]] = None,
    ) -> Scene:
        """See `nerf.scene.make_scene`."""
        return make_scene(self, placement, participants, placements)

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
                update_every_num_iters=self.config.occupancy_interval,
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
        """Meets the fields at one random frame in every cell of every occupancy grid."""
        if step == 0:
            return
        for participant in range(len(self.participant_ids)):
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

    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        error = F.mse_loss(outputs["rgb"].detach(), batch["image"].to(self.device))
        return {"psnr": -10.0 * torch.log10(error.clamp_min(1e-10))}

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

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """PSNR and SSIM of the full frame and its regions (see metrics/images.py), the error at the seam (see
        metrics/seam.py), and pictures for the log."""
        image, rgb = batch["image"].to(self.device), outputs["rgb"].clamp(0.0, 1.0)
        labels = batch["label"].squeeze(-1)
        regions = label_regions(labels)
        for name in ("mouth", "eyes"):
            regions[name] = _box_mask(batch[f"{name}_box"], *labels.shape)
        metrics = image_metrics(rgb.cpu(), image.cpu(), {name: region.cpu() for name, region in regions.items()})
        metrics.update(seam_metrics(rgb.cpu(), image.cpu(), outputs["accumulation"].squeeze(-1).cpu(), labels.cpu()))
        images = {
            "image": torch.cat([image, rgb, (4.0 * (image - rgb).abs()).clamp(0.0, 1.0)], dim=1),
            "head_and_torso": torch.cat([outputs["head"], outputs["torso"]], dim=1).expand(-1, -1, 3),
        }
        return metrics, images


def _box_mask(box: Int[Tensor, "4"], height: int, width: int) -> Bool[Tensor, "height width"]:
    left, top, right, bottom = box.tolist()
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def samples_per_frame(ray_frames: Int[Tensor, " R"], rays: Int[Tensor, " N"], num_frames: int) -> List[int]:
    """How many packed samples belong to each frame, for rays sorted by frame."""
    if num_frames == 1:
        return [len(rays)]
    return torch.bincount(ray_frames[rays], minlength=num_frames).tolist()
