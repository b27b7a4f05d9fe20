"""A face model with known truth, on a mesh of its own, and writers of the file formats that face models come in."""

import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import expression_basis, face_triangles
from dialogue_nerfstudio.process.face_registration import IBUG_TO_LANDMARK

MODES = ("jaw_open", "lip_corner_up_left", "lip_corner_up_right", "brow_raise_left", "pucker")


@dataclass
class TrueModel:
    """A face of another topology, size and place."""

    vertices: np.ndarray
    triangles: np.ndarray
    geometry: np.ndarray
    expression: np.ndarray
    landmark_vertices: np.ndarray
    """Which vertex each of the 468 landmarks is."""
    turn: np.ndarray
    """From head space to the mesh, with its unit."""

    def ibug(self) -> np.ndarray:
        """The 68-point mark-up's vertices; those without a landmark are vertex 0."""
        numbers = np.zeros(68, int)
        for point, landmark in IBUG_TO_LANDMARK.items():
            numbers[point] = self.landmark_vertices[landmark]
        return numbers


def _subdivided(triangles: np.ndarray, count: int) -> Tuple[np.ndarray, Dict[Tuple[int, int], int]]:
    middles: Dict[Tuple[int, int], int] = {}

    def middle(a: int, b: int) -> int:
        return middles.setdefault((min(a, b), max(a, b)), count + len(middles))

    result = []
    for a, b, c in triangles:
        ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
        result += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.array(result), middles


def true_model(seed: int = 1, unit: float = 1000.0, amount: float = 0.3) -> TrueModel:
    """Somebody else's mean face on a mesh four times as fine, its vertices shuffled, with modes that are known."""
    rng = np.random.default_rng(seed)
    basis = expression_basis()
    mean = basis.mean + np.tensordot(rng.normal(0, amount, len(basis.geometry)), basis.geometry, axes=1)
    fields = np.concatenate(
        [mean[None], basis.geometry[:6], basis.expression[[basis.expression_names.index(name) for name in MODES]]]
    )[:, :468]
    triangles, middles = _subdivided(face_triangles(), 468)
    ends = np.array(list(middles))
    fields = np.concatenate([fields, (fields[:, ends[:, 0]] + fields[:, ends[:, 1]]) / 2], axis=1)
    order = rng.permutation(fields.shape[1])
    inverse = np.argsort(order)
    turn = unit * Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix()
    fields = fields[:, order] @ turn.T
    fields[0] += rng.normal(0, 0.05 * unit, 3)
    return TrueModel(fields[0], inverse[triangles], fields[1:7], fields[7:], inverse[:468], turn)


def write_bfm_front(folder: Path, model: TrueModel) -> Path:
    """BFM_model_front.mat."""
    from scipy.io import savemat

    path = folder / "BFM_model_front.mat"
    savemat(
        path,
        {
            "meanshape": model.vertices.reshape(1, -1),
            "idBase": model.geometry.reshape(len(model.geometry), -1).T,
            "exBase": model.expression.reshape(len(model.expression), -1).T,
            "tri": model.triangles + 1,
            "keypoints": model.ibug()[None] + 1,
        },
    )
    return path


def write_bfm_original(folder: Path, model: TrueModel) -> Path:
    """01_MorphableModel.mat with Exp_Pca.bin, std_exp.txt and BFM_exp_idx.mat; five vertices have no expressions."""
    from scipy.io import savemat

    extra = np.concatenate([model.vertices, model.vertices[:5] + 1.0])
    identity = np.concatenate([model.geometry, model.geometry[:, :5]], axis=1)
    deviations = np.arange(1.0, 1.0 + len(identity))
    savemat(
        folder / "01_MorphableModel.mat",
        {
            "shapeMU": extra.reshape(-1, 1),
            "shapePC": (identity / deviations[:, None, None]).reshape(len(identity), -1).T,
            "shapeEV": deviations[:, None],
            "tl": model.triangles + 1,
            "tex": "not numbers",
        },
    )
    scales = np.arange(2.0, 2.0 + len(model.expression))
    with open(folder / "Exp_Pca.bin", "wb") as stream:
        stream.write(struct.pack("<i", len(model.expression)))
        stream.write(np.zeros(3 * len(model.vertices), "<f4").tobytes())
        stream.write((model.expression / scales[:, None, None]).astype("<f4").tobytes())
    np.savetxt(folder / "std_exp.txt", scales[None])
    savemat(folder / "BFM_exp_idx.mat", {"trimIndex": np.arange(len(model.vertices))[:, None] + 1})
    return folder


def write_bfm2017(folder: Path, model: TrueModel, named: bool = True) -> Path:
    """model2017-1_face12_nomouth.h5."""
    import h5py

    path = folder / "model2017-1_face12_nomouth.h5"
    names = {
        "center.nose.tip": 4,
        "right.eye.corner_outer": 33,
        "right.eye.corner_inner": 133,
        "left.eye.corner_inner": 362,
        "left.eye.corner_outer": 263,
        "right.lips.corner": 61,
        "center.lips.upper.outer": 0,
        "left.lips.corner": 291,
        "center.lips.lower.outer": 17,
        "center.lips.upper.inner": 13,
        "center.lips.lower.inner": 14,
    }
    with h5py.File(path, "w") as file:
        for part, modes, mean in (
            ("shape", model.geometry, model.vertices),
            ("expression", model.expression, np.zeros_like(model.vertices)),
        ):
            deviations = np.linspace(3.0, 1.0, len(modes))
            file[f"{part}/model/mean"] = mean.reshape(-1)
            file[f"{part}/model/pcaBasis"] = (modes / deviations[:, None, None]).reshape(len(modes), -1).T
            file[f"{part}/model/pcaVariance"] = deviations**2
        file["shape/representer/cells"] = model.triangles.T
        if named:
            places = [
                {"id": name, "coordinates": model.vertices[model.landmark_vertices[landmark]].tolist()}
                for name, landmark in names.items()
            ]
            file["metadata/landmarks/json"] = json.dumps(places)
    return path


def flame_arrays(model: TrueModel) -> Dict[str, np.ndarray]:
    """What a FLAME file holds, with a jaw that turns the lower half."""
    count = len(model.vertices)
    directions = np.zeros((count, 3, 400), np.float32)
    directions[..., : len(model.geometry)] = np.moveaxis(model.geometry, 0, -1)
    directions[..., 300 : 300 + len(model.expression)] = np.moveaxis(model.expression, 0, -1)
    height = model.vertices[:, 1] - np.median(model.vertices[:, 1])
    weights = np.zeros((count, 5))
    weights[:, 2] = height < -0.02
    weights[:, 1] = 1 - weights[:, 2]
    regressor = np.zeros((5, count))
    # The jaw's joint lies between the ears.
    regressor[2, model.landmark_vertices[[234, 454]]] = 0.5
    return {
        "v_template": model.vertices,
        "f": model.triangles.astype(np.uint32),
        "shapedirs": directions,
        "posedirs": np.zeros((count, 3, 36), np.float32),
        "weights": weights,
        "J_regressor": regressor,
        "kintree_table": np.zeros((2, 5), np.int64),
    }


def write_flame(folder: Path, model: TrueModel, suffix: str = ".npz") -> Path:
    """flame2023.npz, .safetensors or a pickle like the official one."""
    arrays, path = flame_arrays(model), folder / f"flame2023{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    else:
        from scipy.sparse import csc_matrix

        with open(path, "wb") as stream:
            pickle.dump({**arrays, "J_regressor": csc_matrix(arrays["J_regressor"]), "bs_type": "lrotmin"}, stream, 2)
    return path


def write_ict(folder: Path, model: TrueModel) -> Path:
    """A folder like ICT-FaceKit's FaceXModel."""
    names = [f"identity{index:03d}" for index in range(len(model.geometry))]
    shapes = dict(zip(names, model.vertices + model.geometry, strict=True))
    shapes |= dict(
        zip(
            ("jawOpen", "mouthSmile_L", "mouthSmile_R", "browOuterUp_L", "mouthPucker"),
            model.vertices + model.expression,
            strict=True,
        )
    )
    shapes["generic_neutral_mesh"] = model.vertices
    shapes["eyeBlink_L"] = model.vertices + model.expression[0]
    shapes["tongueOut"] = model.vertices
    faces = "\n".join("f " + " ".join(f"{v + 1}/{v + 1}" for v in triangle) for triangle in model.triangles)
    for name, vertices in shapes.items():
        places = "\n".join("v {:.6f} {:.6f} {:.6f}".format(*vertex) for vertex in vertices)
        (folder / f"{name}.obj").write_text(f"# {name}\n{places}\nvt 0 0\n{faces}\n")
    return folder
