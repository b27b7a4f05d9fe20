"""Head poses relative to how a person holds and moves their head, or to how everybody does: at rest 0, with a typical
deviation of 1.

Conventions. head_pose is `[…, 6]`, axis-angle and translation. A person's *rest* is their mean pose; their *spread* is
one number for the three rotations and one for the three translations (root mean square of the deviations from rest),
so that habits such as nodding more than shaking stay visible.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

PRIOR_FRAMES = 250.0
"""For how many frames everybody's spread counts beside a person's own."""


@dataclass
class PersonalPose:
    """Rest and spread of one or more people."""

    rest: Float[Tensor, "*batch 6"]
    spread: Float[Tensor, "*batch 6"]

    def to_relative(self, head_pose: Float[Tensor, "*batch T 6"]) -> Float[Tensor, "*batch T 6"]:
        """Deviations from rest in units of the spread."""
        return (head_pose - self.rest[..., None, :]) / self.spread[..., None, :]

    def to_head_pose(self, relative: Float[Tensor, "*batch T 6"]) -> Float[Tensor, "*batch T 6"]:
        """The inverse."""
        return self.rest[..., None, :] + self.spread[..., None, :] * relative

    def repeated(self, number: int) -> "PersonalPose":
        """The same for some more people."""
        return PersonalPose(self.rest.expand(number, -1), self.spread.expand(number, -1))


class PersonalPoses(nn.Module):
    """Rest and spread of everybody in the training set, gathered from the windows that training sees.

    A person of whom little was seen gets everybody's spread; one of whom nothing was seen everybody's mean pose. All of
    it is in the checkpoint.

    Args:
        num_people: of the training set.
        mean: about where poses lie; keeps sums of squares small.
        shared: everybody's poses are relative to the mean pose and the whole spread of the training set, so that where
            somebody rests, and how far they move, stays in what is relative.
    """

    mean: Tensor
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, num_people: int, mean: Float[Tensor, " 6"], shared: bool = False):
        super().__init__()
        self.shared = shared
        self.register_buffer("mean", mean.double())
        self.register_buffer("count", torch.zeros(num_people, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(num_people, 6, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(num_people, 6, dtype=torch.float64))

    @torch.no_grad()
    def collect(self, person: Int[Tensor, " B"], head_pose: Float[Tensor, "B T 6"]) -> None:
        """Counts a batch in."""
        centred = head_pose.double() - self.mean
        self.count.index_add_(0, person, torch.full(person.shape, float(head_pose.shape[1])).to(centred))
        self.total.index_add_(0, person, centred.sum(1))
        self.squares.index_add_(0, person, centred.square().sum(1))

    def of(self, person: Int[Tensor, " B"]) -> PersonalPose:
        """Rest and spread of people by the dataset's numbers."""
        if self.shared:
            return self._of_all().repeated(len(person))
        count = self.count[person, None]
        offset = self.total[person] / count.clamp_min(1.0)
        deviations = self.squares[person] - count * offset.square()
        return PersonalPose((self.mean + offset).float(), self._spread(count, deviations))

    def of_reference(self, head_pose: Float32[np.ndarray, "T 6"]) -> PersonalPose:
        """Rest and spread of somebody by a recording."""
        if self.shared:
            return self._of_all()
        poses = torch.from_numpy(np.ascontiguousarray(head_pose)).to(self.mean)
        rest = poses.mean(0)
        return PersonalPose(
            rest.float(), self._spread(torch.full((1,), len(poses)).to(poses), (poses - rest).square().sum(0))
        )

    def everybody(self) -> Float[Tensor, " 6"]:
        """Everybody's spread: of deviations from everybody's own rest."""
        offset = self.total / self.count[:, None].clamp_min(1.0)
        deviations = (self.squares - self.count[:, None] * offset.square()).sum(0)
        return _by_kind(deviations / self.count.sum().clamp_min(1.0)).clamp_min(1e-8).sqrt().float()

    def _of_all(self) -> PersonalPose:
        count = self.count.sum().clamp_min(1.0)
        offset = self.total.sum(0) / count
        deviations = self.squares.sum(0) - count * offset.square()
        spread = _by_kind(deviations / count).clamp_min(1e-8).sqrt()
        return PersonalPose((self.mean + offset).float(), spread.float())

    def _spread(self, count: Float[Tensor, "*batch 1"], deviations: Float[Tensor, "*batch 6"]) -> Tensor:
        prior = self.everybody().square()
        return ((_by_kind(deviations) + PRIOR_FRAMES * prior) / (count + PRIOR_FRAMES)).sqrt().float()


def _by_kind(variances: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 6"]:
    """The means over the three rotations and over the three translations, each three times."""
    return variances.unflatten(-1, (2, 3)).mean(-1, keepdim=True).expand(*variances.shape[:-1], 2, 3).flatten(-2)
