"""Diarization error rate.

Protocol: pyannote.metrics, optimal (Hungarian) mapping of voices to speakers, overlapping speech scored, collar 0
unless stated; its `collar` is the total width of the stretch left out around each reference boundary, half of it on
either side.
"""

from typing import Sequence

from dialogue_nerfstudio.conversation.roles import SpeechSegment


def diarization_error(
    reference: Sequence[SpeechSegment], hypothesis: Sequence[SpeechSegment], duration: float, collar: float = 0.0
) -> dict[str, float]:
    """`der` = (miss + false_alarm + confusion) / reference speech, and the three as shares of the reference speech
    too, over [0, duration] seconds.

    Without reference speech there is no such rate: ValueError.
    """
    # pyannote loads pandas and scikit-learn, seconds that only those who measure should wait.
    from pyannote.core import Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    if not any(segment.end > segment.start for segment in reference):
        raise ValueError("the reference has no speech, so a diarization error rate is not defined")
    detail = DiarizationErrorRate(collar=collar)(
        _annotation(reference), _annotation(hypothesis), uem=Timeline([Segment(0.0, duration)]), detailed=True
    )
    total = detail["total"]
    parts = {"miss": "missed detection", "false_alarm": "false alarm", "confusion": "confusion"}
    return {
        "der": float(detail["diarization error rate"]),
        **{name: float(detail[key] / total) for name, key in parts.items()},
    }


def _annotation(segments: Sequence[SpeechSegment]):
    from pyannote.core import Annotation, Segment

    annotation = Annotation()
    for track, segment in enumerate(segments):
        annotation[Segment(segment.start, segment.end), track] = segment.speaker
    return annotation
