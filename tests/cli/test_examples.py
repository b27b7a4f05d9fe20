"""The examples run as they are documented."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation.motion import Motion

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *args: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def conversation(tmp_path_factory):
    return write_tiny_conversation(tmp_path_factory.mktemp("examples") / "tiny")


def test_read_a_conversation(conversation):
    lines = run("01_read_a_conversation.py", conversation).splitlines()
    assert lines[0].startswith("1.0 s, 24 frames, features: mel")
    assert lines[1].startswith("p0 speaks 0.5 s, turns its head by up to ") and lines[1].endswith("frame 0 is 32x32")
    assert len(lines) == 3


def test_render_a_frame(trained, tmp_path):
    run("02_render_a_frame.py", trained.config, "--frame", 3, "--participant", "p1", "--output", tmp_path / "frame.png")
    with Image.open(tmp_path / "frame.png") as picture:
        width, height = picture.size
        pixels = np.asarray(picture).astype(float)
    assert (width, height) == (2 * 128 + 2, 128)
    assert np.abs(pixels[:, :128] - pixels[:, -128:]).mean() > 0.5, "the side view is the front view"


def test_drive_an_avatar(conversation, tmp_path):
    run("03_drive_an_avatar.py", conversation, tmp_path / "nod.npz", "--seconds", 2)
    motion = Motion.load(tmp_path / "nod.npz")
    assert motion.num_frames == 50
    assert np.rad2deg(motion.head_pose[:, 0].max()) == pytest.approx(6, abs=0.1)
    assert motion.blink.max() == pytest.approx(1, abs=0.05)
