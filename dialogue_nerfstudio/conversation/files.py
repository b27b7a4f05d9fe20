"""Atomic writes and checked reads: a file is either the old one or the whole new one, never a half."""

import errno
import json
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

import numpy as np

from dialogue_nerfstudio.conversation.errors import DialogueError

_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}\.[a-z0-9]+")
"""Names that `atomic_path` gives, which are mkstemp's."""


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside `target`, with its suffix; on success it takes `target`'s place.

    Whatever goes wrong, `target` keeps what it held and the temporary file is removed.

    Raises:
        DialogueError: the disk is full, or the folder may not be written to.
    """
    target = Path(target)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _disk_errors(target):
            yield temporary
            # mkstemp makes private files; a result has the permissions any other new file would have.
            os.chmod(temporary, 0o666 & ~_umask())
            _fsync(temporary)
            os.replace(temporary, target)
            _fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Removes what `atomic_path` left in a folder whose program was killed; nothing may be writing there."""
    for path in Path(folder).rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DialogueError(
                f"{target} could not be written because the disk is full or its quota is used up; "
                "free some space and run the same command again, it goes on where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DialogueError(f"{target} could not be written: no permission; choose another folder.") from error
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DialogueError: it is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DialogueError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path} is not readable as JSON ({error}); restore it or make it again.") from error


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes named arrays as a compressed .npz, atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_npz(path: Path) -> Dict[str, np.ndarray]:
    """Reads every array of an .npz into memory; pickled objects are refused, so no code of a stranger runs.

    Raises:
        DialogueError: it is missing, damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DialogueError(f"{path} does not exist.") from error
    except Exception as error:  # np.load raises zipfile, zlib, struct, EOF, OS and value errors for damaged files
        raise DialogueError(f"{path} is not a readable .npz file ({error}); restore it or make it again.") from error
