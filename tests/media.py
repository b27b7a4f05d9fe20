"""Small videos and sounds that tests make themselves."""

from collections.abc import Iterable
from pathlib import Path
from typing import Optional, Sequence

import av
import numpy as np


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: int = 25,
    audio: Optional[np.ndarray] = None,
    keyframe_interval: int = 250,
    audio_pts: Optional[int] = None,
) -> Path:
    """An ordinary mp4, with mono sound at 16 kHz if given; `audio_pts` 0 has the codec's delay written down, None
    leaves the sound late by it."""
    with av.open(str(path), "w") as container:
        video = sound = None
        for frame in frames:
            if video is None:
                video = container.add_stream("libx264", rate=fps, options={"crf": "18", "g": str(keyframe_interval)})
                video.height, video.width, video.pix_fmt = *frame.shape[:2], "yuv420p"
                if audio is not None:
                    sound = container.add_stream("aac", rate=16000, layout="mono")
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            block = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
            block.sample_rate = 16000
            block.pts = audio_pts
            container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return path


def damage_packets(path: Path, kind: str, numbers: Sequence[int]) -> Path:
    """Overwrites the packets of those numbers, in the order of the file, of the first video or audio stream with 255s,
    which no codec accepts."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        places = [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]
    content = bytearray(path.read_bytes())
    for number in numbers:
        start, size = places[number]
        content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def noise_frames(count: int, size: int = 128, seed: int = 0) -> Iterable[np.ndarray]:
    """Smooth coloured noise: a video with nobody in it."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        coarse = rng.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8)
        yield coarse.repeat(16, axis=0).repeat(16, axis=1)


def tone(seconds: float) -> np.ndarray:
    """A sound at 16 kHz."""
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * 16000)) / 16000)).astype(np.float32)
