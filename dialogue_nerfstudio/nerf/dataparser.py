"""Dataparser: a conversation folder becomes nerfstudio cameras, one a participant and frame, and the model's metadata.

A camera carries only which frame and which participant it shows; signals are looked up by those.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Literal, Optional, Sequence, Type, Union

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from dialogue_nerfstudio.conversation import Camera, Conversation, DialogueError, load_conversation, split_frames
from dialogue_nerfstudio.nerf.frame_store import default_cache_folder
from dialogue_nerfstudio.nerf.signals import ConversationSignals
from dialogue_nerfstudio.process.ad_nerf_folder import conversation_folder


@dataclass
class ConversationDataParserConfig(DataParserConfig):
    """A conversation folder, as `ns-dialogue process` writes it, or an AD-NeRF-family folder."""

    _target: Type = field(default_factory=lambda: ConversationDataParser)
    data: Path = Path()
    """The conversation folder; an AD-NeRF-family folder is converted once, into the user's cache folder."""
    resolution: Optional[int] = None
    """Pixels of the longer side of the frames to train on; None for 512 with CUDA and 128 without."""
    audio_feature: str = "mel"
    """What the avatars hear: the name of a file in the conversation's features/, such as mel, mfcc, wav2lip,
    contrastive, hubert, wav2vec2 or prosody; `ns-dialogue features` makes them."""
    eval_fraction: Optional[float] = None
    """Share of the frames, at the end, that is held out; None for the split stored in the conversation."""
    eval_interval: int = 1
    """Evaluate every n-th held-out frame."""


@dataclass
class RecordedPerson:
    """What the model has to know about a participant besides its signals."""

    id: str
    camera: Camera
    """The recording camera, at the size of the crop."""
    head_box: Float[np.ndarray, "2 3"]
    torso_box: Float[np.ndarray, "2 3"]
    plate: UInt8[np.ndarray, "height width 3"]
    """The background behind the person, at the size of the crop."""


@dataclass
class ConversationDataParser(DataParser):
    """Reads a conversation folder.

    Cameras stand in the person space of whom they recorded; nothing is rotated or scaled.
    """

    config: ConversationDataParserConfig
    includes_time: bool = True

    def __init__(self, config: ConversationDataParserConfig):
        super().__init__(config)
        self.config = config
        self._conversation: Optional[Conversation] = None

    @property
    def conversation(self) -> Conversation:
        """The conversation, opened once.

        Raises:
            DialogueError: the folder cannot be read, or options do not fit it.
        """
        if self._conversation is None:
            if Path(self.config.data) == Path():
                raise DialogueError("no data: give the conversation folder with --data.")
            conversation = load_conversation(conversation_folder(self.config.data, default_cache_folder()))
            if self.config.eval_fraction is not None:
                conversation.train_frames, conversation.eval_frames = split_frames(
                    conversation.num_frames, self.config.eval_fraction
                )
            self._conversation = conversation
        return self._conversation

    def training_size(self, camera: Camera) -> "tuple[int, int]":
        """(height, width) of a participant's frames at the training resolution; a crop is never enlarged."""
        resolution = self.config.resolution or (512 if torch.cuda.is_available() else 128)
        if resolution < 8:
            raise DialogueError(f"a resolution of {resolution} is too small; 64 or more gives a face.")
        scale = min(1.0, resolution / max(camera.height, camera.width))
        return max(1, round(camera.height * scale)), max(1, round(camera.width * scale))

    def _generate_dataparser_outputs(
        self, split: Literal["train", "val", "test"] = "train", **_: object
    ) -> DataparserOutputs:
        conversation = self.conversation
        frames = (
            conversation.train_frames if split == "train" else conversation.eval_frames[:: self.config.eval_interval]
        )
        people = [
            RecordedPerson(
                person.id, person.camera, person.head_box, person.torso_box, conversation.background(person.id)
            )
            for person in conversation.participants
        ]
        corners = np.concatenate([corner for person in people for corner in (person.torso_box, person.head_box)])
        aabb = torch.tensor(np.stack([corners.min(0), corners.max(0)]), dtype=torch.float32)
        return DataparserOutputs(
            # Names only: the pixels come out of a video. nerfstudio names what it renders after them.
            image_filenames=[Path(f"{person.id}/{frame:06d}.png") for person in people for frame in frames],
            cameras=self._cameras(people, frames, conversation.num_frames),
            scene_box=SceneBox(aabb=aabb),
            metadata={
                "people": people,
                "signals": ConversationSignals.from_conversation(conversation, self.config.audio_feature),
                "train_frames": np.asarray(conversation.train_frames),
                "training_heights": [self.training_size(person.camera)[0] for person in people],
            },
        )

    def _cameras(self, people: List[RecordedPerson], frames: np.ndarray, num_frames: int) -> Cameras:
        rows = [(index, person, frame) for index, person in enumerate(people) for frame in frames.tolist()]
        sizes = [self.training_size(person.camera) for _, person, _ in rows]
        scales = [
            (height / p.camera.height, width / p.camera.width)
            for (height, width), (_, p, _) in zip(sizes, rows, strict=True)
        ]

        def column(values: Sequence[Union[int, float]], dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).unsqueeze(-1)

        return Cameras(
            camera_to_worlds=torch.tensor(
                np.stack([person.camera.camera_to_person for _, person, _ in rows]), dtype=torch.float32
            ),
            fx=column([person.camera.focal * scale[1] for (_, person, _), scale in zip(rows, scales, strict=True)]),
            fy=column([person.camera.focal * scale[0] for (_, person, _), scale in zip(rows, scales, strict=True)]),
            cx=column([person.camera.cx * scale[1] for (_, person, _), scale in zip(rows, scales, strict=True)]),
            cy=column([person.camera.cy * scale[0] for (_, person, _), scale in zip(rows, scales, strict=True)]),
            width=column([width for _, width in sizes], torch.int64),
            height=column([height for height, _ in sizes], torch.int64),
            camera_type=CameraType.PERSPECTIVE,
            times=torch.tensor([frame / max(1, num_frames - 1) for _, _, frame in rows], dtype=torch.float32),
            metadata={
                "frame": column([frame for _, _, frame in rows], torch.int64),
                "participant": column([index for index, _, _ in rows], torch.int64),
            },
        )
