"""A person's habits of moving the head, as numbers taken from recorded motion: how far, how fast and how abruptly,
speaking and listening.

Conventions. B people, T frames, 6 columns of head_pose (axis-angle in radians, metres). Amplitudes are relative to a
scale, per column, so that those of radians and of metres are comparable.
"""

from typing import Tuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HABITS = 2 * 3 * 6 + 2
"""Numbers in a vector of habits: two roles × (position, velocity, acceleration) × columns, and evidence a role."""

HALF_TRUSTED = 50.0
"""Frames of a role after which its amplitudes count half."""

SMALLEST = 1e-3
"""Amplitude, relative to the scale, that counts as not moving at all."""


def rest_pose(head_pose: Float[Tensor, "B T 6"]) -> Float[Tensor, "B 6"]:
    """The pose that a person returns to."""
    return head_pose.mean(dim=1)


def habits(
    head_pose: Float[Tensor, "B T 6"],
    speaking: Bool[Tensor, "B T"],
    scales: Tuple[Float[Tensor, " 6"], Float[Tensor, " 6"], Float[Tensor, " 6"]],
) -> Float[Tensor, "B habits"]:
    """Amplitudes of a person's motion by role: log of the deviation over the scale, shrunk towards 0 (the scale) where
    a role was seen for a short time only.

    Args:
        head_pose: recorded motion of each person.
        speaking: when they spoke.
        scales: what counts as an average deviation of position, velocity (a frame) and acceleration (a frame²).

    Returns:
        [log amplitude of speaking, of listening] each (position, velocity, acceleration) × 6, then the weight of each.
    """
    moved = head_pose - rest_pose(head_pose).unsqueeze(1)
    velocity = torch.diff(head_pose, dim=1, prepend=head_pose[:, :1])
    acceleration = torch.diff(velocity, dim=1, prepend=velocity[:, :1])
    relative = torch.cat([x / s for x, s in zip((moved, velocity, acceleration), scales, strict=True)], dim=-1)
    logs, weights = [], []
    for role in (speaking, ~speaking):
        frames = role.to(head_pose.dtype).unsqueeze(-1)
        count = frames.sum(dim=1)
        power = (frames * relative.square()).sum(dim=1) / count.clamp_min(1.0)
        weight = count / (count + HALF_TRUSTED)
        logs.append(weight * torch.log(power.sqrt().clamp_min(SMALLEST)))
        weights.append(weight)
    return torch.cat([*logs, *weights], dim=-1)
