"""The command line's own behaviour: help that explains, fast start, exit codes."""

import dataclasses
import re
import subprocess
import sys

import pytest

from dialogue_nerfstudio.cli import main as main_module
from dialogue_nerfstudio.conversation.errors import DialogueError

COMMANDS = ("process", "render", "simulate", "demo", "doctor")


def test_help_names_every_command(cli):
    result = cli("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_explains_itself(cli, command):
    result = cli(command, "--help")
    assert result.code == 0
    for option in dataclasses.fields(getattr(main_module, command.capitalize())):
        name = option.name.removeprefix("as_").replace("_", "-")
        start = re.search(rf"^\W*--{name}(?![-\w])", result.stdout, re.MULTILINE)
        start = start or re.search("positional arguments", result.stdout)
        block = re.split(r"\n\W*--(?=[a-z])", result.stdout[start.end() :])[0]
        assert len(re.findall(r"[a-z]{2,}", block)) >= 3, f"--{name} has no explanation"


def test_help_loads_neither_torch_nor_nerfstudio():
    script = (
        "import sys\n"
        "sys.argv = ['ns-dialogue', '--help']\n"
        "from dialogue_nerfstudio.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(','.join(sorted(loaded & {'torch', 'nerfstudio', 'cv2', 'mediapipe', 'numba', 'librosa'})) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_console_script_exit_code_and_one_sentence(tmp_path):
    program = [sys.executable, "-m", "dialogue_nerfstudio.cli.main"]
    command = [*program, "render", "--load-config", str(tmp_path / "no.yml")]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr == f"Error: --load-config {tmp_path / 'no.yml'}: there is no such file.\n"
    assert list(tmp_path.iterdir()) == []


def test_unknown_command_is_refused(cli):
    assert cli("dance").code == 2


def test_interruption_is_130_and_bugs_are_not_hidden(cli, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module.Simulate, "run", interrupted)
    assert cli("simulate").code == 130

    def broken(self):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(main_module.Simulate, "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli("simulate")

    def refused(self):
        raise DialogueError("One sentence.")

    monkeypatch.setattr(main_module.Simulate, "run", refused)
    assert cli("simulate").stderr == "Error: One sentence.\n"
