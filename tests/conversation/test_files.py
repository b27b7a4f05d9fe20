"""Atomic writes leave the old file or the whole new one; damaged files are named."""

import errno
import os
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path, read_json, read_npz, write_json, write_npz


def test_failed_write_keeps_old_content_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "file.json"
    write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("interrupted")
    assert read_json(target) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_temporary_path_is_beside_the_target_with_its_suffix(tmp_path):
    with atomic_path(tmp_path / "deep" / "video.mp4") as temporary:
        assert temporary.parent == tmp_path / "deep" and temporary.suffix == ".mp4"
        temporary.write_bytes(b"x")
    assert (tmp_path / "deep" / "video.mp4").read_bytes() == b"x"


def test_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(DialogueError, match=r"file\.json.*disk is full"), atomic_path(tmp_path / "file.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_really_full_disk(tmp_path):
    """A file size limit makes the operating system itself refuse the write, as a full disk does."""
    program = f"""
        import resource, signal
        import numpy as np
        from dialogue_nerfstudio.conversation.errors import DialogueError
        from dialogue_nerfstudio.conversation.files import write_npz
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_npz({str(tmp_path / "big.npz")!r}, noise=np.random.default_rng(0).random(100_000))
        except DialogueError as error:
            print(error)
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "big.npz could not be written because the disk is full" in result.stdout
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DialogueError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(DialogueError, match=r"bad\.npz"):
        read_npz(tmp_path / "bad.npz")
    with pytest.raises(DialogueError, match=r"none\.npz does not exist"):
        read_npz(tmp_path / "none.npz")


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "pickle.npz", objects=np.array([{"code": "runs"}], dtype=object))
    with pytest.raises(DialogueError, match=r"pickle\.npz"):
        read_npz(tmp_path / "pickle.npz")


def test_npz_round_trip(tmp_path):
    write_npz(tmp_path / "a.npz", x=np.arange(5))
    assert np.array_equal(read_npz(tmp_path / "a.npz")["x"], np.arange(5))


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "nan.json", {"psnr": float("nan")})
    assert not list(tmp_path.iterdir())
