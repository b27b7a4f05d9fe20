"""Face models by path in place of the shared basis: BFM 2009, BFM 2017 (and 2019), FLAME, ICT-FaceKit.

Conventions. A `FaceModel` is the file's content on its own mesh: V vertices, modes [modes, V, 3] scaled so that a
coefficient of 1 is one standard deviation (principal components) or the full movement (blendshapes). `face_basis`
finds the tracker's 478 landmarks on that mesh (see face_registration) and carries mean and modes to head space:
metres, 63 mm between the eyes. No file is ever unpickled or run; a pickle can only be converted, by reading its numbers
(see pickled_arrays).
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import (
    ExpressionBasis,
    expression_basis,
)
from dialogue_nerfstudio.conversation.files import read_npz
from dialogue_nerfstudio.process.face_registration import (
    IBUG_TO_LANDMARK,
    NUM_SURFACE,
    Correspondence,
    place_irises,
    register,
)
from dialogue_nerfstudio.process.head_pose import fit_similarity, rigid_landmarks, to_head_space
from dialogue_nerfstudio.process.pickled_arrays import read_pickled_arrays

KINDS = ("shared", "bfm2009", "bfm2017", "flame", "ict")
"""What --face-model takes."""

IPD = 0.063
"""Distance between the eyes of a basis in head space, metres; a person's own shape has the same by default."""

MAX_GEOMETRY = 80
"""Most modes of identity that are used, the first ones of a model."""

MAX_EXPRESSION = 64
"""Most modes of expression that are used; FLAME's first 50 and its jaw, and all of ICT-FaceKit's are fewer."""

FLAME_EXPRESSION = 50

STILL = 2e-4
"""A mode of expression that moves no landmark by this (metres) at coefficient 1 is left out: tongue, teeth."""

MAX_KNOWN_ERROR = 0.010
"""Largest root mean square (metres) by which published landmark vertices may miss the tracker's; beyond it the file has
another vertex order than the published one, and its shape alone is used."""

Place = Tuple[np.ndarray, np.ndarray]

# Vertices of the 68-point mark-up, from 0. ICT-FaceKit: its README. BFM: published landmark tables.
ICT_LANDMARKS = {
    27: 978, 30: 1140, 33: 1147, 36: 1507, 37: 1542, 38: 1537, 39: 1528, 40: 1518, 41: 1511, 42: 3742, 43: 3751,
    44: 3756, 45: 3721, 46: 3725, 47: 3732, 48: 5708, 51: 0, 54: 6213, 57: 5957, 60: 5702, 62: 5533, 64: 6207, 66: 5517,
}  # fmt: skip
BFM2017_LANDMARKS = {
    30: 8156, 36: 2602, 39: 5830, 42: 10390, 45: 13481, 48: 5522, 51: 8181, 54: 10857, 57: 8199, 60: 6291, 62: 8190,
    64: 10088, 66: 8191,
}  # fmt: skip
BFM2009_LANDMARKS = {
    30: 8319, 33: 8334, 36: 2088, 39: 5959, 42: 10603, 45: 14472, 48: 5006, 51: 8344, 54: 11714, 57: 8374, 62: 8354,
    66: 8366,
}  # fmt: skip
BFM_LANDMARK_NAMES = {
    "center.nose.tip": 30,
    "right.eye.corner_outer": 36,
    "right.eye.corner_inner": 39,
    "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45,
    "right.lips.corner": 48,
    "center.lips.upper.outer": 51,
    "left.lips.corner": 54,
    "center.lips.lower.outer": 57,
    "center.lips.upper.inner": 62,
    "center.lips.lower.inner": 66,
}


@dataclass
class FaceModel:
    """A face model as its file has it."""

    kind: str
    path: Path
    vertices: Float[np.ndarray, "v 3"]
    triangles: Int[np.ndarray, "f 3"]
    geometry: Float[np.ndarray, "g v 3"]
    """Modes of identity, one standard deviation each."""
    expression: Float[np.ndarray, "e v 3"]
    expression_names: Tuple[str, ...]
    blendshapes: bool = False
    """Whether a mode of expression is one movement (0 … 1) and no principal component."""
    known: Dict[int, Place] = field(default_factory=dict)
    """Landmark of the tracker → (three vertices, three weights), where known."""
    surely_known: bool = False
    """Whether `known` came with the file or from the user, and not from a published table."""


def detect_kind(path: Path) -> str:
    """Which of KINDS a file or folder is, or "basis" for what `ns-dialogue face-model` wrote.

    Raises:
        DialogueError: there is nothing, or nothing known.
    """
    path = Path(path)
    if not path.exists():
        raise DialogueError(f"There is no {path}: give a face model's file or folder.")
    if path.is_dir():
        for kind, names in _FOLDER_MARKS.items():
            if any(next(path.glob(name), None) for name in names):
                return kind
        raise DialogueError(
            f"The folder {path} holds no face model that is known (generic_neutral_mesh.obj for ICT-FaceKit, "
            "BFM_model_front.mat or 01_MorphableModel.mat for BFM 2009, model2017-1_*.h5 for BFM 2017, FLAME's .npz)."
        )
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return "bfm2017"
    if suffix == ".mat" or path.name in ("3DMM_info.npy", "Exp_Pca.bin"):
        return "bfm2009"
    if suffix == ".obj":
        return "ict"
    if suffix == ".npz":
        # Only the names of the arrays: a file with Python objects in it is refused later, by name.
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = set(archive.files)
        except Exception as error:  # as in read_npz, a damaged archive raises nearly anything
            raise DialogueError(f"{path} is not a readable .npz file ({error}); get the file again.") from error
        return "basis" if "format" in names else "flame"
    if suffix in (".safetensors", ".pkl", ".pickle"):
        return "flame"
    raise DialogueError(
        f"{path} is no face model that is known: give BFM's .mat or .h5, FLAME's .npz or .safetensors, the folder of "
        "ICT-FaceKit's .obj, or the .npz that `ns-dialogue face-model` writes."
    )


_FOLDER_MARKS: Dict[str, Tuple[str, ...]] = {
    "ict": ("generic_neutral_mesh.obj", "FaceXModel/generic_neutral_mesh.obj"),
    "bfm2009": ("BFM_model_front.mat", "facemodel_info.mat", "01_MorphableModel.mat", "3DMM_info.npy"),
    "bfm2017": ("model2017-1*.h5", "model2019*.h5"),
    "flame": ("*[Ff][Ll][Aa][Mm][Ee]*.npz", "*.safetensors", "generic_model.pkl", "flame*.pkl"),
}


def model_files(paths: Sequence[Path]) -> List[Path]:
    """The files themselves, and for a folder everything in it: what a change of the model shows in.

    Raises:
        DialogueError: there is none.
    """
    for path in paths:
        if not path.exists():
            raise DialogueError(f"There is no {path}: give a face model's file or folder.")
    inside = [p for path in paths if path.is_dir() for p in sorted(path.rglob("*")) if p.is_file()]
    return [path for path in paths if not path.is_dir()] + inside


def face_basis(
    kind: Optional[str],
    path: Optional[Path],
    landmarks: Optional[Path] = None,
    read_pickle: bool = False,
    progress: Optional[Callable[[str], None]] = None,
) -> ExpressionBasis:
    """The basis that options ask for.

    Args:
        kind: one of KINDS; None is the shared basis without a path and found from the path with one.
        path: the model's file or folder.
        landmarks: where its landmarks are (see `read_landmarks`); None uses what is known of the model, else its shape.
        read_pickle: whether a pickle's numbers may be read (without running it); refused otherwise.
        progress: told what is being done.

    Raises:
        DialogueError: the options exclude each other, the file is missing, of another kind, damaged, a pickle, or its
            mesh cannot be matched.
    """
    if path is None:
        if kind not in (None, "shared"):
            raise DialogueError(f"--face-model {kind} needs --face-model-path, the model's file or folder.")
        if landmarks is not None:
            raise DialogueError("--face-model-landmarks belongs to a --face-model-path, which is missing.")
        return expression_basis()
    path = Path(path)
    if kind == "shared":
        raise DialogueError(f"--face-model shared needs no file, but {path} was given: leave one of them out.")
    found = detect_kind(path)
    if found == "basis":
        basis = ExpressionBasis.load(path)
        if kind is not None and not basis.name.startswith(f"{kind}-"):
            raise DialogueError(f"{path} holds the basis {basis.name}, not one of {kind}: leave --face-model out.")
        return basis
    if kind is not None and found != kind:
        raise DialogueError(f"{path} looks like {found}, not {kind}: give another file, or leave --face-model out.")
    tell = progress or (lambda message: None)
    tell(f"reading {path.name}")
    model = load_face_model(path, read_pickle)
    if landmarks is not None:
        model = replace(model, known=read_landmarks(Path(landmarks), model), surely_known=True)
    tell("finding the landmarks on its mesh")
    return basis_of(model)[0]


def load_face_model(path: Path, read_pickle: bool = False) -> FaceModel:
    """What is in a face model's file or folder.

    Raises:
        DialogueError: it is missing, of another kind, damaged, incomplete, or a pickle.
    """
    path = Path(path)
    kind = detect_kind(path)
    if kind == "basis":
        raise DialogueError(f"{path} is a prepared basis, not a face model: give it with --face-model-path.")
    loaders = {"ict": _load_ict, "bfm2017": _load_bfm2017, "flame": _load_flame, "bfm2009": _load_bfm2009}
    model = loaders[kind](path, read_pickle)
    for what, array in (("mean face", model.vertices), ("identity", model.geometry), ("expression", model.expression)):
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            part = "vertex" if what == "mean face" else "mode"
            raise DialogueError(f"{path}: {what} is not a number at {part} {int(np.argmin(finite))}; get it again.")
    if len(model.expression) == 0:
        raise DialogueError(f"{path} has no modes of expression: give the model's version with expressions.")
    return model


def basis_of(model: FaceModel) -> Tuple[ExpressionBasis, Correspondence]:
    """The model's mean and modes at the tracker's landmarks, in head space.

    Raises:
        DialogueError: the mesh cannot be matched.
    """
    known = model.known if model.surely_known or _consistent(model) else {}
    where = register(model.vertices, model.triangles, str(model.path), known)
    mean = place_irises(where.scale * where.take(model.vertices) @ where.rotation.T + where.translation)
    mean, scale, turn, _ = to_head_space(mean, IPD, rigid_landmarks())
    turn = scale * where.scale * turn @ where.rotation
    geometry = where.take(model.geometry[:MAX_GEOMETRY]) @ turn.T
    expression = where.take(model.expression) @ turn.T
    moves = np.linalg.norm(expression[:, :NUM_SURFACE], axis=2).max(axis=1) > STILL
    expression = expression[moves][:MAX_EXPRESSION]
    names = tuple(name for name, moving in zip(model.expression_names, moves, strict=True) if moving)[:MAX_EXPRESSION]
    if not len(expression):
        raise DialogueError(f"{model.path}: no mode of expression moves the face; give a model with expressions.")
    limits = {"lower": 0.0, "upper": 1.5, "prior": 0.6} if model.blendshapes else LIMITS_OF_COMPONENTS
    basis = ExpressionBasis(
        name=model.kind,
        # What is written to a file are 32 bits; the fingerprint is of those.
        mean=_as_saved(mean),
        geometry=_as_saved(geometry),
        geometry_names=tuple(f"identity_{index}" for index in range(len(geometry))),
        expression=_as_saved(expression),
        expression_names=names,
        **limits,
    )
    return replace(basis, name=f"{model.kind}-{len(names)}-{basis.hash[:8]}"), where


LIMITS_OF_COMPONENTS = {"lower": -3.0, "upper": 3.0, "prior": 1.0}
"""Bounds and standard deviation of a principal component's coefficient."""


def _as_saved(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).astype(np.float64)


def _consistent(model: FaceModel) -> bool:
    """Whether published landmark vertices are where the tracker's are, up to a similarity."""
    inside = [i for i, (corners, _) in model.known.items() if (np.asarray(corners) < len(model.vertices)).all()]
    if len(inside) < 5 or len(inside) < len(model.known):
        return False
    places = np.array([model.known[i][1] @ model.vertices[model.known[i][0]] for i in inside])
    target = expression_basis().mean[inside]
    scale, rotation, translation = fit_similarity(places, target)
    error = scale * places @ rotation.T + translation - target
    return bool(np.sqrt((error**2).sum(axis=1).mean()) < MAX_KNOWN_ERROR)


def read_landmarks(path: Path, model: FaceModel) -> Dict[int, Place]:
    """Where a user's file says the landmarks are.

    A .txt or .json of 68 vertex numbers (the 68-point mark-up, from 0), or an .npz with `landmark_indices` (the
    tracker's), `lmk_face_idx` and `lmk_b_coords`, as published for FLAME.

    Raises:
        DialogueError: it is missing, unreadable or does not fit the mesh.
    """
    if path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        try:
            faces = np.asarray(arrays["lmk_face_idx"], np.int64)
            triples = zip(arrays["landmark_indices"], model.triangles[faces], arrays["lmk_b_coords"], strict=True)
            known = {
                int(i): (corners, np.asarray(w, np.float64)) for i, corners, w in triples if 0 <= int(i) < NUM_SURFACE
            }
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DialogueError(
                f"{path} is no landmark file ({error}): it needs landmark_indices, lmk_face_idx and lmk_b_coords."
            ) from error
        return known
    try:
        text = path.read_text(encoding="utf-8")
        numbers = json.loads(text) if path.suffix.lower() == ".json" else [int(word) for word in text.split()]
        numbers = [int(number) for number in numbers]
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise DialogueError(f"{path} is no list of 68 vertex numbers ({error}); give one as .txt or .json.") from error
    if len(numbers) != 68:
        raise DialogueError(f"{path} holds {len(numbers)} vertex numbers; the 68-point mark-up has 68.")
    if min(numbers) < 0 or max(numbers) >= len(model.vertices):
        raise DialogueError(f"{path} names vertices that {model.path} (0 … {len(model.vertices) - 1}) does not have.")
    return _at_vertices(dict(enumerate(numbers)))


def _at_vertices(table: Dict[int, int]) -> Dict[int, Place]:
    """Landmark places from the 68-point mark-up's vertices."""
    return {
        IBUG_TO_LANDMARK[point]: (np.array([vertex] * 3), np.array([1.0, 0.0, 0.0]))
        for point, vertex in table.items()
        if point in IBUG_TO_LANDMARK
    }


# ICT-FaceKit: a folder of .obj with the same vertices each.


def _load_ict(path: Path, read_pickle: bool) -> FaceModel:
    folder = path if path.is_dir() else path.parent
    folder = folder / "FaceXModel" if (folder / "FaceXModel").is_dir() else folder
    neutral_path = folder / "generic_neutral_mesh.obj"
    if not neutral_path.is_file():
        raise DialogueError(f"{folder} has no generic_neutral_mesh.obj: give ICT-FaceKit's folder FaceXModel.")
    neutral, triangles = _read_obj(neutral_path)
    others = sorted(p for p in folder.glob("*.obj") if p != neutral_path)
    identities = [p for p in others if p.stem.startswith("identity")][:MAX_GEOMETRY]
    # Lids and eyeballs have fields of their own in a motion.
    expressions = [p for p in others if not p.stem.startswith(("identity", "eyeBlink", "eyeLook", "tongue"))]

    def modes(paths: Sequence[Path]) -> np.ndarray:
        return np.stack([_same_obj(p, neutral) - neutral for p in paths]) if paths else np.zeros((0, *neutral.shape))

    return FaceModel(
        "ict",
        folder,
        neutral,
        triangles,
        modes(identities),
        modes(expressions),
        tuple(p.stem for p in expressions),
        blendshapes=True,
        known=_at_vertices(ICT_LANDMARKS),
    )


def _same_obj(path: Path, neutral: np.ndarray) -> np.ndarray:
    vertices, _ = _read_obj(path, faces=False)
    if vertices.shape != neutral.shape:
        raise DialogueError(f"{path} has {len(vertices)} vertices, generic_neutral_mesh.obj {len(neutral)}.")
    return vertices


def _read_obj(path: Path, faces: bool = True) -> Tuple[np.ndarray, np.ndarray]:
    """Vertices and faces (polygons as fans of triangles) of a Wavefront .obj."""
    places: List[str] = []
    polygons: List[List[int]] = []
    try:
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("v "):
                    places.append(line[2:])
                elif faces and line.startswith("f "):
                    polygons.append([int(corner.split("/")[0]) - 1 for corner in line.split()[1:]])
        vertices = np.array([place.split()[:3] for place in places], dtype=np.float64).reshape(-1, 3)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DialogueError(f"{path} is not a readable .obj file ({error}); get it again.") from error
    fans = [(p[0], p[k], p[k + 1]) for p in polygons for k in range(1, len(p) - 1)]
    return vertices, np.array(fans, np.int64).reshape(-1, 3)


# BFM 2017 and 2019: HDF5.


def _load_bfm2017(path: Path, read_pickle: bool) -> FaceModel:
    import h5py

    if path.is_dir():
        path = sorted([*path.glob("model2017-1*.h5"), *path.glob("model2019*.h5")])[0]
    try:
        with h5py.File(path, "r") as file:
            mean = np.asarray(file["shape/model/mean"], np.float64).reshape(-1, 3)
            cells = np.asarray(file["shape/representer/cells"], np.int64)
            geometry = _statistical(file["shape/model"], MAX_GEOMETRY)
            if "expression/model" not in file:
                raise DialogueError(f"{path} has no modes of expression: give the model's version with expressions.")
            expression = _statistical(file["expression/model"], MAX_EXPRESSION)
            mean = mean + np.asarray(file["expression/model/mean"], np.float64).reshape(-1, 3)
            named = file["metadata/landmarks/json"][()] if "metadata/landmarks/json" in file else b""
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DialogueError(f"{path} is not a BFM 2017 file ({error}); give model2017-1_*.h5.") from error
    triangles = cells.T if cells.shape[0] == 3 else cells
    known, sure = _named_landmarks(named, mean), True
    if len(known) < 5:
        known, sure = _at_vertices(BFM2017_LANDMARKS) if len(mean) == 53149 else {}, False
    names = tuple(f"expression_{index}" for index in range(len(expression)))
    return FaceModel("bfm2017", path, mean, triangles, geometry, expression, names, known=known, surely_known=sure)


def _statistical(group: Any, most: int) -> np.ndarray:
    basis, variance = group["pcaBasis"], np.asarray(group["pcaVariance"], np.float64).reshape(-1)
    count = min(most, len(variance), basis.shape[1])
    modes = np.asarray(basis[:, :count], np.float32) * np.sqrt(variance[:count]).astype(np.float32)
    return modes.T.reshape(count, -1, 3)


def _named_landmarks(content: Any, mean: np.ndarray) -> Dict[int, Place]:
    """The landmarks that a BFM file names, at their nearest vertices; nothing where it names none."""
    text = content if isinstance(content, (bytes, str)) else np.asarray(content).tobytes()
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    try:
        entries = json.loads(text.strip("\x00") or "[]")
        pairs = entries.items() if isinstance(entries, dict) else [(e["id"], e["coordinates"]) for e in entries]
        places = {BFM_LANDMARK_NAMES[name]: xyz for name, xyz in pairs if name in BFM_LANDMARK_NAMES}
        points = np.array(list(places.values()), np.float64).reshape(-1, 3)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Without names the file is still whole: published vertices or the shape take their place.
        return {}
    if not len(points) or not np.isfinite(mean).all():
        return {}
    nearest = cKDTree(mean).query(points)[1]
    return _at_vertices(dict(zip(places, (int(v) for v in nearest), strict=True)))


# BFM 2009: MATLAB files.


def _load_bfm2009(path: Path, read_pickle: bool) -> FaceModel:
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        names = ("BFM_model_front.mat", "facemodel_info.mat", "01_MorphableModel.mat", "3DMM_info.npy")
        path = next(folder / name for name in names if (folder / name).is_file())
    if path.name == "Exp_Pca.bin":
        path = folder / "01_MorphableModel.mat"
    if path.suffix == ".npy":
        return _load_adnerf_bfm(path, read_pickle)
    arrays = _read_mat(path)
    if "meanshape" in arrays and "exBase" in arrays:
        return _load_front_bfm(path, arrays)
    if "shapeMU" in arrays:
        return _load_original_bfm(path, arrays)
    raise DialogueError(
        f"{path} is no BFM 2009 file: it has neither shapeMU (01_MorphableModel.mat) nor meanshape, idBase and exBase "
        "(BFM_model_front.mat)."
    )


_MAT_NAMES = (
    *("shapeMU", "shapePC", "shapeEV", "tl"),
    *("meanshape", "idBase", "exBase", "tri", "keypoints"),
    "trimIndex",
)


def _read_mat(path: Path) -> Dict[str, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        arrays = loadmat(path, variable_names=_MAT_NAMES, mat_dtype=False)
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError, EOFError) as error:
        raise DialogueError(f"{path} is not a readable MATLAB file ({error}); get the file again.") from error
    return {
        name: np.asarray(value)
        for name, value in arrays.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf"
    }


def _columns(matrix: np.ndarray, num_vertices: int, most: int, where: Path) -> np.ndarray:
    """Modes [m, v, 3] from a matrix [3 v, m]."""
    if matrix.shape[0] != 3 * num_vertices:
        raise DialogueError(f"{where}: its modes have {matrix.shape[0]} rows for {num_vertices} vertices.")
    return np.asarray(matrix[:, :most], np.float32).T.reshape(-1, num_vertices, 3)


def _load_front_bfm(path: Path, arrays: Dict[str, np.ndarray]) -> FaceModel:
    missing = [name for name in ("idBase", "tri") if name not in arrays]
    if missing:
        raise DialogueError(f"{path} lacks {', '.join(missing)}: give a whole BFM_model_front.mat.")
    mean = arrays["meanshape"].astype(np.float64).reshape(-1, 3)
    known: Dict[int, Place] = {}
    if arrays.get("keypoints", np.zeros(0)).size == 68:
        known = _at_vertices(dict(enumerate(int(v) - 1 for v in arrays["keypoints"].reshape(-1))))
    expression = _columns(arrays["exBase"], len(mean), MAX_EXPRESSION, path)
    return FaceModel(
        "bfm2009",
        path,
        mean,
        arrays["tri"].astype(np.int64).reshape(-1, 3) - 1,
        _columns(arrays["idBase"], len(mean), MAX_GEOMETRY, path),
        expression,
        tuple(f"expression_{index}" for index in range(len(expression))),
        known=known,
    )


def _load_original_bfm(path: Path, arrays: Dict[str, np.ndarray]) -> FaceModel:
    folder = path.parent
    needed = ("Exp_Pca.bin", "std_exp.txt", "BFM_exp_idx.mat")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DialogueError(
            f"{path} has no expressions; they need {', '.join(missing)} beside it (or give BFM_model_front.mat, which "
            "has everything)."
        )
    if any(name not in arrays for name in ("shapePC", "shapeEV", "tl")):
        raise DialogueError(f"{path} lacks shapePC, shapeEV or tl: give the original 01_MorphableModel.mat.")
    mean = arrays["shapeMU"].astype(np.float64).reshape(-1, 3)
    trim = _read_mat(folder / "BFM_exp_idx.mat").get("trimIndex")
    if trim is None:
        raise DialogueError(f"{folder / 'BFM_exp_idx.mat'} has no trimIndex: get the file again.")
    kept = trim.astype(np.int64).reshape(-1) - 1
    if len(kept) == 0 or kept.min() < 0 or kept.max() >= len(mean):
        raise DialogueError(f"{folder / 'BFM_exp_idx.mat'} names vertices that {path.name} does not have.")
    content = np.fromfile(folder / "Exp_Pca.bin", np.uint8).tobytes()
    count = int.from_bytes(content[:4], "little", signed=True)
    size = 3 * len(kept)
    if not 0 < count < 1000 or len(content) != 4 * (1 + size * (1 + count)):
        raise DialogueError(
            f"{folder / 'Exp_Pca.bin'} does not hold {count} modes of {len(kept)} vertices; get the file again."
        )
    modes = np.frombuffer(content, "<f4", offset=4 + 4 * size).reshape(count, len(kept), 3)
    try:
        deviations = np.loadtxt(folder / "std_exp.txt").reshape(-1)
    except (OSError, ValueError) as error:
        raise DialogueError(f"{folder / 'std_exp.txt'} holds no numbers ({error}); get the file again.") from error
    if len(deviations) < count:
        raise DialogueError(f"{folder / 'std_exp.txt'} has {len(deviations)} numbers for {count} modes.")
    identity = _columns(arrays["shapePC"], len(mean), MAX_GEOMETRY, path)
    identity = identity * arrays["shapeEV"].reshape(-1)[: len(identity), None, None].astype(np.float32)
    renumber = np.full(len(mean), -1)
    renumber[kept] = np.arange(len(kept))
    triangles = renumber[arrays["tl"].astype(np.int64).reshape(-1, 3) - 1]
    table = {point: int(renumber[v]) for point, v in BFM2009_LANDMARKS.items() if v < len(mean) and renumber[v] >= 0}
    return FaceModel(
        "bfm2009",
        path,
        mean[kept],
        triangles[(triangles >= 0).all(axis=1)],
        identity[:, kept],
        modes * deviations[:count, None, None].astype(np.float32),
        tuple(f"expression_{index}" for index in range(count)),
        known=_at_vertices(table),
    )


def _load_adnerf_bfm(path: Path, read_pickle: bool) -> FaceModel:
    """3DMM_info.npy of AD-NeRF's tools, whose faces are in topology_info.npy beside it; both are pickles."""
    _refuse_pickle(path, read_pickle)
    info, topology = read_pickled_arrays(path), read_pickled_arrays(path.parent / "topology_info.npy")
    try:
        mean = (np.asarray(info["mu_shape"]) + np.asarray(info["mu_exp"])).astype(np.float64).reshape(-1, 3)
        triangles = np.asarray(topology["tris"], np.int64).reshape(-1, 3)

        def modes(name: str, deviations: str, most: int) -> np.ndarray:
            matrix = np.asarray(info[name], np.float32)[:most].reshape(-1, len(mean), 3)
            return matrix * np.asarray(info[deviations], np.float32).reshape(-1)[: len(matrix), None, None]

        geometry = modes("b_shape", "sig_shape", MAX_GEOMETRY)
        expression = modes("b_exp", "sig_exp", MAX_EXPRESSION)
    except (KeyError, ValueError, TypeError) as error:
        raise DialogueError(f"{path} is no 3DMM_info.npy of AD-NeRF ({error}).") from error
    names = tuple(f"expression_{index}" for index in range(len(expression)))
    return FaceModel("bfm2009", path, mean, triangles, geometry, expression, names)


# FLAME.


def _refuse_pickle(path: Path, read_pickle: bool) -> None:
    if not read_pickle:
        raise DialogueError(
            f"{path} is a pickle, which could run any program when it is opened; convert it once with "
            f"`ns-dialogue face-model {path} --output {path.stem}.npz`, which only reads its numbers, and give that."
        )


def _load_flame(path: Path, read_pickle: bool) -> FaceModel:
    if path.is_dir():
        found = [p for pattern in _FOLDER_MARKS["flame"] for p in sorted(path.glob(pattern))]
        path = found[0]
    arrays = _read_flame(path, read_pickle)
    vertices = _wanted(arrays, path, "v_template").reshape(-1, 3)
    directions = _wanted(arrays, path, "shapedirs")
    triangles = _wanted(arrays, path, "f", "faces", "faces_tensor").astype(np.int64).reshape(-1, 3)
    if directions.shape != (len(vertices), 3, 400):
        raise DialogueError(
            f"{path}: shapedirs has shape {directions.shape}, expected ({len(vertices)}, 3, 400): 300 modes of "
            "identity and 100 of expression."
        )
    expression = np.moveaxis(directions[..., 300 : 300 + FLAME_EXPRESSION], -1, 0)
    names = tuple(f"expression_{index}" for index in range(len(expression)))
    jaw, jaw_names = _flame_jaw(arrays, vertices, path)
    model = FaceModel(
        "flame",
        path,
        vertices,
        triangles,
        np.moveaxis(directions[..., :MAX_GEOMETRY], -1, 0),
        np.concatenate([jaw, expression]),
        jaw_names + names,
    )
    embedding = path.parent / "mediapipe_landmark_embedding.npz"
    if embedding.is_file():
        model = replace(model, known=read_landmarks(embedding, model), surely_known=True)
    return model


def _read_flame(path: Path, read_pickle: bool) -> Dict[str, Any]:
    with open(path, "rb") as stream:
        start = stream.read(2)
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise DialogueError(f"{path} is not a readable .safetensors file ({error}); get it again.") from error
    if start == b"PK":
        try:
            return read_npz(path)
        except DialogueError as error:
            if "allow_pickle" in str(error):
                raise DialogueError(
                    f"{path} holds pickled Python objects, which could run any program when they are opened; give a "
                    "file with plain arrays, or convert FLAME's .pkl with `ns-dialogue face-model`."
                ) from error
            raise
    if path.suffix.lower() == ".npz":
        raise DialogueError(f"{path} is not a readable .npz file; get it again.")
    _refuse_pickle(path, read_pickle)
    return read_pickled_arrays(path)


def _wanted(arrays: Dict[str, Any], path: Path, *names: str) -> np.ndarray:
    for name in names:
        value = arrays.get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
            return value.astype(np.float64)
    raise DialogueError(f"{path} has no '{names[0]}', which a FLAME file has; give FLAME 2020 or 2023.")


def _flame_jaw(arrays: Dict[str, Any], vertices: np.ndarray, path: Path) -> Tuple[np.ndarray, Tuple[str, ...]]:
    """FLAME opens the mouth by a joint. Its turns by a tenth of a radian (open) and half of that (side), skinned and
    with their pose-dependent correctives, as two more modes."""
    weights = _wanted(arrays, path, "weights", "lbs_weights")
    joint = (_wanted(arrays, path, "J_regressor") @ vertices)[2]
    correctives = _wanted(arrays, path, "posedirs")
    if weights.shape != (len(vertices), 5) or correctives.shape != (len(vertices), 3, 36):
        raise DialogueError(
            f"{path}: weights and posedirs have shapes {weights.shape} and {correctives.shape}, expected five joints."
        )
    fields = []
    for turn in ((0.10, 0.0, 0.0), (0.0, 0.05, 0.0)):
        rotation = Rotation.from_rotvec(turn).as_matrix()
        corrected = correctives[..., 9:18] @ (rotation - np.eye(3)).reshape(-1)
        moved = (vertices - joint) @ rotation.T + joint - vertices
        fields.append(weights[:, 2:3] * moved + corrected)
    return np.stack(fields), ("jaw_open", "jaw_side")
