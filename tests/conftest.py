"""Fixtures of all tests: seeds, and the real clips where they lie beside the checkout."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

# Triton decides when it is imported, which nerfstudio does, whether its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


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
