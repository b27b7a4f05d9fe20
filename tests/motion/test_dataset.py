"""Windows are what their sources hold, simulated and recorded; every rank sees its own; bad sources get a sentence."""

import numpy as np
import pytest
from safetensors import safe_open
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation.simulate.motion_hours import MotionHoursConfig, simulate_motion_hours
from dialogue_nerfstudio.motion.dataset import MotionDataset, epoch_windows

CONFIG = MotionHoursConfig(hours=8 * 10.0 / 3600.0, num_people=6, conversation_seconds=10.0, seed=3)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "data"
    simulate_motion_hours(CONFIG, folder, workers=1)
    return folder


def test_windows_are_slices_of_the_shards(simulated):
    dataset = MotionDataset([simulated], window=60, with_mel=True)
    drawn = dataset.draw(16, np.random.default_rng(0))
    assert drawn.own.mel.shape == (16, 192, 80)
    for index in range(16):
        person, partner = int(drawn.person[index]), int(drawn.partner_person[index])
        start = int(drawn.start[index])
        assert start % 5 == 0
        found = 0
        for path in sorted(simulated.glob("shard-*.safetensors")):
            with safe_open(path, framework="numpy") as shard:
                poses, mel = shard.get_tensor("head_pose"), shard.get_tensor("mel")
                for own in range(2):
                    if np.array_equal(poses[own, start : start + 60], drawn.own.head_pose[index]):
                        found += 1
                        np.testing.assert_array_equal(
                            poses[1 - own, start : start + 60], drawn.partner.head_pose[index]
                        )
                        first = round(start * 3.2)
                        np.testing.assert_array_equal(mel[own, first : first + 192], drawn.own.mel[index])
        assert found == 1 and person != partner


def test_end_to_end_windows_cover_every_person_once(simulated):
    dataset = MotionDataset([simulated], window=60)
    windows = dataset.batch(range(len(dataset)))
    assert len(dataset) == 6 * 2 * (250 // 60)
    keys = {
        (int(p), int(q), int(s), float(x))
        for p, q, s, x in zip(
            windows.person, windows.partner_person, windows.start, windows.own.head_pose[:, 0, 0], strict=True
        )
    }
    assert len(keys) == len(dataset)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_are_disjoint_and_complete(world_size):
    parts = [epoch_windows(101, 5, 2, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(101))
    assert not np.array_equal(epoch_windows(101, 5, 2), epoch_windows(101, 5, 3))


def test_recorded_conversation_joins(simulated, tmp_path):
    recorded = write_tiny_conversation(tmp_path / "tiny", num_frames=100)
    dataset = MotionDataset([simulated, recorded], window=20)
    assert dataset.num_people == 8 and dataset.person_ids[-1] == "tiny/p1"
    assert set(dataset.split_people("eval")) >= {6, 7}
    alone = MotionDataset([recorded], split="eval", window=20)
    assert len(alone) == 2 and alone.batch([0]).start.tolist() == [80]
    assert alone.batch([0]).own.expected_head_pose is None
