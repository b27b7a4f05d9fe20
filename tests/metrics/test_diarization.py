"""Diarization error on segments whose errors are counted by hand."""

import pytest

from dialogue_nerfstudio.conversation.roles import SpeechSegment
from dialogue_nerfstudio.metrics.diarization import diarization_error

REFERENCE = [SpeechSegment(0.0, 4.0, "a"), SpeechSegment(5.0, 9.0, "b")]


def test_names_do_not_matter():
    hypothesis = [SpeechSegment(0.0, 4.0, "voice1"), SpeechSegment(5.0, 9.0, "voice0")]
    assert diarization_error(REFERENCE, hypothesis, 10.0)["der"] == 0.0


def test_miss_false_alarm_and_confusion_by_hand():
    hypothesis = [SpeechSegment(1.0, 4.5, "x"), SpeechSegment(5.0, 7.0, "y"), SpeechSegment(7.0, 9.0, "x")]
    error = diarization_error(REFERENCE, hypothesis, 10.0)
    assert error["miss"] == pytest.approx(1 / 8)
    assert error["false_alarm"] == pytest.approx(0.5 / 8)
    assert error["confusion"] == pytest.approx(2 / 8)
    assert error["der"] == pytest.approx(3.5 / 8)


def test_overlap_is_scored():
    reference = [SpeechSegment(0.0, 4.0, "a"), SpeechSegment(2.0, 4.0, "b")]
    assert diarization_error(reference, [SpeechSegment(0.0, 4.0, "x")], 4.0)["der"] == pytest.approx(2 / 6)


def test_collar_is_the_total_width():
    hypothesis = [SpeechSegment(0.2, 4.0, "a"), SpeechSegment(5.0, 9.0, "b")]
    assert diarization_error(REFERENCE, hypothesis, 10.0, collar=0.4)["miss"] == pytest.approx(0.0, abs=1e-9)
    assert diarization_error(REFERENCE, hypothesis, 10.0, collar=0.2)["miss"] > 0.01


def test_no_reference_speech_is_refused():
    with pytest.raises(ValueError, match="no speech"):
        diarization_error([], REFERENCE, 10.0)
