"""pyannote.audio in an environment of its own: built by one command, spoken to through files.

It cannot share an environment with nerfstudio (numpy 2, protobuf 5 and more), so `install_pyannote` makes a virtual
environment in the user's cache folder, with pinned versions, and `diarize_with_pyannote` runs `pyannote_worker.py`
there as a subprocess: a WAV file in, an RTTM file out. Its telemetry is off; with a model in a local folder nothing
looks at the network.

The default model is gated: its terms are accepted once on its page, and a token of the same account downloads it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
from jaxtyping import Float

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_json, write_json
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm
from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE, save_wav

DEFAULT_MODEL = "pyannote/speaker-diarization-community-1"
INSTALL_COMMAND = "ns-dialogue install-pyannote"
REQUIREMENTS = Path(__file__).with_name("pyannote_requirements.txt")
WORKER = Path(__file__).with_name("pyannote_worker.py")
STAMP = "installed.json"
"""Written when an environment is whole: a half-built one has none."""


@dataclass
class PyannoteConfig:
    """Where pyannote's environment and model are."""

    model: str = DEFAULT_MODEL
    """Name of a diarization pipeline on the Hugging Face hub, or a folder that holds one (config.yaml …)."""
    token: Optional[str] = None
    """Token of the Hugging Face hub; None for the environment's HF_TOKEN, or that of `hf auth login`."""
    folder: Optional[Path] = None
    """The environment; None for the one in the user's cache folder."""

    @property
    def is_local(self) -> bool:
        return Path(self.model).is_dir()


def default_folder() -> Path:
    """The environment in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dialogue-nerfstudio" / "pyannote"


def environment_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install_pyannote(
    folder: Optional[Path] = None,
    index_url: Optional[str] = None,
    requirements: Path = REQUIREMENTS,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Builds the environment and proves that pyannote imports in it; its folder. A whole one is left as it is.

    Args:
        folder: where; None for the user's cache folder.
        index_url: package index in place of pip's own, for example one of CPU builds of torch, beside PyPI.
        requirements: what to install.
        say: told about each step.

    Raises:
        DialogueError: the folder holds something else, or a step fails; the half-built environment is removed.
    """
    folder = Path(folder or default_folder()).expanduser().absolute()
    wanted = "\n".join(_pins(requirements))
    if (folder / STAMP).is_file() and read_json(folder / STAMP).get("requirements") == wanted:
        say(f"{folder} is whole already.")
        return folder
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
            raise DialogueError(f"{folder} holds other files: give an empty or a new folder with --folder.")
        shutil.rmtree(folder)
    python = environment_python(folder)
    extra = ["--extra-index-url", index_url] if index_url else []
    steps = {
        "an empty environment": [sys.executable, "-m", "venv", str(folder)],
        "pyannote.audio and what it needs (some gigabytes)": [
            *(
                str(python),
                "-I",
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--no-input",
                "--no-compile",
                *extra,
            ),
            *_pins(requirements),
        ],
        "the import": [str(python), "-I", "-c", "import pyannote.audio; print(pyannote.audio.__version__)"],
    }
    try:
        for what, command in steps.items():
            say(f"{what} …")
            done = subprocess.run(command, capture_output=True, text=True, env=_environment(local=False), check=False)
            if done.returncode != 0:
                lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
                errors = [line for line in lines if line.startswith(("ERROR", "Error"))] or lines
                reason = (errors or ["no message"])[-1]
                raise DialogueError(
                    f"pyannote's environment could not be built in {folder} at the step '{what}' ({reason.strip()}): "
                    "see that the disk has 10 GB free and that PyPI can be reached, then run the command again."
                )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    version = done.stdout.split()[-1]
    write_json(folder / STAMP, {"pyannote.audio": version, "requirements": wanted})
    say(f"pyannote.audio {version} is in {folder}.")
    return folder


def _pins(requirements: Path) -> list[str]:
    """What to install: everything on Python 3.11 and later; before that some of it has no release, so pyannote and
    torch are pinned and pip finds the rest."""
    lines = [line.strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    if sys.version_info >= (3, 11):
        return pins
    return [line for line in pins if line.split("==")[0] in ("pyannote-audio", "torch", "torchaudio", "torchcodec")]


def check_pyannote(config: PyannoteConfig) -> Path:
    """What can be refused before any long stage runs; the environment's Python.

    Raises:
        DialogueError: the environment is not there, the model's folder is none, or a gated model has no token.
    """
    folder = Path(config.folder or default_folder()).expanduser().absolute()
    if not (folder / STAMP).is_file() or not environment_python(folder).exists():
        where = "" if config.folder is None else f" --folder {folder}"
        raise DialogueError(
            f"The diarizer pyannote has an environment of its own, which is not there ({folder}): build it once with "
            f"`{INSTALL_COMMAND}{where}`, or use --diarizer default."
        )
    model = Path(config.model).expanduser()
    if model.is_dir():
        if not (model / "config.yaml").is_file():
            raise DialogueError(
                f"{model} holds no config.yaml: give the folder of a pyannote diarization pipeline, for example a "
                f"clone of {DEFAULT_MODEL}."
            )
    elif model.is_absolute() or config.model.startswith((".", "~")) or config.model.count("/") != 1:
        raise DialogueError(
            f"There is no folder {config.model}: give that of a pyannote pipeline, or a name on the Hugging Face hub "
            f"such as {DEFAULT_MODEL}."
        )
    elif not _has_token(config) and not _is_downloaded(config.model):
        raise DialogueError(_gated_sentence(config.model, "no token was given"))
    return environment_python(folder)


def diarize_with_pyannote(
    audio: Float[np.ndarray, " num_samples"],
    sample_rate: int,
    num_speakers: Optional[int],
    config: Optional[PyannoteConfig] = None,
) -> list[SpeechSegment]:
    """Segments of speech with pyannote's voices "SPEAKER_00", "SPEAKER_01" …; they may overlap.

    Args:
        num_speakers: how many voices there are; None finds out.

    Raises:
        DialogueError: what `check_pyannote` raises, or the model cannot be had or run.
    """
    config = config or PyannoteConfig()
    python = check_pyannote(config)
    if sample_rate != SAMPLE_RATE:
        raise ValueError(f"sound must have {SAMPLE_RATE} Hz, not {sample_rate}")
    with tempfile.TemporaryDirectory(prefix="dialogue-pyannote-") as name:
        work = Path(name)
        save_wav(work / "audio.wav", audio)
        request = {
            "audio": str(work / "audio.wav"),
            "rttm": str(work / "voices.rttm"),
            "answer": str(work / "answer.json"),
            "model": str(Path(config.model).expanduser().absolute()) if config.is_local else config.model,
            "num_speakers": num_speakers,
        }
        write_json(work / "request.json", request)
        environment = _environment(config.is_local)
        if config.token:
            environment["HF_TOKEN"] = config.token
        done = subprocess.run(
            [str(python), "-I", str(WORKER), str(work / "request.json")],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if not (work / "answer.json").is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise DialogueError(
                f"pyannote ended without an answer (exit code {done.returncode}: {(lines or ['no message'])[-1]}): "
                f"remove {python.parent.parent} and build it again with `{INSTALL_COMMAND}`, or use --diarizer default."
            )
        answer = read_json(work / "answer.json")
        if not answer["ok"]:
            raise DialogueError(_sentence(answer, config))
        return read_rttm(work / "voices.rttm")


def _sentence(answer: dict[str, Any], config: PyannoteConfig) -> str:
    if answer["kind"] == "gated":
        return _gated_sentence(config.model, answer["message"])
    if answer["kind"] == "missing":
        return (
            f"The model {config.model} cannot be had from the Hugging Face hub ({answer['message']}): check its name "
            "and the connection, or give the folder of a downloaded one with --pyannote-model."
        )
    return (
        f"pyannote failed with the model {config.model} ({answer['message']}): give another with --pyannote-model, or "
        "use --diarizer default."
    )


def _gated_sentence(model: str, reason: str) -> str:
    return (
        f"The model {model} is gated ({reason}): accept its terms on https://huggingface.co/{model}, then give a token "
        "of that account with --hf-token or HF_TOKEN, or the folder of a downloaded model with --pyannote-model."
    )


def _environment(local: bool) -> dict[str, str]:
    """This process's environment without what would lead the other Python astray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["PYANNOTE_METRICS_ENABLED"] = "0"
    if local:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _hub_home() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or base / "huggingface")


def _has_token(config: PyannoteConfig) -> bool:
    if config.token or os.environ.get("HF_TOKEN"):
        return True
    return Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").is_file()


def _is_downloaded(model: str) -> bool:
    hub = Path(os.environ.get("HF_HUB_CACHE") or _hub_home() / "hub")
    return any((hub / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.yaml"))
