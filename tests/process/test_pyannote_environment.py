"""pyannote's environment: the real protocol, with a stand-in for pyannote in a real environment."""

import json
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.roles import SpeechSegment
from dialogue_nerfstudio.process.pyannote_environment import (
    STAMP,
    PyannoteConfig,
    check_pyannote,
    default_folder,
    diarize_with_pyannote,
    environment_python,
    install_pyannote,
)

STAND_IN = """
import os
from pathlib import Path

__version__ = "0.0-stand-in"


class GatedRepoError(Exception):
    pass


class Segment:
    def __init__(self, start, end):
        self.start, self.end, self.duration = start, end, end - start


class Output:
    def __init__(self, turns):
        self.speaker_diarization = self
        self.turns = turns

    def itertracks(self, yield_label):
        assert yield_label
        for index, (start, end, speaker) in enumerate(self.turns):
            yield Segment(start, end), index, speaker


class Pipeline:
    @classmethod
    def from_pretrained(cls, model, token=None):
        if os.path.isdir(model):
            assert os.environ["HF_HUB_OFFLINE"] == "1"
            return cls()
        assert "HF_HUB_OFFLINE" not in os.environ
        if token != "hf_right":
            raise GatedRepoError("401 Client Error\\nmore")
        return cls()

    def __call__(self, file, num_speakers=None):
        assert os.environ["PYANNOTE_METRICS_ENABLED"] == "0" and "PYTHONPATH" not in os.environ
        seconds = file["waveform"].shape[1] / file["sample_rate"]
        assert file["waveform"].shape[0] == 1 and abs(float(file["waveform"].abs().max()) - 0.5) < 1e-3
        return Output([(0.0, 0.5 * seconds, "SPEAKER_01"), (0.4 * seconds, seconds, f"SPEAKER_0{num_speakers}")])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment that finds this one's torch, and a stand-in instead of pyannote.audio."""
    folder = tmp_path_factory.mktemp("pyannote")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "pyannote" / "audio").mkdir(parents=True)
    (packages / "pyannote" / "audio" / "__init__.py").write_text(STAND_IN)
    (packages / "host.pth").write_text("\n".join(site.getsitepackages()))
    (folder / STAMP).write_text(json.dumps({"pyannote.audio": "0", "requirements": ""}))
    return folder


@pytest.fixture(autouse=True)
def _no_token(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("PYTHONPATH", "/nowhere")


SOUND = 0.5 * np.ones(32_000, np.float32)


def local_model(folder: Path, name: str = "pyannote.audio.pipelines.SpeakerDiarization") -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"pipeline:\n  name: {name}\n")
    return folder


def test_a_local_model_runs_offline_and_its_segments_come_back(environment, tmp_path):
    config = PyannoteConfig(str(local_model(tmp_path / "model")), folder=environment)
    assert diarize_with_pyannote(SOUND, 16_000, 2, config) == [
        SpeechSegment(0.0, 1.0, "SPEAKER_01"),
        SpeechSegment(0.8, 2.0, "SPEAKER_02"),
    ]


def test_a_local_model_may_name_no_class_but_pyannotes(environment, tmp_path):
    config = PyannoteConfig(str(local_model(tmp_path / "model", "os.system")), folder=environment)
    with pytest.raises(DialogueError, match=r"names the class os\.system"):
        diarize_with_pyannote(SOUND, 16_000, 2, config)


def test_a_gated_model_without_a_token_is_refused_before_anything_runs(environment):
    with pytest.raises(DialogueError, match=r"gated.*huggingface\.co/pyannote.*--hf-token or HF_TOKEN"):
        check_pyannote(PyannoteConfig(folder=environment))


def test_a_token_that_may_not_is_told_the_same_and_one_that_may_works(environment):
    with pytest.raises(DialogueError, match=r"gated \(GatedRepoError: 401 Client Error\).*accept its terms"):
        diarize_with_pyannote(SOUND, 16_000, 2, PyannoteConfig(token="hf_wrong", folder=environment))
    assert len(diarize_with_pyannote(SOUND, 16_000, 3, PyannoteConfig(token="hf_right", folder=environment))) == 2


def test_without_an_environment_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder() == tmp_path / "cache" / "dialogue-nerfstudio" / "pyannote"
    with pytest.raises(DialogueError, match="`ns-dialogue install-pyannote`, or use --diarizer default"):
        check_pyannote(PyannoteConfig())


def test_folders_that_are_no_model(environment, tmp_path):
    with pytest.raises(DialogueError, match="There is no folder"):
        check_pyannote(PyannoteConfig(str(tmp_path / "gone"), folder=environment))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DialogueError, match=r"no config\.yaml"):
        check_pyannote(PyannoteConfig(str(tmp_path / "empty"), folder=environment))


def test_a_broken_environment_says_so(environment, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(broken)], check=True)
    (broken / STAMP).write_text("{}")
    config = PyannoteConfig(str(local_model(tmp_path / "model")), folder=broken)
    with pytest.raises(DialogueError, match=r"pyannote failed.*ModuleNotFoundError"):
        diarize_with_pyannote(SOUND, 16_000, 2, config)


def test_an_installation_that_fails_leaves_nothing_and_others_files_alone(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"# nothing\n{tmp_path / 'gone-1.0-py3-none-any.whl'}\n")
    with pytest.raises(DialogueError, match=r"could not be built.*step 'pyannote"):
        install_pyannote(tmp_path / "made", requirements=requirements)
    assert not (tmp_path / "made").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DialogueError, match="holds other files"):
        install_pyannote(tmp_path / "mine", requirements=requirements)
    assert (tmp_path / "mine" / "letter.txt").is_file()


def test_a_whole_environment_is_not_built_again(environment):
    said: list[str] = []
    requirements = environment / "none.txt"
    requirements.write_text("")
    assert install_pyannote(environment, requirements=requirements, say=said.append) == environment
    assert "whole already" in said[0] and environment_python(environment).exists()
