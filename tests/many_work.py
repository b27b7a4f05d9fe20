"""Works for the tests of many recordings; the workers, processes of their own, import them from here."""

import os
import signal
import time
from pathlib import Path

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path, write_json
from dialogue_nerfstudio.process.stages import StageRunner


def staged(task, report):
    """Three stages that say in a log that they ran; task["die"] names a stage in whose middle the worker is killed, the
    first time."""
    root = Path(task["output"])
    runner = StageRunner(root, root / ".process", [], report)
    needs = []
    for stage in ("one", "two", "three"):

        def work(progress, stage=stage):
            _log(root, f"begun {stage}")
            progress(0.5)
            with atomic_path(root / f"{stage}.txt") as temporary:
                temporary.write_text(stage)
                if task.get("die") == stage and not (root / "killed").exists():
                    (root / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            _log(root, f"done {stage}")

        runner.run(stage, work, [root / f"{stage}.txt"], needs)
        needs = [stage]
    write_json(root / "conversation.json", {})
    return {"conversations": [{"folder": ".", "num_frames": 5, "participants": 2}]}


def _log(root: Path, line: str) -> None:
    with open(root.parent / f"{root.name}.log", "a") as stream:
        stream.write(line + "\n")


def says_its_process(task, report):
    """Leaves its process number and goes on until `task["go"]` exists."""
    Path(task["output"]).mkdir(parents=True, exist_ok=True)
    with open(Path(task["output"]) / "pids", "a") as stream:
        stream.write(f"{os.getpid()}\n")
    report("waiting", 1, 2)
    while not Path(task["go"]).exists():
        time.sleep(0.02)
    return staged(task, report)


def as_told(task, report):
    """Raises what the task says."""
    if task["how"] == "refuse":
        raise DialogueError("There is nobody in it.")
    if task["how"] == "bug":
        raise ZeroDivisionError("division by zero")
    if task["how"] == "full disk":
        raise DialogueError("The disk is full.") from OSError(28, "No space left on device")
    if task["how"] == "dies":
        os._exit(3)
    return staged(task, report)
