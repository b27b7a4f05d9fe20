"""The conversation: the one data type every other room reads and writes."""

from dialogue_nerfstudio.conversation.conversation import (
    SAMPLE_RATE,
    SCHEMA_VERSION,
    Camera,
    Conversation,
    Participant,
    load_conversation,
    save_conversation,
)
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.conversation.roles import (
    SpeechSegment,
    frames_to_segments,
    read_rttm,
    segments_to_frames,
    write_rttm,
)
from dialogue_nerfstudio.conversation.split import split_frames
from dialogue_nerfstudio.conversation.video import FrameReader, LabelReader, LabelWriter, VideoWriter

__all__ = [
    "EXPRESSION_BASIS",
    "EXPRESSION_NAMES",
    "SAMPLE_RATE",
    "SCHEMA_VERSION",
    "Camera",
    "Conversation",
    "DialogueError",
    "FrameReader",
    "LabelReader",
    "LabelWriter",
    "Motion",
    "Participant",
    "SpeechSegment",
    "VideoWriter",
    "frames_to_segments",
    "load_conversation",
    "read_rttm",
    "save_conversation",
    "segments_to_frames",
    "split_frames",
    "write_rttm",
]
