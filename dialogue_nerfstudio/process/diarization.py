"""Which voices sound when: speech detection, voice embeddings, clustering and a Viterbi path through them, two voices
at once included (see `overlap.py`).

Conventions. `audio` is mono float32 `[S]`; inside this module it is 16 kHz. Times are seconds from sample 0. A *voice
embedding* is a unit vector of 256 non-negative numbers (GE2E), taken over a window of `window` seconds around its
time, every `hop` seconds. A *voice* is a cluster of embeddings, called "voice0", "voice1" … in the order in which they
are first heard; which face it belongs to is decided in `voices.py`.

Both networks come with pip packages, and nothing is downloaded: Silero VAD's model file lies in the wheel of
silero-vad, the GE2E voice encoder's weights in that of Resemblyzer. Neither package is imported: importing silero_vad
sets torch to one thread for the whole process, importing resemblyzer needs webrtcvad, a compiler.
"""

import importlib.util
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.acoustics import SAMPLE_RATE, at_16k, magnitudes, mel_filters
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.roles import SpeechSegment
from dialogue_nerfstudio.conversation.threads import one_thread
from dialogue_nerfstudio.process.overlap import OverlapConfig, pure_windows, state_scores, states_of
from dialogue_nerfstudio.process.sound_source import ArraySound, SoundSource

BLOCK = 60.0
"""Seconds of sound in memory at once."""

VAD_SAMPLES = 512
VAD_STEP = VAD_SAMPLES / SAMPLE_RATE
"""Seconds between two speech probabilities: Silero's window at 16 kHz."""

LEVEL_STEP = 0.01
"""Seconds of sound whose level is one number."""

MEL_FFT, MEL_HOP, MEL_BANDS = 400, 160, 40
MEL_RATE = SAMPLE_RATE // MEL_HOP
TARGET_DBFS = -30.0
EMBEDDING_SIZE = 256


@dataclass
class DiarizationConfig:
    """How voices are told apart."""

    vad_threshold: float = 0.5
    """Speech starts where Silero's probability reaches this."""
    vad_release: float = 0.35
    """Speech ends where it falls below this."""
    vad_lag: float = 0.09
    """Seconds by which that comes after the last sound: Silero's probability lingers, in recordings and in synthetic
    speech alike, while it rises with the first sound."""
    min_speech: float = 0.1
    """Shorter bursts (s) are dropped."""
    min_silence: float = 0.1
    """Shorter pauses (s) inside speech are filled."""
    edge_inwards: float = 0.1
    """Each end of speech lies where the sound first and last reaches a level, at most this (s) inside what Silero
    heard, which hears in steps of 32 ms."""
    edge_outwards: float = 0.06
    """And at most this (s) outside."""
    edge_level: float = 30.0
    """That level: by this (dB) below the loud fifth of the stretch, and at least `edge_floor` above the quiet of the
    sound."""
    edge_floor: float = 6.0
    """dB."""
    window: float = 0.5
    """Seconds of sound behind one voice embedding."""
    hop: float = 0.05
    """Seconds between two voice embeddings."""
    switch_cost: float = 0.01
    """What a change of voice must gain: difference in cosine similarity times seconds."""
    max_iterations: int = 15
    """Rounds of Viterbi and centroid re-estimation at most; they stop when the path stays."""
    batch_size: int = 256
    """Windows embedded at once."""
    max_windows: int = 24_000
    """Voice embeddings at most, 20 minutes of speech at `hop`: of more speech they are taken further apart, so that
    hours of sound take bounded memory and time. Turns that follow each other without a pause are then placed that much
    more coarsely; pauses stay as exact as they were."""
    max_teaching: int = 3_000
    """Windows of each voice, drawn at random, that teach what two at once sound like."""
    seed: int = 0
    """Seed of the clustering's starts."""
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    """Two voices at once."""


class VoiceEncoder(nn.Module):
    """The GE2E speaker encoder (Wan et al. 2018): three LSTM layers, a linear layer and ReLU on the last state,
    normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MEL_BANDS, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, EMBEDDING_SIZE)

    def forward(self, mel: Float[Tensor, "batch steps 40"]) -> Float[Tensor, "batch 256"]:
        _, (hidden, _) = self.lstm(mel)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=-1)


def diarize(
    audio: Float[np.ndarray, " num_samples"],
    sample_rate: int,
    num_speakers: int,
    config: DiarizationConfig | None = None,
) -> list[SpeechSegment]:
    """Segments of speech, each with its voice, in order; they overlap where two voices sound at once. With one speaker
    this is speech detection alone.

    Fewer voices than asked for come back where there is too little speech to tell them apart, none where there is no
    speech.

    Raises:
        DialogueError: silero-vad, or for several speakers Resemblyzer, is not installed.
    """
    return diarize_source(ArraySound(at_16k(audio, sample_rate)), num_speakers, config).segments


@dataclass
class Diarization:
    """What was heard."""

    segments: list[SpeechSegment]
    voices: "VoiceTrack | None" = None
    """The embeddings behind it; None where one speaker was asked for, or there was too little speech."""


def diarize_source(
    source: SoundSource,
    num_speakers: int,
    config: DiarizationConfig | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Diarization:
    """`diarize` of sound that need not be in memory.

    Args:
        source: 16 kHz sound; beyond `BLOCK` seconds only pieces of it are held.
        num_speakers: how many voices to tell apart.
        progress: told the fraction done.

    Raises:
        DialogueError: silero-vad, or for several speakers Resemblyzer, is not installed.
    """
    if num_speakers < 1:
        raise ValueError(f"num_speakers must be at least 1, not {num_speakers}")
    config = config or DiarizationConfig()
    speech, voices = find_voices(source, num_speakers, config, progress)
    if num_speakers == 1 or voices is None:
        return Diarization([SpeechSegment(start, end, "voice0") for start, end in speech])
    labels = separate_voices(voices.embeddings, num_speakers, config)
    sounding = np.eye(num_speakers, dtype=bool)[labels]
    if config.overlap.enabled and len(np.unique(labels)) == num_speakers:
        pure = pure_windows(voices.times, labels, voices.hop, config.overlap.pure_margin)
        scores = state_scores(
            voices.embeddings, voices.windows, _thinned(pure, labels, config), labels, voices.embed, config.overlap
        )
        if scores is not None:
            path = viterbi(scores, config.overlap.switch_cost)
            states = np.array([[v in state for v in range(num_speakers)] for state in states_of(num_speakers)])
            sounding = states[path]
    return Diarization(label_intervals(speech, voices.times, sounding), voices)


@dataclass
class VoiceTrack:
    """The voice embeddings of a sound's speech."""

    times: Float[np.ndarray, " n"]
    embeddings: Float32[np.ndarray, "n 256"]
    hop: float
    """Seconds between two of them."""
    windows: Callable[[Int[np.ndarray, " k"]], Float32[np.ndarray, "k steps 40"]]
    """What some of them were embedded from."""
    embed: Callable[[Float[np.ndarray, "k steps 40"]], Float32[np.ndarray, "k 256"]]
    """Embeds other windows."""


def find_voices(
    source: SoundSource,
    num_speakers: int,
    config: DiarizationConfig,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[list[tuple[float, float]], VoiceTrack | None]:
    """Stretches of speech (s) and the voices in them; no voices where one speaker is asked for or there is less speech
    than voices.

    Raises:
        DialogueError: silero-vad, or for several speakers Resemblyzer, is not installed.
    """
    share = 1.0 if num_speakers == 1 else 0.3
    probability = speech_probability(source, lambda fraction: progress(share * fraction))
    speech = speech_intervals(probability, len(source) / SAMPLE_RATE, config)
    speech = edges_at_sound(speech, sound_levels(source), config)
    if num_speakers == 1 or not speech:
        return speech, None
    hop = max(config.hop, sum(end - start for start, end in speech) / config.max_windows)
    times = np.concatenate([np.arange(start + hop / 2, end, hop) for start, end in speech])
    if len(times) < num_speakers:
        return speech, None
    encoder, gain = load_voice_encoder(), voice_gain(source)
    embeddings = np.empty((len(times), EMBEDDING_SIZE), np.float32)
    for rows in time_blocks(times):
        embeddings[rows] = embed_windows(encoder, voice_windows(source, times[rows], config, gain), config)
        progress(share + (1.0 - share) * (rows[-1] + 1) / len(times))

    def windows(rows: Int[np.ndarray, " k"]) -> Float32[np.ndarray, "k steps 40"]:
        return np.concatenate(
            [voice_windows(source, times[rows[block]], config, gain) for block in time_blocks(times[rows])]
        )

    return speech, VoiceTrack(times, embeddings, hop, windows, lambda made: embed_windows(encoder, made, config))


def time_blocks(times: Float[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " k"]]:
    """Indices of ascending times in groups that lie within the same `BLOCK` seconds."""
    blocks = (times // BLOCK).astype(int)
    yield from np.split(np.arange(len(times)), np.flatnonzero(np.diff(blocks)) + 1)


def _thinned(
    pure: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"], config: DiarizationConfig
) -> Bool[np.ndarray, " n"]:
    """At most `max_teaching` of each voice."""
    rng, kept = np.random.default_rng(config.seed), np.zeros_like(pure)
    for voice in np.unique(labels):
        rows = np.flatnonzero(pure & (labels == voice))
        if len(rows) > config.max_teaching:
            rows = rng.choice(rows, config.max_teaching, replace=False)
        kept[rows] = True
    return kept


# Speech


def speech_probability(
    source: SoundSource, progress: Callable[[float], None] = lambda fraction: None
) -> Float32[np.ndarray, " num_steps"]:
    """Silero VAD's probability of speech in each successive 32 ms of 16 kHz sound.

    Raises:
        DialogueError: silero-vad is not installed.
    """
    path = _package_file("silero_vad", "data/silero_vad.jit", "pip install silero-vad==6.2.3")
    with warnings.catch_warnings():
        # The wheel ships TorchScript; that torch recommends another format is no news to the user.
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        model = torch.jit.load(str(path), map_location="cpu").eval()
    num_steps = max(1, -(-len(source) // VAD_SAMPLES))
    probability = np.empty(num_steps, np.float32)
    block = round(BLOCK / VAD_STEP)
    model.reset_states()
    with torch.no_grad(), one_thread():
        for first in range(0, num_steps, block):
            last = min(first + block, num_steps)
            pieces = torch.from_numpy(source.read(first * VAD_SAMPLES, last * VAD_SAMPLES)).split(VAD_SAMPLES)
            # The network remembers, so that pieces are heard in order.
            probability[first:last] = [float(model(piece[None], SAMPLE_RATE)) for piece in pieces]
            progress(last / num_steps)
    return probability


def speech_intervals(
    probability: Float[np.ndarray, " num_steps"], duration: float, config: DiarizationConfig
) -> list[tuple[float, float]]:
    """Stretches of speech (s) from probabilities, by hysteresis: in at `vad_threshold`, out `vad_lag` before they fall
    below `vad_release`."""
    runs: list[list[float]] = []
    speaking = False
    for step, value in enumerate(probability):
        if not speaking and value >= config.vad_threshold:
            runs.append([step * VAD_STEP, duration])
            speaking = True
        elif speaking and value < config.vad_release:
            runs[-1][1] = max(step * VAD_STEP - config.vad_lag, runs[-1][0])
            speaking = False
    joined: list[list[float]] = []
    for start, end in runs:
        if joined and start - joined[-1][1] < config.min_silence:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    return [(start, end) for start, end in joined if end - start >= config.min_speech]


def sound_levels(source: SoundSource) -> Float32[np.ndarray, " num_steps"]:
    """Level (dBFS) of each successive 10 ms of sound, the rest left out."""
    step, total = round(LEVEL_STEP * SAMPLE_RATE), len(source)
    levels = np.empty(total // step, np.float32)
    block = round(BLOCK / LEVEL_STEP)
    for first in range(0, len(levels), block):
        last = min(first + block, len(levels))
        power = np.square(source.read(first * step, last * step)).reshape(-1, step).mean(axis=1)
        levels[first:last] = 10.0 * np.log10(power + 1e-12)
    return levels


def edges_at_sound(
    intervals: list[tuple[float, float]], levels: Float[np.ndarray, " num_steps"], config: DiarizationConfig
) -> list[tuple[float, float]]:
    """Stretches of speech (s) that begin and end where the sound does; an edge near which no step is loud enough stays.

    Args:
        intervals: ascending, apart.
        levels: dB of each `LEVEL_STEP`.
    """
    if not intervals or not len(levels):
        return intervals
    quiet = np.percentile(levels, 5)
    inwards, outwards = (max(round(seconds / LEVEL_STEP), 0) for seconds in (config.edge_inwards, config.edge_outwards))
    placed: list[tuple[float, float]] = []
    for number, (start, end) in enumerate(intervals):
        first, last = round(start / LEVEL_STEP), min(round(end / LEVEL_STEP), len(levels))
        loud = np.percentile(levels[first : max(last, first + 1)], 80) if first < len(levels) else quiet
        sounds = levels > max(loud - config.edge_level, quiet + config.edge_floor)
        # Neither into another stretch nor past the middle of its own.
        earliest = int(np.ceil(placed[-1][1] / LEVEL_STEP - 1e-6)) if placed else 0
        latest = int(intervals[number + 1][0] / LEVEL_STEP + 1e-6) if number + 1 < len(intervals) else len(levels)
        middle = (first + last) // 2
        low = max(first - outwards, earliest)
        heard = np.flatnonzero(sounds[low : min(first + inwards, middle)])
        start = (low + heard[0]) * LEVEL_STEP if len(heard) else start
        low = max(last - inwards, middle)
        heard = np.flatnonzero(sounds[low : min(last + outwards, latest)])
        end = (low + heard[-1] + 1) * LEVEL_STEP if len(heard) else end
        placed.append((start, end))
    return placed


# Voices


def embed_voice(
    audio: Float[np.ndarray, " num_samples"], times: Float[np.ndarray, " num_times"], config: DiarizationConfig
) -> Float[np.ndarray, "num_times 256"]:
    """Voice embeddings of 16 kHz sound in windows centred on `times`.

    Raises:
        DialogueError: Resemblyzer is not installed.
    """
    source = ArraySound(audio)
    return embed_windows(load_voice_encoder(), voice_windows(source, times, config, voice_gain(source)), config)


def voice_windows(
    source: SoundSource, times: Float[np.ndarray, " num_times"], config: DiarizationConfig, gain: float
) -> Float[np.ndarray, "num_times steps 40"]:
    """The encoder's input around each of `times`, which lie close together: the sound between them is in memory."""
    steps = round(config.window * MEL_RATE)
    total = 1 + len(source) // MEL_HOP
    middle = np.round(times * MEL_RATE - steps / 2).astype(int)
    first = np.clip(middle, -steps, total)
    low, high = int(first.min()), int(first.max()) + steps
    begin, end = max(low, 0), min(high, total)
    # Enough on both sides for the window of every step between.
    margin = MEL_FFT // MEL_HOP + 1
    mel = voice_mel(source.read((begin - margin) * MEL_HOP, (end + margin) * MEL_HOP) * np.float32(gain))
    mel = np.pad(mel[margin : margin + end - begin], ((begin - low, high - end), (0, 0)))
    # A view: windows overlap tenfold.
    return np.lib.stride_tricks.sliding_window_view(mel, steps, axis=0).transpose(0, 2, 1)[first - low]


def embed_windows(
    encoder: VoiceEncoder, windows: Float[np.ndarray, "n steps 40"], config: DiarizationConfig
) -> Float[np.ndarray, "n 256"]:
    """Voice embeddings of windows."""
    embeddings = np.empty((len(windows), EMBEDDING_SIZE), np.float32)
    with torch.no_grad(), one_thread():
        for start in range(0, len(windows), config.batch_size):
            batch = np.ascontiguousarray(windows[start : start + config.batch_size])
            embeddings[start : start + config.batch_size] = encoder(torch.from_numpy(batch)).numpy()
    return embeddings


def voice_gain(source: SoundSource) -> float:
    """The factor that raises quiet sound to -30 dBFS; 1 for loud sound and for silence."""
    block, power = round(BLOCK * SAMPLE_RATE), 0.0
    for start in range(0, len(source), block):
        power += float(np.square(source.read(start, min(start + block, len(source))), dtype=np.float64).sum())
    rms = np.sqrt(power / max(len(source), 1))
    return max(10 ** (TARGET_DBFS / 20) / rms, 1.0) if rms > 0 else 1.0


def voice_mel(audio: Float[np.ndarray, " num_samples"]) -> Float[np.ndarray, "num_steps 40"]:
    """The encoder's input: mel power (no logarithm) of 25 ms windows every 10 ms; step k is centred on k x 10 ms."""
    padded = np.pad(np.asarray(audio, np.float32), MEL_FFT // 2)
    return magnitudes(padded, MEL_FFT, MEL_HOP) ** 2 @ mel_filters(MEL_FFT, MEL_BANDS)


def load_voice_encoder() -> VoiceEncoder:
    """The encoder with the weights of the Resemblyzer package.

    Raises:
        DialogueError: Resemblyzer is not installed.
    """
    path = _package_file("resemblyzer", "pretrained.pt", "pip install --no-deps Resemblyzer==0.1.4")
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    encoder = VoiceEncoder().eval()
    # The two further entries scale the similarity in GE2E's training loss.
    encoder.load_state_dict({name: value for name, value in weights.items() if not name.startswith("similarity_")})
    return encoder


def separate_voices(
    embeddings: Float[np.ndarray, "num_times 256"], num_speakers: int, config: DiarizationConfig
) -> Int[np.ndarray, " num_times"]:
    """The voice of each embedding: k-means, then the cheapest path and the voices' centroids in turn until the path
    stays."""
    from sklearn.cluster import KMeans

    labels = KMeans(num_speakers, n_init=10, random_state=config.seed).fit(embeddings).labels_
    for _ in range(config.max_iterations):
        scores = embeddings @ centroids(embeddings, labels, num_speakers).T * config.hop
        path = viterbi(scores, config.switch_cost)
        if len(np.unique(path)) < len(np.unique(labels)) or (path == labels).all():
            break
        labels = path
    return labels


def centroids(
    embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], num_speakers: int
) -> Float[np.ndarray, "num_speakers d"]:
    """Normalised mean embedding of each voice; zero for a voice nobody has."""
    sums = np.stack([embeddings[labels == voice].sum(0) for voice in range(num_speakers)])
    return sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-12)


def viterbi(scores: Float[np.ndarray, "num_steps num_states"], switch_cost: float) -> Int[np.ndarray, " num_steps"]:
    """The path of states with the highest sum of scores, where each change of state costs `switch_cost`."""
    num_steps, num_states = scores.shape
    came_from = np.empty((num_steps, num_states), int)
    total = scores[0].astype(np.float64)
    for step in range(1, num_steps):
        best = total.argmax()
        switches = total[best] - switch_cost > total
        came_from[step] = np.where(switches, best, np.arange(num_states))
        total = np.where(switches, total[best] - switch_cost, total) + scores[step]
    path = np.empty(num_steps, int)
    path[-1] = total.argmax()
    for step in range(num_steps - 1, 0, -1):
        path[step - 1] = came_from[step, path[step]]
    return path


def label_intervals(
    speech: list[tuple[float, float]],
    times: Float[np.ndarray, " num_times"],
    sounding: Bool[np.ndarray, "num_times num_voices"],
) -> list[SpeechSegment]:
    """Each voice's segments: stretches of speech cut half-way between neighbouring times at which it does and does not
    sound; voices are named in order of appearance."""
    found: list[tuple[float, float, int]] = []
    for start, end in speech:
        inside = np.flatnonzero((times >= start) & (times < end))
        if len(inside) == 0:
            inside = np.array([np.abs(times - (start + end) / 2).argmin()])
        for voice in range(sounding.shape[1]):
            heard = sounding[inside, voice]
            changes = np.flatnonzero(np.diff(heard.astype(np.int8)))
            edges = [start, *((times[inside[changes]] + times[inside[changes + 1]]) / 2), end]
            values = heard[np.concatenate([[0], changes + 1])]
            pieces = zip(edges[:-1], edges[1:], values, strict=True)
            found += [(float(left), float(right), voice) for left, right, value in pieces if value]
    names: dict[int, str] = {}
    return [
        SpeechSegment(left, right, names.setdefault(voice, f"voice{len(names)}"))
        for left, right, voice in sorted(found)
    ]


def speech_frames(segments: list[SpeechSegment], num_frames: int, fps: float) -> Bool[np.ndarray, " num_frames"]:
    """Whether anybody speaks at the centre of each frame."""
    centres = (np.arange(num_frames) + 0.5) / fps
    speaking = np.zeros(num_frames, bool)
    for segment in segments:
        speaking |= (centres >= segment.start) & (centres < segment.end)
    return speaking


def _package_file(package: str, name: str, command: str) -> Path:
    """A data file of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DialogueError(
            f"Finding out who speaks needs {package}'s model file, which is not installed: "
            f"run '{command}', or bring the roles with --rttm."
        )
    return path
