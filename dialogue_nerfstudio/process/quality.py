"""What a processed conversation is worth as training data: measures of it, and in plain sentences what is wrong.

Conventions. `T` frames at `fps`; pixel measures are scaled to a picture of REFERENCE_SIZE pixels, so that thresholds do
not depend on the resolution. `K` looks are frames taken evenly over the clip, of which pictures are decoded; memory
holds one. Grey levels are 0 … 255. Measuring reads files; finding (`participant_findings`, `conversation_findings`) is
pure.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, List, Literal, Optional, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfiltfilt
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.conversation import SAMPLE_RATE, Conversation, Participant
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import eye_centers
from dialogue_nerfstudio.conversation.files import read_json, read_npz
from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, spread_frames
from dialogue_nerfstudio.metrics.lips import SyncCurve, SyncOffset, sync_curve
from dialogue_nerfstudio.metrics.tracking import blink_events
from dialogue_nerfstudio.process.decode import MIN_FRAMES
from dialogue_nerfstudio.process.head_pose import rotation_jitter
from dialogue_nerfstudio.process.landmarks import lost_runs

REPORT_NAME = "report.html"
"""The quality report in the conversation folder."""

REFERENCE_SIZE = 512
"""Side (px) of the picture that pixel thresholds are meant for."""

MAX_LOOKS = 60
"""Most pictures decoded to judge light, sharpness and background: enough for percentiles, seconds for any length."""

# Beyond these, training cannot give an avatar of this person; each is far outside of what any real clip measured.

MIN_SEEN = 0.5
"""Share of frames with a face, below which most poses would be interpolated."""

MAX_ERROR = 12.0
"""Reprojection error (px, rms): real clips measured 0.8 to 1.8, an average face instead of the own one up to 4.7; two
and a half times that is no face."""

MIN_MOTION = 0.2
"""Movement of the landmarks (px, rms about their mean): listeners measured 8 and more, coding noise of a still picture
less than 0.1."""

# Beyond these, something should be mended, or is worth knowing.

LOST_SHARE = 0.02
"""Share of frames without a face: bridged poses of half a second in 25 already show in training."""

HIGH_ERROR = 2.5
"""Reprojection error (px, rms) at which head poses are visibly off; real clips measured 0.8 to 1.8."""

SLIP_FACTOR = 3.0
"""A frame slips when it fits this many times worse than the typical one …"""

SLIP_SHARE = 0.02
"""… and this share of such frames is worth a word."""

HIGH_JITTER = 0.15
"""Frame-to-frame noise of the head's rotation (degrees): at 0.15 the jaw, 10 cm from the axis, shakes by 0.3 mm, a
quarter of a pixel; real clips measured 0.02 to 0.10."""

FEW_BLINKS_SECONDS = 15.0
"""How long (s) a clip without a blink must be to say something: people talking blink every 2 to 6 s (Bentivoglio 1997:
26 a minute in conversation, 4.5 while reading)."""

MANY_BLINKS = 1.2
"""Blinks a second that nobody makes: twice the 95th percentile in conversation (Bentivoglio 1997)."""

LIPS_LATE, LIPS_EARLY = 0.09, 0.185
"""Lag (s) of lips behind and before the sound that viewers no longer accept (ITU-R BT.1359-1)."""

LONGEST_LAG = 0.6
"""Lags (s) looked at: what editing and capture hardware produce; beyond, syllables fit by chance."""

INDEPENDENT_SECONDS = 0.12
"""Instants of the two rates of change that tell something new (their correlation time)."""

LAG_SIGNIFICANCE = 2.7
"""Standard errors by which a peak must stand out: the largest of the dozen independent lags looked at exceeds it in one
of twenty unrelated pairs."""

DARK, BRIGHT = 45.0, 220.0
"""Median grey level of a face at which shadows or highlights are quantised away."""

CLIPPED_SHARE = 0.05
"""Share of the face at the largest value, where there is no shading left to learn."""

LIGHT_CHANGE = 0.2
"""Change of the face's brightness (5th to 95th percentile over the median); a steady lamp measured up to 0.1."""

HIGH_BLUR = 0.68
"""Blur effect (Crete et al. 2007, 0 sharp … 1) of the face; sharp clips measured 0.37 to 0.59, the same ones smoothed
by a Gaussian of 2 px 0.63 to 0.75."""

BLURRED_SHARE = 0.1
"""Share of looks beyond HIGH_BLUR that training takes for a soft face."""

BACKGROUND_CHANGE = 6.0
"""Median difference (grey levels) between background and plate; fixed cameras measured 0.6 to 2.8."""

CUT_SHARE = 0.5
"""Share of looks in which the head touches the picture's border."""

TILTED = 45.0
"""Tilt of the eyes' line (degrees, median) beyond which another side of the picture is up."""

SMALL_EYES = 32.0
"""Distance between the eyes in the recording (px): at 32, the lips are about 20 px wide and teeth are not resolved."""

SHORT_SECONDS = 10.0
"""Below this, mouth shapes are missing: ten seconds hold about 120 phones of 40."""

NARROW_VIEW = 3.0
"""Turning of the head (degrees, 5th to 95th percentile of the angle about its mean) that shows next to no profile."""

DISAGREEMENT = 0.3
"""Share of the speech in which voices and lips name different people."""

QUIET = -45.0
"""Level (dB of full scale, rms of the louder half) at which quantisation and noise drown consonants."""

MISSING_SOUND = 0.1
"""Share of the recording at its ends without any sound at all: a track that began late or broke off."""

CLIPPED_SOUND = 1e-3
"""Share of samples at full scale: audible distortion."""

Severity = Literal["unusable", "problem", "note"]


@dataclass(frozen=True)
class Finding:
    """Something about the recording that the user should know, and what to do about it."""

    severity: Severity
    """"unusable": training is not worth starting; "problem": mend it if you can; "note": good to know."""
    participant: Optional[str]
    """Whom it concerns; None: the recording."""
    problem: str
    advice: str


@dataclass(frozen=True)
class LipSync:
    """Whether lips and sound go together, from the frames in which this person alone speaks."""

    curve: SyncCurve
    offset: SyncOffset
    threshold: float
    """Correlation that unrelated signals of this length would not reach."""

    @property
    def certain(self) -> bool:
        return self.offset.peak > self.threshold


@dataclass(frozen=True)
class PictureQuality:
    """The pictures at some looks."""

    frames: Int[np.ndarray, " num_looks"]
    brightness: Float[np.ndarray, " num_looks"]
    """Median grey level of the face."""
    clipped: Float[np.ndarray, " num_looks"]
    """Share of the face's pixels at 250 and more."""
    blur: Float[np.ndarray, " num_looks"]
    """Blur effect of the face, 0 sharp … 1 (Crete et al. 2007)."""
    background_change: Float[np.ndarray, " num_looks"]
    """Mean absolute difference from the plate where the labels say background."""
    cut: Bool[np.ndarray, " num_looks"]
    """Whether the head touches the top or a side of the picture."""


@dataclass(frozen=True)
class ParticipantQuality:
    """Measures of one participant."""

    id: str
    visible: Bool[np.ndarray, " num_frames"]
    reprojection_error: Float[np.ndarray, " num_frames"]
    """Pixels at REFERENCE_SIZE, rms over the rigid landmarks."""
    rotation: Float[np.ndarray, "num_frames 3"]
    """Degrees about the right, up and forward axis, from the head's mean orientation."""
    jitter: float
    """Degrees (`head_pose.rotation_jitter`)."""
    motion: float
    """Pixels at REFERENCE_SIZE, rms of the landmarks about their mean positions."""
    blink: Float[np.ndarray, " num_frames"]
    """Closure, 0 open … 1, mean of both eyes."""
    blinks: Float[np.ndarray, " num_blinks"]
    """When (s)."""
    opening: Float[np.ndarray, " num_frames"]
    """Gap between the lips over the distance between the eyes."""
    speaking: Bool[np.ndarray, " num_frames"]
    lips: Optional[LipSync]
    """None where this person never speaks alone for long enough."""
    eye_distance: float
    """Median, in pixels of the recording."""
    tilt: float
    """Median angle (degrees) by which the eyes' line is turned clockwise in the picture."""
    pictures: PictureQuality
    background_holes: float = 0.0
    """Share of the plate that nobody ever saw and that was made up."""

    @property
    def error(self) -> float:
        """Root mean square of the reprojection error where the face was seen; infinite if it never was."""
        seen = self.reprojection_error[self.visible]
        return float(np.sqrt(np.mean(seen**2))) if len(seen) else float("inf")

    @property
    def lost(self) -> int:
        return int((~self.visible).sum())


@dataclass(frozen=True)
class SoundQuality:
    """Measures of the mix."""

    level: float
    """Decibels of full scale, rms of the louder half of the frames."""
    clipped: float
    """Share of samples at full scale."""
    missing_start: float
    missing_end: float
    """Seconds of digital silence at the recording's ends."""
    envelope: Float[np.ndarray, " num_frames"]
    """`speech_envelope`."""


@dataclass(frozen=True)
class Quality:
    """Everything measured of a conversation, and what follows from it."""

    num_frames: int
    fps: float
    participants: List[ParticipantQuality]
    sound: SoundQuality
    roles: Dict[str, Any]
    """How voices were given to faces: method, reason, disagreement; empty where a file of the user's said it."""
    findings: List[Finding] = field(default_factory=list)

    @property
    def unusable(self) -> List[Finding]:
        return [finding for finding in self.findings if finding.severity == "unusable"]

    def summary(self) -> Dict[str, Any]:
        """The figures as JSON holds them."""
        return {
            "participants": {person.id: _participant_summary(person, self) for person in self.participants},
            "sound": {"level_db": self.sound.level, "clipped_share": self.sound.clipped},
            "findings": [asdict(finding) for finding in self.findings],
        }


def unusable_sentences(findings: Sequence[Dict[str, Any]]) -> str:
    """Why a conversation cannot be trained on and the ways out, in one paragraph; empty where it can.

    Args:
        findings: as `Quality.summary` has them.
    """
    reasons = [finding for finding in findings if finding["severity"] == "unusable"]
    whom = [f"Participant {reason['participant']}: " if reason["participant"] else "" for reason in reasons]
    return " ".join(f"{who}{reason['problem']} {reason['advice']}" for who, reason in zip(whom, reasons, strict=True))


def _participant_summary(person: ParticipantQuality, quality: Quality) -> Dict[str, Any]:
    pictures = person.pictures
    return {
        "lost_frames": person.lost,
        "reprojection_rmse_px_at_512": person.error if np.isfinite(person.error) else None,
        "rotation_jitter_degrees": person.jitter,
        "blinks_per_second": len(person.blinks) / (quality.num_frames / quality.fps),
        "lip_lag_seconds": person.lips.offset.seconds if person.lips and person.lips.certain else None,
        "brightness": float(np.median(pictures.brightness)),
        "blur": float(np.median(pictures.blur)),
        "background_change": float(np.median(pictures.background_change)),
        "background_made_up_share": person.background_holes,
        "eye_distance_px": person.eye_distance,
    }


# Sound and lips.


def speech_envelope(
    audio: Float[np.ndarray, " num_samples"], num_frames: int, fps: float, rate: int = SAMPLE_RATE
) -> Float[np.ndarray, " num_frames"]:
    """Log rms of the band 300-3000 Hz during each frame, log(rms + 1e-3).

    The band of the vowels' formants follows the mouth better than the whole sound: r = 0.32 instead of 0.19 between the
    rates of change on a real clip.
    """
    length = int(np.ceil(num_frames * rate / fps))
    audio = np.pad(np.asarray(audio, np.float64)[:length], (0, max(length - len(audio), 0)))
    band = sosfiltfilt(butter(2, [300.0, 3000.0], "bandpass", fs=rate, output="sos"), audio)
    edges = np.round(np.arange(num_frames + 1) * rate / fps).astype(int)
    energy = np.concatenate([[0.0], np.cumsum(band**2)])
    return np.log(np.sqrt(np.maximum(np.diff(energy[edges]) / np.diff(edges), 0.0)) + 1e-3)


def lip_sync(
    opening: Float[np.ndarray, " num_frames"],
    envelope: Float[np.ndarray, " num_frames"],
    alone: Bool[np.ndarray, " num_frames"],
    fps: float,
) -> Optional[LipSync]:
    """Lag of the lips behind the sound, from the rates of change of opening and envelope (Gaussian derivative of 40
    ms); None with less than two seconds of `alone`."""
    if alone.sum() < 2.0 * fps or len(opening) < 3 * round(LONGEST_LAG * fps):
        return None
    sigma = 0.04 * fps
    rates = [gaussian_filter1d(np.asarray(signal, np.float64), sigma, order=1) for signal in (opening, envelope)]
    curve = sync_curve(*rates, fps, LONGEST_LAG, alone)
    independent = alone.sum() / (INDEPENDENT_SECONDS * fps)
    return LipSync(curve, curve.best, float(LAG_SIGNIFICANCE / np.sqrt(independent)))


def measure_sound(audio: Float[np.ndarray, " num_samples"], num_frames: int, fps: float) -> SoundQuality:
    """Level, clipping and envelope of 16 kHz sound."""
    frame = round(SAMPLE_RATE / fps)
    blocks = audio[: len(audio) // frame * frame].reshape(-1, frame)
    powers = np.sort((blocks.astype(np.float64) ** 2).mean(axis=1))
    # Sixteen bits resolve no less than this.
    heard = np.flatnonzero(np.abs(audio) > 1.0 / 32768.0)
    louder = powers[len(powers) // 2 :].mean() if len(powers) else 0.0
    return SoundQuality(
        level=float(10.0 * np.log10(louder + 1e-12)),
        clipped=float((np.abs(audio) >= 0.999).mean()) if len(audio) else 0.0,
        missing_start=float(heard[0] / SAMPLE_RATE) if len(heard) else num_frames / fps,
        missing_end=float(max(num_frames / fps - (heard[-1] + 1) / SAMPLE_RATE, 0.0)) if len(heard) else 0.0,
        envelope=speech_envelope(audio, num_frames, fps),
    )


# Pictures.


def face_blur(grey: UInt8[np.ndarray, "height width"]) -> float:
    """Blur effect of a picture, 0 sharp … 1: how little a further blur changes it (Crete et al. 2007)."""
    from skimage.measure import blur_effect

    return float(blur_effect(grey))


def look_at(
    picture: UInt8[np.ndarray, "height width 3"],
    label: UInt8[np.ndarray, "height width"],
    plate: UInt8[np.ndarray, "height width 3"],
    landmarks: Float[np.ndarray, "478 2"],
) -> Dict[str, float]:
    """One look: the fields of PictureQuality."""
    height, width = label.shape
    x0, y0 = np.clip(np.floor(landmarks.min(axis=0)).astype(int), 0, (width - 16, height - 16))
    x1, y1 = np.ceil(landmarks.max(axis=0)).astype(int)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    face = grey[y0 : max(y1, y0 + 16), x0 : max(x1, x0 + 16)]
    behind = (label == BACKGROUND).view(np.uint8)
    # The mean over no pixels is 0.
    change = np.mean(cv2.mean(cv2.absdiff(picture, plate), mask=behind)[:3])
    head = label == HEAD
    return {
        "brightness": float(np.median(face)),
        "clipped": float((face >= 250).mean()),
        "blur": face_blur(face),
        "background_change": float(change),
        "cut": bool(head[0].any() or head[:, 0].any() or head[:, -1].any()),
    }


def measure_pictures(
    conversation: Conversation, participant: Participant, landmarks: Float[np.ndarray, "num_frames 478 2"]
) -> PictureQuality:
    """Looks at up to MAX_LOOKS frames of a participant."""
    frames = spread_frames(conversation.num_frames, MAX_LOOKS)
    plate = conversation.background(participant.id)
    with conversation.frames(participant.id) as pictures, conversation.labels(participant.id) as labels:
        looks = [look_at(pictures[int(t)], labels[int(t)], plate, landmarks[t].astype(np.float64)) for t in frames]
    return PictureQuality(frames, **{name: np.array([look[name] for look in looks]) for name in looks[0]})


# Everything of a conversation.


def measure_participant(
    conversation: Conversation, participant: Participant, envelope: Float[np.ndarray, " num_frames"]
) -> ParticipantQuality:
    """All measures of one participant, from the files of the conversation.

    Raises:
        DialogueError: the folder lacks what `process` leaves there.
    """
    tracking = conversation.tracking(participant.id)
    landmarks, visible = tracking["landmarks"], tracking["visible"]
    opening = read_npz(conversation.participant_path(participant.id, "face.npz"))["mouth_opening"].astype(np.float64)
    motion, fps = participant.motion, conversation.fps
    scale = REFERENCE_SIZE / participant.camera.width
    speaking = conversation.speaking
    column = conversation.participant_ids.index(participant.id)
    alone = speaking[:, column] & (speaking.sum(axis=1) == 1) & visible
    rotations = Rotation.from_rotvec(motion.head_pose[:, :3])
    eyes = eye_centers(landmarks[visible] if visible.any() else landmarks)
    crop = participant.source.get("crop")
    enlarged = participant.camera.width / (crop[2] - crop[0]) if crop else 1.0
    across_time = np.moveaxis(landmarks, 1, 0)
    across = np.median(eyes[:, 0] - eyes[:, 1], axis=0)
    holes = conversation.background_holes(participant.id)
    return ParticipantQuality(
        id=participant.id,
        visible=visible,
        reprojection_error=tracking["reprojection_error"].astype(np.float64) * scale,
        rotation=(rotations.mean().inv() * rotations).as_rotvec(degrees=True),
        jitter=rotation_jitter(rotations.as_matrix()),
        # Landmark by landmark: the clip's would be copied in double precision.
        motion=float(np.sqrt(np.mean([place.astype(np.float64).var(axis=0).sum() for place in across_time])) * scale),
        blink=motion.blink.mean(axis=1).astype(np.float64),
        blinks=blink_events(motion.blink.astype(np.float64), fps),
        opening=opening,
        speaking=speaking[:, column],
        lips=lip_sync(opening, envelope, alone, fps),
        eye_distance=float(np.median(np.linalg.norm(eyes[:, 0] - eyes[:, 1], axis=-1))) / enlarged,
        tilt=float(np.degrees(np.arctan2(across[1], across[0]))),
        pictures=measure_pictures(conversation, participant, landmarks),
        background_holes=0.0 if holes is None else float(holes.mean()),
    )


def measure_quality(
    conversation: Conversation,
    roles: Optional[Dict[str, Any]] = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Quality:
    """Measures a processed conversation.

    Args:
        conversation: with its folder.
        roles: how voices were given to faces (process.json's "roles"); None reads process.json.
        progress: called with the fraction done.

    Raises:
        DialogueError: the folder was not written by `process`.
    """
    for participant in conversation.participants:
        for name in ("tracking.npz", "face.npz"):
            path = conversation.participant_path(participant.id, name)
            if not path.is_file():
                raise DialogueError(
                    f"{path} does not exist: a report needs a conversation that `ns-dialogue process` wrote."
                )
    if roles is None:
        figures = conversation.path("process.json")
        roles = read_json(figures).get("roles", {}) if figures.is_file() else {}
    audio, _ = conversation.audio()
    sound = measure_sound(audio, conversation.num_frames, conversation.fps)
    people = []
    for participant in conversation.participants:
        people.append(measure_participant(conversation, participant, sound.envelope))
        progress(len(people) / len(conversation.participants))
    quality = Quality(conversation.num_frames, conversation.fps, people, sound, roles)
    findings = [finding for person in people for finding in participant_findings(person, conversation.fps)]
    findings += conversation_findings(quality)
    order = ("unusable", "problem", "note")
    return Quality(**{**vars(quality), "findings": sorted(findings, key=lambda found: order.index(found.severity))})


# What follows.


def participant_findings(person: ParticipantQuality, fps: float) -> List[Finding]:
    """Everything worth saying about one participant."""
    found: List[Finding] = []

    def say(severity: Severity, problem: str, advice: str) -> None:
        found.append(Finding(severity, person.id, problem, advice))

    _tracking_findings(person, fps, say)
    _face_findings(person, fps, say)
    _picture_findings(person.pictures, fps, say)
    return found


Say = Callable[[Severity, str, str], None]


def _tracking_findings(person: ParticipantQuality, fps: float, say: Say) -> None:
    seen, error = person.visible, person.error
    num_frames = len(seen)
    if seen.mean() < MIN_SEEN or seen.sum() < MIN_FRAMES:
        say(
            "unusable",
            f"The face was found in only {seen.sum()} of {num_frames} frames.",
            "Give a recording that shows this face most of the time, or leave this person out with --num-people.",
        )
    elif person.lost > LOST_SHARE * num_frames:
        start, stop = max(lost_runs(seen), key=lambda run: run[1] - run[0])
        say(
            "problem",
            f"The face is lost in {person.lost} of {num_frames} frames, longest for {(stop - start) / fps:.1f} s at "
            f"{start / fps:.1f} s; its poses there are interpolated.",
            "Cut those parts out of the video: hands, hair or a turned head hide the face there.",
        )
    if error > MAX_ERROR:
        say(
            "unusable",
            f"The tracked head is {error:.1f} px (at {REFERENCE_SIZE} px) off the face in the picture: what was "
            "tracked is no rigid head.",
            "Look at the landmarks in the report. Give a recording in which this face is larger and sharper, or leave "
            "this person out with --num-people.",
        )
    elif error > HIGH_ERROR:
        say(
            "problem",
            f"The tracked head is {error:.1f} px (at {REFERENCE_SIZE} px) off the face in the picture; below "
            f"{HIGH_ERROR:g} px avatars come out sharp.",
            "Give the camera's focal length with --focal if you know it; a wide-angle lens close to the face needs it "
            "most.",
        )
    slips = seen & (person.reprojection_error > SLIP_FACTOR * np.median(person.reprojection_error))
    if error <= MAX_ERROR and slips.sum() > SLIP_SHARE * num_frames:
        worst = int(np.argmax(np.where(seen, person.reprojection_error, 0.0)))
        say(
            "problem",
            f"Tracking slips in {slips.sum()} frames, worst at {worst / fps:.1f} s.",
            "Look at those frames: if the face is hidden or blurred there, cut them out of the video.",
        )
    if abs(person.tilt) > TILTED:
        how = "transpose=1,transpose=1" if abs(person.tilt) > 135 else f"transpose={2 if person.tilt > 0 else 1}"
        say(
            "problem",
            f"The face is not upright but turned by {abs(person.tilt):.0f}°: the video lacks its rotation tag.",
            f"Turn it: ffmpeg -i IN -vf {how} OUT",
        )
    if person.motion < MIN_MOTION:
        say(
            "unusable",
            "Nothing in this face moves: it is a photograph or a frozen picture.",
            "Give a recording in which this person moves, or leave them out with --num-people.",
        )
    if person.jitter > HIGH_JITTER:
        say(
            "problem",
            f"The tracked head trembles by {person.jitter:.2f}° from frame to frame.",
            "Record the face larger and with more light; noise and compression make landmarks tremble.",
        )


def _face_findings(person: ParticipantQuality, fps: float, say: Say) -> None:
    seconds = len(person.visible) / fps
    rate = len(person.blinks) / seconds
    if not len(person.blinks) and seconds >= FEW_BLINKS_SECONDS:
        say(
            "note",
            f"No blink was found in {seconds:.0f} s, so the avatar cannot learn to close its eyes.",
            "If the person did blink: reflections on glasses or hair over the eyes hide it; record without them.",
        )
    if rate > MANY_BLINKS:
        say(
            "problem",
            f"{rate:.1f} blinks a second were found, more than anybody makes: the eyes are tracked badly.",
            "Record the eyes larger and sharper, without reflections on glasses.",
        )
    # About the mean orientation; the largest of the three axes.
    turning = float(np.ptp(np.percentile(person.rotation, [5, 95], axis=0), axis=0).max())
    if turning < NARROW_VIEW:
        say(
            "note",
            f"The head turns by only {turning:.1f}°, so the avatar will hold up from the front alone.",
            "For views from the side, record the person turning and nodding now and then.",
        )
    if person.eye_distance < SMALL_EYES:
        say(
            "problem",
            f"The face is small in the recording: {person.eye_distance:.0f} px from eye to eye.",
            f"Move the camera closer or record at a higher resolution, for at least {SMALL_EYES:.0f} px.",
        )
    if not person.speaking.any():
        say(
            "note",
            "This person never speaks, so sound cannot drive this avatar; expressions can.",
            "For an avatar that speaks, use a recording in which the person does.",
        )
    if person.lips is not None and person.lips.certain:
        lag = person.lips.offset.seconds
        if lag > LIPS_LATE or lag < -LIPS_EARLY:
            which = "after" if lag > 0 else "before"
            say(
                "problem",
                f"The lips move {abs(lag) * 1000:.0f} ms {which} the sound, so speech would be learned out of step.",
                f"Shift the sound: ffmpeg -i IN -itsoffset {lag:.2f} -i IN -map 0:v -map 1:a -c copy OUT",
            )


def _picture_findings(pictures: PictureQuality, fps: float, say: Say) -> None:
    brightness = float(np.median(pictures.brightness))
    if brightness < DARK:
        say("problem", f"The face is dark: grey level {brightness:.0f} of 255.", "Light it from the front.")
    clipped = float(np.median(pictures.clipped))
    if brightness > BRIGHT or clipped > CLIPPED_SHARE:
        say(
            "problem",
            f"The face is overexposed: grey level {brightness:.0f} of 255, {clipped:.0%} of it without any shading.",
            "Lower the exposure, or move the lamp or window away.",
        )
    low, high = np.percentile(pictures.brightness, [5, 95])
    if (high - low) / max(brightness, 1.0) > LIGHT_CHANGE:
        say(
            "problem",
            f"The light on the face changes from grey level {low:.0f} to {high:.0f}.",
            "Switch off automatic exposure and white balance; avoid screens and passing clouds as lights.",
        )
    blurred = pictures.blur > HIGH_BLUR
    if np.median(pictures.blur) > HIGH_BLUR:
        say(
            "problem",
            f"The face is out of focus or was enlarged (blur {np.median(pictures.blur):.2f}, sharp is below "
            f"{HIGH_BLUR:g}).",
            "Focus on the eyes and record with less compression; a smaller --size then loses nothing.",
        )
    elif blurred.mean() > BLURRED_SHARE:
        first = int(pictures.frames[np.argmax(blurred)])
        say(
            "problem",
            f"{blurred.mean():.0%} of the pictures are blurred by movement or focus, the first at {first / fps:.1f} s.",
            "Use a shorter exposure with more light, or cut those parts out.",
        )
    change = float(np.median(pictures.background_change))
    if change > BACKGROUND_CHANGE:
        say(
            "problem",
            f"The background is not still: it differs by {change:.0f} grey levels from its average.",
            "Put the camera on a tripod and keep people and screens out of the background; what moves there ends up in "
            "the avatar as haze.",
        )
    if pictures.cut.mean() > CUT_SHARE:
        say(
            "note",
            f"The head touches the picture's border in {pictures.cut.mean():.0%} of the looks; what lies beyond is not "
            "learned.",
            "Leave room above and beside the head.",
        )


def conversation_findings(quality: Quality) -> List[Finding]:
    """Everything worth saying about the recording as a whole."""
    found: List[Finding] = []

    def say(severity: Severity, problem: str, advice: str) -> None:
        found.append(Finding(severity, None, problem, advice))

    seconds = quality.num_frames / quality.fps
    if seconds < SHORT_SECONDS:
        say(
            "note",
            f"The recording is short: {seconds:.1f} s hold few mouth shapes.",
            "Half a minute or more of talking gives much better mouths.",
        )
    sound, roles = quality.sound, quality.roles
    if not any(person.speaking.any() for person in quality.participants):
        reason = roles.get("reason") or "there is no speech in the sound"
        say(
            "problem",
            f"Nobody speaks: {reason}.",
            "Check that the video has its sound, or give the speakers with --rttm; training with "
            "--pipeline.model.drive expression needs no speech.",
        )
    if sound.level < QUIET and sound.missing_start < seconds:
        say("problem", f"The sound is very quiet: {sound.level:.0f} dB of full scale.", "Amplify it before processing.")
    missing = [(sound.missing_start, "first"), (sound.missing_end, "last")]
    if MISSING_SOUND < sum(length for length, _ in missing) / seconds < 1.0:
        where = " and the ".join(f"{which} {length:.1f} s" for length, which in missing if length > 0.5)
        say(
            "problem",
            f"There is no sound at all in the {where} of {seconds:.1f} s.",
            "If people speak there, the sound track is incomplete or in the wrong place: give the whole one with "
            "--audio.",
        )
    if sound.clipped > CLIPPED_SOUND:
        say("note", f"{sound.clipped:.1%} of the sound is clipped.", "Record at a lower gain.")
    if len(quality.participants) > 1 and roles.get("method") in ("lips", "voices+lips"):
        disagreement = float(roles.get("disagreement", 0.0))
        severe = disagreement > DISAGREEMENT
        if severe or roles["method"] == "lips":
            reason = roles.get("reason") or "lips and voices often name different people"
            say(
                "problem" if severe else "note",
                f"Who speaks is uncertain: {reason} (they disagree in {disagreement:.0%} of the speech).",
                "Check the roles in the timeline; if they are wrong, give the right ones with --rttm.",
            )
    return found
