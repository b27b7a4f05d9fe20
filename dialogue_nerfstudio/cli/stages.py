"""Stages that are not run twice: each leaves a record of its options, its seconds and its result beside its files."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dialogue_nerfstudio.conversation.files import read_json, write_json


class StageLog:
    """Runs named stages of a command once, in order.

    A stage is skipped when its record says that it finished with the same options, everything before it was skipped
    too, and the files it promises are there. Records live in `folder`, one JSON a stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.stale = False

    def run(self, name: str, options: dict[str, Any], files: list[Path], action: Callable[[], Any]) -> Any:
        """The result of `action` (JSON-serialisable), or the recorded one of the last time.

        Args:
            name: of the stage and of its record.
            options: JSON-serialisable; another value makes the stage run again, and all after it.
            files: what must exist afterwards.
            action: does the work.
        """
        record_path = self.folder / f"{name}.json"
        options = json.loads(json.dumps(options, default=str))
        if not self.stale and record_path.is_file() and all(file.exists() for file in files):
            record = read_json(record_path)
            if record["options"] == options:
                self.seconds[name] = record["seconds"]
                return record["result"]
        self.stale = True
        # Gone before the work starts, so that an interrupted stage is not taken for a finished one.
        record_path.unlink(missing_ok=True)
        start = time.perf_counter()
        result = action()
        self.seconds[name] = time.perf_counter() - start
        write_json(record_path, {"options": options, "seconds": self.seconds[name], "result": result})
        return result
