"""`pose-tcn`: head poses of everybody in a conversation, the speaker's from their sound, the listeners' from the
speaker's sound and head (DialogueNeRF 4.1).

A person's pose is where they rest, plus what a TCN expects them to do given what is heard and how the partner moved,
in the person's own amplitudes, plus a residual process that nobody could predict:
pose_t = rest + μ_t + σ_t z_t. The TCN sees roles, zero-crossing rate and root mean square of both tracks, and the
partner's poses `reaction` frames late, as long as people take to react. That delay is what makes the two people of a
generated conversation one causal computation: frames t … t + reaction − 1 of everybody need the others only up to
t − 1, so that a stream computes blocks of `reaction` frames. A person's own past poses are not an input: a network
that sees them learns to repeat them and drifts or freezes when they are its own.

Who somebody is, is told in two ways. *Habits* are amplitudes in recorded motion: in training in the first `context`
frames of a window, of which nothing else is learned, in generation in the character's reference; so they hold for
anybody. A *code* is learned for each person of the training set, for what cannot be seen in motion alone (how fast
somebody reacts, say), and is withheld in some windows so that the model also knows what to do for strangers. In
generation a character is recognised by where they rest.

Conventions. B windows or people, T frames, N people in the training set, 6 columns of head_pose (axis-angle in
radians, metres).
"""

from dataclasses import dataclass, field
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion.generator import (
    Character,
    MotionGenerator,
    MotionParts,
    MotionStream,
    check_participants,
    join_parts,
)
from dialogue_nerfstudio.motion.habits import HABITS, habits, rest_pose
from dialogue_nerfstudio.motion.model import MotionModel, MotionModelConfig, MotionStatistics
from dialogue_nerfstudio.motion.partners import PartnerTracker
from dialogue_nerfstudio.motion.residual import ResidualProcess, fit_process, lag_covariances
from dialogue_nerfstudio.motion.signals import MotionSignals
from dialogue_nerfstudio.motion.tcn import Memories, Tcn, TcnConfig
from dialogue_nerfstudio.motion.windows import MotionWindows

SIGNALS = 8
"""Channels of sound and roles: (zero-crossing rate, root mean square, its logarithm, speaking) of own and partner."""

PARTNER = 12
"""Channels of the partner's head: pose and velocity."""

LARGEST = 5.0
"""Deviations beyond which a partner's motion is not told apart."""

QUIETEST = 1e-3
"""Root mean square below which the logarithm no longer falls."""

SMALLEST_SCALE = 1e-5
"""Least deviation of a column of head poses, rad or m, that is divided by."""

FORGETTING = 0.02
"""Share of each training step in the running covariances of the residual."""


@dataclass
class PoseTcnConfig(MotionModelConfig):
    """The model's sizes and inputs."""

    tcn: TcnConfig = field(default_factory=TcnConfig)
    """The network."""
    context: int = 250
    """Frames at the beginning of a training window that tell who the person is; at least the receptive field."""
    target: int = 250
    """Frames after them that are learned."""
    code_size: int = 16
    """Numbers of each known person's code; 0 for habits alone."""
    withheld: float = 0.15
    """Share of training windows in which the person's code is withheld."""
    reaction: int = 5
    """Frames by which a partner's pose is seen late."""
    use_audio: bool = True
    """Whether zero-crossing rate and root mean square are heard (Fig. 8's ablation)."""
    use_partner_pose: bool = True
    """Whether the partner's poses are seen (Fig. 8's ablation)."""
    residual_order: int = 8
    """Frames of its own past that the residual process depends on."""
    velocity_weight: float = 0.5
    """Weight of the error of velocity against that of position."""
    deviation_weight: float = 0.1
    """Weight of the likelihood that teaches how far residuals go."""

    @property
    def window(self) -> int:
        return self.context + self.target

    def build(self, statistics: MotionStatistics) -> "PoseTcn":
        return PoseTcn(self, statistics)


class PoseTcn(MotionModel):
    """The model in training.

    Args:
        config: see there.
        statistics: of the training set.

    Raises:
        DialogueError: the context is shorter than the receptive field, or nobody takes any time to react.
    """

    config: PoseTcnConfig

    def __init__(self, config: PoseTcnConfig, statistics: MotionStatistics):
        super().__init__()
        reach = config.tcn.receptive_field + config.reaction
        if config.reaction < 1:
            raise DialogueError("--pipeline.model.reaction must be 1 frame or more: nobody reacts at once.")
        if config.context < reach:
            raise DialogueError(
                f"--pipeline.model.context is {config.context} frames, but the network looks {reach} back; make it "
                "longer, or --pipeline.model.tcn.levels fewer."
            )
        self.config = config
        identity = HABITS + config.code_size
        self.tcn = Tcn(config.tcn, SIGNALS + PARTNER, 6, identity)
        self.amplitude = nn.Linear(identity, 6)
        self.deviation = nn.Linear(identity + 2, 6)
        self.codes = nn.Parameter(torch.randn(statistics.num_people, config.code_size))
        self.known = KnownPeople(statistics.num_people)
        for layer in (self.amplitude, self.deviation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        scales = statistics.head_pose[1], statistics.head_velocity[1]
        for name, scale in zip(("pose_scale", "velocity_scale"), scales, strict=True):
            self.register_buffer(name, scale.detach().clone().float().clamp_min(SMALLEST_SCALE))
        self.register_buffer("prosody_mean", statistics.prosody[0].detach().clone().float())
        self.register_buffer("prosody_scale", statistics.prosody[1].detach().clone().float().clamp_min(1e-6))
        white = torch.zeros(config.residual_order + 1, 6, 6)
        white[0] = torch.eye(6)
        self.register_buffer("residual_covariances", white)
        self.register_buffer("residual_weight", torch.zeros(()))

    # What is heard and seen -------------------------------------------------------------------------------------------

    def hear(
        self,
        own_prosody: Float[Tensor, "B T 2"],
        own_speaking: Bool[Tensor, "B T"],
        partner_prosody: Float[Tensor, "B T 2"],
        partner_speaking: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B channels T"]:
        """Sound and roles as channels of the network."""
        parts = []
        for prosody, speaking in ((own_prosody, own_speaking), (partner_prosody, partner_speaking)):
            levels = (prosody - self.prosody_mean) / self.prosody_scale
            loudness = torch.log10(prosody[..., 1:].clamp_min(QUIETEST)) + 2.0
            sound = torch.cat([levels, loudness], dim=-1)
            parts += [sound if self.config.use_audio else torch.zeros_like(sound), speaking.unsqueeze(-1).to(sound)]
        return torch.cat(parts, dim=-1).transpose(1, 2)

    def see(self, pose: Float[Tensor, "B F 6"], rest: Float[Tensor, "B 6"]) -> Float[Tensor, "B channels F-1"]:
        """A partner's head as channels; the first frame is there for the second's velocity."""
        moved = (pose - rest.unsqueeze(1)) / self.pose_scale
        velocity = torch.diff(pose, dim=1) / self.velocity_scale
        # Bounded, so that two people who answer each other's motion cannot work each other up without end.
        seen = LARGEST * torch.tanh(torch.cat([moved[:, 1:], velocity], dim=-1).transpose(1, 2) / LARGEST)
        return seen if self.config.use_partner_pose else torch.zeros_like(seen)

    def character(
        self,
        head_pose: Float[Tensor, "B T 6"],
        speaking: Bool[Tensor, "B T"],
        who: Optional[Float[Tensor, "B N"]] = None,
    ) -> Tuple[Float[Tensor, "B 6"], Float[Tensor, "B identity"]]:
        """Where people rest, and their habits and codes.

        Args:
            head_pose: recorded motion of each.
            speaking: when they spoke.
            who: how certainly each is which person of the training set; None to recognise them.
        """
        scales = self.pose_scale, self.velocity_scale, self.velocity_scale
        rest = rest_pose(head_pose)
        if who is None:
            who = self.known.recognise(rest)
        return rest, torch.cat([habits(head_pose, speaking, scales), who @ self.codes], dim=-1)

    def expect(
        self,
        channels: Float[Tensor, "B channels T"],
        identity: Float[Tensor, "B identity"],
        memories: Optional[Memories] = None,
    ) -> Tuple[Float[Tensor, "B T 6"], Memories]:
        """μ: the motion around the rest pose that is expected, rad and m."""
        output, memories = self.tcn(channels, identity, memories)
        gain = torch.exp(self.amplitude(identity)).unsqueeze(1)
        return output.transpose(1, 2) * gain * self.pose_scale, memories

    def spread(
        self, identity: Float[Tensor, "B identity"], speaking: Float[Tensor, "B T"], hearing: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T 6"]:
        """σ: how far motion goes beyond what is expected, rad and m.

        Args:
            identity: habits and code of each person.
            speaking, hearing: how much the person and the partner spoke of late, `recently`.
        """
        roles = torch.stack([speaking, hearing], dim=-1)
        features = torch.cat([identity.unsqueeze(1).expand(-1, roles.shape[1], -1), roles], dim=-1)
        return torch.exp(self.deviation(features)) * self.pose_scale

    # Training ---------------------------------------------------------------------------------------------------------

    def predict(self, windows: MotionWindows) -> Tuple[Float[Tensor, "B T 6"], Float[Tensor, "B T 6"]]:
        """Expected poses and deviations after a window's context, which may go on for as long as one likes, given the
        partner's true poses."""
        config, own, partner = self.config, windows.own, windows.partner
        first, last = config.context - config.tcn.receptive_field + 1, own.head_pose.shape[1]
        who = self.known.certain(windows.person)
        if self.training:
            who = who * (torch.rand(len(who), 1, device=who.device) >= config.withheld)
        rest, identity = self.character(own.head_pose[:, : config.context], own.speaking[:, : config.context], who)
        partner_rest = rest_pose(partner.head_pose[:, : config.context])
        late = config.reaction
        channels = torch.cat(
            [
                self.hear(*(x[:, first:last] for x in (own.prosody, own.speaking, partner.prosody, partner.speaking))),
                self.see(partner.head_pose[:, first - late - 1 : last - late], partner_rest),
            ],
            dim=1,
        )
        expected, _ = self.expect(channels, identity)
        roles = [recently(side.speaking)[:, config.context :] for side in (own, partner)]
        return rest.unsqueeze(1) + expected[:, config.context - first :], self.spread(identity, *roles)

    def losses(self, windows: MotionWindows, step: int) -> Dict[str, Tensor]:
        config = self.config
        if self.training:
            self.known.meet(windows.person, rest_pose(windows.own.head_pose[:, : config.context]))
        expected, deviation = self.predict(windows)
        error = windows.own.head_pose[:, config.context :] - expected
        speed_error = torch.diff(error, dim=1)
        z = error.detach() / deviation
        if self.training:
            self._remember_residual(z.detach())
        return {
            "pose": (error / self.pose_scale).square().mean(),
            "velocity": config.velocity_weight * (speed_error / self.velocity_scale).square().mean(),
            # Only the deviation learns from it: what is expected should not be worse where much is unexpected.
            "deviation": config.deviation_weight * (0.5 * z.square() + torch.log(deviation / self.pose_scale)).mean(),
        }

    @torch.no_grad()
    def _remember_residual(self, z: Float[Tensor, "B T 6"]) -> None:
        """Running means, in which early steps, when everything was unexpected, are forgotten."""
        share = max(FORGETTING, 1.0 / (1.0 + float(self.residual_weight)))
        with torch.autocast(z.device.type, enabled=False):
            found = lag_covariances(z.float(), self.config.residual_order)
        self.residual_covariances.lerp_(found, share)
        self.residual_weight += 1.0

    @torch.no_grad()
    def figures(self, windows: MotionWindows) -> Dict[str, float]:
        """Of listening frames: correlation of the pitch with the truth, the ceiling's where simulation knows it and the
        share of it, and root mean square errors of rotation (degrees) and translation (millimetres)."""
        expected, _ = self.predict(windows)
        truth = windows.own.head_pose[:, self.config.context :]
        listening = ~windows.own.speaking[:, self.config.context :] & windows.partner.speaking[:, self.config.context :]
        found = {"pitch_correlation": masked_correlation(pitch(expected), pitch(truth), listening)}
        ceiling = windows.own.expected_head_pose
        if ceiling is not None:
            best = masked_correlation(pitch(ceiling[:, self.config.context :]), pitch(truth), listening)
            share = found["pitch_correlation"] / best if best else float("nan")
            found |= {"pitch_ceiling": best, "share_of_ceiling": share}
        error = (expected - truth)[listening].square()
        found["rotation_error"] = float(torch.rad2deg(error[:, :3].sum(dim=-1).mean().sqrt()))
        found["translation_error"] = float(1000.0 * error[:, 3:].sum(dim=-1).mean().sqrt())
        return found

    def generator(self, sampled: bool = True) -> "PoseTcnGenerator":
        """
        Args:
            sampled: whether the residual is drawn; else people do what is most likely, as curves over truth show it.
        """
        return PoseTcnGenerator(self, sampled)


class KnownPeople(nn.Module):
    """Where the people of the training set rest, to recognise them by.

    Args:
        num_people: N.
    """

    STRANGE = 16.8
    """Squared distance, in deviations, at which a stranger is as likely: 1 % of a person's own are farther (χ², 6
    degrees of freedom)."""

    def __init__(self, num_people: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(num_people, 1, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(num_people, 6, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(num_people, 6, dtype=torch.float64))

    @torch.no_grad()
    def meet(self, person: Int[Tensor, " B"], rest: Float[Tensor, "B 6"]) -> None:
        """Remembers where these people rested."""
        rest = rest.double()
        self.count.index_add_(0, person, torch.ones_like(rest[:, :1]))
        self.total.index_add_(0, person, rest)
        self.squares.index_add_(0, person, rest.square())

    def certain(self, person: Int[Tensor, " B"]) -> Float[Tensor, "B N"]:
        """Who these people are, by their numbers; nobody where training never met them."""
        met = (self.count[person] > 0).float()
        return torch.nn.functional.one_hot(person, len(self.count)).float() * met

    def recognise(self, rest: Float[Tensor, "B 6"]) -> Float[Tensor, "B N"]:
        """How certainly somebody who rests there is each known person; the rest to one is that it is a stranger."""
        count = self.count.clamp_min(1.0)
        mean = self.total / count
        within = (self.squares - count * mean.square()).sum(dim=0) / (self.count.sum() - len(count)).clamp_min(1.0)
        distance = (rest.double().unsqueeze(1) - mean).square() / within.clamp_min(SMALLEST_SCALE**2)
        likely = torch.where(self.count.squeeze(1) > 0, -0.5 * distance.sum(dim=-1), -torch.inf)
        stranger = torch.full_like(likely[:, :1], -0.5 * self.STRANGE)
        return torch.softmax(torch.cat([likely, stranger], dim=1), dim=1)[:, :-1].float()


ROLE_MEMORY = 25
"""Frames over which `recently` averages."""


def recently(speaking: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """How much somebody spoke during the last second: roles change at once, the liveliness of heads does not."""
    padded = torch.nn.functional.pad(speaking.float().unsqueeze(1), (ROLE_MEMORY - 1, 0))
    return torch.nn.functional.avg_pool1d(padded, ROLE_MEMORY, 1).squeeze(1)


def pitch(head_pose: Float[Tensor, "... 6"]) -> Float[Tensor, "..."]:
    """Euler angle by which a head looks up, radians: asin of the y component of where the face points."""
    angle = head_pose[..., :3].norm(dim=-1).clamp_min(1e-9)
    x, y, z = (head_pose[..., :3] / angle.unsqueeze(-1)).unbind(dim=-1)
    up = (1 - torch.cos(angle)) * y * z - torch.sin(angle) * x
    return torch.asin(up.clamp(-1.0, 1.0))


def masked_correlation(a: Float[Tensor, "B T"], b: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """Pearson's correlation over the masked frames of all windows, each window around its own means: where somebody
    rests is no achievement. Not a number where nothing varies."""
    weight = mask.to(a.dtype)
    count = weight.sum(dim=1, keepdim=True).clamp_min(1.0)
    a, b = (weight * (x - (weight * x).sum(dim=1, keepdim=True) / count) for x in (a, b))
    power = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / power) if power > 0 else float("nan")


# Generation -----------------------------------------------------------------------------------------------------------


class PoseTcnGenerator(MotionGenerator):
    """Generates head poses of everybody.

    Args:
        model: trained.
        sampled: whether the residual process is drawn.
    """

    provides = ("head_pose",)

    def __init__(self, model: PoseTcn, sampled: bool = True):
        self.model, self.sampled = model.eval(), sampled
        self.process = fit_process(model.residual_covariances.cpu().numpy())

    def begin(self, characters: Sequence[Character], seed: int) -> "PoseTcnStream":
        for person in characters:
            if person.reference.num_frames == 0:
                raise DialogueError(f"participant {person.id} has no recorded motion to begin from; give some.")
            if len(person.was_speaking) != person.reference.num_frames:
                raise DialogueError(
                    f"participant {person.id}: roles are of {len(person.was_speaking)} frames, the recorded motion of "
                    f"{person.reference.num_frames}; give both of the same recording."
                )
            if person.reference.fps != 25.0:
                raise DialogueError(
                    f"participant {person.id} was recorded at {person.reference.fps:g} frames/s, motion models know "
                    "25; process the video again."
                )
        return PoseTcnStream(self, characters, seed)


class PoseTcnStream(MotionStream):
    """Everybody of one conversation, `reaction` frames at a time."""

    @torch.no_grad()
    def __init__(self, generator: PoseTcnGenerator, characters: Sequence[Character], seed: int):
        self._model, self._sampled = generator.model, generator.sampled
        self._characters = {person.id: person for person in characters}
        self._rngs = [np.random.default_rng([seed, number]) for number in range(len(characters))]
        people, model = len(characters), generator.model
        self._prosody = np.zeros((people, 0, 2), np.float32)
        self._speaking = np.zeros((people, 0), dtype=bool)
        self._device = model.pose_scale.device
        known = [self._character(person) for person in characters]
        self._rest, self._identity = (torch.cat(parts) for parts in zip(*known, strict=True))
        self._partners = PartnerTracker(people)
        order = model.config.residual_order
        # The newest last, the earliest repeated where fewer were recorded.
        self._recorded = np.stack(
            [
                person.reference.head_pose[np.arange(-order - 1, 0).clip(-person.reference.num_frames)]
                for person in characters
            ]
        ).astype(np.float64)
        self._fitted = generator.process
        self._process: Optional[ResidualProcess] = None
        # Before the first frame everybody held the start pose in silence, for as long as any layer looks back.
        start = torch.from_numpy(self._recorded[:, -1:]).float().to(self._device)
        self._past_poses = start.repeat(1, model.config.reaction + 1, 1)
        self._spoke = torch.zeros(people, ROLE_MEMORY - 1, dtype=torch.bool, device=self._device)
        self._heard = self._spoke.clone()
        reach = 2 * model.config.tcn.receptive_field
        quiet = torch.zeros(people, reach, 2, device=self._device)
        nobody = torch.zeros(people, reach, dtype=torch.bool, device=self._device)
        seen = self._see_partners(self._partners.follow(nobody.cpu().numpy()), start.repeat(1, reach + 1, 1))
        channels = torch.cat([model.hear(quiet, nobody, quiet, nobody), seen], dim=1)
        _, self._memories = model.expect(channels, self._identity)

    def _character(self, person: Character) -> Tuple[Float[Tensor, "1 6"], Float[Tensor, "1 identity"]]:
        pose = torch.from_numpy(np.asarray(person.reference.head_pose, np.float32))[None].to(self._device)
        spoke = torch.from_numpy(np.asarray(person.was_speaking, bool))[None].to(self._device)
        return self._model.character(pose, spoke)

    def advance(self, signals: MotionSignals) -> MotionParts:
        check_participants(signals, self._characters)
        self._prosody = np.concatenate([self._prosody, signals.prosody], axis=1)
        self._speaking = np.concatenate([self._speaking, signals.speaking], axis=1)
        block = self._model.config.reaction
        ready = self._speaking.shape[1] // block * block
        return join_parts([self._nothing(), *(self._take(block) for _ in range(0, ready, block))])

    def finish(self) -> MotionParts:
        frames = self._speaking.shape[1]
        return self._take(frames) if frames else self._nothing()

    def _take(self, frames: int) -> MotionParts:
        poses = self._generate(self._prosody[:, :frames], self._speaking[:, :frames])
        self._prosody, self._speaking = self._prosody[:, frames:], self._speaking[:, frames:]
        return {person: {"head_pose": poses[number]} for number, person in enumerate(self._characters)}

    def _nothing(self) -> MotionParts:
        return {person: {"head_pose": np.zeros((0, 6), np.float32)} for person in self._characters}

    @torch.no_grad()
    def _generate(
        self, prosody: Float[np.ndarray, "P n 2"], speaking: Bool[np.ndarray, "P n"]
    ) -> Float[np.ndarray, "P n 6"]:
        """The poses of up to `reaction` frames."""
        model, (people, frames) = self._model, speaking.shape
        chosen = self._partners.follow(speaking)
        alone, columns = chosen < 0, np.arange(frames)
        hearing = [prosody, speaking, prosody[chosen, columns], speaking[chosen, columns] & ~alone]
        hearing[2] = np.where(alone[..., None], np.float32(0.0), hearing[2])
        heard = [torch.from_numpy(np.ascontiguousarray(part)).to(self._device) for part in hearing]
        seen = self._see_partners(chosen, self._past_poses[:, : frames + 1])
        channels = torch.cat([model.hear(*heard), seen], dim=1)
        expected, self._memories = model.expect(channels, self._identity, self._memories)
        self._spoke, own_role = _role_step(self._spoke, heard[1])
        self._heard, partner_role = _role_step(self._heard, heard[3])
        likely = (self._rest.unsqueeze(1) + expected).double().cpu().numpy()
        size = model.spread(self._identity, own_role, partner_role).double().cpu().numpy()
        innovations = np.zeros((people, frames, 6))
        if self._sampled:
            innovations = np.stack([rng.standard_normal((frames, 6)) for rng in self._rngs])
        if self._process is None:
            residual = self._start(likely[:, :1], size[:, :1], innovations)
        else:
            residual = self._process.advance(innovations)
        poses = (likely + size * residual).astype(np.float32)
        moved = torch.from_numpy(poses).to(self._device)
        self._past_poses = torch.cat([self._past_poses, moved], dim=1)[:, -model.config.reaction - 1 :]
        return poses

    def _start(
        self,
        likely: Float[np.ndarray, "P 1 6"],
        size: Float[np.ndarray, "P 1 6"],
        innovations: Float[np.ndarray, "P n 6"],
    ) -> Float[np.ndarray, "P n 6"]:
        """The residuals of the first block: frame 0 is the last recorded pose, and what was recorded before it is what
        the process goes on from."""
        history = ((self._recorded - likely) / size)[:, ::-1]
        self._process = ResidualProcess(*self._fitted, np.ascontiguousarray(history[:, :-1]))
        return np.concatenate([history[:, :1], self._process.advance(innovations[:, 1:])], axis=1)

    def _see_partners(
        self, chosen: Int[np.ndarray, "P n"], poses: Float[Tensor, "P m 6"]
    ) -> Float[Tensor, "P channels n"]:
        """The head of everybody's partner as channels.

        Args:
            chosen: each person's partner at each frame.
            poses: everybody's, as they are seen at these frames, and one before.
        """
        seen = self._model.see(poses, self._rest).transpose(1, 2)[chosen, np.arange(chosen.shape[1])]
        alone = torch.from_numpy(chosen < 0).to(self._device)
        return seen.masked_fill(alone.unsqueeze(-1), 0.0).transpose(1, 2)


def _role_step(
    past: Bool[Tensor, "P m"], speaking: Bool[Tensor, "P n"]
) -> Tuple[Bool[Tensor, "P m"], Float[Tensor, "P n"]]:
    """`recently` of a block, and the frames to remember for the next."""
    joined = torch.cat([past, speaking], dim=1)
    return joined[:, speaking.shape[1] :], recently(joined)[:, past.shape[1] :]
