"""Diarization: the mathematics on embeddings with known truth, the networks on synthetic voices, the error rate on a
real conversation."""

import numpy as np
import pytest
import soundfile
import torch
from synthetic_voice import voice

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.roles import read_rttm
from dialogue_nerfstudio.metrics.diarization import diarization_error
from dialogue_nerfstudio.process import diarization
from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE, load_audio
from dialogue_nerfstudio.process.diarization import (
    DiarizationConfig,
    centroids,
    diarize,
    diarize_source,
    edges_at_sound,
    embed_voice,
    label_intervals,
    load_voice_encoder,
    separate_voices,
    sound_levels,
    speech_intervals,
    viterbi,
    voice_gain,
    voice_mel,
)
from dialogue_nerfstudio.process.sound_source import ArraySound, SoundFile


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def brute_force(scores: np.ndarray, cost: float) -> float:
    paths = np.stack(np.meshgrid(*[np.arange(scores.shape[1])] * len(scores), indexing="ij"), -1).reshape(
        -1, len(scores)
    )
    totals = scores[np.arange(len(scores)), paths].sum(1) - cost * (np.diff(paths, axis=1) != 0).sum(1)
    return totals.max()


@pytest.mark.parametrize("cost", [0.0, 0.3, 2.0])
def test_viterbi_finds_the_best_of_all_paths(cost):
    scores = np.random.default_rng(0).normal(size=(7, 3))
    path = viterbi(scores, cost)
    total = scores[np.arange(7), path].sum() - cost * (np.diff(path) != 0).sum()
    assert total == pytest.approx(brute_force(scores, cost))


def test_viterbi_without_cost_is_argmax_and_with_a_huge_one_never_changes():
    scores = np.random.default_rng(1).normal(size=(50, 4))
    np.testing.assert_array_equal(viterbi(scores, 0.0), scores.argmax(1))
    assert (viterbi(scores, 1e6) == scores.sum(0).argmax()).all()


def noisy_voices(truth: np.ndarray, noise: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    means = np.abs(rng.normal(size=(truth.max() + 1, 256)))
    embeddings = np.abs(means[truth] + noise * rng.normal(size=(len(truth), 256)))
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("num_speakers", [2, 3])
def test_voices_with_known_turns_are_recovered(num_speakers):
    truth = np.repeat(np.random.default_rng(2).permutation(np.arange(12) % num_speakers), 20)
    labels = separate_voices(noisy_voices(truth, 1.0), num_speakers, DiarizationConfig())
    agreement = np.array([[(labels[truth == k] == j).mean() for j in range(num_speakers)] for k in range(num_speakers)])
    assert (agreement.max(1) > 0.98).all() and len(set(agreement.argmax(1))) == num_speakers


def test_path_mends_single_wrong_instants():
    truth = np.repeat([0, 1, 0, 1], 40)
    embeddings = noisy_voices(truth, 0.3)
    embeddings[50] = embeddings[5]
    labels = separate_voices(embeddings, 2, DiarizationConfig())
    assert labels[50] == labels[49] == labels[51] != labels[5]


def test_centroids_are_unit_means_and_zero_where_nobody_is():
    embeddings = np.eye(3, dtype=np.float32)
    means = centroids(embeddings, np.array([0, 0, 1]), 3)
    np.testing.assert_allclose(means[0], [2**-0.5, 2**-0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(means[2], 0)


def test_speech_intervals_have_hysteresis_and_join_pauses():
    step = diarization.VAD_STEP
    config = DiarizationConfig(vad_lag=0.0, min_speech=0.1, min_silence=0.1)
    probability = np.array(
        [0.0] * 5 + [0.9] * 5 + [0.4] * 5 + [0.1] * 2 + [0.9] * 5 + [0.1] * 10 + [0.8] * 2 + [0.0] * 5
    )
    # 0.4 does not end speech, two steps (64 ms) of pause are joined, and a burst of 64 ms is dropped.
    assert speech_intervals(probability, 10.0, config) == [(pytest.approx(5 * step), pytest.approx(22 * step))]


def test_speech_ends_before_its_probability_falls_and_never_before_it_begins():
    step = diarization.VAD_STEP
    probability = np.array([0.0] * 5 + [0.9] * 10 + [0.0] * 10 + [0.9] * 2 + [0.0] * 5)
    config = DiarizationConfig(vad_lag=0.09, min_speech=0.0)
    assert speech_intervals(probability, 10.0, config) == [
        (pytest.approx(5 * step), pytest.approx(15 * step - 0.09)),
        (pytest.approx(25 * step), pytest.approx(25 * step)),
    ]
    # Speech up to the end of the sound has no end to be late about.
    assert speech_intervals(np.ones(10), 0.3, config) == [(0.0, 0.3)]


def test_edges_of_speech_in_silence_are_found_within_two_frames():
    sound = voice(115, 1.0, 3.0, 0)
    # The synthetic voice murmurs between its syllables: cut from the start of a vowel to the end of another.
    audio = np.concatenate([np.zeros(16_000), sound[1_600:39_200], np.zeros(16_000)]).astype(np.float32)
    audio += 3e-4 * np.random.default_rng(0).normal(size=len(audio)).astype(np.float32)
    segments = diarize(audio, SAMPLE_RATE, 1)
    assert segments[0].start == pytest.approx(1.0, abs=0.08) and segments[-1].end == pytest.approx(3.35, abs=0.08)


def test_edges_lie_where_the_sound_begins_and_ends_and_others_stay():
    levels = np.full(300, -70.0)
    levels[52:148], levels[153:200] = -20.0, -25.0
    config = DiarizationConfig()

    def placed(*intervals: tuple[float, float]) -> list[tuple[float, float]]:
        return [(round(start, 3), round(end, 3)) for start, end in edges_at_sound(list(intervals), levels, config)]

    # Heard too late and too long; too early and too short.
    assert placed((0.55, 1.51), (1.51, 1.96)) == [(0.52, 1.48), (1.53, 2.0)]
    # Two voices without a pause between them share an edge, whatever the level there.
    assert placed((0.5, 1.0), (1.0, 1.46)) == [(0.52, 1.0), (1.0, 1.48)]
    # Also where it lies between two levels.
    edges = edges_at_sound([(0.5, 1.004), (1.004, 1.46)], levels, config)
    assert edges[0][1] <= edges[1][0] and edges[1][0] - edges[0][1] <= 0.011
    # Nothing is loud where the network was mistaken.
    assert placed((2.3, 2.6)) == [(2.3, 2.6)]
    # Steady noise has no edge.
    assert edges_at_sound([(0.5, 1.0)], np.full(300, -30.0), config) == [(0.5, 1.0)]
    assert edges_at_sound([(0.0, 0.005)], np.zeros(0), config) == [(0.0, 0.005)]


def test_levels_of_a_stream_are_those_of_the_whole(monkeypatch):
    sound = np.random.default_rng(0).normal(size=3 * SAMPLE_RATE + 77).astype(np.float32)
    sound[SAMPLE_RATE:] *= 0.1
    whole = sound_levels(ArraySound(sound))
    assert len(whole) == 300
    assert whole[:100].mean() == pytest.approx(0.0, abs=0.2) and whole[101:].mean() == pytest.approx(-20.0, abs=0.2)
    monkeypatch.setattr(diarization, "BLOCK", 0.7)
    np.testing.assert_array_equal(sound_levels(ArraySound(sound)), whole)


def test_intervals_are_cut_half_way_and_voices_named_by_appearance():
    times = np.array([0.1, 0.2, 0.3, 1.1, 1.2])
    segments = label_intervals([(0.05, 0.35), (1.05, 1.25)], times, np.eye(2, dtype=bool)[[1, 1, 0, 0, 1]])
    assert [(round(s.start, 3), round(s.end, 3), s.speaker) for s in segments] == [
        (0.05, 0.25, "voice0"),
        (0.25, 0.35, "voice1"),
        (1.05, 1.15, "voice1"),
        (1.15, 1.25, "voice0"),
    ]


def test_quiet_sound_alone_is_raised():
    noise = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32)
    quiet = ArraySound(0.001 * noise)
    assert 0.001 * voice_gain(quiet) == pytest.approx(10 ** (-30 / 20), rel=0.02)
    assert voice_gain(ArraySound(0.2 * noise)) == voice_gain(ArraySound(0 * noise)) == 1.0
    assert voice_mel(np.zeros(SAMPLE_RATE, np.float32)).shape == (101, 40)


def conversation(turns: int, seconds: float = 1.5) -> np.ndarray:
    """Two voices in turns, with pauses between."""
    voices = [voice(115, 1.0, 8.0, 0), voice(205, 1.17, 8.0, 1)]
    length = round(seconds * SAMPLE_RATE)
    parts = []
    for turn in range(turns):
        start = turn * 8_000 % (8 * SAMPLE_RATE - length)
        parts += [voices[turn % 2][start : start + length], np.zeros(4_000, np.float32)]
    return np.concatenate(parts)


def test_what_is_heard_does_not_depend_on_the_blocks_it_is_read_in(monkeypatch, tmp_path):
    audio = conversation(6)
    whole = diarize(audio, SAMPLE_RATE, 2)
    soundfile.write(tmp_path / "talk.wav", audio, SAMPLE_RATE, subtype="FLOAT")
    monkeypatch.setattr(diarization, "BLOCK", 2.5)
    done = []
    assert diarize_source(SoundFile(tmp_path / "talk.wav"), 2, progress=done.append).segments == whole
    assert done == sorted(done) and done[-1] == 1.0


def test_long_speech_is_embedded_further_apart():
    audio = conversation(6)
    config = DiarizationConfig(max_windows=40, max_teaching=5)
    speech, voices = diarization.find_voices(ArraySound(audio), 2, config)
    assert 35 <= len(voices.times) <= 40 + len(speech)
    finely, coarsely = diarize(audio, SAMPLE_RATE, 2), diarize(audio, SAMPLE_RATE, 2, config)
    error = diarization_error(finely, coarsely, len(audio) / SAMPLE_RATE)
    assert error["der"] < 0.1


def test_embeddings_are_unit_and_tell_voices_apart():
    low, high = voice(115, 1.0, 3.0, 0), voice(205, 1.17, 3.0, 1)
    times = np.arange(0.5, 2.5, 0.1)
    embeddings = [embed_voice(sound, times, DiarizationConfig()) for sound in (low, high)]
    for one in embeddings:
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1.0, atol=1e-5)
        assert (one >= 0).all()
    inside = np.mean([(one @ one.T).mean() for one in embeddings])
    assert (embeddings[0] @ embeddings[1].T).mean() < inside - 0.1


def test_batches_do_not_matter():
    sound, times = voice(120, 1.0, 1.0, 0), np.arange(0.0, 1.0, 0.1)
    np.testing.assert_allclose(
        embed_voice(sound, times, DiarizationConfig(batch_size=3)),
        embed_voice(sound, times, DiarizationConfig()),
        atol=1e-5,
    )


def test_two_synthetic_voices_are_told_apart():
    low, high = voice(115, 1.0, 8.0, 0), voice(205, 1.17, 8.0, 1)
    parts, truth = [], []
    for turn in range(6):
        source, name = (low, "low") if turn % 2 == 0 else (high, "high")
        start = len(np.concatenate(parts)) / SAMPLE_RATE if parts else 0.0
        parts += [source[turn * 16_000 : turn * 16_000 + 24_000], np.zeros(4_000, np.float32)]
        truth.append(diarization.SpeechSegment(start, start + 1.5, name))
    audio = np.concatenate(parts)
    segments = diarize(audio, SAMPLE_RATE, 2)
    error = diarization_error(truth, segments, len(audio) / SAMPLE_RATE)
    assert error["der"] < 0.15 and error["confusion"] < 0.05
    assert segments == diarize(audio, SAMPLE_RATE, 2)
    assert max(segment.end for segment in segments) <= len(audio) / SAMPLE_RATE


def test_silence_and_nothing_have_no_speech():
    assert diarize(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE, 2) == []
    assert diarize(np.zeros(0, np.float32), SAMPLE_RATE, 2) == []


def _counting(forward, used):
    def counted(*args):
        used.append(torch.get_num_threads())
        return forward(*args)

    return counted


def test_threads_of_torch_are_left_as_they_were(monkeypatch):
    torch.set_num_threads(2)
    used = []
    monkeypatch.setattr(torch.nn.LSTM, "forward", _counting(torch.nn.LSTM.forward, used))
    diarize(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE, 2)
    embed_voice(np.zeros(SAMPLE_RATE, np.float32), np.array([0.5]), DiarizationConfig())
    assert used == [1] and torch.get_num_threads() == 2


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(diarization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DialogueError, match="pip install silero-vad"):
        diarize(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE, 2)
    with pytest.raises(DialogueError, match=r"pip install --no-deps Resemblyzer==0\.1\.4"):
        load_voice_encoder()


@pytest.mark.shared
def test_error_rate_of_a_real_conversation(shared_clips):
    audio = load_audio(shared_clips / "conversation_30s.wav")
    reference = read_rttm(shared_clips / "conversation_30s.rttm")
    segments = diarize(audio, SAMPLE_RATE, 2)
    assert diarization_error(reference, segments, 30.0)["der"] < 0.125
    alone = diarize(audio, SAMPLE_RATE, 1)
    assert {segment.speaker for segment in alone} == {"voice0"}
    assert diarization_error(reference, alone, 30.0)["miss"] < 0.12
