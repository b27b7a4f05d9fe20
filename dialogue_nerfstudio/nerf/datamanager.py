"""Datamanager: rays of a few frames a step, drawn from memory-mapped frames, more of them where faces move.

Memory does not grow with the recording: pixels are read from the frame store, and whole images are only ever made
one at a time, for evaluation.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Literal, Optional, Sequence, Tuple, Type, Union

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from torch import Tensor
from torch.nn import Parameter

from dialogue_nerfstudio.conversation import Camera, Conversation, DialogueError
from dialogue_nerfstudio.conversation.video import HEAD
from dialogue_nerfstudio.metrics.images import LIP_CONTOUR
from dialogue_nerfstudio.nerf.dataparser import ConversationDataParser, ConversationDataParserConfig
from dialogue_nerfstudio.nerf.frame_store import FrameStore
from dialogue_nerfstudio.nerf.landmarks import EYE_CONTOURS

SPARE_TRIES, MOST_TRIES = 1.5, 32
"""Tries for each pixel of a region that a mean frame would need one for, and at most."""

REGION_MARGIN = 0.25
"""A region is its landmarks' bounding box, enlarged by this share of its longer side."""


@dataclass
class DialogueDataManagerConfig(VanillaDataManagerConfig):
    """Rays of conversation frames. nerfstudio's own options about images and pixel samplers have no effect."""

    _target: Type = field(default_factory=lambda: DialogueDataManager)
    dataparser: ConversationDataParserConfig = field(default_factory=ConversationDataParserConfig)
    """The conversation."""
    train_num_rays_per_batch: int = 1024
    """Rays a training step."""
    eval_num_rays_per_batch: int = 1024
    """Rays of an evaluation step during training."""
    frames_per_batch: int = 16
    """Frames whose rays make a step; the audio net runs once for each. More frames teach lips faster: from 12 to 24 the
    mouth gained 0.3 dB after 800 steps, where expression drives it."""
    participants_per_batch: int = 1
    """Participants in a step. One is fastest: only its grids are touched."""
    face_share: float = 0.2
    """Share of the rays drawn from the head."""
    mouth_share: float = 0.26
    """Share drawn from the box of the mouth. More teaches mouths and costs torsos (docs/ablation.md)."""
    eyes_share: float = 0.06
    """Share drawn from the boxes of the eyes."""
    border_share: float = 0.12
    """Share drawn from where labels change: silhouette, neckline, chin. The rest falls where the person ever is."""
    picture_share: float = 0.0
    """Share drawn evenly from the whole picture, background included."""
    lip_stage_share: float = 0.0
    """Share of training, at its end, in which every second step shows whole patches around the mouth and nothing else,
    for the model's lip patch loss (RAD-NeRF's and ER-NeRF's lips stage); 0 for no such stage."""
    lip_patch_size: int = 16
    """Side of such a patch, pixels; a step shows as many as its rays allow."""
    cache_folder: Optional[Path] = None
    """Where resized frames are kept; None for the user's cache folder."""


class DialogueDataset(InputDataset):
    """Frames of a split with their labels and face boxes, one a camera.

    `image` is [height, width, 3] in 0 … 1 and `label` [height, width, 1]; `mouth_box` and `eyes_box` are pixel boxes
    (left, top, right, bottom), empty (zeros) where no face was tracked.
    """

    def __init__(self, dataparser_outputs: DataparserOutputs, stores: List[FrameStore], regions: "List[FaceRegions]"):
        # InputDataset's own initialiser deep-copies the metadata, signals and plates of the whole recording.
        torch.utils.data.Dataset.__init__(self)
        self._dataparser_outputs = dataparser_outputs
        self._stores, self._regions = stores, regions
        self.scale_factor, self.mask_color = 1.0, None
        self.scene_box = deepcopy(dataparser_outputs.scene_box)
        self.metadata = dataparser_outputs.metadata
        self.cameras = dataparser_outputs.cameras
        self.frames = self.cameras.metadata["frame"].squeeze(-1).tolist()
        self.participants = self.cameras.metadata["participant"].squeeze(-1).tolist()

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        return np.array(self._stores[self.participants[image_idx]].frames[self.frames[image_idx]])

    def get_metadata(self, data: Dict) -> Dict:
        image_idx = data["image_idx"]
        participant, frame = self.participants[image_idx], self.frames[image_idx]
        labels = torch.from_numpy(np.array(self._stores[participant].labels[frame])).unsqueeze(-1)
        regions = self._regions[participant]
        return {
            "label": labels,
            "mouth_box": torch.from_numpy(regions.mouth[frame]),
            "eyes_box": torch.from_numpy(regions.eyes[frame]),
            "participant": participant,
            "frame": frame,
        }


class FaceRegions:
    """Boxes (left, top, right, bottom) of the mouth and of both eyes together, in pixels of the training resolution.

    Args:
        landmarks: [T, 478, 2], pixels of the crop.
        visible: [T], frames whose landmarks can be used.
        scale: (horizontal, vertical) training pixels a crop pixel.
        height, width: the training resolution.
    """

    def __init__(
        self,
        landmarks: Float[np.ndarray, "num_frames 478 2"],
        visible: Bool[np.ndarray, " num_frames"],
        scale: Tuple[float, float],
        height: int,
        width: int,
    ):
        def boxes(names: Sequence[int]) -> Int[np.ndarray, "num_frames 4"]:
            points = landmarks[:, list(names)] * np.array(scale)
            low, high = points.min(axis=1), points.max(axis=1)
            margin = REGION_MARGIN * (high - low).max(axis=1, keepdims=True)
            limits = np.array([width, height])
            box = np.concatenate(
                [np.clip(np.floor(low - margin), 0, limits), np.clip(np.ceil(high + margin), 0, limits)], axis=1
            )
            box[~visible | ~np.isfinite(box).all(axis=1)] = 0
            return box.astype(np.int64)

        self.mouth = boxes(LIP_CONTOUR)
        self.eyes = boxes(EYE_CONTOURS)

    @classmethod
    def of(cls, conversation: Conversation, participant_id: str, height: int, width: int) -> "FaceRegions":
        """The regions of a participant of a recording; empty where nothing was tracked (a simulation's truth)."""
        if not conversation.participant_path(participant_id, "tracking.npz").is_file():
            frames = conversation.num_frames
            return cls(np.zeros((frames, 478, 2)), np.zeros(frames, dtype=bool), (1.0, 1.0), height, width)
        tracking = conversation.tracking(participant_id)
        camera = conversation.participant(participant_id).camera
        visible = np.asarray(tracking["visible"], dtype=bool)
        return cls(tracking["landmarks"], visible, (width / camera.width, height / camera.height), height, width)


class RaySampler:
    """Pixels of a participant's frames, drawn by region.

    Args:
        store: the frames.
        regions: where mouth and eyes are.
        config: the shares of the regions.
        train_frames: frames that may be drawn.
        seed: of the draws.
    """

    def __init__(
        self,
        store: FrameStore,
        regions: FaceRegions,
        config: DialogueDataManagerConfig,
        train_frames: np.ndarray,
        seed: int,
    ):
        self._store, self._regions, self._config = store, regions, config
        self._train_frames = np.asarray(train_frames)
        self._rng = np.random.default_rng(seed)
        probes = self._train_frames[:: max(1, len(self._train_frames) // 64)]
        labels = np.stack([store.labels[frame] for frame in probes])
        self._active = _Pool.of(labels > 0)
        self._head = _Pool.of(labels == HEAD)
        self._border = _Pool.of(np.stack([_borders(frame) for frame in labels]))

    def draw(self, num_rays: int, num_frames: int) -> Tuple[Int[np.ndarray, " f"], List[Int[np.ndarray, " r"]]]:
        """Distinct frames in order, and flat pixel numbers in each."""
        num_frames = min(num_frames, len(self._train_frames), num_rays)
        frames = np.sort(self._rng.choice(self._train_frames, num_frames, replace=False))
        shares = np.diff(np.linspace(0, num_rays, num_frames + 1).astype(int))
        return frames, np.split(self._pixels(frames, shares), np.cumsum(shares)[:-1])

    def draw_patches(self, num_rays: int, side: int) -> Tuple[Int[np.ndarray, " f"], List[Int[np.ndarray, " r"]]]:
        """Distinct frames in order, and the flat pixel numbers of one patch in each, centred somewhere in the mouth's
        box; of frames in which a face was tracked."""
        frames = self._train_frames[(self._regions.mouth[self._train_frames] > 0).any(axis=1)]
        frames = np.sort(self._rng.choice(frames, min(max(1, num_rays // side**2), len(frames)), replace=False))
        height, width = self._store.shape[1:]
        patches = []
        for left, top, right, bottom in self._regions.mouth[frames]:
            column = np.clip(self._rng.integers(left, right) - side // 2, 0, width - side)
            row = np.clip(self._rng.integers(top, bottom) - side // 2, 0, height - side)
            patches.append(_box_pixels(np.array([column, row, column + side, row + side]), width))
        return frames, patches

    @property
    def has_mouths(self) -> bool:
        """Whether a mouth was tracked in any training frame."""
        return bool((self._regions.mouth[self._train_frames] > 0).any())

    def _pixels(self, frames: Int[np.ndarray, " f"], shares: Int[np.ndarray, " f"]) -> Int[np.ndarray, " r"]:
        """Flat numbers of `shares` pixels of each frame, frame after frame. All frames at once, and never a whole
        picture: what a step reads does not grow with the resolution."""
        config, regions = self._config, self._regions
        height, width = self._store.shape[1:]

        def wanted(share: float) -> Int[np.ndarray, " f"]:
            return np.round(share * shares).astype(int)

        def is_head(frame: np.ndarray, pixel: np.ndarray) -> np.ndarray:
            return self._labels[frame, pixel] == HEAD

        drawn = [
            self._draw_accepted(self._head, frames, wanted(config.face_share), is_head),
            self._draw_accepted(self._border, frames, wanted(config.border_share), self._is_border),
            self._draw_in_boxes(regions.mouth[frames], wanted(config.mouth_share)),
            self._draw_in_boxes(regions.eyes[frames], wanted(config.eyes_share)),
            self._draw_in_boxes(np.tile([0, 0, width, height], (len(frames), 1)), wanted(config.picture_share)),
        ]
        taken = np.bincount(np.concatenate([rows for rows, _ in drawn]), minlength=len(frames))
        rest = np.repeat(np.arange(len(frames)), np.maximum(0, shares - taken))
        drawn.append((rest, self._rng.choice(self._active.pixels, len(rest))))
        rows, pixels = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        # Shares that add up to more than one leave out the last regions.
        order = np.argsort(rows, kind="stable")
        rows, pixels = rows[order], pixels[order]
        first = np.searchsorted(rows, np.arange(len(frames)))
        kept = np.arange(len(rows)) - first[rows] < shares[rows]
        return pixels[kept]

    @property
    def _labels(self) -> UInt8[np.ndarray, "num_frames pixels"]:
        labels = self._store.labels
        return np.asarray(labels).reshape(len(labels), -1)

    def _is_border(self, frame: Int[np.ndarray, " n"], pixel: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether a pixel's label differs from a neighbour's."""
        height, width = self._store.shape[1:]
        row, column = np.divmod(pixel, width)
        labels, own = np.asarray(self._store.labels), self._labels[frame, pixel]
        border = np.zeros(len(pixel), dtype=bool)
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            neighbour = np.clip(row + down, 0, height - 1), np.clip(column + right, 0, width - 1)
            border |= labels[(frame, *neighbour)] != own
        return border

    def _draw_accepted(
        self,
        pool: "_Pool",
        frames: Int[np.ndarray, " f"],
        counts: Int[np.ndarray, " f"],
        accept: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> Tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]]:
        """Up to `counts` pixels of each frame out of those in `pool` that the frame accepts, by rejection."""
        tries = pool.tries * int(counts.max(initial=0))
        rows = np.repeat(np.arange(len(frames)), tries)
        pixels = self._rng.choice(pool.pixels, len(rows))
        accepted = accept(frames[rows], pixels).reshape(len(frames), tries)
        kept = (accepted & (accepted.cumsum(axis=1) <= counts[:, None])).ravel()
        return rows[kept], pixels[kept]

    def _draw_in_boxes(
        self, boxes: Int[np.ndarray, "f 4"], counts: Int[np.ndarray, " f"]
    ) -> Tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"]]:
        """`counts` pixels in each box, none in an empty one."""
        size = boxes[:, 2:] - boxes[:, :2]
        rows = np.repeat(np.arange(len(boxes)), np.where((size > 0).all(axis=1), counts, 0))
        column, row = (boxes[rows, :2] + self._rng.random((len(rows), 2)) * size[rows]).astype(int).T
        return rows, row * self._store.shape[2] + column


@dataclass
class _Pool:
    """Pixels among which those of a region of changing shape are looked for."""

    pixels: Int[np.ndarray, " p"]
    """At or near those that are in the region in any of some frames; all pixels if none is."""
    tries: int
    """Pixels to try for each one wanted; what is still missing then is drawn from anywhere."""

    @classmethod
    def of(cls, region: Bool[np.ndarray, "probes h w"]) -> "_Pool":
        ever = region.any(axis=0)
        pixels = np.flatnonzero(_dilate(ever, 3)) if ever.any() else np.arange(ever.size)
        accepted = region.mean(axis=0).sum() / len(pixels)
        return cls(pixels, int(np.ceil(min(MOST_TRIES, SPARE_TRIES / max(accepted, 1e-3)))))


def _dilate(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) > 0


def _borders(labels: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """Pixels whose label differs from a neighbour's, on both sides."""
    border = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border


def _in_box(pixels: Int[np.ndarray, " r"], box: Int[np.ndarray, "r 4"], width: int) -> Bool[np.ndarray, " r"]:
    """Whether each flat pixel lies in the box beside it."""
    left, top, right, bottom = box.T
    row, column = np.divmod(pixels, width)
    return (column >= left) & (column < right) & (row >= top) & (row < bottom)


def _box_pixels(box: Int[np.ndarray, "4"], width: int) -> Int[np.ndarray, " n"]:
    left, top, right, bottom = box
    return (np.arange(top, bottom)[:, None] * width + np.arange(left, right)[None]).ravel()


class DialogueDataManager(VanillaDataManager):
    """Rays of a conversation for training, whole frames for evaluation."""

    config: DialogueDataManagerConfig
    train_dataset: DialogueDataset
    eval_dataset: DialogueDataset

    def __init__(
        self,
        config: DialogueDataManagerConfig,
        device: Union[torch.device, str] = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **_: object,
    ):
        self.config, self.device, self.test_mode = config, device, test_mode
        self.total_steps: Optional[int] = None
        self.world_size, self.local_rank = world_size, local_rank
        self.test_split = "test" if test_mode in ("test", "inference") else "val"
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        else:
            config.data = config.dataparser.data
        self.dataparser: ConversationDataParser = config.dataparser.setup()
        self.includes_time = self.dataparser.includes_time
        self.train_dataparser_outputs = self.dataparser.get_dataparser_outputs(split="train")
        conversation = self.dataparser.conversation
        self._stores: List[FrameStore] = []
        self._regions: List[FaceRegions] = []
        for person in conversation.participants:
            height, width = self.dataparser.training_size(person.camera)
            self._stores.append(FrameStore(conversation, person.id, height, width, config.cache_folder))
            self._regions.append(FaceRegions.of(conversation, person.id, height, width))
        self.train_dataset = DialogueDataset(self.train_dataparser_outputs, self._stores, self._regions)
        eval_outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        # One set of signals and plates is enough.
        eval_outputs.metadata = self.train_dataparser_outputs.metadata
        self.eval_dataset = DialogueDataset(eval_outputs, self._stores, self._regions)
        self._pixel_directions = [
            torch.from_numpy(pixel_directions(person.camera, *store.shape[1:])).to(self.device)
            for person, store in zip(conversation.participants, self._stores, strict=True)
        ]
        self._origins = torch.tensor(
            np.stack([person.camera.camera_to_person[:, 3] for person in conversation.participants]),
            dtype=torch.float32,
        ).to(self.device)
        self.exclude_batch_keys_from_device = self.train_dataset.exclude_batch_keys_from_device
        # Also in inference, where the base class would call neither: ns-eval and ns-render need the evaluation loaders.
        DataManager.__init__(self)
        if test_mode == "inference":
            self.setup_eval()

    @property
    def stores(self) -> List[FrameStore]:
        """The frames of every participant at the training resolution."""
        return self._stores

    def setup_train(self) -> None:
        conversation = self.dataparser.conversation
        self._samplers = [
            RaySampler(store, regions, self.config, conversation.train_frames, seed=1000 * self.local_rank + index)
            for index, (store, regions) in enumerate(zip(self._stores, self._regions, strict=True))
        ]
        self._rng = np.random.default_rng(self.local_rank)

    def setup_eval(self) -> None:
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self._eval_rng = np.random.default_rng(0)

    def next_train(self, step: int) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """Rays sorted by participant and frame, and their colours and labels."""
        self.train_count += 1
        count = min(self.config.participants_per_batch, len(self._samplers))
        chosen = np.sort(self._rng.choice(len(self._samplers), count, replace=False))
        participants = [int(participant) for participant in chosen]
        if step % 2 and self._in_lip_stage(step) and all(self._samplers[row].has_mouths for row in participants):
            return self._patches(participants)
        return self._batch(participants)

    def _in_lip_stage(self, step: int) -> bool:
        share = self.config.lip_stage_share
        if share <= 0:
            return False
        if self.total_steps is None:
            raise DialogueError("a lip stage at the end of training needs the datamanager's total_steps.")
        return step >= (1.0 - share) * self.total_steps

    def _patches(self, participants: List[int]) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """Patches around mouths; `patch_size` in the batch is their side."""
        side = min(self.config.lip_patch_size, *(size for store in self._stores for size in store.shape[1:]))
        share = self.config.train_num_rays_per_batch // len(participants)
        draws = [self._samplers[participant].draw_patches(share, side) for participant in participants]
        bundle, batch = self._collate(participants, [frames for frames, _ in draws], [pixels for _, pixels in draws])
        return bundle, {**batch, "patch_size": torch.tensor(side)}

    def _batch(self, participants: List[int]) -> Tuple[RayBundle, Dict[str, Tensor]]:
        rays = np.diff(np.linspace(0, self.config.train_num_rays_per_batch, len(participants) + 1).astype(int))
        draws = [
            self._samplers[participant].draw(int(num_rays), self.config.frames_per_batch)
            for participant, num_rays in zip(participants, rays, strict=True)
        ]
        return self._collate(participants, [frames for frames, _ in draws], [pixels for _, pixels in draws])

    def _collate(
        self,
        participants: List[int],
        frames: List[Int[np.ndarray, " f"]],
        pixels: List[List[Int[np.ndarray, " r"]]],
    ) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """Rays, colours and labels of flat pixel numbers in frames of participants, in that order."""
        origins, directions, images, labels, frame_rows, participant_rows = [], [], [], [], [], []
        in_eyes = []
        for participant, person_frames, person_pixels in zip(participants, frames, pixels, strict=True):
            store = self._stores[participant]
            rows = np.repeat(person_frames, [len(frame_pixels) for frame_pixels in person_pixels])
            person_flat = np.concatenate(person_pixels)
            images.append(np.asarray(store.frames).reshape(len(store.frames), -1, 3)[rows, person_flat])
            labels.append(np.asarray(store.labels).reshape(len(store.labels), -1)[rows, person_flat])
            in_eyes.append(_in_box(person_flat, self._regions[participant].eyes[rows], store.shape[2]))
            frame_rows.append(rows)
            flat = torch.from_numpy(person_flat).to(self.device)
            directions.append(self._pixel_directions[participant][flat])
            origins.append(self._origins[participant].expand(len(flat), 3))
            participant_rows.append(torch.full((len(flat), 1), participant, device=self.device))
        direction, participant_row = torch.cat(directions), torch.cat(participant_rows)
        bundle = RayBundle(
            origins=torch.cat(origins),
            directions=direction,
            pixel_area=torch.ones_like(direction[:, :1]),
            camera_indices=participant_row,
            metadata={
                "frame": torch.from_numpy(np.concatenate(frame_rows)).to(self.device).unsqueeze(-1),
                "participant": participant_row,
            },
        )
        image = torch.from_numpy(np.concatenate(images)).to(self.device).float() / 255.0
        return bundle, {
            "image": image,
            "label": torch.from_numpy(np.concatenate(labels)).to(self.device).long(),
            "in_eyes": torch.from_numpy(np.concatenate(in_eyes)).to(self.device),
        }

    def next_eval(self, step: int) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """Rays of one held-out frame, evenly drawn."""
        self.eval_count += 1
        index = int(self._eval_rng.integers(len(self.eval_dataset)))
        participant, frame = self.eval_dataset.participants[index], self.eval_dataset.frames[index]
        size = self._stores[participant].labels[frame].size
        pixels = self._eval_rng.integers(size, size=min(self.config.eval_num_rays_per_batch, size))
        return self._collate([participant], [np.array([frame])], [[pixels]])

    def next_eval_image(self, step: int) -> Tuple[Cameras, Dict]:
        """A held-out frame."""
        return next(iter(self.eval_dataloader))

    def get_train_rays_per_batch(self) -> int:
        return self.config.train_num_rays_per_batch

    def get_eval_rays_per_batch(self) -> int:
        return self.config.eval_num_rays_per_batch

    def get_datapath(self) -> Path:
        return Path(self.config.dataparser.data)

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        return {}


def pixel_directions(camera: Camera, height: int, width: int) -> Float[np.ndarray, "pixels 3"]:
    """Unit directions in person space through the centre of every pixel of the frame resized to height × width."""
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    x = (columns * camera.width / width - camera.cx) / camera.focal
    y = -(rows * camera.height / height - camera.cy) / camera.focal
    directions = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3) @ camera.camera_to_person[:, :3].T
    return (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).astype(np.float32)
