"""Reads the numbers out of a pickle without running it: an interpreter of pickle's opcodes that never calls anything.

Unpickling is running a program; `pickle` calls whatever it names. Here a name stays a name: GLOBAL leaves a `Name`,
REDUCE, NEWOBJ and BUILD leave a `Call` that only records, and an opcode that is not needed for arrays, lists and
dictionaries is refused. Afterwards the records of NumPy arrays, SciPy's sparse matrices and chumpy's arrays (which old
face models are made of) are decoded from their bytes, for plain numbers only. Neither `pickle` nor anything that a file
names is ever imported or called.
"""

import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

from dialogue_nerfstudio.conversation.errors import DialogueError

MAX_BYTES = 2 << 30
"""Largest file that is read."""

_ARRAY_NAMES = {
    f"{module}.{name}"
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    for name in ("_reconstruct", "_frombuffer", "scalar")
}
_MARK = object()


@dataclass(frozen=True)
class Name:
    """What GLOBAL names."""

    text: str


@dataclass
class Call:
    """What would have been made by calling a name."""

    name: str
    arguments: tuple
    state: Any = None


@dataclass
class _Machine:
    """Stack and memo of one run."""

    stack: List[Any] = field(default_factory=list)
    memo: Dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        return self.stack.pop()

    def to_mark(self) -> List[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def read_pickled_arrays(path: Path) -> Dict[str, Any]:
    """The dictionary in a pickle (or in a .npy that holds one), with every array of numbers as a NumPy array.

    Values that are no numbers, texts, lists or arrays are left out.

    Raises:
        DialogueError: the file is missing, is no such pickle, or holds opcodes or kinds that are not data.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise DialogueError(f"{path} cannot be read ({error.strerror}); give the path of a file.") from error
    if size > MAX_BYTES:
        raise DialogueError(f"{path} has {size >> 20} MB, which no face model has; give another file.")
    try:
        value = _decoded(_run(_without_npy_header(data)))
    except DialogueError as error:
        raise DialogueError(f"{path}: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise DialogueError(f"{path} is not a readable pickle ({error}); get the file again.") from error
    if isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
        value = value.reshape(-1)[0]
    if not isinstance(value, dict):
        raise DialogueError(f"{path} does not hold a dictionary of arrays; give a face model's file.")
    return {key: item for key, item in value.items() if isinstance(key, str) and not isinstance(item, (Call, Name))}


def _without_npy_header(data: bytes) -> bytes:
    """A .npy of objects is a header and a pickle."""
    if not data.startswith(b"\x93NUMPY"):
        return data
    width = 2 if data[6] == 1 else 4
    return data[8 + width + int.from_bytes(data[8 : 8 + width], "little") :]


def _run(data: bytes) -> Any:
    machine = _Machine()
    stack = machine.stack
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return machine.pop()
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            machine.pop()
        elif name == "POP_MARK":
            machine.to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            machine.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            machine.memo[len(machine.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(machine.memo[argument])
        elif name in _BUILDERS:
            _BUILDERS[name](machine)
        elif name == "GLOBAL":
            stack.append(Name(argument.replace(" ", ".")))
        else:
            raise DialogueError(f"it holds the pickle opcode {name}, which no table of numbers needs; it is not read.")
    raise ValueError("it ends too early")


_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)


def _tuple(count: int):
    def build(machine: _Machine) -> None:
        items = tuple(machine.stack[-count:])
        if len(items) < count:
            raise ValueError("its stack is empty")
        del machine.stack[-count:]
        machine.stack.append(items)

    return build


def _list(machine: _Machine) -> None:
    machine.stack.append(machine.to_mark())


def _tuple_to_mark(machine: _Machine) -> None:
    machine.stack.append(tuple(machine.to_mark()))


def _dict(machine: _Machine) -> None:
    items = machine.to_mark()
    machine.stack.append(dict(zip(items[::2], items[1::2], strict=True)))


def _append(machine: _Machine) -> None:
    item = machine.pop()
    _only(machine.stack[-1], list).append(item)


def _appends(machine: _Machine) -> None:
    items = machine.to_mark()
    _only(machine.stack[-1], list).extend(items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _only(machine.stack[-1], dict)[key] = value


def _set_items(machine: _Machine) -> None:
    items = machine.to_mark()
    _only(machine.stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(Name(f"{_only(module, str)}.{_only(name, str)}"))


def _call(machine: _Machine) -> None:
    arguments, name = machine.pop(), machine.pop()
    machine.stack.append(Call(_only(name, Name).text, _only(arguments, tuple)))


def _build(machine: _Machine) -> None:
    state = machine.pop()
    _only(machine.stack[-1], Call).state = state


def _only(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} was expected, not a {type(value).__name__}")
    return value


_BUILDERS = {
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _tuple_to_mark,
    "LIST": _list,
    "DICT": _dict,
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
}


# From records to arrays.


def _decoded(value: Any, depth: int = 0) -> Any:
    """The value with the records of arrays as arrays; a record of anything else stays a record."""
    if depth > 30:
        raise ValueError("it is nested too deeply")
    if type(value) is dict:
        return {key: _decoded(item, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_decoded(item, depth + 1) for item in value)
    if not isinstance(value, Call):
        return value
    name = value.name
    if name in ("copy_reg._reconstructor", "copyreg._reconstructor"):
        name = _only(value.arguments[0], Name).text
    if name in _ARRAY_NAMES:
        return _array(value, depth)
    if name.startswith("scipy.sparse"):
        return _sparse(value, "csc" in name, depth)
    if name.startswith("chumpy."):
        # A chumpy array keeps its numbers under x; its other entries are links to what depends on it.
        inner = value.state.get("x") if type(value.state) is dict else None
        return value if inner is None else _decoded(inner, depth + 1)
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, Call) and value.name == "_codecs.encode" and value.arguments[1:] in (("latin1",), ()):
        value = value.arguments[0]
    if isinstance(value, Call) and value.name in ("__builtin__.bytes", "builtins.bytes") and not value.arguments:
        return b""
    if type(value) is str:
        return value.encode("latin-1")
    return bytes(_only(value, bytearray if type(value) is bytearray else bytes))


def _dtype(value: Any) -> np.dtype:
    code = _only(value, Call).arguments[0]
    code = code.decode("ascii") if type(code) is bytes else _only(code, str)
    order = value.state[1] if type(value.state) is tuple and len(value.state) > 1 else "|"
    if code == "O" or code == "O8":
        return np.dtype(object)
    if len(code) > 3 or code[0] not in "biuf" or not code[1:].isdigit():
        raise ValueError(f"an array of kind {code!r} is no array of numbers")
    return np.dtype(("<" if order not in ("<", ">") else order) + code)


def _array(value: Call, depth: int) -> Any:
    kind = value.name.rpartition(".")[2]
    if kind == "scalar":
        return np.frombuffer(_bytes(value.arguments[1]), _dtype(value.arguments[0]))[0]
    if kind == "_frombuffer":
        content, dtype, shape, order = value.arguments
        fortran = order == "F"
        dtype = _dtype(dtype)
    else:
        _, shape, dtype, fortran, content = _only(value.state, tuple)
        dtype = _dtype(dtype)
    shape = tuple(int(length) for length in shape)
    if dtype.hasobject:
        items = np.empty(len(_only(content, list)), object)
        for index, item in enumerate(content):
            items[index] = _decoded(item, depth + 1)
        return items.reshape(shape)
    return np.frombuffer(_bytes(content), dtype).reshape(shape, order="F" if fortran else "C").copy()


def _sparse(value: Call, by_column: bool, depth: int) -> Any:
    """A csc or csr matrix, dense."""
    state = {key.lstrip("_"): _decoded(item, depth + 1) for key, item in _only(value.state, dict).items()}
    rows, columns = (int(length) for length in state["shape"])
    if rows * columns > 1 << 27:
        raise ValueError(f"a matrix of {rows} x {columns} is too large")
    starts = np.asarray(state["indptr"], np.int64)
    if len(starts) != (columns if by_column else rows) + 1:
        raise ValueError("a sparse matrix does not fit its shape")
    major = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    minor = np.asarray(state["indices"], np.int64)
    dense = np.zeros((rows, columns))
    where = (minor, major) if by_column else (major, minor)
    if (np.minimum(*where) < 0).any():
        raise ValueError("a sparse matrix has a negative index")
    np.add.at(dense, where, np.asarray(state["data"], np.float64))
    return dense
