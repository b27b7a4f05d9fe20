"""Renders avatars while their motion is being generated: the first picture is there long before the last motion is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from dialogue_nerfstudio.conversation.errors import DialogueError

if TYPE_CHECKING:
    from dialogue_nerfstudio.conversation.conversation import Conversation
    from dialogue_nerfstudio.output.animation import MotionBlocks
    from dialogue_nerfstudio.output.driving import Hearing
    from dialogue_nerfstudio.process.motion_signals import HeardConversation

BEFORE, AFTER = 50, 25
"""Frames around those being rendered that the avatars are told of: what their networks look back on and ahead to."""
SOUND_CONTEXT = 25
"""Frames of sound around those, for features whose windows are wide."""


def render_while_generating(
    pipeline: Any,
    conversation: "Conversation",
    blocks: "MotionBlocks",
    heard: "HeardConversation",
    hearing: "Hearing",
    participants: list[str],
    resolution: Optional[int] = None,
    drive: Optional[str] = None,
) -> "Iterator[np.ndarray]":
    """The frames of a video, uint8 [H, W, 3], each as soon as the motion around it is there, participants side by side.

    They are the pictures that `ns-dialogue render --motion` makes of the finished motion. Memory holds the frames
    around those being rendered.

    Args:
        pipeline: of trained avatars.
        conversation: that they were trained on.
        blocks: everybody's motion, in order.
        heard: the sound, and who speaks.
        hearing: what the avatars hear.
        participants: who is in the picture, from left to right.
        resolution: height of a picture; that of training if None.
        drive: what moves faces, as in `Render.drive`.

    Raises:
        DialogueError: the avatars were recorded at another rate than motion is generated at, or are in another basis.
    """
    from dialogue_nerfstudio.cli.render import nerfstudio_camera
    from dialogue_nerfstudio.cli.training import to_picture
    from dialogue_nerfstudio.output.driving import imitate
    from dialogue_nerfstudio.output.layout import side_by_side
    from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE
    from dialogue_nerfstudio.process.features import extractor_of

    if conversation.fps != heard.fps:
        raise DialogueError(
            f"these avatars were recorded at {conversation.fps:g} frames a second and motion is generated at "
            f"{heard.fps:g}: leave out --render, and render the folder afterwards."
        )
    model = pipeline.model
    model.eval()
    base, extractor = model.signals, extractor_of(conversation, hearing.feature, hearing.weights)
    people = [(model.participant_ids.index(name), conversation.participant(name).camera) for name in participants]
    height = resolution or pipeline.datamanager.dataparser.training_size(people[0][1])[0]
    cameras = [(row, nerfstudio_camera(camera, height).to(model.device)) for row, camera in people]
    columns = [conversation.participant_ids.index(name) for name in heard.participant_ids]

    def tell(window: "dict[str, Any]", first: int) -> None:
        """Tells the avatars of the frames from `first` on that are in `window`."""
        stop = first + next(iter(window.values())).num_frames
        begin, end = max(0, first - SOUND_CONTEXT), min(heard.num_frames, stop + SOUND_CONTEXT)
        samples = [round(frame / heard.fps * SAMPLE_RATE) for frame in (begin, end)]
        rows = extractor.rows(heard.mix.read(*samples), SAMPLE_RATE, end - begin, heard.fps)
        speaking = np.zeros((stop - first, len(conversation.participant_ids)), dtype=bool)
        speaking[:, columns] = heard.speaking[first:stop]
        motions = {
            name: imitate(conversation.participant(name).motion, motion, f"the motion generated for {name}")
            for name, motion in window.items()
        }
        model.set_signals(base.with_motion(motions).with_audio(rows[first - begin : stop - begin], speaking))

    window: dict[str, Any] = {}
    first = done = 0
    for block in blocks:
        window = _joined(window, block)
        known = first + next(iter(window.values())).num_frames
        ready = known if known >= heard.num_frames else max(done, known - AFTER)
        if ready > done:
            tell(window, first)
            for frame in range(done, ready):
                pictures = [model.render_frame(camera, frame - first, row, drive)["rgb"] for row, camera in cameras]
                yield side_by_side([to_picture(picture) for picture in pictures])
            done = ready
            dropped = max(0, done - BEFORE - first)
            window = {name: motion.slice(dropped, motion.num_frames) for name, motion in window.items()}
            first += dropped


def _joined(window: "dict[str, Any]", block: "dict[str, Any]") -> "dict[str, Any]":
    from dialogue_nerfstudio.conversation.motion import join_motions

    return block if not window else {name: join_motions([window[name], block[name]]) for name in window}
