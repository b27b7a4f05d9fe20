"""Drive an avatar with a motion made by hand: nod twice, open the mouth, blink.

    python examples/03_drive_an_avatar.py data/chat nod.npz
    ns-dialogue render --load-config …/config.yml --motion nod.npz --motion-map p0=nod --output nod.mp4

A motion is the same type whether it was tracked, generated, or written by a few lines like these.
"""

from pathlib import Path

import numpy as np
import tyro

from dialogue_nerfstudio.conversation.conversation import load_conversation
from dialogue_nerfstudio.conversation.motion import Motion


def main(
    conversation: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    participant: str = "p0",
    seconds: float = 3.0,
) -> None:
    """Write a motion that fits a participant's avatar.

    Args:
        conversation: the folder the avatar was trained on, for its expression basis and frame rate.
        output: motion file to write.
        participant: whose avatar it is for.
        seconds: length.
    """
    recorded = load_conversation(conversation).participant(participant).motion
    time = np.arange(round(seconds * recorded.fps)) / recorded.fps
    motion = Motion(
        head_pose=np.zeros((len(time), 6), dtype=np.float32),
        expression=np.zeros((len(time), len(recorded.expression_names)), dtype=np.float32),
        blink=np.zeros((len(time), 2), dtype=np.float32),
        gaze=np.zeros((len(time), 2, 2), dtype=np.float32),
        expression_residual=np.zeros((len(time), recorded.expression_residual.shape[1]), dtype=np.float32),
        fps=recorded.fps,
        expression_basis=recorded.expression_basis,
        expression_names=recorded.expression_names,
        sources={"head_pose": "by hand", "expression": "by hand", "blink": "by hand"},
    )
    motion.head_pose[:, 0] = np.deg2rad(6) * np.sin(2 * np.pi * time * 2 / seconds)
    motion.expression[:, recorded.expression_names.index("jaw_open")] = 0.5 * (1 - np.cos(2 * np.pi * time))
    motion.blink[:] = np.exp(-(((time - seconds / 2) / 0.08) ** 2))[:, None]
    motion.save(output)


if __name__ == "__main__":
    tyro.cli(main)
