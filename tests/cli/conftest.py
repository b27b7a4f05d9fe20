"""Run the command line in this process, and see what it left."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.cli.training import train_avatars


@dataclass
class Result:
    """What a command left."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(capsys) -> Callable[..., Result]:
    """Call as cli("render", "--load-config", path, …)."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit_:  # argument errors and --help leave through tyro
            code = exit_.code
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli, tmp_path) -> Callable[..., str]:
    """Run a command that must be refused with one sentence, touching nothing; returns the sentence."""

    def run(*args: object, naming: Iterable[str]) -> str:
        before = fingerprint(tmp_path)
        result = cli(*args)
        assert result.code == 2, result
        assert "Traceback" not in result.stdout + result.stderr
        # What renders is said once beforehand, and is no part of the refusal.
        lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("rendering: ")]
        assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
        sentence = lines[0].removeprefix("Error: ")
        for part in naming:
            assert str(part) in sentence, f"{part!r} is not named in: {sentence}"
        after = fingerprint(tmp_path)
        assert {path: after.get(path) for path in before} == before, "an input was changed"
        return sentence

    return run


def fingerprint(folder: Path) -> dict[str, str]:
    """Relative path → hash, of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Trained:
    """A checkpoint and what it was trained on."""

    config: Path
    data: Path
    size: int
    iterations: int


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Iterator[Trained]:
    """A tiny conversation, learned for a few steps through nerfstudio's trainer."""
    folder = tmp_path_factory.mktemp("trained")
    size, iterations = 32, 30
    data = write_tiny_conversation(folder / "tiny", size=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        config = train_avatars(data, folder / "outputs", iterations, seed=0, resolution=size)
        yield Trained(config, data, size, iterations)
