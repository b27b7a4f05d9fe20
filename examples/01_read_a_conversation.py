"""Read a conversation: who speaks when, how each head moves, and one frame of each person.

    python examples/01_read_a_conversation.py data/chat

prints, for the simulated conversation of `ns-dialogue simulate`, something like

    14.0 s, 350 frames, features: mel, prosody
    p0 speaks 7.2 s, turns its head by up to 18°, blinks 4 times, frame 0 is 256x256
    p1 speaks 5.9 s, turns its head by up to 15°, blinks 5 times, frame 0 is 256x256
"""

from pathlib import Path

import numpy as np
import tyro

from dialogue_nerfstudio.conversation.conversation import load_conversation
from dialogue_nerfstudio.metrics.tracking import blink_events


def main(conversation: tyro.conf.Positional[Path]) -> None:
    """Print what a conversation folder holds.

    Args:
        conversation: the folder.
    """
    chat = load_conversation(conversation)
    print(f"{chat.num_frames / chat.fps:.1f} s, {chat.num_frames} frames, features: {', '.join(chat.feature_names)}")
    for column, person in enumerate(chat.participants):
        with chat.frames(person.id) as frames:
            height, width = frames[0].shape[:2]
        print(
            f"{person.id} speaks {chat.speaking[:, column].sum() / chat.fps:.1f} s, "
            f"turns its head by up to {np.rad2deg(np.linalg.norm(person.motion.head_pose[:, :3], axis=1).max()):.0f}°, "
            f"blinks {len(blink_events(person.motion.blink, chat.fps))} times, frame 0 is {width}x{height}"
        )


if __name__ == "__main__":
    tyro.cli(main)
