"""A recording's arrays are kept beside it, made again when damaged, and do without a writable folder."""

import numpy as np
import pytest
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion import mapped
from dialogue_nerfstudio.motion.mapped import TRACKS_NAME, recorded_arrays


@pytest.fixture
def recorded(tmp_path):
    return write_tiny_conversation(tmp_path / "tiny", num_frames=50)


def test_analysed_once(recorded, monkeypatch):
    first = recorded_arrays(recorded)
    assert first["head_pose"].shape == (2, 50, 6) and first["gaze"].shape == (2, 50, 4)
    assert first["mel"].shape == (2, 160, 80) and first["mel"].dtype == np.float16
    monkeypatch.setattr(mapped, "_analyse", lambda conversation: pytest.fail("analysed again"))
    again = recorded_arrays(recorded)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])


def test_made_again_when_damaged_or_when_roles_change(recorded):
    before = {name: values.copy() for name, values in recorded_arrays(recorded).items()}
    path = recorded / TRACKS_NAME
    path.write_bytes(path.read_bytes()[:500])
    np.testing.assert_array_equal(recorded_arrays(recorded)["mel"], before["mel"])
    roles = recorded / "roles.rttm"
    roles.write_text(roles.read_text().replace(" p0 ", " px ").replace(" p1 ", " p0 ").replace(" px ", " p1 "))
    after = recorded_arrays(recorded)
    np.testing.assert_array_equal(after["speaking"], before["speaking"][::-1])
    assert not np.array_equal(after["prosody"], before["prosody"])


def test_a_folder_that_may_not_be_written_to(recorded, monkeypatch):
    expected = {name: values.copy() for name, values in recorded_arrays(recorded).items()}
    (recorded / TRACKS_NAME).unlink()

    def forbidden(*_):
        raise DialogueError("no permission; choose another folder.")

    monkeypatch.setattr(mapped, "write_shard", forbidden)
    with pytest.warns(UserWarning, match="kept in memory"):
        arrays = recorded_arrays(recorded)
    assert not (recorded / TRACKS_NAME).exists()
    for name, values in expected.items():
        np.testing.assert_allclose(arrays[name].astype(np.float32), values.astype(np.float32), atol=1e-3)
