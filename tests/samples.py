"""Small objects that many tests need."""

import numpy as np

from dialogue_nerfstudio.conversation import EXPRESSION_NAMES, Motion


def make_motion(num_frames: int = 6, num_residuals: int = 3) -> Motion:
    rng = np.random.default_rng(0)
    return Motion(
        head_pose=rng.normal(size=(num_frames, 6)).astype(np.float32),
        expression=rng.random((num_frames, len(EXPRESSION_NAMES))).astype(np.float32),
        blink=rng.random((num_frames, 2)).astype(np.float32),
        gaze=rng.normal(size=(num_frames, 2, 2)).astype(np.float32),
        expression_residual=rng.normal(size=(num_frames, num_residuals)).astype(np.float32),
        sources={"head_pose": "tracked", "blink": "generated"},
    )
