"""Training steps shared by several processes on a CPU: each renders a share of the rays, gradients are added up.

A step is a thousand small operations, which torch's threads cannot share: a second thread gains a fifth. Here a second
process, forked when training begins, renders half of the batch with an interpreter of its own. Each works on one
thread: OpenMP's threads do not survive a fork, and a process that counted on them would wait for ever.

Conventions: process 0 is the one that trains, saves and renders; the others only compute gradients. All of them draw
the same batch (equal random states) and take their rays of it. A loss term is a mean: over rays, or over what its
`COUNTS` entry counts; a process's term weighs as much as its rays (or what is counted) are of all, so that the sum over
processes is the term of the undivided batch, and its gradient that of the undivided batch.

What is shared: parameters and occupancy grids lie in anonymous memory that all processes map (nothing in /dev/shm,
nothing left behind); process 0 alone updates parameters, and marks of light in occupancy grids are all the same number,
whoever writes them. Whatever ends process 0 closes its pipes, on which the others end.
"""

import contextlib
import gc
import mmap
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
import weakref
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.encodings.hash_grid import HashGrid
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid

COUNTS = {"gate": "gate_count", "deformation": "shift_count", "virtual": "virtual_count"}
"""Loss terms that are means over something else than rays, and the output that says of how much."""

FEWEST_RAYS = 256
"""Rays a process: with fewer, what a step costs whatever its rays is most of it."""

MOST_PROCESSES = 4
"""Processes that are used unasked: process 0 alone adds gradients up and steps the optimisers."""

THREADS = 1
"""torch threads of each process while it does its share."""

ANSWER_SECONDS = 600.0
"""Seconds after which a process that does not answer counts as stuck."""

Weighted = Dict[str, Tuple[float, float]]
"""A loss term's value in one process, and the weight of it: rays, or what is counted."""


@dataclass
class BatchShare:
    """Which part of every batch a process renders; by default all of it."""

    index: int = 0
    """Of the process."""
    count: int = 1
    """Processes."""
    common: Optional[torch.Generator] = None
    """Draws the same numbers in every process; None for torch's default, where there is only one."""

    def portion(self, total: int) -> int:
        """How many of `total` alike things fall to this process."""
        return total * (self.index + 1) // self.count - total * self.index // self.count

    def cut(self, bundle: RayBundle, batch: Dict[str, Tensor]) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """This process's rays of a batch sorted by participant and frame: a run of each participant's; whole patches
        where the batch is of patches (`patch_size`)."""
        if self.count == 1:
            return bundle, batch
        participants, num_rays = bundle.metadata["participant"].view(-1), len(bundle)
        unit = max(1, int(batch.get("patch_size", 1))) ** 2
        _, sizes = torch.unique_consecutive(participants, return_counts=True)
        rows, start = [], 0
        for size in sizes.tolist():
            pieces = size // unit
            first, last = (pieces * index // self.count * unit for index in (self.index, self.index + 1))
            rows.append(torch.arange(start + first, start + last, device=participants.device))
            start += size
        chosen = torch.cat(rows)
        return bundle[chosen], {
            name: value[chosen] if value.ndim and len(value) == num_rays else value for name, value in batch.items()
        }


def choose_processes(asked: Optional[int], device: torch.device | str, world_size: int, rays: int) -> int:
    """How many processes share a step.

    Args:
        asked: by the configuration; None for as many as pay.
        device: of the model.
        world_size: of nerfstudio's own distribution over GPUs.
        rays: of a batch.

    Raises:
        DialogueError: more than one are asked for where that cannot be.
    """
    if asked is not None and asked < 1:
        raise DialogueError(f"training takes at least one process, not --pipeline.processes {asked}.")
    possible = torch.device(device).type == "cpu" and world_size == 1 and sys.platform.startswith("linux")
    # A daemon, such as a worker of a pool, must not have children.
    possible = possible and not multiprocessing.current_process().daemon
    if asked is None:
        if not possible:
            return 1
        cores = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
        return max(1, min(cores, MOST_PROCESSES, rays // FEWEST_RAYS))
    if asked > 1 and not possible:
        raise DialogueError(
            f"--pipeline.processes {asked} needs Linux, a model on the CPU and a training that is not itself a worker; "
            "leave the option out."
        )
    return asked


class SharedSteps:
    """The other processes of a training, and the steps that they share with this one.

    Args:
        pipeline: forked as it is now, on a CPU; its `weighted_losses` computes a share's terms.
        count: processes, this one included, two or more.
    """

    def __init__(self, pipeline: Any, count: int):
        self._pipeline = weakref.ref(pipeline)
        self._all_threads = torch.get_num_threads()
        model = pipeline.model
        _share_memory(model)
        for module in model.modules():
            if isinstance(module, HashGrid):
                # Now, or every process would say it.
                module.announce_kernel()
        self._parameters = [p for p in model.parameters() if p.requires_grad and p.numel()]
        seed = torch.initial_seed()
        context = multiprocessing.get_context("fork")
        self._gradients: List[List[Tensor]] = []
        self._processes: List[Any] = []
        self._connections: List[multiprocessing.connection.Connection] = []
        self._busy = False
        model.share = BatchShare(0, count, torch.Generator().manual_seed(seed))
        torch.set_num_threads(THREADS)
        # What was made before the fork must not be collected behind it: the threads and libraries that garbage may
        # belong to are not there, and its destructors crash.
        gc.collect()
        gc.freeze()
        for index in range(1, count):
            ours, theirs = context.Pipe()
            gradients = [_shared(torch.zeros_like(parameter)) for parameter in self._parameters]
            share = BatchShare(index, count, torch.Generator().manual_seed(seed))
            process = context.Process(
                target=_serve,
                args=(pipeline, share, theirs, [*self._connections, ours], self._parameters, gradients, seed),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._gradients.append(gradients)
            self._processes.append(process)
            self._connections.append(ours)
        gc.unfreeze()
        torch.set_num_threads(self._all_threads)
        self._finalizer = weakref.finalize(self, _end, self._connections, self._processes)

    def step(self, step: int) -> Tuple[Any, Dict[str, Tensor], Dict[str, Tensor]]:
        """What `get_train_loss_dict` returns: this process's outputs; losses whose values, and whose gradients by
        `backward()`, are those of the whole batch; metrics, averaged over the processes.

        Raises:
            DialogueError: as the model raises it in any of the processes, or another process was ended from outside.
            RuntimeError: anything else went wrong in another process; its traceback is in the message.
        """
        pipeline = self._pipeline()
        assert pipeline is not None
        try:
            self._finish()
            for connection in self._connections:
                _send(connection, (step, torch.is_autocast_enabled("cpu")))
            self._busy = True
            # Until the step's gradients are there; the others wait while this process does more.
            torch.set_num_threads(THREADS)
            # Made before the graph of this process's rays: autograd works backwards in time, so that it waits for the
            # others only when this process has done its share.
            others = _GradientsOfOthers.apply(self, *self._parameters) if torch.is_grad_enabled() else torch.zeros(())
            outputs, terms, weights, metrics, rays = pipeline.weighted_losses(step)
            replies: List[Tuple[Weighted, Dict[str, float], float]] = [self._answer(i) for i in range(self._others)]
            totals = _totals([{name: (0.0, weights[name]) for name in terms}, *(reply[0] for reply in replies)])
            for connection in self._connections:
                _send(connection, totals)
        except BaseException:
            self.close()
            raise
        losses = {name: term * (weights[name] / totals[name]) for name, term in terms.items()}
        for theirs, _, _ in replies:
            for name, (value, weight) in theirs.items():
                losses[name] = losses.get(name, torch.zeros(())) + value * (weight / totals[name])
        first = next(iter(losses))
        losses[first] = losses[first] + others
        all_rays = rays + sum(reply[2] for reply in replies)
        for name in metrics:
            metrics[name] = (metrics[name] * rays + sum(reply[1][name] * reply[2] for reply in replies)) / all_rays
        return outputs, losses, metrics

    def gradients(self) -> List[Optional[Tensor]]:
        """The other processes' gradients of the step, added up; waits for them."""
        sums: List[Optional[Tensor]] = [None] * len(self._parameters)
        for given, gradients in zip(self._finish(), self._gradients, strict=True):
            for row, (has, gradient) in enumerate(zip(given, gradients, strict=True)):
                if has:
                    sums[row] = gradient if sums[row] is None else sums[row] + gradient
        return sums

    def close(self) -> None:
        """Ends the other processes. Steps that follow are this process's alone."""
        if self._processes:
            self._finalizer()
            self._processes = []
            torch.set_num_threads(self._all_threads)
            pipeline = self._pipeline()
            if pipeline is not None:
                pipeline.model.share = BatchShare()

    @property
    def closed(self) -> bool:
        return not self._processes

    @property
    def _others(self) -> int:
        return len(self._connections)

    def _finish(self) -> List[List[bool]]:
        """Waits for the others' backward passes, if they are at any; for each, which parameters have a gradient."""
        if not self._busy:
            return []
        self._busy = False
        pipeline = self._pipeline()
        given = []
        for index in range(self._others):
            has, drives = self._answer(index)
            given.append(has)
            if pipeline is not None:
                pipeline.model.trained_drives.update(drives)
        torch.set_num_threads(self._all_threads)
        return given

    def _answer(self, index: int) -> Any:
        connection, process = self._connections[index], self._processes[index]
        try:
            if not connection.poll(ANSWER_SECONDS):
                raise DialogueError(
                    f"a process that shares the training steps has not answered for {ANSWER_SECONDS:.0f} s; train with "
                    "--pipeline.processes 1 (ns-dialogue demo: --processes 1)."
                )
            kind, *content = connection.recv()
        except (EOFError, OSError) as error:
            process.join(5.0)
            raise DialogueError(
                f"a process that shares the training steps was ended from outside (exit code {process.exitcode}; out "
                "of memory?); train with --pipeline.processes 1 (ns-dialogue demo: --processes 1)."
            ) from error
        if kind == "user error":
            raise DialogueError(content[0])
        if kind == "error":
            raise RuntimeError(f"a process that shares the training steps failed:\n{content[0]}")
        return content[0] if len(content) == 1 else tuple(content)


class _GradientsOfOthers(torch.autograd.Function):
    """Zero, whose gradient with respect to the parameters is what the other processes computed."""

    @staticmethod
    def forward(ctx, steps, *parameters):
        ctx.steps = steps
        return parameters[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        try:
            gradients = ctx.steps.gradients()
        except BaseException:
            ctx.steps.close()
            raise
        scale = float(grad)
        # autograd may keep what it is given as the parameter's gradient, and the memory is written to in the next step.
        return None, *(None if gradient is None else gradient * scale for gradient in gradients)


def _totals(terms: Sequence[Weighted]) -> Dict[str, float]:
    """Each term's weight over all processes; a whisker instead of nothing."""
    totals: Dict[str, float] = {}
    for of_one in terms:
        for name, (_, weight) in of_one.items():
            totals[name] = totals.get(name, 0.0) + weight
    return {name: max(total, 1e-9) for name, total in totals.items()}


def _serve(
    pipeline: Any,
    share: BatchShare,
    connection: multiprocessing.connection.Connection,
    foreign: Sequence[multiprocessing.connection.Connection],
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    seed: int,
) -> None:
    """What another process does: a share of each step that process 0 announces, until that ends."""
    # Ctrl-C reaches every process of a terminal; process 0 decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in foreign:
        # Copies of process 0's ends: a pipe closes only with its last copy.
        other.close()
    torch.manual_seed(seed + share.index)
    pipeline.model.share = share
    try:
        while True:
            step, mixed = connection.recv()
            _share_of_step(pipeline, step, mixed, connection, parameters, gradients)
    except (EOFError, OSError):
        # Process 0 is gone.
        return
    except DialogueError as error:
        connection.send(("user error", str(error)))
    except Exception:  # whatever it is, process 0 raises it
        connection.send(("error", traceback.format_exc()))


def _share_of_step(
    pipeline: Any,
    step: int,
    mixed_precision: bool,
    connection: multiprocessing.connection.Connection,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
) -> None:
    pipeline.train()
    for parameter in parameters:
        parameter.grad = None
    with torch.autocast("cpu", enabled=mixed_precision):
        _, terms, weights, metrics, rays = pipeline.weighted_losses(step)
    weighted = {name: (float(term.detach()), weights[name]) for name, term in terms.items()}
    connection.send(("losses", weighted, {name: float(value) for name, value in metrics.items()}, rays))
    totals = connection.recv()
    loss = sum(term * (weights[name] / totals[name]) for name, term in terms.items())
    if torch.is_tensor(loss) and loss.requires_grad:
        loss.backward()
    given = [parameter.grad is not None for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is not None:
            gradient.copy_(parameter.grad)
    connection.send(("done", given, sorted(pipeline.model.trained_drives)))


def _send(connection: multiprocessing.connection.Connection, message: Any) -> None:
    # If it ended, reading from it says how.
    with contextlib.suppress(OSError):
        connection.send(message)


def _end(connections: Sequence[multiprocessing.connection.Connection], processes: Sequence[Any]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        # Idle, it ends as soon as its pipe closes; in a step, at its next message.
        process.join(1.0)
        if process.is_alive():
            process.terminate()
            process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()


def _share_memory(model: nn.Module) -> None:
    """Moves what changes in training into memory that forked processes share."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.numel():
            parameter.data = _shared(parameter.data)
    for module in model.modules():
        if isinstance(module, OccupancyGrid):
            for name in ("density", "visibility", "occupied"):
                module._buffers[name] = _shared(module._buffers[name])


def _shared(tensor: Float[Tensor, "*size"] | Bool[Tensor, "*size"]) -> Tensor:
    """A copy in anonymous memory that processes forked later map too."""
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape).copy_(tensor)
