"""Disentangled expression: an autoencoder whose mouth code moves the mouth alone and whose eye code moves eyes and
brows alone (DFA-NeRF 3.2).

Conventions. Landmarks `[n, 68, 3]` as in `face_landmarks`, millimetres. l(m_B, e_A) is a face with the mouth of B and
the eyes of A: since all landmarks are displacements of one mean face it is known exactly, B's `MOUTH_POINTS` beside A's
`EYE_POINTS`, and is what a decoder given B's mouth code and A's eye code has to make (eq. 2).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Dict, List, Tuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.motion.face_landmarks import (
    EYE_POINTS,
    LIDS,
    MOUTH_POINTS,
    NUM_POINTS,
    FaceLandmarks,
    check_basis,
)
from dialogue_nerfstudio.motion.generator import MotionGenerator
from dialogue_nerfstudio.motion.model import MotionModel, MotionModelConfig, MotionStatistics
from dialogue_nerfstudio.motion.windows import MotionWindows

MILLIMETRES = 10.0
"""What counts as one inside the networks: about what a speaking lip moves."""

LID_WEIGHT = 6.0
"""How much more a lid's point counts in training than any other: only eight of 68 say whether the eyes are closed, and
they are so in one frame of fifteen, which a mean of absolute errors would leave open."""

Landmarks = Float[Tensor, "n 68 3"]


@dataclass
class FaceCodesConfig(MotionModelConfig):
    """The autoencoder's sizes and how it is trained."""

    mouth_size: int = 32
    """Numbers of a mouth code (DFA-NeRF's public code: 32)."""
    eye_size: int = 16
    """Numbers of an eye code; DFA-NeRF's 64 hold the rest of its expression basis as well."""
    widths: Tuple[int, ...] = (128, 256, 256)
    """Hidden layers of the encoder; the decoder has them in reverse (as DFA-NeRF's public code)."""
    variation: float = 0.4
    """Size of random movements added to half of the training faces, so that codes cover everything the basis can show
    and not only what the training set's people did; 0 for none."""
    window_frames: int = 25
    """Frames of a training window: the faces of 16 windows make a batch of 400 (DFA-NeRF: 512)."""

    @property
    def window(self) -> int:
        return self.window_frames

    def build(self, statistics: MotionStatistics) -> "FaceCodes":
        return FaceCodes(self, statistics)


def _layers(widths: List[int]) -> nn.Sequential:
    modules: List[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class FaceAutoEncoder(nn.Module):
    """Landmarks to a mouth code and an eye code and back; each way a linear map plus what fully connected layers
    add."""

    def __init__(self, config: FaceCodesConfig):
        super().__init__()
        self.mouth_size = config.mouth_size
        codes, points, widths = config.mouth_size + config.eye_size, 3 * NUM_POINTS, list(config.widths)
        # Landmarks are linear in expression, so most of the way is: the layers begin by adding nothing.
        self.encoder_linear = nn.Linear(points, codes)
        self.encoder = _layers([points, *widths, codes])
        self.decoder_linear = nn.Linear(codes, points)
        self.decoder = _layers([codes, *widths[::-1], points])
        for last in (self.encoder[-1], self.decoder[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def encode(self, landmarks: Landmarks) -> Tuple[Float[Tensor, "n mouth"], Float[Tensor, "n eye"]]:
        """f_m, f_e = E_L(l)."""
        points = landmarks.flatten(1) / MILLIMETRES
        codes = self.encoder_linear(points) + self.encoder(points)
        return codes[:, : self.mouth_size], codes[:, self.mouth_size :]

    def decode(self, mouth: Float[Tensor, "n mouth"], eye: Float[Tensor, "n eye"]) -> Landmarks:
        """l′ = D_L(f_m, f_e)."""
        codes = torch.cat([mouth, eye], dim=1)
        return MILLIMETRES * (self.decoder_linear(codes) + self.decoder(codes)).unflatten(1, (NUM_POINTS, 3))


def swapped(mouth_of: Landmarks, eyes_of: Landmarks) -> Landmarks:
    """l(m_B, e_A): the true landmarks of one's mouth with another's eyes."""
    landmarks = eyes_of.clone()
    landmarks[:, list(MOUTH_POINTS)] = mouth_of[:, list(MOUTH_POINTS)]
    return landmarks


def point_weights() -> Float[Tensor, "68 1"]:
    """How much each point counts in training; one on average."""
    weights = torch.ones(NUM_POINTS, 1)
    weights[[point for pairs in LIDS for pair in pairs for point in pair]] = LID_WEIGHT
    return weights / weights.mean()


def face_losses(autoencoder: FaceAutoEncoder, faces: Landmarks, others: Landmarks) -> Dict[str, Tensor]:
    """Mean absolute errors, mm, weighted by `point_weights`: of faces from their own codes, of faces with others'
    mouths and of others' with theirs (eq. 2), and of faces from codes that were read off swapped ones."""
    weights = point_weights().to(faces)

    def error(found: Landmarks, true: Landmarks) -> Tensor:
        return (weights * (found - true).abs()).mean()

    mouth, eye = autoencoder.encode(faces)
    other_mouth, other_eye = autoencoder.encode(others)
    their_mouth, their_eyes = autoencoder.decode(other_mouth, eye), autoencoder.decode(mouth, other_eye)
    cycled = autoencoder.decode(autoencoder.encode(their_eyes)[0], autoencoder.encode(their_mouth)[1])
    return {
        "reconstruction": error(autoencoder.decode(mouth, eye), faces),
        "swap": 0.5 * (error(their_mouth, swapped(others, faces)) + error(their_eyes, swapped(faces, others))),
        "cycle": error(cycled, faces),
    }


@torch.no_grad()
def leakage(autoencoder: FaceAutoEncoder, faces: Landmarks, others: Landmarks) -> Dict[str, float]:
    """How far a code moves what is not its own, over how far it moves what is (root mean squares over all points).

    `mouth_to_eyes`: others' mouth codes put into `faces` and what they do to eye points over what to mouth points;
    `eyes_to_mouth`: the reverse.
    """
    mouth, eye = autoencoder.encode(faces)
    other_mouth, other_eye = autoencoder.encode(others)
    before = autoencoder.decode(mouth, eye)

    def moved(after: Landmarks, points: Tuple[int, ...]) -> float:
        return float((after - before)[:, list(points)].square().sum(dim=-1).mean().sqrt())

    of_mouth, of_eyes = autoencoder.decode(other_mouth, eye), autoencoder.decode(mouth, other_eye)
    return {
        "mouth_to_eyes": moved(of_mouth, EYE_POINTS) / max(moved(of_mouth, MOUTH_POINTS), 1e-9),
        "eyes_to_mouth": moved(of_eyes, MOUTH_POINTS) / max(moved(of_eyes, EYE_POINTS), 1e-9),
    }


def varied_faces(
    expression: Float[Tensor, "n E"], blink: Float[Tensor, "n 2"], size: float
) -> Tuple[Float[Tensor, "n E"], Float[Tensor, "n 2"]]:
    """Every second face with a few random movements more, half-normal of that size, and lids anywhere."""
    chosen = torch.arange(len(expression), device=expression.device) % 2 == 1
    few = torch.rand_like(expression) < 0.25
    moved = expression + size * torch.randn_like(expression).abs() * few
    lids = torch.where(torch.rand_like(blink) < 0.5, torch.rand_like(blink), blink)
    return torch.where(chosen[:, None], moved, expression), torch.where(chosen[:, None], lids, blink)


class FaceCodes(MotionModel):
    """The autoencoder in training, and mouth and eye codes of motions when trained.

    Raises:
        DialogueError: the training set's expressions are in a basis of whose landmarks nothing is known.
    """

    def __init__(self, config: FaceCodesConfig, statistics: MotionStatistics):
        super().__init__()
        check_basis(statistics.expression_basis, statistics.expression_names)
        self.config = config
        self.landmarks = FaceLandmarks()
        self.autoencoder = FaceAutoEncoder(config)

    def losses(self, windows: MotionWindows, step: int) -> Dict[str, Tensor]:
        expression, blink = windows.own.expression.flatten(0, 1), windows.own.blink.flatten(0, 1)
        faces = self.landmarks(*varied_faces(expression, blink, self.config.variation))
        return face_losses(self.autoencoder, faces, faces[torch.randperm(len(faces), device=faces.device)])

    @torch.no_grad()
    def figures(self, windows: MotionWindows) -> Dict[str, float]:
        """Errors of the losses (mm) and `leakage`, with as many others as fit: every face with the one half a batch
        further on."""
        faces = self.landmarks(windows.own.expression.flatten(0, 1), windows.own.blink.flatten(0, 1))
        others = faces.roll(len(faces) // 2, 0)
        errors = {name: float(value) for name, value in face_losses(self.autoencoder, faces, others).items()}
        return {**errors, **leakage(self.autoencoder, faces, others)}

    @torch.no_grad()
    def encode(self, motion: Motion) -> Tuple[Float[np.ndarray, "T mouth"], Float[np.ndarray, "T eye"]]:
        """Mouth code and eye code of each frame.

        Raises:
            DialogueError: the motion's expressions are in another basis.
        """
        check_basis(motion.expression_basis, motion.expression_names)
        device = self.landmarks.fields.device
        expression, blink = (torch.as_tensor(a, dtype=torch.float32) for a in (motion.expression, motion.blink))
        codes = self.autoencoder.encode(self.landmarks(expression.to(device), blink.to(device)))
        return codes[0].cpu().numpy(), codes[1].cpu().numpy()

    @torch.no_grad()
    def decode(
        self, mouth: Float[np.ndarray, "T mouth"], eye: Float[np.ndarray, "T eye"]
    ) -> Tuple[Float[np.ndarray, "T E"], Float[np.ndarray, "T 2"]]:
        """Expression and blink of each frame's codes, through landmarks and the basis."""
        device = self.landmarks.fields.device
        codes = [torch.as_tensor(code, dtype=torch.float32).to(device) for code in (mouth, eye)]
        return self.landmarks.coefficients(self.autoencoder.decode(*codes))

    def generator(self) -> MotionGenerator:
        """There is none.

        Raises:
            DialogueError: always, with what moves mouths from sound.
        """
        raise DialogueError(
            "dialogue-face-codes describes faces and moves nobody: mouths are moved from sound by a model of "
            "`ns-train dialogue-lip-sync`, which contains such codes."
        )
