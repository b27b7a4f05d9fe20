"""Audio-lip synchronisation: an audio encoder whose code of 200 ms lies where the code of the mouth's movement in them
lies, and nowhere near that of any others (DFA-NeRF 3.3).

Conventions. B windows of T frames; of each, the n = T − 4 frames that have two more on either side are compared. f_a
`[B, n, code]` is the code of the spectrogram around a frame, f_m `[B, n, code]` that of the mouth codes (`face_codes`)
of five frames around it, both of length one, so that their product is the cosine d(f_a, f_m) of eq. 3. A *lag* of k
frames compares the mouth at t with the sound at t + k.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Literal, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dialogue_nerfstudio.motion.audio_encoder import AudioEncoder
from dialogue_nerfstudio.motion.face_codes import FaceAutoEncoder, FaceCodesConfig, face_losses, leakage, varied_faces
from dialogue_nerfstudio.motion.face_landmarks import MOUTH_POINTS, FaceLandmarks, check_basis
from dialogue_nerfstudio.motion.model import MotionModel, MotionModelConfig, MotionStatistics
from dialogue_nerfstudio.motion.mouth_from_sound import MouthFromSound, MouthGenerator, articulation
from dialogue_nerfstudio.motion.signals import window_steps
from dialogue_nerfstudio.motion.windows import MotionWindows

MOUTH_FRAMES = 5
"""Frames whose mouth codes make one f_m: as long as the sound that f_a hears."""

REACH = 15
"""Lags that in-sync retrieval chooses among are −REACH … REACH frames (SyncNet's vshift)."""

QUIET = 0.02
"""How far above silence (of the spectrogram's range of 2) a value counts as sound that can be made louder."""


@dataclass
class LipSyncConfig(MotionModelConfig):
    """Sizes and training of the audio encoder, and of what moves mouths from it."""

    face_codes: FaceCodesConfig = field(default_factory=FaceCodesConfig)
    """Mouth and eye codes, trained along."""
    code_size: int = 64
    """Numbers of an audio code (DFA-NeRF: 512)."""
    audio_width: int = 96
    """Channels of the audio encoder."""
    contrast: Literal["bce", "info-nce"] = "info-nce"
    """What sets codes apart: eq. 3's binary cross-entropy of one true pair and two false ones, or choosing the true one
    among all lags and other videos at once."""
    loudness: float = 0.12
    """Largest change of a track's loudness in training, in the spectrogram's units (0.02 is a decibel)."""
    bands: int = 2
    """Most mel bands that a track is shifted by in training, which makes other voices of it."""
    window_frames: int = 60
    """Frames of a training window."""

    @property
    def window(self) -> int:
        return self.window_frames

    @property
    def needs_mel(self) -> bool:
        return True

    def build(self, statistics: MotionStatistics) -> "LipSync":
        return LipSync(self, statistics)


class MouthEncoder(nn.Module):
    """Mouth codes of five frames to one code."""

    def __init__(self, mouth_size: int, code_size: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(mouth_size, affine=False)
        self.layers = nn.Sequential(
            nn.Linear(MOUTH_FRAMES * mouth_size, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, code_size),
        )

    def forward(self, mouth: Float[Tensor, "B T mouth"]) -> Float[Tensor, "B n code"]:
        levelled = self.norm(mouth.flatten(0, 1)).unflatten(0, mouth.shape[:2])
        return self.layers(levelled.unfold(1, MOUTH_FRAMES, 1).flatten(2))


def bce_loss(
    audio: Float[Tensor, "B n code"],
    mouth: Float[Tensor, "B n code"],
    chosen: Bool[Tensor, "B n"],
    scale: Tensor,
    bias: Tensor,
) -> Tensor:
    """Eq. 3 for codes of length one: each chosen mouth with its own sound, with that of another time of the same video
    and with that of another video.

    A cosine is no probability: it becomes one as sigmoid(scale · cos + bias), both learned.
    """
    count, length = audio.shape[:2]
    lag = torch.randint(1, REACH + 1, (count, length), device=audio.device)
    lag = torch.where(torch.rand(lag.shape, device=audio.device) < 0.5, lag, -lag)
    time = torch.arange(length, device=audio.device)
    # A time beyond the window's end is taken on the other side.
    shifted = torch.where((time + lag < 0) | (time + lag >= length), time - lag, time + lag)
    video = torch.arange(count, device=audio.device)[:, None]
    foreign = (video + torch.randint(1, max(count, 2), (count, length), device=audio.device)) % count
    pairs = {
        "true": (audio, 1.0),
        "shifted": (audio[video, shifted], 0.0),
        "foreign": (audio[foreign, torch.randint(0, length, (count, length), device=audio.device)], 0.0),
    }
    total = audio.new_zeros(())
    for sound, label in pairs.values():
        logits = (scale * (sound * mouth).sum(dim=-1) + bias)[chosen]
        total = total + F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
    return total / len(pairs)


def info_nce_loss(
    audio: Float[Tensor, "B n code"], mouth: Float[Tensor, "B n code"], chosen: Bool[Tensor, "B n"], scale: Tensor
) -> Tensor:
    """Cross-entropy of choosing, for each chosen mouth, its own sound among all lags of its own video and one time of
    every other video."""
    time = torch.arange(audio.shape[1], device=audio.device)
    near = (time[:, None] - time).abs() <= REACH
    own = scale * torch.einsum("btc,bsc->bts", mouth, audio)
    moment = torch.randint(0, audio.shape[1], (len(audio),), device=audio.device)
    others = scale * torch.einsum("btc,vc->btv", mouth, audio[torch.arange(len(audio), device=audio.device), moment])
    same = torch.eye(len(audio), dtype=torch.bool, device=audio.device)[:, None]
    logits = torch.cat([own.masked_fill(~near, -torch.inf), others.masked_fill(same, -torch.inf)], dim=2)
    labels = time.expand(len(audio), -1)
    return F.cross_entropy(logits[chosen], labels[chosen])


def retrieved_lags(
    audio: Float[Tensor, "n code"], mouth: Float[Tensor, "n code"], evidence: int = 1
) -> Int[Tensor, " anchors"]:
    """The lag at which each mouth fits the sound best, 0 where found right, of those that have all lags.

    Args:
        audio, mouth: codes of length one of successive frames.
        evidence: successive frames, an odd number, whose cosines are added up before choosing. Anchors are frames REACH
            + evidence // 2 … n − 1 − REACH − evidence // 2.
    """
    length = len(audio) - 2 * REACH
    if length < evidence:
        return torch.empty(0, dtype=torch.int64, device=audio.device)
    lags = torch.arange(-REACH, REACH + 1, device=audio.device)
    time = torch.arange(REACH, REACH + length, device=audio.device)
    cosines = (mouth[time, None] * audio[time[:, None] + lags]).sum(dim=-1)
    summed = F.avg_pool1d(cosines.T[None], evidence, stride=1)[0].T
    return lags[summed.argmax(dim=1)]


def retrieval(lags: Int[Tensor, " anchors"]) -> Dict[str, float]:
    """Shares of anchors found exactly and to within a frame; by chance 1/31 and 3/31."""
    if not len(lags):
        return {"retrieval_exact": float("nan"), "retrieval_within_1": float("nan")}
    return {
        "retrieval_exact": float((lags == 0).float().mean()),
        "retrieval_within_1": float((lags.abs() <= 1).float().mean()),
    }


def varied_sound(mel: Float[Tensor, "B S 80"], loudness: float, bands: int) -> Float[Tensor, "B S 80"]:
    """Tracks a little louder or softer, and of somewhat longer or shorter throats; silence stays silent."""
    shift = torch.randint(-bands, bands + 1, (len(mel),), device=mel.device)
    source = (torch.arange(mel.shape[2], device=mel.device) - shift[:, None]).clamp(0, mel.shape[2] - 1)
    shifted = mel.gather(2, source[:, None].expand(-1, mel.shape[1], -1))
    change = loudness * (2 * torch.rand(len(mel), 1, 1, device=mel.device) - 1)
    return torch.where(shifted > -1.0 + QUIET, (shifted + change).clamp(-1.0, 1.0), shifted)


class LipSync(MotionModel):
    """Face codes, the audio encoder against their mouth codes, and mouths from audio codes, trained side by side:
    gradients of one do not reach the others.

    Raises:
        DialogueError: the training set's expressions are in a basis of whose landmarks nothing is known.
    """

    def __init__(self, config: LipSyncConfig, statistics: MotionStatistics):
        super().__init__()
        check_basis(statistics.expression_basis, statistics.expression_names)
        self.config = config
        self.landmarks = FaceLandmarks()
        self.autoencoder = FaceAutoEncoder(config.face_codes)
        self.audio_encoder = AudioEncoder(config.audio_width, config.code_size)
        self.mouth_encoder = MouthEncoder(config.face_codes.mouth_size, config.code_size)
        self.mouth_from_sound = MouthFromSound(config.code_size, config.face_codes.mouth_size)
        self.scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.register_buffer("typical_articulation", torch.tensor(float("nan")))
        frames = range(MOUTH_FRAMES // 2, config.window - MOUTH_FRAMES // 2)
        self.register_buffer("first_steps", torch.from_numpy(window_steps(frames)[:, 0]), persistent=False)

    def audio_codes(self, mel: Float[Tensor, "B S 80"]) -> Float[Tensor, "B n code"]:
        """E_a of each compared frame of a window."""
        return self.audio_encoder.along(mel, self.first_steps)

    def mouth_codes(
        self, expression: Float[Tensor, "B T E"], blink: Float[Tensor, "B T 2"]
    ) -> Float[Tensor, "B T mouth"]:
        """Each frame's mouth code, from which no gradient returns."""
        faces = self.landmarks(expression, blink).flatten(0, 1)
        with torch.no_grad():
            return self.autoencoder.encode(faces)[0].unflatten(0, expression.shape[:2])

    def sync_codes(self, windows: MotionWindows) -> Tuple[Float[Tensor, "B n code"], Float[Tensor, "B n code"]]:
        """f_a and f_m of length one of each compared frame of the windows' own side."""
        own = windows.own
        mouth = self.mouth_encoder(self.mouth_codes(own.expression, own.blink))
        return self.audio_codes(own.mel), F.normalize(mouth, dim=-1)

    def losses(self, windows: MotionWindows, step: int) -> Dict[str, Tensor]:
        own, config = windows.own, self.config
        varied = varied_faces(own.expression.flatten(0, 1), own.blink.flatten(0, 1), config.face_codes.variation)
        faces = self.landmarks(*varied)
        faces = faces[torch.randperm(len(faces), device=faces.device)[: 16 * config.face_codes.window_frames]]
        losses = face_losses(self.autoencoder, faces, faces.roll(1, 0))

        mel = varied_sound(own.mel, config.loudness, config.bands)
        mouth = self.mouth_codes(own.expression, own.blink)
        audio, motion = self.audio_codes(mel), F.normalize(self.mouth_encoder(mouth), dim=-1)
        half = MOUTH_FRAMES // 2
        speaking = own.speaking[:, half:-half]
        scale = self.scale.exp().clamp(max=100.0)
        if speaking.any():
            losses["contrast"] = (
                bce_loss(audio, motion, speaking, scale, self.bias)
                if config.contrast == "bce"
                else info_nce_loss(audio, motion, speaking, scale)
            )
        losses["mouth"] = self._mouth_loss(audio.detach(), windows)
        if self.training:
            self._note_articulation(windows)
        return losses

    def _mouth_loss(self, codes: Float[Tensor, "B n code"], windows: MotionWindows) -> Tensor:
        """Mean absolute error of mouth points (mm) where a window's own sound moves or rests them."""
        own, net, half = windows.own, self.mouth_from_sound, MOUTH_FRAMES // 2
        predicted = net(net.contexts(codes))
        kept = slice(half + net.BEFORE, own.expression.shape[1] - half - net.AFTER)
        true = self.landmarks(own.expression[:, kept], own.blink[:, kept]).flatten(0, 1)
        with frozen(self.autoencoder):
            found = self.autoencoder.decode(predicted.flatten(0, 1), self.autoencoder.encode(true)[1])
        error = (found - true)[:, list(MOUTH_POINTS)].abs().mean(dim=(1, 2))
        # While others speak a mouth smiles and rests as it likes: what is common to that is learned, with less weight.
        weight = torch.where(own.speaking[:, kept].flatten(), 1.0, 0.2)
        return (weight * error).sum() / weight.sum()

    @torch.no_grad()
    def _note_articulation(self, windows: MotionWindows) -> None:
        """Follows how far mouths of the training set move while they speak, on average."""
        faces = self.landmarks(windows.own.expression, windows.own.blink)
        spreads = [
            spread
            for face, speaking in zip(faces, windows.own.speaking, strict=True)
            if (spread := articulation(face, speaking)) is not None
        ]
        if spreads:
            now = torch.stack(spreads).mean()
            before = self.typical_articulation
            self.typical_articulation.copy_(torch.where(before.isnan(), now, before + 0.02 * (now - before)))

    @torch.no_grad()
    def figures(self, windows: MotionWindows) -> Dict[str, float]:
        """In-sync retrieval from single frames that speak, `leakage` of the face codes, and how far (mm) mouth points
        of a mouth moved by sound are from where they were, beside how far they are on average from their mean."""
        own = windows.own
        audio, mouth = self.sync_codes(windows)
        half = MOUTH_FRAMES // 2
        lags = [
            retrieved_lags(sound, motion)[speaking[half + REACH : len(speaking) - half - REACH]]
            for sound, motion, speaking in zip(audio, mouth, own.speaking, strict=True)
        ]
        faces = self.landmarks(own.expression.flatten(0, 1), own.blink.flatten(0, 1))
        points = list(MOUTH_POINTS)
        speaking = faces[own.speaking.flatten()][:, points]
        return {
            **retrieval(torch.cat(lags)),
            **leakage(self.autoencoder, faces, faces.roll(len(faces) // 2, 0)),
            "mouth_error": float(self._mouth_loss(self.audio_codes(own.mel), windows)),
            "mouth_spread": float((speaking - speaking.mean(dim=0)).abs().mean()) if len(speaking) else float("nan"),
        }

    def parameter_groups(self) -> Dict[str, List[nn.Parameter]]:
        """The autoencoder learns with larger steps than what hears."""
        face_codes = list(self.autoencoder.parameters())
        known = {id(parameter) for parameter in face_codes}
        return {"networks": [each for each in self.parameters() if id(each) not in known], "face_codes": face_codes}

    def generator(self) -> MouthGenerator:
        return MouthGenerator(
            self.audio_encoder,
            self.mouth_from_sound,
            self.autoencoder,
            self.landmarks,
            float(self.typical_articulation),
        )


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients of what is computed inside reach the module's input and not its parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
