"""Fixtures of all tests: seeds, and the real clips where they lie beside the checkout."""

import importlib
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

# Workers side by side, and the processes that their tests start, share the cores: with all threads each, they mostly
# wait for one another.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_threads = max(1, (os.cpu_count() or 1) // _workers)
if _workers > 1:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(_threads))
    torch.set_num_threads(_threads)

# Triton decides when it is imported, which nerfstudio does, whether its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if _workers > 1:
    # The import hook that checks shapes compiles anew whatever our modules import first, torch's and nerfstudio's
    # thousands of files too, and where Python writes no bytecode it does so in every process. Only for many tests: one
    # that needs none of these would wait for them.
    for name in (
        "beartype.door",
        "nerfstudio.engine.trainer",
        "numba",
        "scipy.optimize",
        "sklearn.mixture",
        "torchmetrics",
    ):
        importlib.import_module(name)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real clips; tests that use it are marked `shared`."""
    folder = Path(os.environ.get("DIALOGUE_CLIPS", Path(__file__).parents[2] / "shared" / "clips"))
    if not folder.is_dir():
        pytest.skip(f"the real clips are not at {folder}; set DIALOGUE_CLIPS to their folder")
    return folder
