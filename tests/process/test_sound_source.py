"""Sound read piece by piece is the sound, silent outside of itself, from memory and from a file alike."""

import numpy as np
import pytest
import soundfile

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.sound_source import ArraySound, SoundFile


@pytest.mark.parametrize("start, stop", [(0, 50), (-7, 4), (40, 60), (-5, -2), (55, 70), (-3, 80), (10, 10)])
def test_pieces_are_those_of_the_sound_between_silences(tmp_path, start, stop):
    audio = np.random.default_rng(0).uniform(-1, 1, 50).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    padded = np.pad(audio, 100)
    for source in (ArraySound(audio), SoundFile(tmp_path / "a.wav")):
        assert len(source) == 50
        np.testing.assert_array_equal(source.read(start, stop), padded[100 + start : 100 + stop])


def test_a_file_may_be_taken_for_shorter(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(50, 0.5, np.float32), 16000, subtype="FLOAT")
    source = SoundFile(tmp_path / "a.wav", length=30)
    assert len(source) == 30 and source.read(0, 50).tolist() == [0.5] * 30 + [0.0] * 20


def test_other_files_are_refused_by_name(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.zeros((50, 2)), 16000)
    soundfile.write(tmp_path / "fast.wav", np.zeros(50), 48000)
    (tmp_path / "text.wav").write_text("no sound")
    for name in ("two.wav", "fast.wav", "text.wav", "none.wav"):
        with pytest.raises(DialogueError, match=name):
            SoundFile(tmp_path / name)
