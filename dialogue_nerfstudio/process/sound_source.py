"""Sound that is read piece by piece: a stretch of a WAV file or of an array, whatever its length.

Conventions. Mono float32 at `SAMPLE_RATE`; samples before the beginning and after the end are silence.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Optional

import numpy as np
import soundfile
from jaxtyping import Float, Float32

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE


class SoundSource(ABC):
    """Sound of a known length."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Float32[np.ndarray, " num_samples"]:
        """The samples start … stop − 1."""


class ArraySound(SoundSource):
    """Sound in memory."""

    def __init__(self, audio: Float[np.ndarray, " num_samples"]):
        self._audio = np.asarray(audio, np.float32)

    def __len__(self) -> int:
        return len(self._audio)

    def read(self, start: int, stop: int) -> Float32[np.ndarray, " num_samples"]:
        """See `SoundSource`."""
        samples = np.zeros(max(stop - start, 0), np.float32)
        first, last = max(start, 0), min(stop, len(self._audio))
        if last > first:
            samples[first - start : last - start] = self._audio[first:last]
        return samples


class SoundFile(SoundSource):
    """A mono WAV file at `SAMPLE_RATE`, of which only what is read is in memory.

    Args:
        path: the file.
        length: samples to be taken for the whole; the file's own number if None.

    Raises:
        DialogueError: it is missing, or not such a file.
    """

    def __init__(self, path: Path, length: Optional[int] = None):
        try:
            self._file = soundfile.SoundFile(path)
        except (OSError, soundfile.SoundFileError) as error:
            raise DialogueError(f"{path} is missing or is not a sound file ({error}).") from error
        if self._file.samplerate != SAMPLE_RATE or self._file.channels != 1:
            raise DialogueError(f"{path} is not mono at {SAMPLE_RATE} Hz; convert it, or make the folder again.")
        self._length = self._file.frames if length is None else length

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Float32[np.ndarray, " num_samples"]:
        """See `SoundSource`."""
        first, last = max(start, 0), min(stop, self._length, self._file.frames)
        samples = np.zeros(max(stop - start, 0), np.float32)
        if last > first:
            self._file.seek(first)
            found = self._file.read(last - first, dtype="float32")
            samples[first - start : first - start + len(found)] = found
        return samples

    def close(self) -> None:
        self._file.close()
