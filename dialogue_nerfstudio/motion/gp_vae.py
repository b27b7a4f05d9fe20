"""Transformer GP-VAE (DFA-NeRF 3.4): a latent space of head pose and blinks, and its prediction from sound.

Conventions. Windows are B × T frames at 25 fps, of which the first τ are the beginning of pose (BOP). *Attributes* h
are `[B, T, 7]`: the head pose relative to the person (`personal_pose`) and the density of blinks (`blinks`), scaled to
about unit variance. Networks see tokens of `token` frames, N = T / token; latent sequences z are `[B, D, N]`.
"""

import math
from dataclasses import dataclass
from typing import Dict, Literal, Optional, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.motion.blinks import DENSITY_DEVIATION, BlinkBank, blink_starts, event_density
from dialogue_nerfstudio.motion.gp_prior import LatentGaussian, TemporalPrior
from dialogue_nerfstudio.motion.gp_vae_generator import GpVaeGenerator
from dialogue_nerfstudio.motion.latent_basis import LatentMoments, change_inputs, change_outputs
from dialogue_nerfstudio.motion.model import MotionModel, MotionModelConfig, MotionStatistics
from dialogue_nerfstudio.motion.personal_pose import PersonalPoses
from dialogue_nerfstudio.motion.sequence_networks import SequenceKind, SequenceNetwork, smooth_pieces
from dialogue_nerfstudio.motion.signals import BLOCK
from dialogue_nerfstudio.motion.windows import MotionWindows, Side

ATTRIBUTES = 7
"""Six of the head pose, one of the blinks."""
DENSITY_SCALE = math.sqrt(0.012 / (2.0 * math.sqrt(math.pi) * DENSITY_DEVIATION))
"""Standard deviation of the density of 0.3 blinks a second."""
_MEL_CHANNELS = 8
_HIGHEST_LOG_PRECISION = 7.0
_CAUTION = 2.0
"""By how much the cross-modal encoder's log precisions begin below the encoder's: it first says little."""
_FITTED_UNTIL = 5 / 6
"""Share of the first stage during which the latent space's basis changes: precisions have to follow."""
_TERMS = 3
"""Coefficients of a token and attribute, see `smooth_pieces`."""


@dataclass
class GpVaeConfig(MotionModelConfig):
    """Sizes, prior and losses; a plain VAE of the comparison is another `network` or `prior`."""

    network: SequenceKind = "transformer"
    """What encoders and decoder are."""
    prior: Literal["gp", "normal"] = "gp"
    """p(z): a Gaussian process with the Cauchy kernel, or independent frames."""
    length_scales: Tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    """Of the Gaussian process at first, in frames, dealt out to the latent dimensions in turn; then they are fitted."""
    window_frames: int = 100
    """T."""
    beginning_frames: int = 25
    """τ: frames of the given beginning, and by which windows of a long generation overlap."""
    token: int = 5
    """Frames of a token."""
    latent_size: int = 16
    """D."""
    frame: Literal["person", "everybody"] = "person"
    """What head poses are relative to: how each person rests and moves, or how the training set does, as in the paper,
    where latent codes then tell people apart."""
    width: int = 64
    """Of the networks' layers."""
    layers: int = 2
    """Of encoder and decoder, each."""
    cross_modal_layers: int = 3
    """Of the cross-modal encoder."""
    beta: float = 0.02
    """Weight of the divergence from the prior (eq. 8), both per frame and attribute: 2 σ² of a decoder's noise σ."""
    latent_steps: int = 600
    """Training steps of the first stage, the latent space; all further ones train the cross-modal encoder."""
    fit_every: int = 50
    """First stage: steps between changes of the latent space's basis, and length scales, to those that fit."""
    match_weight: float = 0.02
    """Second stage: of the divergence of the latent distribution from what the encoder makes of the true
    future. Ours: eq. 9 alone drives every deviation to zero, and with it the diversity."""
    future_weight: float = 0.2
    """Second stage: of the future's distance to the truth (eq. 9), as `energy_score`."""
    unheard_share: float = 0.1
    """Second stage: share of windows whose sound is withheld, so that the model also knows what to do without."""
    audio: Literal["prosody", "mel"] = "prosody"
    """What of the sound is heard: zero crossings and loudness, or the spectrogram too."""
    person: Optional[int] = None
    """Second stage: the dataset's number of the selected person to train the cross-modal encoder on; None for all."""

    @property
    def window(self) -> int:
        return self.window_frames

    @property
    def needs_mel(self) -> bool:
        return self.audio == "mel"

    def build(self, statistics: MotionStatistics) -> "GpVae":
        return GpVae(self, statistics)


class GpVae(MotionModel):
    """Encoder E_h, decoder D and cross-modal encoder E_ah.

    Args:
        config: see there.
        statistics: of the training set.

    Raises:
        DialogueError: lengths do not fit one another.
    """

    config: GpVaeConfig
    prosody_statistics: Tensor
    pieces: Tensor

    def __init__(self, config: GpVaeConfig, statistics: MotionStatistics):
        super().__init__()
        _check_lengths(config)
        self.config = config
        self.num_tokens = config.window_frames // config.token
        self.beginning_tokens = config.beginning_frames // config.token
        scales = tuple(scale / config.token for scale in config.length_scales)
        self.prior = TemporalPrior(scales if config.prior == "gp" else None, config.latent_size)
        self.register_buffer("prosody_statistics", statistics.prosody.clone().float())
        self.poses = PersonalPoses(statistics.num_people, statistics.head_pose[0], config.frame == "everybody")
        self.blinks = BlinkBank()
        self.moments = LatentMoments(config.latent_size)
        self.register_buffer("pieces", smooth_pieces(config.window_frames, config.token, _TERMS), persistent=False)
        size, width = config.latent_size, config.width
        attributes = config.token * ATTRIBUTES
        self.encoder = SequenceNetwork(config.network, attributes + 1, width, width, config.layers, self.num_tokens)
        self.encoder_output = nn.Linear(width, 2 * size)
        self.decoder = SequenceNetwork(config.network, size, _TERMS * ATTRIBUTES, width, config.layers, self.num_tokens)
        self.audio_encoder = AudioEncoder(width, config.token, config.audio == "mel")
        self.beginning_layer = nn.Linear(width + 2 * size, width)
        self.cross_modal = SequenceNetwork(
            config.network,
            width + 1,
            2 * size,
            width,
            config.cross_modal_layers,
            self.num_tokens + self.beginning_tokens,
        )

    # Attributes -------------------------------------------------------------------------------------------------------

    def attributes(self, relative_pose: Float[Tensor, "B T 6"], starts: Bool[Tensor, "B T"]) -> Float[Tensor, "B T 7"]:
        """h of a relative head pose and the beginnings of blinks."""
        density = (event_density(starts) - self.blinks.rate()) / DENSITY_SCALE
        return torch.cat([relative_pose, density[..., None]], dim=-1)

    def blink_density(self, attributes: Float[Tensor, "B T 7"]) -> Float[Tensor, "B T"]:
        """Events a frame of decoded attributes; may be below zero."""
        return attributes[..., -1] * DENSITY_SCALE + self.blinks.rate()

    def observe(self, windows: MotionWindows) -> Tuple[Float[Tensor, "B T 7"], Float[Tensor, "B tau 7"]]:
        """(whole windows, their beginnings) as attributes; a beginning knows nothing of blinks that come after it."""
        starts = blink_starts(windows.own.blink)
        relative = self.poses.of(windows.person).to_relative(windows.own.head_pose)
        tau = self.config.beginning_frames
        return self.attributes(relative, starts), self.attributes(relative[:, :tau], starts[:, :tau])

    # Networks ---------------------------------------------------------------------------------------------------------

    def encode(self, attributes: Float[Tensor, "B frames 7"]) -> Tuple[LatentGaussian, Float[Tensor, "B seen width"]]:
        """E_h: q(z|h) over a whole window, of which the first frames are given, and features of the tokens given.

        Frames beyond those given are known by the prior alone (eq. 4, 5).
        """
        tokens = self._tokens(attributes)
        seen = tokens.shape[1]
        flag = torch.ones_like(tokens[..., :1])
        padded = F.pad(torch.cat([tokens, flag], dim=-1), (0, 0, 0, self.num_tokens - seen))
        features = self.encoder(padded, self._positions(self.num_tokens))
        target, precision = self._observation(self.encoder_output(features))
        known = (torch.arange(self.num_tokens, device=tokens.device) < seen).to(precision)
        return self.prior.posterior(target, precision * known), features[:, :seen]

    def decode(self, latent: Float[Tensor, "B D N"]) -> Float[Tensor, "B T 7"]:
        """D."""
        tokens = self.decoder(latent.transpose(1, 2), self._positions(self.num_tokens))
        return torch.einsum("tnk,bnka->bta", self.pieces, tokens.unflatten(-1, (_TERMS, ATTRIBUTES)))

    def predict(self, beginning: Float[Tensor, "B tau 7"], sound: Float[Tensor, "B T channels"]) -> LatentGaussian:
        """E_ah: the distribution of z over a window by its beginning and by what is heard, concatenated in time.

        q(z|beginning), which already goes on as the prior says, given what the cross-modal encoder adds (in the paper
        it has to say all of it).

        Args:
            beginning: attributes of the first τ frames.
            sound: of the whole window, see `sound_channels`.
        """
        posterior, features = self.encode(beginning)
        count = self.beginning_tokens
        known = torch.cat([posterior.mean()[..., :count], posterior.precision[..., :count].log1p()], dim=1)
        begun = self.beginning_layer(torch.cat([features, known.transpose(1, 2)], dim=-1))
        heard = self.audio_encoder(sound)
        tokens = torch.cat([F.pad(begun, (0, 1), value=1.0), F.pad(heard, (0, 1), value=0.0)], dim=1)
        positions = torch.cat([self._positions(count), self._positions(self.num_tokens)])
        return posterior.given(*self._observation(self.cross_modal(tokens, positions)[:, count:], _CAUTION))

    def _observation(
        self, outputs: Float[Tensor, "B N twice"], caution: float = 0.0
    ) -> Tuple[Float[Tensor, "B D N"], Float[Tensor, "B D N"]]:
        target, log_precision = outputs.transpose(1, 2).chunk(2, dim=1)
        return target, (log_precision - caution).clamp(-_HIGHEST_LOG_PRECISION, _HIGHEST_LOG_PRECISION).exp()

    def _tokens(self, frames: Float[Tensor, "B frames channels"]) -> Float[Tensor, "B tokens more"]:
        return frames.unflatten(1, (-1, self.config.token)).flatten(2)

    def _positions(self, count: int) -> Float[Tensor, " count"]:
        return torch.arange(count, device=self.prosody_statistics.device, dtype=torch.float32)

    # Sound ------------------------------------------------------------------------------------------------------------

    def sound_channels(
        self,
        own: Tuple[Tensor, Tensor, Optional[Tensor]],
        partner: Tuple[Tensor, Tensor, Optional[Tensor]],
        heard: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T channels"]:
        """What E_ah hears of both sides, frame by frame, and whether it hears at all: unheard frames are zero.

        Args:
            own, partner: (prosody [B, T, 2], speaking [B, T], mel [B, S, 80] or None where prosody is all).
            heard: False where there is no sound yet or no more.
        """
        mean, deviation = self.prosody_statistics
        channels = []
        for prosody, speaking, mel in (own, partner):
            channels += [(prosody - mean) / deviation.clamp_min(1e-6), speaking[..., None].to(prosody)]
            if self.config.audio == "mel":
                if mel is None:
                    raise ValueError("this model hears the spectrogram, and there is none")
                channels.append(F.adaptive_avg_pool1d(mel.transpose(1, 2), heard.shape[1]).transpose(1, 2))
        return torch.cat([*channels, torch.ones_like(channels[1])], dim=-1) * heard[..., None]

    def hear(self, windows: MotionWindows, heard: Bool[Tensor, "B T"]) -> Float[Tensor, "B T channels"]:
        """`sound_channels` of windows."""
        return self.sound_channels(_side_sound(windows.own), _side_sound(windows.partner), heard)

    # Training ---------------------------------------------------------------------------------------------------------

    def losses(self, windows: MotionWindows, step: int) -> Dict[str, Tensor]:
        if self.training and torch.is_grad_enabled():
            self.poses.collect(windows.person, windows.own.head_pose)
            self.blinks.collect(windows.own.blink, blink_starts(windows.own.blink))
        latent_stage = step < self.config.latent_steps
        for module in (self.encoder, self.encoder_output, self.decoder):
            module.requires_grad_(latent_stage)
        fitting = step % self.config.fit_every == 0 and step <= _FITTED_UNTIL * self.config.latent_steps
        if self.training and torch.is_grad_enabled() and fitting and self.moments.weight > 0.0:
            self.fit_basis()
        return self.latent_losses(windows) if latent_stage else self.cross_modal_losses(windows)

    def latent_losses(self, windows: MotionWindows) -> Dict[str, Tensor]:
        """First stage: evidence bounds (eq. 6 and 8) of whole windows, and of beginnings alone."""
        whole, beginning = self.observe(windows)
        losses: Dict[str, Tensor] = {}
        for name, given in (("", whole), ("beginning_", beginning)):
            posterior, _ = self.encode(given)
            latent = posterior.sample(torch.randn_like(posterior.information))
            if given is whole and self.training and torch.is_grad_enabled():
                self.moments.collect(latent.detach())
            decoded = self.decode(latent)[:, : given.shape[1]]
            error = (decoded - given).square().sum((1, 2)).mean()
            weight = 0.5 / (whole.shape[1] * ATTRIBUTES)
            losses[f"{name}reconstruction"] = weight * error
            losses[f"{name}divergence"] = weight * self.config.beta * posterior.kl_to_prior().mean()
        return losses

    @torch.no_grad()
    def fit_basis(self) -> None:
        """Changes the basis of the latent space, and the prior's length scales, to those that fit the latents.

        Otherwise latents that belong together are correlated, and samples of a prior that knows nothing of it decode to
        motion of the wrong size and speed.
        """
        basis = self.moments.fitting_basis()
        change_outputs(self.encoder_output, basis)
        change_inputs((self.decoder.skip, self.decoder.input_layer), basis)
        if self.prior.length_scales is not None:
            self.prior.length_scales.copy_(basis.length_scales())
        self.moments.forget()

    def cross_modal_losses(self, windows: MotionWindows) -> Dict[str, Tensor]:
        """Second stage: eq. 9, and the divergence from what the encoder makes of the true future."""
        whole, beginning = self.observe(windows)
        predicted = self.predict(beginning, self.hear(windows, self._draw_heard(whole)))
        with torch.no_grad():
            true, _ = self.encode(whole)
        tau = self.config.beginning_frames
        one, other = (self.decode(predicted.sample(torch.randn_like(predicted.information)))[:, tau:] for _ in range(2))
        future = energy_score(one, other, whole[:, tau:])
        match = true.kl_to(predicted) / (whole.shape[1] * ATTRIBUTES)
        chosen = torch.ones_like(future)
        if self.config.person is not None:
            chosen = (windows.person == self.config.person).to(future)
        count = chosen.sum().clamp_min(1.0)
        return {
            "future": self.config.future_weight * (chosen * future).sum() / count,
            "match": self.config.match_weight * (chosen * match).sum() / count,
        }

    def _draw_heard(self, like: Float[Tensor, "B T 7"]) -> Bool[Tensor, "B T"]:
        """Some windows hear nothing, and some nothing of their beginning, as when a generation begins."""
        draw = torch.rand(len(like), 1, device=like.device)
        share = self.config.unheard_share if self.training else 0.0
        after = torch.arange(like.shape[1], device=like.device) >= self.config.beginning_frames
        return (draw >= 2.0 * share) | ((draw >= share) & after)

    @torch.no_grad()
    def figures(self, windows: MotionWindows) -> Dict[str, float]:
        """Distances of reconstructions and of futures to the truth, in units of the person's spread; `future_diversity`
        is how far two samples of one future are from each other."""
        whole, beginning = self.observe(windows)
        tau = self.config.beginning_frames
        posterior, _ = self.encode(whole)
        rebuilt = self.decode(posterior.mean())
        everything = torch.ones(whole.shape[:2], dtype=torch.bool, device=whole.device)
        predicted = self.predict(beginning, self.hear(windows, everything))
        one, other = (
            self.decode(predicted.sample(torch.randn_like(predicted.information)))[:, tau:, :6] for _ in range(2)
        )
        central = self.decode(predicted.mean())[:, tau:, :6]
        true = whole[:, tau:, :6]
        apart = (one - other).abs().mean()
        return {
            "reconstruction_error": float((rebuilt - whole).square().mean().sqrt()),
            "future_error_mean": float((central - true).abs().mean()),
            "future_error_sample": float((one - true).abs().mean()),
            "future_diversity": float(apart),
            # Proper: smallest in expectation where the predicted distribution is the true one.
            "future_crps": float(0.5 * ((one - true).abs().mean() + (other - true).abs().mean() - apart)),
        }

    def generator(self) -> GpVaeGenerator:
        return GpVaeGenerator(self)


class AudioEncoder(nn.Module):
    """The sound of both sides, frames to tokens: dilated convolutions that reach 1.4 s to either side.

    A listener answers up to a second after what they heard, and attention alone is slow to find which token that was.

    Args:
        width: of a token.
        token: frames of a token.
        mel: whether the spectrogram is heard.
    """

    def __init__(self, width: int, token: int, mel: bool):
        super().__init__()
        self.mel = nn.Linear(80, _MEL_CHANNELS) if mel else None
        channels = 2 * (3 + (_MEL_CHANNELS if mel else 0)) + 1
        half = width // 2
        self.first = nn.Conv1d(channels, half, 7, padding=3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GELU(), nn.Conv1d(half, half, 3, dilation=reach, padding=reach), nn.GELU(), nn.Conv1d(half, half, 1)
            )
            for reach in (1, 2, 4, 8, 16)
        )
        self.last = nn.Sequential(nn.GELU(), nn.Conv1d(half, width, token, stride=token))

    def forward(self, sound: Float[Tensor, "B T channels"]) -> Float[Tensor, "B N width"]:
        if self.mel is not None:
            own, partner, heard = sound[..., :83], sound[..., 83:166], sound[..., 166:]
            own, partner = (torch.cat([side[..., :3], self.mel(side[..., 3:])], dim=-1) for side in (own, partner))
            sound = torch.cat([own, partner, heard], dim=-1)
        hidden = self.first(sound.transpose(1, 2))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).transpose(1, 2)


def energy_score(
    one: Float[Tensor, "B T C"], other: Float[Tensor, "B T C"], true: Float[Tensor, "B T C"]
) -> Float[Tensor, " B"]:
    """Distance of samples to the truth, less half of their distance to each other: smallest in expectation where the
    predicted distribution is the true one (Gneiting & Raftery 2007, eq. 21, of two samples). Distances are root mean
    squares over time, averaged over channels."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().mean(1) + 1e-6).sqrt().mean(1)

    return 0.5 * (distance(one, true) + distance(other, true) - distance(one, other))


def _side_sound(side: Side) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    return side.prosody, side.speaking, side.mel


def _check_lengths(config: GpVaeConfig) -> None:
    for name in ("window_frames", "beginning_frames"):
        value = getattr(config, name)
        if value % config.token or value % BLOCK:
            raise DialogueError(
                f"{name} is {value}: it must be a multiple of token ({config.token}) and of {BLOCK} frames."
            )
    if not 0 < config.beginning_frames <= config.window_frames // 2:
        raise DialogueError(
            f"beginning_frames is {config.beginning_frames}: at least 1 and at most half of window_frames "
            f"({config.window_frames}) are needed."
        )
