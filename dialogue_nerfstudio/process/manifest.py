"""The manifest of many recordings: what became of each, readable at any time, safe against being killed.

Conventions. `manifest.jsonl` holds a JSON object a line. A change of state appends a line, flushed to the disk, and the
last line about a recording counts; a line torn by a crash is at the end and is left out. At the start and at the end of
a run the file is rewritten, atomically, with one line a recording. A lock beside it keeps a second run out.

States: `waiting`, `running`, `done`; `refused`, where a sentence says what is wrong with the recording, which another
try would say again; `failed`, where it ended without one (killed, out of memory, a bug, a full disk).
"""

import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, Iterable, List, Literal, Optional, TextIO

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path

State = Literal["waiting", "running", "done", "refused", "failed"]

MANIFEST = "manifest.jsonl"


@dataclass
class Entry:
    """One recording."""

    source: str
    """Its path, absolute."""
    output: str
    """Its folder, under the manifest's."""
    fingerprint: str
    """What tells this version of its files, these options and this program from others."""
    state: State = "waiting"
    attempts: int = 0
    """How often it was begun in this run and those it resumes."""
    reason: str = ""
    """Why it is refused or failed."""
    seconds: float = 0.0
    """How long the last try took."""
    conversations: List[Dict[str, Any]] = field(default_factory=list)
    """Folder, frames and participants of what it became."""


class Manifest:
    """Reads what earlier runs left, and keeps it up to date. Use as a context manager: it holds the lock.

    Args:
        folder: where the conversations and the manifest are.

    Raises:
        DialogueError: another run has the lock, or the file is not a manifest.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / MANIFEST
        self.entries: Dict[str, Entry] = {}
        """By source."""
        self._journal: Optional[TextIO] = None
        self._lock: Optional[TextIO] = None

    def __enter__(self) -> "Manifest":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path.with_suffix(".lock"), "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise DialogueError(
                f"Another run is working in {self.path.parent}: wait for it, or give another --output."
            ) from error
        self.entries = read_manifest(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self.rewrite(self.entries.values())
            self._journal.close()
            self._journal = None
        self._lock.close()

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Makes these the entries, and the file one line for each."""
        self.entries = {entry.source: entry for entry in entries}
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            stream.writelines(_line(entry) for entry in self.entries.values())
        if self._journal is not None:
            self._journal.close()
        self._journal = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed when the context is left)

    def record(self, entry: Entry) -> None:
        """Appends an entry's new state."""
        self.entries[entry.source] = entry
        self._journal.write(_line(entry))
        self._journal.flush()
        os.fsync(self._journal.fileno())


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), ensure_ascii=False) + "\n"


def read_manifest(path: Path) -> Dict[str, Entry]:
    """The last state of each recording, by source; nothing where there is no file.

    Raises:
        DialogueError: it is not a manifest.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return {}
    known = {f.name for f in fields(Entry)}
    entries: Dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            entry = Entry(**{name: value for name, value in values.items() if name in known})
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            if number == len(lines):
                # Every whole line ends with a line break: this one was being written when its program was killed.
                break
            raise DialogueError(f"{path}, line {number}: not an entry of a manifest ({error}).") from error
        entries[entry.source] = entry
    return entries
