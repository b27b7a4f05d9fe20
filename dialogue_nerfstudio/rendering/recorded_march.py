"""A picture rendered again and again: the march of fixed sizes, recorded as a CUDA graph and replayed every frame.

The ordinary march makes the host wait a dozen times a picture, for how many samples are live, visible, seen; the device
idles meanwhile, and every small kernel is launched anew. Here all sizes are known beforehand, with some room, so that
one launch replays the whole picture, and one look at its end says whether everything fitted; if not, there is more room
and the picture is rendered again.
"""

from collections.abc import Callable, Sequence
from typing import Optional

import torch
from jaxtyping import Float
from torch import Tensor

from dialogue_nerfstudio.rendering.compositing import LIGHT_THRESHOLD, Composite
from dialogue_nerfstudio.rendering.fixed_march import Capacity, FixedMarch, fixed_march, fixed_samples
from dialogue_nerfstudio.rendering.march import Source

ROOM = 1.25
"""Capacity over what a frame needed: heads come nearer and turn."""
STEP = 4096
"""Capacities are multiples of it."""


class RecordedMarch:
    """One picture, whose rays stay and whose conditions change; without a CUDA device the same, not recorded.

    Args:
        sources: makes the sources of the picture from tensors that stay where they are, and whose values the caller
            changes in place from frame to frame; it must not ask for a value itself.
        background: behind everything, one colour a ray or one for all.
        weight_threshold, transmittance_threshold: as in `march`.
    """

    def __init__(
        self,
        sources: Callable[[], Sequence[Source]],
        background: Float[Tensor, "*#num_rays 3"],
        weight_threshold: float = LIGHT_THRESHOLD,
        transmittance_threshold: float = 0.0,
    ) -> None:
        self._sources, self._background = sources, background
        self._thresholds = (weight_threshold, transmittance_threshold)
        self._settled = False
        self._graph: Optional[torch.cuda.CUDAGraph] = None
        self._marched: Optional[FixedMarch] = None
        # Until a picture has said what it needs: room for every live sample to be visible and coloured.
        counts = [int(fixed_samples(source, 0)[1]) for source in sources()]
        self.capacities = [roomy([count] * 3) for count in counts]

    @property
    def recorded(self) -> bool:
        """Whether the picture is replayed from a graph by now."""
        return self._graph is not None

    def settle(self, capacities: Sequence[Capacity]) -> None:
        """Goes on with other sizes."""
        self.capacities, self._settled = list(capacities), True
        self._graph, self._marched = None, None

    @torch.no_grad()
    def __call__(self) -> Composite:
        """What the rays see now. The next call may write to the same tensors."""
        while True:
            marched = self._run()
            needed = marched.needed.tolist()
            fitted = all(fits(capacity, counts) for capacity, counts in zip(self.capacities, needed, strict=True))
            if not (fitted and self._settled):
                self.settle([roomy(counts) for counts in needed])
            if fitted:
                return marched.composite

    def _run(self) -> FixedMarch:
        if not self._background.is_cuda or not self._settled:
            return self._march()
        if self._graph is None:
            # Kernels are compiled and libraries wake up outside of the recording.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._march()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._marched = self._march()
            self._graph = graph
        self._graph.replay()
        assert self._marched is not None
        return self._marched

    def _march(self) -> FixedMarch:
        # Weights that autocast rounded and kept are freed when its context ends, and a graph would go on reading them:
        # a recording rounds its own.
        torch.clear_autocast_cache()
        marched = fixed_march(self._sources(), self._background, self.capacities, *self._thresholds)
        torch.clear_autocast_cache()
        return marched


def fits(capacity: Capacity, needed: Sequence[int]) -> bool:
    """Whether so many live, visible and coloured samples fitted."""
    return all(count <= size for count, size in zip(needed, capacity.sizes, strict=True))


def roomy(needed: Sequence[int]) -> Capacity:
    """What was needed and some room."""
    return Capacity(*(STEP * -(-max(1, int(ROOM * count)) // STEP) for count in needed))
