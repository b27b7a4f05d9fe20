"""RTTM files and roles per frame."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import (
    DialogueError,
    SpeechSegment,
    frames_to_segments,
    read_rttm,
    segments_to_frames,
    write_rttm,
)
from dialogue_nerfstudio.conversation.roles import partner_of


def test_rttm_round_trip_is_sorted(tmp_path):
    segments = [SpeechSegment(2.0, 3.5, "b"), SpeechSegment(0.25, 1.0, "a")]
    write_rttm(tmp_path / "r.rttm", segments)
    assert read_rttm(tmp_path / "r.rttm") == sorted(segments, key=lambda s: s.start)


def test_rttm_of_another_tool(tmp_path):
    (tmp_path / "r.rttm").write_text(
        ";; comment\nSPKR-INFO x 1 <NA> <NA> <NA> unknown a <NA>\n"
        "SPEAKER sample 1 6.690 0.430 <NA> <NA> speaker90 <NA> <NA>\n"
    )
    assert read_rttm(tmp_path / "r.rttm") == [SpeechSegment(6.69, 7.12, "speaker90")]


@pytest.mark.parametrize("line", ["SPEAKER x 1 one 2 <NA> <NA> a", "SPEAKER x 1 1.0", "SPEAKER x 1 nan 2 <NA> <NA> a"])
def test_bad_line_is_named(tmp_path, line):
    (tmp_path / "r.rttm").write_text("\n" + line + "\n")
    with pytest.raises(DialogueError, match="line 2"):
        read_rttm(tmp_path / "r.rttm")


def test_frames_belong_to_the_segment_that_covers_their_middle():
    frames = segments_to_frames([SpeechSegment(0.03, 0.10, "a")], ["a", "b"], num_frames=4, fps=25)
    # Middles are 0.02, 0.06, 0.10, 0.14 s; the end is exclusive.
    assert frames[:, 0].tolist() == [False, True, False, False]
    assert not frames[:, 1].any()


def test_frames_to_segments_inverts_segments_to_frames():
    speaking = np.random.default_rng(0).random((200, 3)) > 0.5
    segments = frames_to_segments(speaking, ["a", "b", "c"], 25)
    assert np.array_equal(segments_to_frames(segments, ["a", "b", "c"], 200, 25), speaking)


def test_unknown_speaker():
    with pytest.raises(DialogueError, match=r"'zoe'.*use a, b"):
        segments_to_frames([SpeechSegment(0, 1, "zoe")], ["a", "b"], 10, 25)


def test_partners_are_who_else_speaks():
    speaking = np.zeros((3, 12), bool)
    speaking[1, 2:5] = True
    speaking[2, 4:6] = True
    speaking[0, 7:9] = True
    # Before anybody else has spoken the first who will; two at once: who began last; in a pause the last who spoke.
    assert partner_of(speaking, 0).tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]
    assert partner_of(speaking, 1).tolist() == [2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0]
    assert partner_of(speaking[:2], 0).tolist() == [1] * 12
    assert partner_of(speaking[:1], 0).tolist() == [-1] * 12
