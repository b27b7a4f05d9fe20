"""Losses of the avatars beyond the photometric one: opacity against labels, and against half-transparency.

Conventions: R rays; opacities 0 … 1; labels as in `conversation.video`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO


def mask_loss(head: Float[Tensor, " R"], torso: Float[Tensor, " R"], labels: Int[Tensor, " R"]) -> Float[Tensor, ""]:
    """Cross entropy of head and torso opacity against the labels.

    Head pixels show only head, torso pixels only torso, background neither; a neck pixel is filled, by either.
    """
    is_head, is_neck, is_torso = labels == HEAD, labels == NECK, labels == TORSO
    head_error = torch.where(is_neck, torch.zeros_like(head), cross_entropy(head, is_head))
    torso_error = torch.where(is_neck, cross_entropy(head + torso, is_neck), cross_entropy(torso, is_torso))
    return (head_error + torso_error).mean()


def cross_entropy(opacity: Float[Tensor, " R"], filled: Bool[Tensor, " R"]) -> Float[Tensor, " R"]:
    """−log of the opacity where it should be 1, of the transparency where it should be 0."""
    probability = torch.where(filled, opacity, 1.0 - opacity)
    return -torch.log(probability.clamp(1e-3, 1.0))


def binary_entropy(opacity: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean of −p log p − (1 − p) log (1 − p)."""
    p = opacity.clamp(1e-4, 1.0 - 1e-4)
    return -(p * p.log() + (1.0 - p) * (1.0 - p).log()).mean()
