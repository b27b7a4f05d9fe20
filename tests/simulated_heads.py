"""Pictures of several simulated people that a real face detector accepts, as videos."""

from pathlib import Path
from typing import List, Optional

import av
import numpy as np
from media import tone

from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_people

FRAMES = 30


def heads(count: int, size: int) -> List[np.ndarray]:
    """Portraits `[size, size, 3]` of different people: the two designed ones, and others drawn from seeds."""
    found: List[np.ndarray] = []
    for seed in range(-(-count // 2)):
        people, _ = simulate_people(SimulationConfig(seconds=2.0, size=size, num_people=4, seed=seed))
        found += [person.render(5)[0] for person in (people[:2] if seed == 0 else people[2:])]
    return found[:count]


def write_upright(path: Path, picture: np.ndarray, quarter_turns: Optional[int] = None) -> Path:
    """A video of one picture, over which the light flickers a little, with sound; with `quarter_turns` it is stored
    turned clockwise by so many, as phones do, and says how to turn it back."""
    rng = np.random.default_rng(0)
    stored = np.ascontiguousarray(np.rot90(picture, -(quarter_turns or 0)))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "16"})
        video.height, video.width, video.pix_fmt = *stored.shape[:2], "yuv420p"
        if quarter_turns:
            video.set_display_rotation(90 * quarter_turns)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for _ in range(FRAMES):
            frame = np.clip(stored.astype(int) + rng.integers(-2, 3), 0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(tone(FRAMES / 25)[None], format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    return path
