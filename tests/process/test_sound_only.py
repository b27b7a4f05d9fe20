"""Sound alone: voices, roles and features without a picture, and what is said to who asks for one."""

import json
from pathlib import Path

import numpy as np
import pytest
from media import tone

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.conversation import DialogueError, SpeechSegment, load_conversation, write_rttm
from dialogue_nerfstudio.process import diarization
from dialogue_nerfstudio.process.audio_features import load_audio, save_wav
from dialogue_nerfstudio.process.pipeline import ProcessConfig
from dialogue_nerfstudio.process.recordings import process_inputs

SECONDS = 3.02


@pytest.fixture(autouse=True)
def ideal_diarization(monkeypatch):
    """Two voices take turns; alone, a voice speaks where its file is loud."""

    def diarize(audio, rate, count, *_):
        if count == 1:
            loud = np.flatnonzero(np.abs(audio) > 0.1) / rate
            return [SpeechSegment(float(loud[0]), float(loud[-1]), "voice0")]
        return [SpeechSegment(0.0, 1.0, "voice0"), SpeechSegment(1.0, 2.0, "voice1")]

    monkeypatch.setattr(diarization, "diarize", diarize)


@pytest.fixture
def talk(tmp_path) -> Path:
    save_wav(tmp_path / "talk.wav", tone(SECONDS))
    return tmp_path / "talk.wav"


def test_one_file_becomes_a_conversation_of_voices(talk, tmp_path, capsys):
    assert main(["process", str(talk), "--output", str(tmp_path / "out")]) == 0
    assert "p0 speaks 33%, p1 speaks 33%" in capsys.readouterr().out
    made = load_conversation(tmp_path / "out", needs_pictures=False)
    assert made.participant_ids == ["p0", "p1"] and all(person.is_voice for person in made.participants)
    assert made.num_frames == 75 and not made.has_pictures
    assert made.feature("mel").shape == (75, 16, 80) and made.feature("prosody").shape == (75, 2)
    samples, rate = made.audio()
    assert len(samples) == 75 * 640 and rate == 16000
    np.testing.assert_allclose(samples, load_audio(talk)[: len(samples)], atol=1e-4)
    np.testing.assert_array_equal(made.speaking[:, 0], np.arange(75) < 25)
    assert json.loads((tmp_path / "out" / "conversation.json").read_text())["participants"][0]["camera"] is None
    assert not (tmp_path / "out" / "participants").exists()


def test_one_file_a_voice(tmp_path):
    sounds = [tmp_path / "ann.wav", tmp_path / "bob.wav"]
    for number, path in enumerate(sounds):
        sound = np.zeros(48000, np.float32)
        sound[number * 16000 : (number + 1) * 16000] = tone(1.0)
        save_wav(path, sound[: 48000 - 8000 * number])
    process_inputs(sounds, tmp_path / "out", ProcessConfig(names=("ann", "bob")))
    made = load_conversation(tmp_path / "out", needs_pictures=False)
    for number, name in enumerate(("ann", "bob")):
        expected = (np.arange(75) // 25) == number
        assert (made.speaking[:, number] == expected).mean() > 0.98
        assert len(load_audio(tmp_path / "out" / "audio" / f"{name}.wav")) == 48000
    with pytest.raises(DialogueError, match=r"1 name\(s\).*2 voices"):
        process_inputs(sounds, tmp_path / "no", ProcessConfig(names=("ann",)))


def test_an_rttm_names_the_voices(talk, tmp_path):
    spoken = [SpeechSegment(0, 1, "ann"), SpeechSegment(1, 2, "bob"), SpeechSegment(2, 3, "c")]
    write_rttm(tmp_path / "who.rttm", spoken)
    process_inputs([talk, tmp_path / "who.rttm"], tmp_path / "out")
    made = load_conversation(tmp_path / "out", needs_pictures=False)
    assert made.participant_ids == ["ann", "bob", "c"] and made.speaking.sum(axis=0).tolist() == [25, 25, 25]


def test_who_needs_pictures_is_told_what_can_be_done(talk, tmp_path, capsys):
    process_inputs([talk], tmp_path / "out")
    with pytest.raises(DialogueError, match=r"of p0, p1 there is a voice, but no picture.*--audio .*audio\.wav --rttm"):
        load_conversation(tmp_path / "out")
    assert main(["report", str(tmp_path / "out")]) == 2
    assert "there is a voice, but no picture" in capsys.readouterr().err


def test_a_second_run_runs_no_stage(talk, tmp_path):
    process_inputs([talk], tmp_path / "out")
    process_inputs([talk], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "process.json").read_text())["stages_run"] == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProcessConfig(size=128), "--size is about pictures"),
        (ProcessConfig(shot="all"), "--shot is about pictures"),
        (ProcessConfig(without_sound=True), "--without-sound is about pictures"),
        (ProcessConfig(num_people=0), "num_people"),
    ],
)
def test_options_about_pictures_are_refused(talk, tmp_path, config, message):
    with pytest.raises(DialogueError, match=message):
        process_inputs([talk], tmp_path / "out", config)


def test_too_short_and_no_sound_at_all(tmp_path):
    save_wav(tmp_path / "short.wav", tone(0.5))
    with pytest.raises(DialogueError, match=r"short\.wav is 0\.5 s long"):
        process_inputs([tmp_path / "short.wav"], tmp_path / "out")
    (tmp_path / "text.wav").write_text("Dear sir")
    with pytest.raises(DialogueError, match=r"text\.wav cannot be decoded"):
        process_inputs([tmp_path / "text.wav"], tmp_path / "out2")
    with pytest.raises(DialogueError, match=r"no file .*none\.wav"):
        process_inputs([tmp_path / "none.wav"], tmp_path / "out3")
