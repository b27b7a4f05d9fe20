"""Runs stages that remember being finished: the same inputs and options are not worked on twice, a half-written stage
is.

Conventions. A stage writes files under one root folder, each atomically. After its last file it leaves a stamp,
`<work>/<stage>.json`, with its fingerprint and the sizes of its outputs. The stage is finished if that stamp is there,
the fingerprint is the one asked for, and every output still has its size. The fingerprint covers the source files
(path, size, time of change), the stage's options and version, and the fingerprints of the stages it builds on.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_json, write_json

Progress = Callable[[str, float, float], None]
"""Called as progress(stage, done, total), many times a stage."""


def source_fingerprint(paths: Sequence[Path]) -> List[List[Any]]:
    """What tells one version of input files from another without reading them."""
    stats = [(path, path.stat()) for path in map(Path, paths)]
    return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


class StageRunner:
    """Runs or skips stages in order.

    Args:
        root: the folder the outputs are in.
        work: the folder for stamps, inside `root`.
        sources: what `source_fingerprint` says of the inputs.
        progress: told about every stage.
        result: the file that says all stages are finished; it is removed before the first one that is not.
    """

    def __init__(
        self,
        root: Path,
        work: Path,
        sources: List[List[Any]],
        progress: Optional[Progress] = None,
        result: str = "conversation.json",
    ):
        self.root, self.work, self._sources, self._progress = Path(root), Path(work), sources, progress
        self._result = self.root / result
        self._fingerprints: Dict[str, str] = {}
        self.seconds: Dict[str, float] = {}
        """How long each stage took when it ran."""
        self.ran: List[str] = []
        """The stages that were not finished before."""

    def fingerprint(self, name: str, version: int, options: Dict[str, Any], needs: Sequence[str]) -> str:
        content = [name, version, self._sources, options, [self._fingerprints[need] for need in needs]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def is_finished(self, name: str, fingerprint: str) -> bool:
        """Whether the stamp is there, fits, and its outputs are as they were."""
        stamp = self._stamp(name)
        if stamp is None or stamp.get("fingerprint") != fingerprint:
            return False
        return all(_size(self.root / output) == size for output, size in stamp["outputs"].items())

    def run(
        self,
        name: str,
        work: Callable[[Callable[[float], None]], None],
        outputs: Sequence[Path],
        needs: Sequence[str] = (),
        options: Optional[Dict[str, Any]] = None,
        version: int = 1,
    ) -> None:
        """Runs `work(progress)` unless the stage is finished.

        Args:
            name: the stage, also the stamp's name.
            work: does it, reporting fractions of itself, and has written `outputs` when it returns.
            outputs: files under the root.
            needs: stages whose outputs it reads; they were run before.
            options: everything else the result depends on, JSON-serialisable.
            version: raised when the stage's code changes its result.

        Raises:
            DialogueError: whatever `work` says to the user; RuntimeError where it did not write an output.
        """
        fingerprint = self.fingerprint(name, version, options or {}, needs)
        self._fingerprints[name] = fingerprint
        if not self.is_finished(name, fingerprint):
            self._result.unlink(missing_ok=True)
            (self.work / f"{name}.json").unlink(missing_ok=True)
            self._report(name, 0.0)
            start = time.perf_counter()
            work(lambda fraction: self._report(name, fraction))
            sizes = {str(Path(output).relative_to(self.root)): _size(output) for output in outputs}
            missing = [output for output, size in sizes.items() if size is None]
            if missing:
                raise RuntimeError(f"stage {name} did not write {', '.join(missing)}")
            seconds = time.perf_counter() - start
            write_json(self.work / f"{name}.json", {"fingerprint": fingerprint, "seconds": seconds, "outputs": sizes})
            self.ran.append(name)
        self.seconds[name] = float((self._stamp(name) or {}).get("seconds", 0.0))
        self._report(name, 1.0)

    def _stamp(self, name: str) -> Optional[Dict[str, Any]]:
        try:
            stamp = read_json(self.work / f"{name}.json")
        except DialogueError:
            # A missing or torn stamp says the same: not finished.
            return None
        return stamp if isinstance(stamp, dict) and isinstance(stamp.get("outputs"), dict) else None

    def _report(self, name: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(name, fraction, 1.0)


def _size(path: Path) -> Optional[int]:
    return path.stat().st_size if path.is_file() else None
