"""The renderer of DialogueNeRF's section 4.2 as published, behind the interface of this package's own model.

Conventions: R rays in person space of the participant they show, sorted by frame; S samples a ray. Head and torso of a
ray are evaluated at the same S depths t, uniform between two bounds, and become one medium at each of them,

    σ = σ_head + σ_torso,   c = (σ_head c_head + σ_torso c_torso) / σ,

rendered once by equations 4 and 5; the background is what the last sample shows. Losses are two squared errors: the
composite against the picture, and the head alone, over the background, against the picture's head and neck.

What the paper leaves open is taken from DFA-NeRF's public renderer (see `fields/published_field.py`), or is ours and
said so in docs/presets.md.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from torch import Tensor
from torch.nn import Parameter

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.conversation.video import HEAD, NECK
from dialogue_nerfstudio.fields.published_field import (
    PublishedField,
    PublishedFieldConfig,
    PublishedSignal,
    PublishedSignalEncoder,
)
from dialogue_nerfstudio.fields.signal_encoder import EYES_SIZE
from dialogue_nerfstudio.nerf.avatar_model import AvatarModel, AvatarModelConfig, Drive, FrameConditions
from dialogue_nerfstudio.nerf.compatibility import check_same
from dialogue_nerfstudio.nerf.dataparser import RecordedPerson
from dialogue_nerfstudio.nerf.signals import ConversationSignals
from dialogue_nerfstudio.nerf.sources import samples_per_frame
from dialogue_nerfstudio.rendering.compositing import transmittance
from dialogue_nerfstudio.rendering.march import Source
from dialogue_nerfstudio.rendering.rays import rays_into
from dialogue_nerfstudio.rendering.sampling import points_along, stratified


@dataclass
class PublishedModelConfig(AvatarModelConfig):
    """The published renderer: nothing is culled, corrected or known of a body in advance."""

    _target: Type = field(default_factory=lambda: PublishedModel)
    eval_num_rays_per_chunk: int = 1024
    """Rays rendered at a time; a layer's outputs of 64 samples each need 64 kB a ray."""
    network: PublishedFieldConfig = field(default_factory=PublishedFieldConfig)
    """The one network of all heads and torsos."""
    samples: int = 64
    """Depths at which a ray meets head and torso; the background is the last: public renderer."""
    near_margin: float = 0.2
    """How far in front of the mean head rays begin, metres: AD-NeRF."""
    far_margin: float = 0.4
    """How far behind it they end, metres: AD-NeRF."""


@dataclass
class PublishedConditions(FrameConditions):
    """What is constant over each frame of a batch, of one participant; `et` is not scaled."""

    signal: PublishedSignal


class PublishedModel(AvatarModel):
    """See the module's sentence. Nothing is culled and no sample is skipped, as in the publication."""

    config: PublishedModelConfig

    def build_fields(self, people: List[RecordedPerson], signals: ConversationSignals) -> None:
        self.signal_encoder = PublishedSignalEncoder(self.config.network, torch.as_tensor(signals.silence))
        self.network = PublishedField(self.config.network, len(people), signals.expression.shape[-1] + EYES_SIZE)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Dict[str, Any]:
        return {**super().get_extra_state(), "renderer": "published"}

    def check_compatible(self, state: Optional[Dict[str, Any]]) -> None:
        if not isinstance(state, dict) or state.get("renderer") != "published":
            raise DialogueError(
                "the checkpoint was not written by dialogue-nerf-paper; load the config.yml that was saved with it."
            )
        check_same(state, self.get_extra_state(), ("participants", "expression_basis"))

    # Signals ----------------------------------------------------------------------------------------------------------

    def conditions(self, participant: int, frames: Int[Tensor, " F"], drive: Drive) -> PublishedConditions:
        from_audio, audible = self.from_audio(participant, frames, drive)
        self._check_trained(from_audio)
        signal = self.signal_encoder(
            frames,
            from_audio,
            audible,
            self.signal_audio,
            (self.signal_expression[participant, frames] - self.expression_mean) / self.expression_scale,
            self.signal_blink[participant, frames],
            self.signal_gaze[participant, frames],
        )
        return PublishedConditions(
            participant=participant,
            signal=signal,
            rotation=self.signal_rotation[participant, frames],
            translation=self.signal_translation[participant, frames],
            et=torch.cat(
                [self.signal_euler[participant, frames], self.signal_translation[participant, frames]], dim=-1
            ),
        )

    # Rendering --------------------------------------------------------------------------------------------------------

    def bounds(self, origins: Float[Tensor, "R 3"]) -> Tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        """Where rays begin and end: a fixed depth around the mean head, which is person space's origin."""
        distance = origins.norm(dim=-1)
        return (distance - self.config.near_margin).clamp_min(0.0), distance + self.config.far_margin

    def render_rays(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: PublishedConditions,
        background: Float[Tensor, "R 3"],
        background_depth: Float[Tensor, " R"],
    ) -> Dict[str, Tensor]:
        """One participant over the background; in training also `head_rgb`, the head alone, and `background`."""
        near, far = self.bounds(origins)
        t, _ = stratified(near, far, self.config.samples, perturb=self.training)
        # The last depth shows the background; a sample stands for the way to the next one.
        t, delta = t[:, :-1], t[:, 1:] - t[:, :-1]
        densities, colours = [], []
        for source in (
            self.head_source(origins, directions, ray_frames, conditions),
            self.torso_source(origins, directions, ray_frames, conditions),
        ):
            points = points_along(source.origins, source.directions, t).flatten(0, 1)
            rays = torch.arange(len(t), device=t.device).repeat_interleave(t.shape[1])
            density, geometry = source.density(points, rays)
            densities.append(density.view_as(t))
            colours.append(source.colour(geometry, points, rays).view(*t.shape, 3))
        rgb, weights, remaining = composite_summed(densities, colours, delta, background)
        share = densities[0] / sum(densities).clamp_min(1e-10)
        seen = weights.sum(dim=-1)
        depth = (weights * t).sum(dim=-1) + remaining * background_depth
        head = (weights * share).sum(dim=-1)
        outputs = {
            "rgb": rgb,
            "depth": depth.unsqueeze(-1),
            "accumulation": seen.unsqueeze(-1),
            "head": head.unsqueeze(-1),
            "torso": (seen - head).unsqueeze(-1),
        }
        if self.training:
            outputs["head_rgb"] = composite_summed(densities[:1], colours[:1], delta, background)[0]
            outputs["background"] = background
        return outputs

    def head_source(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: PublishedConditions,
    ) -> Source:
        participant, signal, num_frames = conditions.participant, conditions.signal, len(conditions.et)
        head_origins, head_directions = rays_into(
            origins, directions, conditions.rotation[ray_frames], conditions.translation[ray_frames]
        )

        def density(points: Tensor, rays: Tensor) -> Tuple[Tensor, Tuple[Tensor, ...]]:
            counts = samples_per_frame(ray_frames, rays, num_frames)
            value, features = self.network.head_density(points, participant, signal, counts)
            return value, (features,)

        def colour(geometry: Tuple[Tensor, ...], _: Tensor, rays: Tensor) -> Tensor:
            return self.network.head_colour(*geometry, head_directions, rays, ray_frames, participant, signal)

        return Source(head_origins, head_directions, *self.bounds(origins), self.config.samples, density, colour)

    def torso_source(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        ray_frames: Int[Tensor, " R"],
        conditions: PublishedConditions,
    ) -> Source:
        participant, num_frames = conditions.participant, len(conditions.et)

        def density(points: Tensor, rays: Tensor) -> Tuple[Tensor, Tuple[Tensor, ...]]:
            counts = samples_per_frame(ray_frames, rays, num_frames)
            value, features = self.network.torso_density(points, participant, conditions.et, counts)
            return value, (features,)

        def colour(geometry: Tuple[Tensor, ...], _: Tensor, rays: Tensor) -> Tensor:
            return self.network.torso_colour(*geometry, directions, rays, participant)

        return Source(origins, directions, *self.bounds(origins), self.config.samples, density, colour)

    # Training ---------------------------------------------------------------------------------------------------------

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """One group: there are no tables."""
        return {"networks": [value for value in self.parameters() if value is not self.device_indicator_param]}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        return []

    def get_loss_dict(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        image, labels = batch["image"].to(self.device), batch["label"].to(self.device)
        losses = {"photometric": F.mse_loss(outputs["rgb"], image)}
        if "head_rgb" in outputs:
            is_head = ((labels == HEAD) | (labels == NECK)).unsqueeze(-1)
            losses["head"] = F.mse_loss(outputs["head_rgb"], torch.where(is_head, image, outputs["background"]))
        return {name: self.config.photometric_coefficient * loss for name, loss in losses.items()}


def composite_summed(
    densities: Sequence[Float[Tensor, "R S"]],
    colours: Sequence[Float[Tensor, "R S 3"]],
    delta: Float[Tensor, "R S"],
    background: Float[Tensor, "R 3"],
) -> Tuple[Float[Tensor, "R 3"], Float[Tensor, "R S"], Float[Tensor, " R"]]:
    """Fields that share their depths as one medium: densities add, colours mix in proportion to them.

    Returns:
        colour over the background, the weight of each depth, and the light that is left for the background.
    """
    density = sum(densities)
    mixed = sum(value.unsqueeze(-1) * colour for value, colour in zip(densities, colours, strict=True))
    mixed = mixed / density.clamp_min(1e-10).unsqueeze(-1)
    through = transmittance(density * delta)
    weights = through[:, :-1] - through[:, 1:]
    remaining = through[:, -1]
    return (weights.unsqueeze(-1) * mixed).sum(dim=-2) + remaining.unsqueeze(-1) * background, weights, remaining
