"""The 68 landmarks of a face from its expression and blink, and back: what mouth and eye codes are learned on.

Conventions. Landmarks `[..., 68, 3]` are millimetres of displacement from the mean face at rest, in head space, in the
order of the 68-point scheme: S − S̄ = B_exp F_exp (DFA-NeRF eq. 1). Identity is left out, so that landmarks of all
people are of one face and any mouth fits any eyes. Lids are not in B_exp: a closing eye moves its upper lid's points
`UPPER_LID_SHARE` of the gap down, its lower lid's points the rest up, so that they meet at blink 1.
"""

from typing import Tuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import MESH_OF_68, expression_basis
from dialogue_nerfstudio.conversation.least_squares import bounded_least_squares
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES

NUM_POINTS = 68

MOUTH_POINTS: Tuple[int, ...] = (*range(17), *range(31, 36), *range(48, 68))
"""Points that a mouth code is responsible for: jaw, underside of the nose, lips."""

EYE_POINTS: Tuple[int, ...] = (*range(17, 31), *range(36, 48))
"""Points that an eye code is responsible for: brows, bridge of the nose, lids."""

LIDS = (((43, 47), (44, 46)), ((37, 41), (38, 40)))
"""(point of the upper lid, point below it) twice, of the left and the right eye."""

UPPER_LID_SHARE = 0.85
"""How much of the gap the upper lid covers in a blink; the lower one rises a little."""

LANDMARK_NOISE = 0.3
"""Standard deviation (mm) of a landmark, for going back to coefficients: what decoding leaves."""


class FaceLandmarks(nn.Module):
    """Landmarks as a linear function of expression and blink, and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        basis = expression_basis()
        chosen = list(MESH_OF_68)
        mean = basis.mean[chosen]
        lids = np.zeros((2, NUM_POINTS, 3))
        for eye, pairs in enumerate(LIDS):
            for above, below in pairs:
                gap = mean[below] - mean[above]
                lids[eye, above] = UPPER_LID_SHARE * gap
                lids[eye, below] = (UPPER_LID_SHARE - 1.0) * gap
        fields = 1e3 * np.concatenate([basis.expression[:, chosen], lids])
        self.register_buffer("fields", torch.from_numpy(fields.astype(np.float32)), persistent=False)
        self._upper = np.concatenate([np.full(len(EXPRESSION_NAMES), basis.upper), np.ones(2)])
        self._prior = basis.prior

    def forward(
        self, expression: Float[Tensor, "*batch E"], blink: Float[Tensor, "*batch 2"]
    ) -> Float[Tensor, "*batch 68 3"]:
        """Displacement of each landmark, mm."""
        return torch.tensordot(torch.cat([expression, blink], dim=-1), self.fields, dims=1)

    def coefficients(
        self, landmarks: Float[Tensor, "n 68 3"]
    ) -> Tuple[Float[np.ndarray, "n E"], Float[np.ndarray, "n 2"]]:
        """Expression and blink that explain landmarks best, within what the basis allows: least squares with the
        basis's prior; a blink is between open and closed."""
        design = self.fields.reshape(len(self.fields), -1).double().cpu().numpy() / LANDMARK_NOISE
        target = landmarks.reshape(len(landmarks), -1).double().cpu().numpy() / LANDMARK_NOISE
        hessian = design @ design.T + np.eye(len(design)) / self._prior**2
        found = bounded_least_squares(hessian[None], target @ design.T, 0.0, self._upper)
        return found[:, :-2].astype(np.float32), found[:, -2:].astype(np.float32)


def check_basis(name: str, names: Tuple[str, ...]) -> None:
    """Refuses expressions that landmarks cannot be made of.

    Raises:
        DialogueError: they are not in the project's own basis.
    """
    if (name, tuple(names)) != (expression_basis().name, EXPRESSION_NAMES):
        raise DialogueError(
            f"Face codes are learned on expressions in the basis '{expression_basis().name}', these are in '{name}': "
            "carry the conversation over with `ns-dialogue refit`."
        )
