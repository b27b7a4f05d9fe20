"""Exponential moving average of a model's weights, shown while it is evaluated, hidden while it is trained.

Conventions: after n updates the average is a ← d_n a + (1 − d_n) w with d_n = min(d, (1 + n) / (10 + n)), d the decay
an update. All averages lie in one buffer, in the order of the parameters.
"""

from contextlib import contextmanager
from typing import Iterator, List, Sequence

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Every parameter's average starts at a multiple of this many numbers, where vector instructions like it."""


class WeightAverage(nn.Module):
    """The averages of `parameters`, and which of both they show now (RAD-NeRF and ER-NeRF: decay 0.95 a step).

    The average is a buffer, so that checkpoints hold both: training resumes from the weights, rendering shows the
    average.

    Args:
        parameters: all of the same type; kept by reference.
    """

    values: Tensor
    updates: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter]):
        super().__init__()
        # A plain list: they stay the model's own.
        self._parameters_of_model = list(parameters)
        self._weights: List[Tensor] = []
        sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in self._parameters_of_model]
        self._sizes = sizes
        self.register_buffer("values", torch.zeros(sum(sizes)))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        with torch.no_grad():
            for average, parameter in zip(self.averages(), self._parameters_of_model, strict=True):
                average.copy_(parameter)

    def averages(self) -> List[Tensor]:
        """The average of each parameter, views of the buffer."""
        parts = self.values.split(self._sizes)
        return [
            part[: parameter.numel()].view(parameter.shape)
            for part, parameter in zip(parts, self._parameters_of_model, strict=True)
        ]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Takes the weights of now into the average."""
        count = int(self.updates)
        weight = 1.0 - min(decay, (1 + count) / (10 + count))
        for average, parameter in zip(self.averages(), self._parameters_of_model, strict=True):
            average.lerp_(parameter, weight)
        self.updates += 1

    @property
    def shown(self) -> bool:
        """Whether the parameters hold the average now."""
        return bool(self._weights)

    def show(self, average: bool) -> None:
        """Makes the parameters hold the average, or the weights again; nothing is copied."""
        if average == self.shown:
            return
        if average:
            self._weights = [parameter.data for parameter in self._parameters_of_model]
            for parameter, value in zip(self._parameters_of_model, self.averages(), strict=True):
                parameter.data = value
        else:
            for parameter, value in zip(self._parameters_of_model, self._weights, strict=True):
                parameter.data = value
            self._weights = []

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """The weights themselves for a while, as saving and loading need."""
        shown = self.shown
        self.show(False)
        try:
            yield
        finally:
            self.show(shown)
