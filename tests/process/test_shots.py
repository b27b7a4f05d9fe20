"""Cuts at known frames, and none where there is only movement."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from media import tone, write_video

from dialogue_nerfstudio.process.decode import probe
from dialogue_nerfstudio.process.shots import describe_shots, find_cuts, shots_between


def room(seed: int, count: int, speed: float = 1.0) -> list:
    """A still room with somebody swaying in it, and a little noise."""
    rng = np.random.default_rng(seed)
    back = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    frames = []
    for index in range(count):
        frame = back.copy()
        x = 80 + round(25 * np.sin(speed * index / 5))
        cv2.ellipse(frame, (x, 70), (22, 32), 0, 0, 360, tuple(rng.integers(90, 100, 3).tolist()), -1)
        frames.append(np.clip(frame.astype(int) + rng.integers(-3, 4, frame.shape), 0, 255).astype(np.uint8))
    return frames


@pytest.mark.parametrize("fps", [25, 50])
def test_cuts_are_found_to_the_frame(tmp_path: Path, fps: int):
    frames = room(0, 60) + room(1, 40) + room(2, 50)
    source = probe(write_video(tmp_path / "a.mp4", frames, fps=fps, audio=tone(len(frames) / fps)))
    seen = []
    cuts = find_cuts(source, seen.append)
    np.testing.assert_allclose(np.array(cuts) * fps / 25, [60, 100], atol=fps / 25 - 1)
    assert seen[-1] == 1.0


def test_fast_movement_is_no_cut(tmp_path: Path):
    source = probe(write_video(tmp_path / "a.mp4", room(0, 100, speed=4.0), audio=tone(4.0)))
    assert find_cuts(source) == []


def test_shots_of_several_videos():
    assert shots_between([[]], 100) == [(0, 100)]
    assert shots_between([[40], [60, 40, 120]], 100) == [(0, 40), (40, 60), (60, 100)]
    assert describe_shots([(0, 40), (40, 100)], 25.0) == "1: 0.0-1.6 s, 2: 1.6-4.0 s"
