"""Reads and checks a folder that AD-NeRF's pipeline, or a successor's, has prepared from a video of one person.

Conventions. The family (AD-NeRF, RAD-NeRF, ER-NeRF, SyncTalk, TalkingGaussian) shares one layout:
`transforms_train.json` and `transforms_val.json` with `focal_len`, `cx`, `cy` (pixels) and a list of frames
`{img_id, aud_id, transform_matrix}`; pictures `<folder>/<img_id>.jpg`, `parsing/<img_id>.png`, `bc.jpg`, and some of
aud.wav, aud*.npy, au.csv, track_params.pt. A transform_matrix takes camera to head: its camera has OpenGL's (and
nerfstudio's) axes, looks along −z with y up, and its world is the head, held still. The tracker works in decimetres and
the file holds a tenth of its translations, so units are metres as far as the tracked face model has the person's true
size. img_id counts the pictures of the 25-per-second video from 0, so img_id / 25 is a time in aud.wav.

A *timeline* has T frames, img_id `first` to `first + T − 1`; frames that neither file lists are in it (the sound goes
on) but in no split.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_json
from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, NECK, TORSO

SPLITS = ("train", "val")

PICTURE_FOLDERS = ("gt_imgs", "com_imgs", "ori_imgs")
"""Where pictures are, best first: composited over bc.jpg as the peers train on them, else as recorded."""

PARSING_COLOURS = {
    BACKGROUND: (255, 255, 255),
    HEAD: (255, 0, 0),
    NECK: (0, 255, 0),
    TORSO: (0, 0, 255),
}
"""Colours of parsing/, in OpenCV's order (blue, green, red)."""

LARGEST_STRANGE_SHARE = 0.01
"""Part of a parsing picture that may have none of those colours."""

MIN_FRAMES = 25
"""Fewest listed frames worth converting."""


@dataclass
class AdNerfFolder:
    """What the transforms files say, checked, and where the pictures are."""

    path: Path
    focal: float
    center: Tuple[float, float]
    """Principal point, pixels."""
    width: int
    height: int
    """Pixels, even: an odd picture loses its last row or column."""
    first: int
    """img_id of the timeline's first frame."""
    listed: Bool[np.ndarray, " num_frames"]
    """Frames that a transforms file lists."""
    rotations: Float[np.ndarray, "num_frames 3 3"]
    translations: Float[np.ndarray, "num_frames 3"]
    """Head to camera, in the folder's units; NaN where not listed."""
    train_frames: Int[np.ndarray, " num_train"]
    eval_frames: Int[np.ndarray, " num_eval"]
    audio_shift: int
    """aud_id − img_id."""
    pictures: Path

    @property
    def num_frames(self) -> int:
        return len(self.listed)

    def picture_path(self, frame: int) -> Path:
        return self.pictures / f"{self.first + frame}.jpg"

    def parsing_path(self, frame: int) -> Path:
        return self.path / "parsing" / f"{self.first + frame}.png"

    def picture(self, frame: int) -> UInt8[np.ndarray, "height width 3"]:
        """RGB.

        Raises:
            DialogueError: it cannot be decoded, or has another size than the first one.
        """
        image = _read_image(self.picture_path(frame))
        self._check_size(image, self.picture_path(frame), f"{self.pictures.name} begins with")
        return np.ascontiguousarray(image[: self.height, : self.width, ::-1])

    def labels(self, frame: int) -> UInt8[np.ndarray, "height width"]:
        """BACKGROUND, TORSO, NECK and HEAD, from the colours of parsing/.

        Raises:
            DialogueError: it cannot be decoded, has another size than the pictures, or other colours.
        """
        path = self.parsing_path(frame)
        image = _read_image(path)
        self._check_size(image, path, "the pictures have")
        return parsing_to_labels(image[: self.height, : self.width], path)

    def background(self) -> Optional[UInt8[np.ndarray, "height width 3"]]:
        """bc.jpg, RGB, at the size of the pictures; None where there is none.

        Raises:
            DialogueError: it cannot be decoded, or has another shape.
        """
        path = self.path / "bc.jpg"
        if not path.is_file():
            return None
        image = _read_image(path)
        if abs(image.shape[0] * self.width - image.shape[1] * self.height) > 2 * max(image.shape[:2]):
            raise DialogueError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, but the pictures are {self.width}x{self.height}: give a "
                "background of their shape, or remove it and it is put together from the pictures."
            )
        if image.shape[:2] != (self.height, self.width):
            image = cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(image[..., ::-1])

    def sound(self) -> Optional[Path]:
        """aud.wav, or the folder's only .wav; None where there is none.

        Raises:
            DialogueError: there are several and none is aud.wav.
        """
        if (self.path / "aud.wav").is_file():
            return self.path / "aud.wav"
        found = sorted(self.path.glob("*.wav"))
        if len(found) > 1:
            raise DialogueError(
                f"{self.path} has several sounds ({', '.join(path.name for path in found)}): call the recording's own "
                "one aud.wav."
            )
        return found[0] if found else None

    def audio_features(self) -> Dict[str, Path]:
        """The stored audio features, aud*.npy, by name."""
        return {path.stem: path for path in sorted(self.path.glob("aud*.npy"))}

    def _check_size(self, image: np.ndarray, path: Path, what: str) -> None:
        if (image.shape[0] // 2 * 2, image.shape[1] // 2 * 2) != (self.height, self.width):
            raise DialogueError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, but {what} {self.width}x{self.height}; "
                "make them all the same size."
            )


def is_ad_nerf_folder(path: Path) -> bool:
    """Whether a folder looks like one of the family: it has a transforms file, or parsing/ beside pictures."""
    path = Path(path)
    if not path.is_dir() or (path / "conversation.json").exists():
        return False
    pictures = any((path / name).is_dir() for name in PICTURE_FOLDERS)
    return any(_transforms_path(path, split).is_file() for split in SPLITS) or (
        pictures and (path / "parsing").is_dir()
    )


def conversation_folder(data: Path, cache: Path) -> Path:
    """The conversation folder that `data` means: itself, or what an AD-NeRF-family folder converts to, under `cache`.

    Raises:
        DialogueError: it cannot be converted.
    """
    data = Path(data)
    if not is_ad_nerf_folder(data):
        return data
    # Imported here: the tracker and the media libraries are for folders that have to be converted.
    from dialogue_nerfstudio.process.ad_nerf import process_ad_nerf

    output = Path(cache) / "ad-nerf" / hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:24]
    announced = False

    def announce(*_: object) -> None:
        nonlocal announced
        if not announced and not (output / "conversation.json").is_file():
            print(f"{data} is an AD-NeRF-family folder: it is converted once, into {output}.", file=sys.stderr)
        announced = True

    process_ad_nerf(data, output, progress=announce)
    return output


def read_ad_nerf_folder(path: Path) -> AdNerfFolder:
    """Reads the transforms files and looks whether every file they name is there; no picture but the first is decoded.

    Raises:
        DialogueError: naming the file, and the frame or the field, that is missing or wrong.
    """
    path = Path(path)
    transforms = {split: _read_transforms(path, split) for split in SPLITS}
    cameras = {split: _camera(content, _transforms_path(path, split)) for split, content in transforms.items()}
    if cameras["train"] != cameras["val"]:
        raise DialogueError(
            f"{path}: transforms_train.json has focal_len, cx, cy {cameras['train']} and transforms_val.json "
            f"{cameras['val']}, but one camera recorded them; make them equal."
        )
    frames: Dict[int, Tuple[str, int, np.ndarray]] = {}
    for split, content in transforms.items():
        source = _transforms_path(path, split)
        for index, entry in enumerate(content["frames"]):
            img_id, aud_id, matrix = _frame(entry, index, source)
            if img_id in frames:
                both = "twice" if frames[img_id][0] == split else "in both transforms files: held out, or trained on"
                raise DialogueError(f"{source}: frame {img_id} is listed {both}; list it once.")
            frames[img_id] = (split, aud_id, matrix)
    shifts = {aud_id - img_id for img_id, (_, aud_id, _) in frames.items()}
    if len(shifts) != 1:
        raise DialogueError(
            f"{path}: aud_id and img_id of the frames differ by {min(shifts)} to {max(shifts)}, so pictures and sound "
            "are not of one recording; give the transforms of a video that was not cut or re-ordered."
        )
    if len(frames) < MIN_FRAMES:
        raise DialogueError(f"{path} lists {len(frames)} frame(s); at least {MIN_FRAMES} are needed.")

    first, count = min(frames), max(frames) - min(frames) + 1
    if count > 2 * len(frames) + 250:
        raise DialogueError(
            f"{path} lists {len(frames)} frames between img_id {first} and {max(frames)}: more than half of the "
            "recording is missing; number the frames as the video's pictures, 25 a second."
        )
    rotations, translations = np.full((count, 3, 3), np.nan), np.full((count, 3), np.nan)
    for img_id, (_, _, matrix) in frames.items():
        # x_head = C x_camera + c, so x_camera = Cᵀ x_head − Cᵀ c.
        rotations[img_id - first] = matrix[:3, :3].T
        translations[img_id - first] = -matrix[:3, :3].T @ matrix[:3, 3]

    pictures = _picture_folder(path, sorted(frames))
    _require_files(path / "parsing", sorted(frames), ".png")
    size = _read_image(pictures / f"{first}.jpg").shape
    focal, cx, cy = cameras["train"]
    height, width = size[0] // 2 * 2, size[1] // 2 * 2
    if not (0 < cx < width and 0 < cy < height):
        raise DialogueError(
            f"{path}: the principal point ({cx:g}, {cy:g}) is outside of the {width}x{height} pictures in "
            f"{pictures.name}; the transforms were made for other pictures."
        )
    splits = {
        split: np.array(sorted(i - first for i, frame in frames.items() if frame[0] == split), dtype=int)
        for split in SPLITS
    }
    return AdNerfFolder(
        path=path,
        focal=focal,
        center=(cx, cy),
        width=width,
        height=height,
        first=first,
        listed=np.isfinite(translations).all(axis=1),
        rotations=rotations,
        translations=translations,
        train_frames=splits["train"],
        eval_frames=splits["val"],
        audio_shift=shifts.pop(),
        pictures=pictures,
    )


def parsing_to_labels(image: UInt8[np.ndarray, "h w 3"], path: Path) -> UInt8[np.ndarray, "h w"]:
    """The label whose colour is nearest, pixel by pixel.

    Raises:
        DialogueError: more than LARGEST_STRANGE_SHARE of the pixels have a colour that is none of the four.
    """
    names = list(PARSING_COLOURS)
    colours = np.array([PARSING_COLOURS[name] for name in names], dtype=np.int32)
    # 1 byte for what is nearly full, 0 for nearly empty, 2 for neither: a picture saved with losses still reads well.
    level = np.where(image > 191, 1, np.where(image < 64, 0, 2)).astype(np.int32)
    code = level @ np.array([1, 3, 9])
    known = (colours > 127) @ np.array([1, 3, 9])
    table = np.full(27, 255, dtype=np.uint8)
    table[known] = names
    labels = table[code]
    strange = labels == 255
    if strange.mean() > LARGEST_STRANGE_SHARE:
        row, column = np.argwhere(strange)[0]
        raise DialogueError(
            f"{path}: {strange.mean():.0%} of it has other colours than white, blue, green and red (such as "
            f"{tuple(int(v) for v in image[row, column, ::-1])}); give the parsing that AD-NeRF's scripts write."
        )
    labels[strange] = BACKGROUND
    return labels


def closure_from_action_units(path: Path, first: int, num_frames: int) -> Float[np.ndarray, "num_frames 2"]:
    """Lid closure of both eyes from OpenFace's au.csv: AU45_r, 0 … 5, of which the peers take 2 for closed.

    Args:
        path: au.csv; its rows count the video's pictures from 0.
        first: the img_id of the timeline's first frame.
        num_frames: of the timeline.

    Raises:
        DialogueError: it is missing, has no column AU45_r, holds no numbers, or too few rows.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DialogueError(f"{path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise DialogueError(f"{path} is not a text file; give the table that OpenFace writes.") from error
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    if "AU45_r" not in header:
        raise DialogueError(f"{path} has no column AU45_r; give the table that OpenFace writes (-aus).")
    rows = [line.split(",") for line in lines[1:] if line.strip()]
    if len(rows) < first + num_frames:
        raise DialogueError(
            f"{path} has {len(rows)} rows, but frames up to img_id {first + num_frames - 1} are listed; run OpenFace "
            "on the same 25-per-second video."
        )
    column = header.index("AU45_r")
    try:
        values = np.array([float(row[column]) for row in rows[first : first + num_frames]])
    except (IndexError, ValueError) as error:
        raise DialogueError(f"{path}: column AU45_r is not all numbers ({error}).") from error
    return np.repeat(np.clip(values / 2.0, 0.0, 1.0)[:, None], 2, axis=1)


def face_model_coefficients(path: Path, first: int, num_frames: int) -> Float[np.ndarray, "num_frames e"]:
    """Expression coefficients of the face model that the family's tracker fitted, from track_params.pt; no code in the
    file is run.

    Raises:
        DialogueError: it is damaged, holds no table `exp` of numbers, or too few rows.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip, runtime, EOF and OS errors for damaged files
        raise DialogueError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}); save it again with torch.save of a "
            "dictionary of tensors, or remove it."
        ) from error
    table = content.get("exp") if isinstance(content, dict) else None
    if not isinstance(table, torch.Tensor) or table.ndim != 2 or not bool(torch.isfinite(table).all()):
        raise DialogueError(f"{path} holds no table 'exp' of expression coefficients; track again, or remove it.")
    if len(table) < first + num_frames:
        raise DialogueError(
            f"{path} has expressions of {len(table)} frames, but frames up to img_id {first + num_frames - 1} are "
            "listed; track the same video again, or remove it."
        )
    return table[first : first + num_frames].double().numpy()


def _transforms_path(path: Path, split: str) -> Path:
    return path / f"transforms_{split}.json"


def _read_transforms(path: Path, split: str) -> Dict[str, Any]:
    source = _transforms_path(path, split)
    if not source.is_file():
        raise DialogueError(
            f"{path} has no {source.name}: give a folder that AD-NeRF's, or a successor's, processing has finished."
        )
    content = read_json(source)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise DialogueError(f"{source} lists no frames; run the processing that writes it again.")
    return content


def _camera(content: Dict[str, Any], source: Path) -> Tuple[float, float, float]:
    values: List[float] = []
    for name in ("focal_len", "cx", "cy"):
        value = content.get(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
            raise DialogueError(
                f"{source}: {name} is {'missing' if value is None else repr(value)}, but must be a positive number of "
                "pixels; add it."
            )
        values.append(float(value))
    return values[0], values[1], values[2]


def _frame(entry: Any, index: int, source: Path) -> Tuple[int, int, Float[np.ndarray, "4 4"]]:
    """(img_id, aud_id, camera to head) of an entry of `frames`."""
    img_id = entry.get("img_id") if isinstance(entry, dict) else None
    if not isinstance(img_id, int) or img_id < 0:
        raise DialogueError(f"{source}: entry {index} of frames has no img_id; give the number of its picture.")
    aud_id = entry.get("aud_id", img_id)
    if not isinstance(aud_id, int):
        raise DialogueError(f"{source}: frame {img_id} has the aud_id {aud_id!r}, which is no whole number.")
    try:
        matrix = np.array(entry.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise DialogueError(f"{source}: frame {img_id} has no transform_matrix of 4 x 4 numbers.")
    if not np.isfinite(matrix).all():
        raise DialogueError(
            f"{source}: the transform_matrix of frame {img_id} holds NaN or infinity, so its tracking failed; take the "
            "frame out of the list, or track again."
        )
    rotation = matrix[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise DialogueError(
            f"{source}: the transform_matrix of frame {img_id} is no rotation and translation; poses must be rigid."
        )
    return img_id, aud_id, matrix


def _picture_folder(path: Path, img_ids: List[int]) -> Path:
    """The first of PICTURE_FOLDERS that is there; it must have every frame."""
    for name in PICTURE_FOLDERS:
        if (path / name).is_dir():
            _require_files(path / name, img_ids, ".jpg")
            return path / name
    raise DialogueError(f"{path} has none of the folders {', '.join(PICTURE_FOLDERS)}, so there are no pictures.")


def _require_files(folder: Path, img_ids: List[int], suffix: str) -> None:
    there = {file.stem for file in folder.glob(f"*{suffix}")} if folder.is_dir() else set()
    missing = [img_id for img_id in img_ids if str(img_id) not in there]
    if missing:
        raise DialogueError(
            f"{folder} lacks {missing[0]}{suffix}, which the transforms list"
            f"{f', and {len(missing) - 1} more of {len(img_ids)}' if len(missing) > 1 else ''}; restore it, or take it "
            "out of the transforms."
        )


def _read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """As OpenCV reads it: blue, green, red."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError as error:
        raise DialogueError(f"{path} does not exist.") from error
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise DialogueError(f"{path} is not a readable picture; restore it, or take its frame out of the transforms.")
    return image
