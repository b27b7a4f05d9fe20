"""What every renderer of a conversation's avatars shares: signals and timeline, cameras, whole pictures, metrics, and
what a checkpoint says of its training. How rays are rendered is left to `nerf.model` and `nerf.published_model`.

Conventions: rays are in person space (metres) of the participant they show, sorted by participant and then frame while
they are rendered. P participants, T frames of the timeline, F frames in a batch, R rays.
"""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Literal, Optional, Sequence, Set, Tuple, Type, Union

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.metrics.images import image_metrics, label_regions
from dialogue_nerfstudio.metrics.seam import seam_metrics
from dialogue_nerfstudio.nerf.compatibility import CHECKPOINT_FORMAT
from dialogue_nerfstudio.nerf.dataparser import RecordedPerson
from dialogue_nerfstudio.nerf.fast_rendering import PictureRays, RayCache
from dialogue_nerfstudio.nerf.panel import DialoguePanel
from dialogue_nerfstudio.nerf.plates import Plates
from dialogue_nerfstudio.nerf.scene import Scene
from dialogue_nerfstudio.nerf.shared_step import BatchShare
from dialogue_nerfstudio.nerf.signals import ConversationSignals
from dialogue_nerfstudio.nerf.view_range import SeenViews, ViewRange
from dialogue_nerfstudio.rendering.placements import Placement

Drive = Literal["role", "audio", "expression"]
DRIVES: Tuple[Drive, ...] = ("role", "audio", "expression")


@dataclass
class AvatarModelConfig(ModelConfig):
    """What every renderer of a conversation's avatars can be told."""

    _target: Type = field(default_factory=lambda: AvatarModel)
    enable_collider: bool = False
    eval_num_rays_per_chunk: int = 16384
    """Rays rendered at a time; more need more memory and are hardly faster. The compiled march needs no chunks."""

    drive: Drive = "role"
    """What moves faces: audio for who speaks and expression for who listens (role, as in the paper), or one for all."""
    clamp_views: bool = False
    """Whether a camera beyond what training saw (see nerf/view_range.py) is swung back to where the body is known,
    instead of a warning."""
    photometric_coefficient: float = 1.0
    """Squared colour error: DFA-NeRF equation 11, DialogueNeRF section 4.2."""

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Configurations saved before an option existed take its default; options that are gone are dropped."""
        known = type(self)().__dict__
        self.__dict__.update({**known, **{name: value for name, value in state.items() if name in known}})


@dataclass
class FrameConditions:
    """What is constant over each frame of a batch, of one participant."""

    participant: int
    signal: Any
    """What moves the face, as the renderer's signal encoder makes it."""
    rotation: Float[Tensor, "F 3 3"]
    translation: Float[Tensor, "F 3"]
    et: Float[Tensor, "F pose"]
    """Euler angles and translation; how they are scaled is the renderer's."""


class AvatarModel(Model):
    """The avatars of a conversation behind nerfstudio's interface; a renderer adds `build_fields`, `conditions`,
    `render_rays` and its losses.

    Keyword arguments from the dataset's metadata: `people` and `signals`. Signals are non-persistent buffers: replace
    them with `set_signals` to animate trained avatars to something else.
    """

    config: AvatarModelConfig
    culls = False
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
        self.signal_encoder.audio_net.fit(signals.audio[train_frames])

        et = torch.cat([signals.euler, signals.translation], dim=-1)[:, train_frames]
        middle = 0.5 * (et.amax(dim=1) + et.amin(dim=1))
        self.register_buffer("et_middle", middle)
        self.register_buffer("et_range", (et.amax(dim=1) - et.amin(dim=1)).clamp_min(1e-3))
        # Coefficients of speech move by a few hundredths, a smile by a few tenths. Pooled over everybody, because a
        # coefficient means the same on every face.
        expression = signals.expression[:, train_frames].flatten(0, 1)
        self.register_buffer("expression_mean", expression.mean(dim=0))
        self.register_buffer("expression_scale", expression.std(dim=0, unbiased=False).clamp_min(0.02))
        residual = signals.residual[:, train_frames]
        # torch warns of the deviation of no numbers at all.
        scale = residual.std(dim=1, unbiased=False) if residual.shape[-1] else residual[:, 0]
        self.register_buffer("residual_scale", scale.clamp_min(1e-3))
        self.register_buffer("train_frames", train_frames, persistent=False)
        self.trained_drives: Set[str] = set()
        self.share = BatchShare()
        self.seen_views = SeenViews(
            [
                ViewRange.of(
                    person.id, person.camera, rotation[train_frames].numpy(), translation[train_frames].numpy()
                )
                for person, rotation, translation in zip(people, signals.rotation, signals.translation, strict=True)
            ]
        )
        self._picture_rays = RayCache(self._cast_rays)
        self.panel = self.build_panel()

    @abstractmethod
    def build_fields(self, people: List[RecordedPerson], signals: ConversationSignals) -> None:
        """Makes what is trained, and what culls it."""

    def build_panel(self) -> DialoguePanel:
        """Makes the viewer's panel."""
        return DialoguePanel(
            self.participant_ids, DRIVES, self.config.drive, lambda: self.num_frames, self.fps, self.cameras
        )

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Dict[str, Any]:
        """What a checkpoint must agree on with the model that loads it, and what its training saw."""
        return {
            "format": CHECKPOINT_FORMAT,
            "participants": list(self.participant_ids),
            "expression_basis": self._signal_facts.expression_basis,
            "audio_feature": self._signal_facts.audio_statement,
            "trained_drives": sorted(self.trained_drives),
            "seen_views": self.seen_views.state(),
        }

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        self.check_compatible(state)
        self.trained_drives = set(state["trained_drives"])
        # Absent from checkpoints of before; then what the dataset says stands.
        if "seen_views" in state:
            self.seen_views.load_state(state["seen_views"])

    @abstractmethod
    def check_compatible(self, state: Optional[Dict[str, Any]]) -> None:
        """Compares a checkpoint's extra state with this model's.

        Raises:
            DialogueError: one sentence about the first thing that differs.
        """

    # What training saw ------------------------------------------------------------------------------------------------

    def view_range(self, participant: int) -> ViewRange:
        """From where the recording saw a participant, and how far beyond that a camera may go."""
        return self.seen_views[participant]

    def check_view(self, participant: int, camera_to_person: Float[np.ndarray, "3 4"], frame: int) -> Optional[str]:
        """A sentence if a camera in person space sees a participant's frame from where training did not, else None.

        The first such sentence of each participant is printed; in the viewer the panel shows the newest instead.
        """
        rotation = self.signal_rotation[participant, frame].cpu().numpy()
        translation = self.signal_translation[participant, frame].cpu().numpy()
        sentence = self.seen_views.check(
            participant,
            np.asarray(camera_to_person)[:, 3],
            rotation,
            translation,
            announce=not self.panel.has_viewer,
        )
        self.panel.show_view(self.view_range(participant), np.asarray(camera_to_person), sentence)
        return sentence

    # Signals ----------------------------------------------------------------------------------------------------------

    @property
    def num_frames(self) -> int:
        """Length of the timeline now."""
        return self.signal_audio.shape[0]

    @property
    def fps(self) -> float:
        """Frames a second of the timeline."""
        return self._signal_facts.fps

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

    @abstractmethod
    def conditions(self, participant: int, frames: Int[Tensor, " F"], drive: Drive) -> FrameConditions:
        """Everything constant over `frames` of a participant; the audio net runs here, once a frame."""

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

    @abstractmethod
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
        outputs = {
            name: torch.cat([part[name] for part in parts])
            if parts[0][name].ndim
            else sum(len(part["rgb"]) / num_rays * part[name] for part in parts)
            for name in parts[0]
        }
        if order is not None:
            back = torch.argsort(order)
            outputs = {name: value[back] if value.ndim else value for name, value in outputs.items()}
        return outputs

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
        """A whole picture of one participant; see `resolve_frame` for what it shows.

        Returns:
            rgb [H, W, 3], depth, accumulation, head and torso [H, W, 1].
        """
        return self.render_frame(camera, *self.resolve_frame(camera.metadata, camera.times))

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
        outputs = self.render_picture(rays, conditions)
        return {name: value.view(rays.height, rays.width, -1) for name, value in outputs.items()}

    def render_picture(self, rays: PictureRays, conditions: FrameConditions) -> Dict[str, Float[Tensor, "R _"]]:
        """What `render_rays` returns, for all rays of a picture of one frame, a chunk at a time."""
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
        return {name: torch.cat(values) for name, values in chunks.items()}

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
        spacing: Optional[float] = None,
    ) -> Scene:
        """The scene of the avatars, where the renderer has one; see `nerf.scene.make_scene`.

        Raises:
            DialogueError: this renderer has none, or the scene cannot be made.
        """
        raise DialogueError(
            "the published renderer of dialogue-nerf-paper shows one person a picture: use --layout side-by-side or "
            "grid, or train dialogue-nerf for people in one scene."
        )

    # Metrics ----------------------------------------------------------------------------------------------------------

    def get_metrics_dict(self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        error = F.mse_loss(outputs["rgb"].detach(), batch["image"].to(self.device))
        return {"psnr": -10.0 * torch.log10(error.clamp_min(1e-10))}

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
