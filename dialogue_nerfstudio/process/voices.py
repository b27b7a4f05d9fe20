"""Which face each voice belongs to, and who speaks at each frame, from the voices and the lips together.

Conventions. The *opening* of a mouth is the gap between the inner lips divided by the distance between the pupils
(about 0 closed, 0.3 wide open); NaN where the face was not seen. *Lip activity* is the opening's standard deviation
within about `lip_window` seconds: moving lips of a speaker are several times livelier than a listener's, smiling or
still. Its logarithm is modelled as a Gaussian for who speaks and one for who does not; a *lip score* `[T, P]` is the
log likelihood ratio of the two, positive where the lips speak, 0 where the face was not seen.

Voices and lips together name one main speaker at a time. Who else speaks meanwhile, a "yeah" into another's sentence,
is found from the lips (`add_overlaps`), which need say less where the diarizer heard two voices at once.

A voice that no face's lips follow, where there are more voices than faces, belongs to somebody out of the picture: its
speech is nobody's here.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import find_objects, gaussian_filter1d, label
from scipy.optimize import linear_sum_assignment

from dialogue_nerfstudio.conversation.roles import SpeechSegment, frames_to_segments, segments_to_frames
from dialogue_nerfstudio.process.diarization import viterbi


@dataclass
class VoiceConfig:
    """How much lips and voices are believed."""

    lip_window: float = 0.15
    """Standard deviation (s) of the Gaussian window that lip activity is taken over."""
    speaking_activity: float = 0.03
    """Typical lip activity of a speaker, in pupil distances."""
    listening_activity: float = 0.006
    """Typical lip activity of a listener."""
    still_activity: float = 0.003
    """Lips that stay below this never speak."""
    speaking_spread: float = 0.5
    """Standard deviation of the logarithm of a speaker's activity."""
    listening_spread: float = 0.8
    """The same of a listener's."""
    prior_seconds: float = 4.0
    """The typical activities weigh as much as this much of the recording when they are fitted to each face."""
    voice_reliability: float = 0.9
    """Probability that a voice was recognised rightly at an instant."""
    independent_seconds: float = 0.4
    """Instants closer than this tell the same thing twice."""
    switch_cost: float = 1.0
    """Log odds against a change of speaker."""
    min_pause: float = 0.2
    """Somebody who pauses for less than this (s), while nobody else speaks, goes on speaking: the usual bound between a
    stop consonant or breath and a pause (inter-pausal units)."""
    overlap_window: float = 0.08
    """`lip_window` (s) for who speaks at the same time as another: what is put in so is short."""
    overlap_evidence: float = 2.0
    """Lip score that it takes at every frame."""
    heard_overlap_evidence: float = -6.0
    """And where the diarizer heard this participant's voice beside another's; at -6, the lowest there is, the ear is
    believed whatever the lips do, as a "mm" is said with closed lips."""
    least_agreement: float = 0.25
    """Voices that agree with the lips less than this (Cohen's kappa) are not believed."""
    certain_evidence: float = 3.0
    """Log odds beyond a reasonable doubt, for a decision about a whole voice."""
    min_overlap: float = 0.16
    """And for how long at least (s)."""
    rounds: int = 4
    """Rounds of fitting activities and roles to each other."""


@dataclass
class VoiceAssignment:
    """Who speaks when, and how sure that is."""

    segments: list[SpeechSegment]
    """Speech of each participant, by id; edges lie between frames."""
    voice_to_participant: dict[str, str]
    """The face each voice was given to; empty where the lips decided alone, without those out of the picture."""
    confidence: dict[str, float]
    """For each voice, the share (0-1) of its time in which its face's lips moved most like a speaker's; 1 / number of
    faces is chance."""
    disagreement: float
    """Share (0-1) of the speech in which the voice's face is not the one that the lips alone would name."""
    method: Literal["single", "voices+lips", "lips", "silent"]
    """"single": there is one participant; "voices+lips": both were fused; "lips": the voices could not be told apart
    or told nothing, lip activity decided who speaks whenever there was speech; "silent": no speech, or a single
    participant's lips never moved."""
    reason: str = ""
    """Why a method other than "voices+lips" was used, in a sentence for the user."""
    off_screen: list[str] = field(default_factory=list)
    """Voices that no face's lips follow."""
    overlap_seconds: float = 0.0
    """Time in which two or more participants speak at once."""
    speaking: Bool[np.ndarray, "num_frames num_participants"] = field(
        default_factory=lambda: np.zeros((0, 0), bool), repr=False
    )
    """The same per frame, in the order of the given mouth openings."""


def lip_activity(
    opening: Float[np.ndarray, " num_frames"], fps: float, window: float
) -> Float[np.ndarray, " num_frames"]:
    """Local standard deviation of the opening in a Gaussian window of `window` seconds, over the frames that were
    seen; NaN where fewer than half were."""
    seen = np.isfinite(opening)
    values = np.where(seen, opening, 0.0)
    sigma = window * fps
    weight = gaussian_filter1d(seen.astype(np.float64), sigma)
    mean = gaussian_filter1d(values, sigma) / np.maximum(weight, 1e-9)
    variance = gaussian_filter1d(np.where(seen, (values - mean) ** 2, 0.0), sigma) / np.maximum(weight, 1e-9)
    return np.where(weight >= 0.5, np.sqrt(variance), np.nan)


def lip_scores(
    activity: Float[np.ndarray, "num_frames num_participants"],
    speaking_level: Float[np.ndarray, " num_participants"],
    listening_level: Float[np.ndarray, " num_participants"],
    config: VoiceConfig,
) -> Float[np.ndarray, "num_frames num_participants"]:
    """log N(log a; speaking) - log N(log a; listening) for each face, 0 where it was not seen; levels are means of log
    activity."""
    value = np.log(np.maximum(activity, 1e-4))
    speaking = -0.5 * ((value - speaking_level) / config.speaking_spread) ** 2 - np.log(config.speaking_spread)
    listening = -0.5 * ((value - listening_level) / config.listening_spread) ** 2 - np.log(config.listening_spread)
    # Far out in the tails the wider Gaussian always wins; livelier lips must never count against speaking.
    ratio = np.where(value > speaking_level, np.maximum(speaking - listening, 0.0), speaking - listening)
    return np.where(np.isfinite(activity), np.clip(ratio, -6.0, 6.0), 0.0)


def fit_levels(
    activity: Float[np.ndarray, "num_frames num_participants"],
    speaking: Bool[np.ndarray, "num_frames num_participants"],
    fps: float,
    config: VoiceConfig,
) -> tuple[Float[np.ndarray, " num_participants"], Float[np.ndarray, " num_participants"]]:
    """Mean log activity of each face while it speaks and while it does not, with the configured ones as a prior of
    `prior_seconds`."""
    value = np.log(np.maximum(activity, 1e-4))
    weight = config.prior_seconds * fps
    levels = []
    for chosen, prior in ((speaking, config.speaking_activity), (~speaking, config.listening_activity)):
        use = chosen & np.isfinite(activity)
        levels.append((np.where(use, value, 0.0).sum(0) + weight * np.log(prior)) / (use.sum(0) + weight))
    return levels[0], levels[1]


def match_voices(evidence: Float[np.ndarray, "num_voices num_participants"]) -> Int[np.ndarray, " num_voices"]:
    """A face for each voice with the largest sum of evidence: one to one (Hungarian) as far as faces suffice, further
    voices take their best face."""
    match = evidence.argmax(1)
    voices, faces = linear_sum_assignment(-evidence)
    match[voices] = faces
    return match


def fuse_roles(
    speech: Bool[np.ndarray, " num_frames"],
    voice_face: Int[np.ndarray, " num_frames"],
    scores: Float[np.ndarray, "num_frames num_participants"],
    fps: float,
    config: VoiceConfig,
) -> Bool[np.ndarray, "num_frames num_participants"]:
    """Who speaks at each frame with speech: the best path through the participants under both witnesses.

    `voice_face` is the participant whose voice was recognised, -1 where there is no opinion. Per frame, participant p
    scores the lip score plus the log likelihood of hearing that voice from p, both divided by the number of frames
    that tell the same thing; a change of speaker costs `switch_cost`.
    """
    num_frames, num_participants = scores.shape
    others = max(num_participants - 1, 1)
    heard = np.full((num_frames, num_participants), np.log((1 - config.voice_reliability) / others))
    known = voice_face >= 0
    heard[known, voice_face[known]] = np.log(config.voice_reliability)
    heard[~known] = 0.0
    emission = (scores + heard) / max(config.independent_seconds * fps, 1.0)
    speaking = np.zeros((num_frames, num_participants), bool)
    frames = np.flatnonzero(speech)
    if len(frames):
        speaking[frames, viterbi(emission[frames], config.switch_cost)] = True
    return speaking


def add_overlaps(
    speaking: Bool[np.ndarray, "num_frames num_participants"],
    scores: Float[np.ndarray, "num_frames num_participants"],
    fps: float,
    config: VoiceConfig,
    heard: Bool[np.ndarray, "num_frames num_participants"] | None = None,
) -> Bool[np.ndarray, "num_frames num_participants"]:
    """The same roles with those added who, while others speak, move their lips like a speaker for at least
    `min_overlap` seconds without a break.

    `scores` are lip scores of activity in `overlap_window`; `heard` says whose voice the diarizer heard beside
    another, where less of the lips is asked for.
    """
    joined = speaking.copy()
    evidence = config.overlap_evidence
    if heard is not None:
        evidence = np.where(heard, config.heard_overlap_evidence, config.overlap_evidence)
    candidates = speaking.any(1, keepdims=True) & ~speaking & (scores >= evidence)
    for participant in range(speaking.shape[1]):
        for (run,) in find_objects(label(candidates[:, participant])[0]):
            if run.stop - run.start >= config.min_overlap * fps - 1e-6:
                joined[run, participant] = True
    return joined


def bridge_pauses(
    speaking: Bool[np.ndarray, "num_frames num_participants"], fps: float, min_pause: float
) -> Bool[np.ndarray, "num_frames num_participants"]:
    """The same roles with every silence shorter than `min_pause` seconds filled where one participant speaks alone
    before and after it."""
    bridged = speaking.copy()
    heard = np.flatnonzero(speaking.any(1))
    for before, after in pairwise(heard):
        same = (speaking[before] == speaking[after]).all() and speaking[before].sum() == 1
        # In frames, so that a pause of exactly `min_pause` is never filled by rounding.
        if same and (after - before - 1) < min_pause * fps - 1e-6:
            bridged[before + 1 : after] = speaking[before]
    return bridged


def assign_voices(
    segments: Sequence[SpeechSegment],
    openings: Mapping[str, Float[np.ndarray, " num_frames"]],
    fps: float,
    config: VoiceConfig | None = None,
) -> VoiceAssignment:
    """Give each voice to the face whose lips move with it, then decide each frame's speaker from voices and lips
    together, and from the lips who else speaks meanwhile.

    `segments` are a diarizer's, whatever it calls its voices; `openings` are the participants' mouth openings, all of
    one length. Where the voices are no help (one voice for several faces, or several voices from one face), the lips
    alone decide, and `method` and `reason` say so.
    """
    config = config or VoiceConfig()
    ids = list(openings)
    activity = np.stack([lip_activity(openings[name], fps, config.lip_window) for name in ids], axis=-1)
    num_frames, num_participants = activity.shape
    voices = sorted({segment.speaker for segment in segments})
    sounding = segments_to_frames(segments, voices, num_frames, fps)
    voice = _voice_per_frame(segments, voices, num_frames, fps)
    speech = voice >= 0
    if not speech.any():
        return VoiceAssignment(
            [],
            {},
            {},
            0.0,
            "silent",
            "there is no speech in the sound",
            speaking=np.zeros((num_frames, num_participants), bool),
        )
    if num_participants == 1:
        return _assign_single(voice, voices, activity, ids, fps, config)

    speaking_level = np.full(num_participants, np.log(config.speaking_activity))
    listening_level = np.full(num_participants, np.log(config.listening_activity))
    for _ in range(config.rounds):
        scores = lip_scores(activity, speaking_level, listening_level, config)
        lips_alone = fuse_roles(speech, np.full(num_frames, -1), scores, fps, config)
        off_screen = _off_screen(voice, scores, len(voices), fps, config)
        evidence = _evidence(voice, scores, len(voices))
        match = match_voices(np.where(off_screen[:, None], 0.0, evidence))
        speech = (voice >= 0) & ~off_screen[voice]
        reason = _why_voices_are_no_help(np.where(speech, voice, -1), scores, voices, ids, match, fps, config)
        voice_face = np.full(num_frames, -1) if reason else np.where(speech, match[voice], -1)
        speaking = fuse_roles(speech, voice_face, scores, fps, config)
        speaking_level, listening_level = fit_levels(activity, speaking, fps, config)
    speaking = bridge_pauses(speaking, fps, config.min_pause)
    brief = np.stack([lip_activity(openings[name], fps, config.overlap_window) for name in ids], axis=-1)
    brief_scores = lip_scores(brief, *fit_levels(brief, speaking, fps, config), config)
    heard = np.zeros_like(speaking)
    if not reason:
        for k in np.flatnonzero(~off_screen):
            heard[:, match[k]] |= sounding[:, k] & (sounding.sum(1) > 1)
    speaking = add_overlaps(speaking, brief_scores, fps, config, heard)

    best = scores.argmax(1)
    follows = best[:, None] == match
    follows[:, off_screen] = (scores.max(1) < 0)[:, None]
    mine = voice[:, None] == np.arange(len(voices))
    # Of a voice that is never the main one (it always sounds beside others) the lips say nothing.
    confidence = {
        name: float(follows[mine[:, k], k].mean()) if mine[:, k].any() else 0.0 for k, name in enumerate(voices)
    }
    named = match[voice[speech]]
    return VoiceAssignment(
        segments=frames_to_segments(speaking, ids, fps),
        voice_to_participant={}
        if reason
        else {name: ids[match[k]] for k, name in enumerate(voices) if not off_screen[k]},
        confidence=confidence,
        disagreement=float((lips_alone[speech].argmax(1) != named).mean()) if speech.any() else 0.0,
        off_screen=[name for k, name in enumerate(voices) if off_screen[k]],
        overlap_seconds=float((speaking.sum(1) > 1).sum() / fps),
        method="lips" if reason else "voices+lips",
        reason=reason,
        speaking=speaking,
    )


def voices_sentence(roles: Mapping[str, Any]) -> str:
    """Which voice became whose, how surely, and how far lips and voices disagree, in a line for the user; empty where
    that was no question.

    Args:
        roles: process.json's "roles".
    """
    if roles.get("method") not in ("voices+lips", "lips", "single"):
        return ""
    confidence = roles.get("confidence", {})
    given = roles.get("voice_to_participant", {})
    if roles["method"] == "single" and not roles.get("off_screen"):
        return ""
    parts = [f"{voice} is {person} (lips agree {confidence.get(voice, 0.0):.0%})" for voice, person in given.items()]
    parts += [f"{voice} is nobody in the picture" for voice in roles.get("off_screen", [])]
    if roles["method"] == "lips":
        parts = ["the lips alone decide"]
    disagreement = f"voices and lips disagree in {roles.get('disagreement', 0.0):.0%} of the speech"
    sentence = f"Voices: {', '.join(parts)}; {disagreement}"
    overlap = roles.get("overlap_seconds", 0.0)
    return f"{sentence}{f'; {overlap:.1f} s spoken at once' if overlap else ''}."


def _voice_per_frame(
    segments: Sequence[SpeechSegment], voices: list[str], num_frames: int, fps: float
) -> Int[np.ndarray, " num_frames"]:
    """Index of the main voice at each frame's centre, -1 for silence; where two overlap, the one that began first, and
    of two that began together the one that goes on longer."""
    voice = np.full(num_frames, -1)
    centres = (np.arange(num_frames) + 0.5) / fps
    for segment in sorted(segments, key=lambda segment: (segment.start, -segment.end), reverse=True):
        voice[(centres >= segment.start) & (centres < segment.end)] = voices.index(segment.speaker)
    return voice


def _evidence(
    voice: Int[np.ndarray, " num_frames"], scores: Float[np.ndarray, "num_frames p"], num_voices: int
) -> Float[np.ndarray, "num_voices p"]:
    """Sum of each face's lip score over each voice's frames, less the mean over faces."""
    contrast = scores - scores.mean(1, keepdims=True)
    return np.stack([contrast[voice == k].sum(0) for k in range(num_voices)])


def _off_screen(
    voice: Int[np.ndarray, " num_frames"],
    scores: Float[np.ndarray, "num_frames p"],
    num_voices: int,
    fps: float,
    config: VoiceConfig,
) -> Bool[np.ndarray, " num_voices"]:
    """Which voices belong to nobody in the picture: where there are more voices than faces, those during which the
    lips of every face that was seen say, beyond a reasonable doubt, that they are a listener's."""
    if num_voices <= scores.shape[1]:
        return np.zeros(num_voices, bool)
    odds = np.stack([scores[voice == k].sum(0) for k in range(num_voices)]) / max(config.independent_seconds * fps, 1.0)
    return odds.max(1) < -config.certain_evidence


def agreement_beyond_chance(
    faces: Int[np.ndarray, " n"], scores: Float[np.ndarray, "n num_participants"], sure: float = 1.0
) -> float:
    """Cohen's kappa (1960) between the faces that voices name and those whose lips move most like a speaker's, where
    one does by `sure` log odds more than the others: 1 always the same, 0 as often as chance has it; NaN where lips
    are never sure.
    """
    ordered = np.sort(scores, axis=1)
    chosen = ordered[:, -1] - ordered[:, -2] > sure
    if not chosen.any():
        return float("nan")
    lips, faces = scores[chosen].argmax(1), faces[chosen]
    same = float((lips == faces).mean())
    chance = sum(float((lips == face).mean() * (faces == face).mean()) for face in range(scores.shape[1]))
    return 1.0 if chance == 1.0 else (same - chance) / (1.0 - chance)


def _why_voices_are_no_help(
    voice, scores, voices: list[str], ids: list[str], match, fps: float, config: VoiceConfig
) -> str:
    """A sentence where the recognised voices say nothing about the faces, otherwise nothing."""
    heard = [k for k in range(len(voices)) if (voice == k).any()]
    if len(heard) == 1:
        return f"only one voice was recognised for {len(ids)} people, so the lips alone decide who speaks"
    evidence = _evidence(voice, scores, len(voices))[heard] / max(config.independent_seconds * fps, 1.0)
    if len(heard) == 0:
        return "no voice belongs to anybody in the picture"
    chosen = match[heard]
    given = evidence[np.arange(len(heard)), chosen]
    best = evidence.max(1)
    # The lips' log odds for voices that share a face, against a face for every voice: beyond a reasonable doubt.
    if len(heard) <= len(ids) and (best - given).sum() > config.certain_evidence:
        face = ids[int(evidence.argmax(1)[(best - given).argmax()])]
        return (
            f"several recognised voices all sound while the lips of '{face}' move, so the lips alone decide who speaks"
        )
    known = voice >= 0
    if agreement_beyond_chance(match[voice[known]], scores[known]) < config.least_agreement:
        return (
            "the recognised voices follow the faces' lips hardly more than by chance, as if they could not be told "
            "apart, so the lips alone decide who speaks"
        )
    return ""


def _assign_single(
    voice: Int[np.ndarray, " num_frames"],
    voices: list[str],
    activity: Float[np.ndarray, "num_frames 1"],
    ids: list[str],
    fps: float,
    config: VoiceConfig,
) -> VoiceAssignment:
    """One participant: all speech is theirs, unless their lips never move, or of several voices some are not."""
    levels = (np.full(1, np.log(config.speaking_activity)), np.full(1, np.log(config.listening_activity)))
    off_screen = _off_screen(voice, lip_scores(activity, *levels, config), len(voices), fps, config)
    speech = (voice >= 0) & ~off_screen[voice]
    during = activity[speech, 0]
    during = during[np.isfinite(during)]
    if len(during) and np.quantile(during, 0.95) < config.still_activity:
        reason = f"the lips of '{ids[0]}' never move, so the speech is somebody else's"
        return VoiceAssignment(
            [], {}, {name: 0.0 for name in voices}, 1.0, "silent", reason, speaking=np.zeros((len(speech), 1), bool)
        )
    moving = float((during >= config.still_activity).mean()) if len(during) else 0.0
    speaking = bridge_pauses(speech[:, None], fps, config.min_pause)
    return VoiceAssignment(
        segments=frames_to_segments(speaking, ids, fps),
        voice_to_participant={name: ids[0] for k, name in enumerate(voices) if not off_screen[k]},
        confidence={name: moving for name in voices},
        disagreement=1.0 - moving if len(during) else 0.0,
        off_screen=[name for k, name in enumerate(voices) if off_screen[k]],
        method="single",
        reason="there is one participant",
        speaking=speaking,
    )
