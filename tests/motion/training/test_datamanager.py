"""A short recording may count for more than its length beside hours of others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from motion_stand_in import InventedWindows

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion.training.datamanager import MotionDataManager, MotionDataManagerConfig
from dialogue_nerfstudio.motion.windows import join_windows


class _Marked(InventedWindows):
    """Windows of one folder, all by the same person."""

    def __init__(self, window: int, needs_mel: bool, person: int):
        super().__init__(window, needs_mel, seed=person)
        self.mark = person

    def draw(self, count, rng):
        windows = super().draw(count, rng)
        windows.person = torch.full_like(windows.person, self.mark)
        return windows


@pytest.fixture
def marked(monkeypatch):
    def opened(self, split, needs_mel, alone=False):
        return _Marked(self.window, needs_mel, 1 if alone else 0)

    monkeypatch.setattr(MotionDataManager, "_open", opened)


def _persons(**options) -> list[int]:
    config = MotionDataManagerConfig(data=Path("own"), windows_per_batch=8, **options)
    return MotionDataManager(config, window=30, needs_mel=True).next_train(3).person.tolist()


def test_the_share_of_data_is_kept_in_every_batch(marked):
    assert sum(_persons(sources=(Path("others"),), data_share=0.25)) == 2
    assert sum(_persons(sources=(Path("others"),))) == 0
    # Alone, the data is all there is.
    assert sum(_persons(data_share=0.25)) == 0
    with pytest.raises(DialogueError, match="0 to 1, not 2"):
        _persons(sources=(Path("others"),), data_share=2.0)


def test_joined_windows_have_what_all_have():
    rng = np.random.default_rng(0)
    with_mel, without = InventedWindows(30, True, seed=0).draw(2, rng), InventedWindows(30, False, seed=0).draw(3, rng)
    joined = join_windows([with_mel, without])
    assert len(joined.person) == 5 and joined.own.mel is None
    assert torch.equal(joined.own.head_pose[2:], without.own.head_pose)
    assert join_windows([with_mel, with_mel]).own.mel.shape[0] == 4
