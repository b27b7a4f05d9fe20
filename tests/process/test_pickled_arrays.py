import pickle
import sys
import types

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.pickled_arrays import read_pickled_arrays


@pytest.fixture
def chumpy(monkeypatch):
    """A module that looks like chumpy while pickling, and is gone while reading."""
    module = types.ModuleType("chumpy.ch")

    class Ch:
        def __init__(self, x):
            self.x = x

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    module.Ch = Ch
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)
    return Ch


def _arrays() -> dict:
    rng = np.random.default_rng(0)
    return {
        "doubles": rng.normal(size=(5, 3)),
        "fortran": np.asfortranarray(rng.normal(size=(4, 6)).astype(np.float32)),
        "numbers": np.arange(12, dtype=np.uint32).reshape(3, 4),
        "big_endian": np.arange(3, dtype=">f8"),
        "flags": np.array([True, False]),
        "scalar": np.float64(2.5),
        "empty": np.zeros((0, 3)),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_come_back(tmp_path, protocol, chumpy):
    arrays = _arrays()
    sparse = csc_matrix(np.diag([1.0, 2.0, 0.0, 4.0])[:, :3])
    rows = csr_matrix(np.array([[0.0, 5.0], [6.0, 0.0]]))
    value = {**arrays, "J": sparse, "R": rows, "ch": chumpy(arrays["doubles"]), "text": "lrotmin", "list": [1, 2.0]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    found = read_pickled_arrays(tmp_path / "a.pkl")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["J"], sparse.toarray())
    np.testing.assert_array_equal(found["R"], rows.toarray())
    np.testing.assert_array_equal(found["ch"], arrays["doubles"])
    assert found["text"] == "lrotmin" and found["list"] == [1, 2.0]


def test_numpys_own_file_of_a_dictionary(tmp_path):
    np.save(tmp_path / "a.npy", {"x": np.arange(5.0)}, allow_pickle=True)
    np.testing.assert_array_equal(read_pickled_arrays(tmp_path / "a.npy")["x"], np.arange(5.0))


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_nothing_is_run(tmp_path, protocol):
    """Whatever a pickle would call stays uncalled, wherever it hides."""
    trap = tmp_path / "trap"
    for value in (
        {"v_template": _Attack(str(trap))},
        {"x": [_Attack(str(trap)), {"y": _Attack(str(trap))}]},
        {"o": np.array([_Attack(str(trap))], object)},
        {b"key": 1, "x": np.arange(3.0), "a": _Attack(str(trap))},
    ):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
        try:
            found = read_pickled_arrays(tmp_path / "a.pkl")
            assert not any(callable(item) for item in found.values())
        except DialogueError:
            pass
        assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch trap'\ntR.",  # a call at the top
        b"(S'touch trap'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch trap'\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # an extension
        b"Psomething\n.",  # a persistent id
        b"\x80\x04}\x8c\x01a\x8c\x02os\x8c\x06system\x93s.",  # a name as a value
        b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s",  # ends too early
        b"not a pickle at all",
        b"",
        b"\x80\x02" + b"(" * 5 + b".",
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
    ],
)
def test_what_is_not_data(tmp_path, content, monkeypatch):
    called = []
    monkeypatch.setattr("os.system", lambda command: called.append(command))
    (tmp_path / "a.pkl").write_bytes(content)
    try:
        assert read_pickled_arrays(tmp_path / "a.pkl") == {}
    except DialogueError as error:
        assert "a.pkl" in str(error)
    assert not called


def test_lengths_are_checked(tmp_path):
    good = pickle.dumps({"a": np.arange(4.0)}, 2)
    (tmp_path / "a.pkl").write_bytes(good.replace(b"K\x04\x85", b"K\x05\x85"))
    with pytest.raises(DialogueError, match="not a readable pickle"):
        read_pickled_arrays(tmp_path / "a.pkl")
