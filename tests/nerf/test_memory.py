"""Freed memory stays with the process."""

import resource
import subprocess
import sys
import textwrap

import pytest

from dialogue_nerfstudio.nerf.memory import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_a_step_that_repeats_asks_the_kernel_for_nothing():
    code = """
        import resource
        import numpy as np
        from dialogue_nerfstudio.nerf.memory import keep_freed_memory
        assert keep_freed_memory()
        def step():
            return [np.ones(1 << 20, dtype=np.float32) for _ in range(8)]
        step(), step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout
    pages = 5 * 8 * (4 << 20) // resource.getpagesize()
    assert int(faults) < pages / 100


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
