"""Motion by the hour on disk: a folder of shards, one conversation each, that are read slice by slice.

A folder holds `motion_dataset.json` and `shard-00000.safetensors` …; it is complete when motion_dataset.json is there,
which is written last. Arrays of a shard, for P people and T frames: head_pose, expected_head_pose, expected_from_sound,
expected_from_partner float32 [P, T, 6]; expression float16 [P, T, E]; blink float16 [P, T, 2]; gaze float16 [P, T, 2,
2]; prosody float32 [P, T, 2]; speaking bool [P, T]; mel float16 [P, S, 80], S = round(3.2 T). An open shard is mapped,
not read: memory holds only what was sliced.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Literal, Tuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path, read_json, write_json

SCHEMA_VERSION = 1
MANIFEST_NAME = "motion_dataset.json"

ARRAYS: Dict[str, np.dtype] = {
    "head_pose": np.dtype(np.float32),
    "expression": np.dtype(np.float16),
    "blink": np.dtype(np.float16),
    "gaze": np.dtype(np.float16),
    "prosody": np.dtype(np.float32),
    "speaking": np.dtype(np.bool_),
    "mel": np.dtype(np.float16),
}
"""What every shard holds, and how it is stored."""

TRUTH_ARRAYS: Dict[str, np.dtype] = {
    "expected_head_pose": np.dtype(np.float32),
    "expected_from_sound": np.dtype(np.float32),
    "expected_from_partner": np.dtype(np.float32),
}
"""What those of a simulation hold beside it."""

Split = Literal["train", "eval", "unseen"]
"""train; eval: other conversations of people that train knows; unseen: conversations of people that train does not."""


@dataclass
class ShardEntry:
    """One conversation of a folder."""

    name: str
    people: Tuple[str, ...]
    """Ids, in the order of the arrays' first axis."""
    split: Split
    num_frames: int

    @property
    def file_name(self) -> str:
        return f"{self.name}.safetensors"


@dataclass
class MotionManifest:
    """What motion_dataset.json says."""

    seed: int
    fps: float
    expression_basis: str
    expression_names: Tuple[str, ...]
    people: Dict[str, Dict[str, Any]]
    """id → true style: the fields of `simulate.styles.PersonStyle`."""
    conversations: List[ShardEntry]
    options: Dict[str, Any]
    """Of the simulation; folders go on only with the same ones."""


def write_shard(path: Path, arrays: Dict[str, np.ndarray], fingerprint: str) -> None:
    """Writes a shard, atomically.

    Args:
        path: Where to.
        arrays: Every one of `ARRAYS`, and any of `TRUTH_ARRAYS`, of any precision.
        fingerprint: What it was made from; `shard_fingerprint` reads it.

    Raises:
        DialogueError: the disk is full or the folder may not be written to.
    """
    kept = {**ARRAYS, **{name: dtype for name, dtype in TRUTH_ARRAYS.items() if name in arrays}}
    stored = {name: np.ascontiguousarray(arrays[name], dtype=dtype) for name, dtype in kept.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(stored, metadata={"fingerprint": fingerprint}))


def open_shard(path: Path, framework: Literal["numpy", "pt"] = "numpy") -> Any:
    """The mapped shard, a `safetensors.safe_open`: with NumPy `.get_slice(name)[i, j:k]` reads that much, with PyTorch
    `.get_tensor(name)` is a view of the file.

    Raises:
        DialogueError: it is missing, cut off, or not a motion shard.
    """
    try:
        shard = safe_open(path, framework=framework)
    except FileNotFoundError as error:
        raise DialogueError(
            f"{path} is missing; make it again with the same `ns-dialogue simulate --motion-only` command."
        ) from error
    except (SafetensorError, OSError) as error:
        raise DialogueError(
            f"{path} is damaged ({error}); delete it and run the same `ns-dialogue simulate --motion-only` command, "
            "which makes it again."
        ) from error
    missing = set(ARRAYS) - set(shard.keys())
    if missing:
        raise DialogueError(f"{path} is not a motion shard: it lacks {', '.join(sorted(missing))}.")
    return shard


def shard_fingerprint(path: Path) -> str | None:
    """What a shard was made from; None where there is no whole shard."""
    try:
        return (open_shard(path).metadata() or {}).get("fingerprint")
    except DialogueError:
        return None


def write_manifest(folder: Path, manifest: MotionManifest) -> None:
    """Writes motion_dataset.json, atomically; the shards are already there."""
    write_json(
        Path(folder) / MANIFEST_NAME,
        {
            "schema_version": SCHEMA_VERSION,
            "seed": manifest.seed,
            "fps": manifest.fps,
            "expression_basis": manifest.expression_basis,
            "expression_names": list(manifest.expression_names),
            "options": manifest.options,
            "people": manifest.people,
            "conversations": [asdict(entry) for entry in manifest.conversations],
        },
    )


def read_manifest(folder: Path) -> MotionManifest:
    """Reads motion_dataset.json.

    Raises:
        DialogueError: the folder is missing, empty or half-written, or the file is damaged or of a newer schema.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        if any(Path(folder).glob("shard-*.safetensors")):
            raise DialogueError(
                f"{folder} was never finished; run the same `ns-dialogue simulate --motion-only` command again, "
                "it goes on where it stopped."
            )
        raise DialogueError(
            f"{folder} holds no {MANIFEST_NAME}; give a folder that `ns-dialogue simulate --motion-only` or "
            "`ns-dialogue process` wrote."
        )
    values = read_json(path)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise DialogueError(f"{path} does not describe motion: it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise DialogueError(
            f"{path} has schema version {version}, this program knows up to {SCHEMA_VERSION}; "
            "upgrade dialogue-nerfstudio."
        )
    try:
        return MotionManifest(
            seed=int(values["seed"]),
            fps=float(values["fps"]),
            expression_basis=str(values["expression_basis"]),
            expression_names=tuple(values["expression_names"]),
            people={str(name): dict(style) for name, style in values["people"].items()},
            conversations=[
                ShardEntry(str(entry["name"]), tuple(entry["people"]), entry["split"], int(entry["num_frames"]))
                for entry in values["conversations"]
            ],
            options=dict(values["options"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DialogueError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
