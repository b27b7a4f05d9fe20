"""report.html: one self-contained page that shows what `quality` measured of a conversation and what to do about it.

Conventions. Charts are SVG elements of WIDTH inches; pictures are JPEGs in data URIs; nothing is fetched. Text reaches
the page through Jinja's autoescaping, so no name can become markup.
"""

import base64
import io
import re
from importlib import resources
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import cv2
import jinja2
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dialogue_nerfstudio.conversation.conversation import SAMPLE_RATE, Conversation
from dialogue_nerfstudio.conversation.expression_basis import (
    FACE_OVAL,
    LEFT_EYE_LOWER,
    LEFT_EYE_UPPER,
    RIGHT_EYE_LOWER,
    RIGHT_EYE_UPPER,
)
from dialogue_nerfstudio.conversation.files import atomic_path
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.metrics.lips import MOUTH_48_67
from dialogue_nerfstudio.process import quality as limits
from dialogue_nerfstudio.process.landmarks import lost_runs
from dialogue_nerfstudio.process.quality import LipSync, ParticipantQuality, Quality
from dialogue_nerfstudio.process.voices import voices_sentence

WIDTH = 10.0
"""Width of a chart, inches; the page scales it."""

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 0.6, 0.1, 0.1, 0.42
"""Inches around a chart's axes: room for the names and numbers of the axes."""

LETTER = 0.09
"""Inches across one letter of a participant's name, a broad one."""

ROW_GAP, COLUMN_GAP = 0.12, 0.7
"""Inches between axes that share the time below them, and between those side by side."""

THUMBNAIL = 240
"""Side of a picture of the contact sheet, px."""

MAX_PICTURES = 32
"""Pictures on the page: some 15 kB each, so half a megabyte."""

MAX_POINTS = 1500
"""Points of a curve: more than the pixels it is drawn on; longer ones keep each stretch's extremes."""

MOUTH_SECONDS = 12.0
"""Length of the stretch in which mouth and sound are drawn: about 40 syllables, still told apart."""

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#d55e00", "#009e73", "#c0392b", "#8a8f98"
PEOPLE = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#555555")
"""Okabe and Ito's colours, told apart by the colour-blind."""

TINTS = {TORSO: (0, 114, 178), NECK: (240, 228, 66), HEAD: (213, 94, 0)}
"""RGB of the labels on the contact sheet."""

LOOPS = (
    FACE_OVAL,
    LEFT_EYE_UPPER + LEFT_EYE_LOWER[::-1],
    RIGHT_EYE_UPPER + RIGHT_EYE_LOWER[::-1],
    MOUTH_48_67[:12],
    MOUTH_48_67[12:],
)
"""Landmarks drawn as closed lines: oval, eyes, lips."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.0,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


# Pictures.


def overlay(
    picture: UInt8[np.ndarray, "height width 3"],
    label: UInt8[np.ndarray, "height width"],
    landmarks: Float[np.ndarray, "478 2"],
    size: int = THUMBNAIL,
) -> UInt8[np.ndarray, "size size 3"]:
    """A small picture with its labels as tints and outlines, and the landmarks on top."""
    scale = size / picture.shape[1]
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    labels = cv2.resize(label, (size, size), interpolation=cv2.INTER_NEAREST)
    for value, tint in TINTS.items():
        mask = labels == value
        small[mask] = (0.75 * small[mask] + 0.25 * np.array(tint)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, outlines, -1, tint, 1, cv2.LINE_AA)
    # OpenCV draws at sixteenths of pixels whose centres are whole numbers.
    points = np.round((landmarks * scale - 0.5) * 16).astype(np.int32)
    for x, y in points:
        cv2.circle(small, (int(x), int(y)), 7, (120, 255, 160), -1, cv2.LINE_AA, shift=4)
    for loop in LOOPS:
        cv2.polylines(small, [points[list(loop)]], True, (255, 255, 255), 1, cv2.LINE_AA, shift=4)
    return small


def sheet_frames(person: ParticipantQuality, count: int) -> List[int]:
    """Frames for a contact sheet, in order: a third are those that fit worst (lost ones first), the rest lie evenly
    over the clip; all are some frames (up to half a second) from the worst."""
    num_frames = len(person.visible)
    apart = min(12, max(num_frames // (3 * count), 1))
    badness = np.where(person.visible, person.reprojection_error, np.inf)
    worst: List[int] = []
    for frame in np.argsort(-badness, kind="stable").tolist():
        if len(worst) == count // 3:
            break
        if all(abs(frame - other) >= apart for other in worst):
            worst.append(frame)
    even = np.linspace(0, num_frames - 1, count - len(worst)).round().astype(int).tolist()
    return sorted({*worst, *(frame for frame in even if all(abs(frame - other) >= apart for other in worst))})


def contact_sheet(conversation: Conversation, person: ParticipantQuality, count: int) -> List[Dict[str, Any]]:
    """Pictures with their captions."""
    landmarks = conversation.tracking(person.id)["landmarks"]
    typical = float(np.median(person.reprojection_error))
    sheet = []
    with conversation.frames(person.id) as pictures, conversation.labels(person.id) as labels:
        for frame in sheet_frames(person, count):
            error, seen = float(person.reprojection_error[frame]), bool(person.visible[frame])
            sheet.append(
                {
                    "uri": data_uri(overlay(pictures[frame], labels[frame], landmarks[frame].astype(np.float64))),
                    "caption": f"{frame / conversation.fps:.2f} s, {f'{error:.1f} px' if seen else 'lost'}",
                    "bad": not seen or error > limits.SLIP_FACTOR * typical,
                }
            )
    return sheet


def data_uri(picture: UInt8[np.ndarray, "height width 3"], quality: int = 82) -> str:
    """A picture as a JPEG inside the page."""
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


# Charts.


def svg(figure: Figure) -> Markup:
    """A figure as an SVG element for the page: no prologue, and no ids but those that are referred to, which are hashes
    of what they name."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return Markup(re.sub(r"<svg ([^>]*?)>", _responsive, text, count=1, flags=re.DOTALL))


def _responsive(match: "re.Match[str]") -> str:
    box = re.search(r'viewBox="[^"]*"', match.group(1))
    return f'<svg {box.group(0) if box else ""} xmlns:xlink="http://www.w3.org/1999/xlink" role="img">'


def panels(
    height: float, rows: int = 1, columns: int = 1, left: float = MARGIN_LEFT, **options: Any
) -> Tuple[Figure, np.ndarray]:
    """A figure of `height` inches and its axes, whose margins are given: Matplotlib's layout engines find the same by
    drawing everything twice.

    Args:
        height: of the figure, in inches.
        rows, columns: of axes.
        left: the margin there, in inches.
        options: of `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height))
    high = height - MARGIN_BOTTOM - MARGIN_TOP - ROW_GAP * (rows - 1)
    wide = WIDTH - left - MARGIN_RIGHT - COLUMN_GAP * (columns - 1)
    grid = {
        "left": left / WIDTH,
        "right": 1 - MARGIN_RIGHT / WIDTH,
        "bottom": MARGIN_BOTTOM / height,
        "top": 1 - MARGIN_TOP / height,
        "hspace": ROW_GAP * rows / high,
        "wspace": COLUMN_GAP * columns / wide,
    }
    return figure, figure.subplots(rows, columns, gridspec_kw=grid, **options)


def extremes(
    values: Float[np.ndarray, " n"], limit: int = MAX_POINTS
) -> Tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Indices and values of a curve with at most about `limit` points: every stretch's minimum and maximum."""
    stretch = int(np.ceil(2 * len(values) / limit))
    if stretch <= 2:
        return np.arange(len(values)), values
    starts = np.arange(0, len(values), stretch)
    kept = [start + extreme(values[start : start + stretch]) for start in starts for extreme in (np.argmin, np.argmax)]
    index = np.unique(kept)
    return index, values[index]


def _curve(axes: Axes, values: np.ndarray, fps: float, color: str, label: str = "") -> None:
    index, kept = extremes(np.asarray(values, float))
    axes.plot((index + 0.5) / fps, kept, color=color, label=label or None)


def _limit(axes: Axes, value: float) -> None:
    axes.axhline(value, color=RED, linewidth=0.8, linestyle=(0, (4, 3)))


def timeline_chart(conversation: Conversation, quality: Quality) -> Markup:
    """The waveform, and under it who speaks when and who blinks."""
    audio, _ = conversation.audio()
    edges = np.linspace(0, len(audio), min(MAX_POINTS, len(audio)), endpoint=False).astype(int)
    low, high = np.minimum.reduceat(audio, edges), np.maximum.reduceat(audio, edges)
    people = quality.participants
    ratios = [1.1, 0.28 * len(people) + 0.1]
    left = max(MARGIN_LEFT, 0.2 + LETTER * max(len(person.id) for person in people))
    figure, (wave, roles) = panels(1.7 + 0.28 * len(people), 2, left=left, sharex=True, height_ratios=ratios)
    wave.fill_between(edges / SAMPLE_RATE, low, high, color=GREY, linewidth=0)
    wave.set_ylabel("sound")
    wave.set_yticks([])
    for row, person in enumerate(people):
        runs = [(start / quality.fps, (stop - start) / quality.fps) for start, stop in lost_runs(~person.speaking)]
        roles.broken_barh(runs, (row - 0.36, 0.72), color=PEOPLE[row % len(PEOPLE)])
        roles.plot(person.blinks, np.full(len(person.blinks), row + 0.44), "|", color="#222222", markersize=4)
    roles.set_yticks(range(len(people)), [person.id for person in people])
    roles.set_ylim(len(people) - 0.45, -0.55)
    roles.set_xlim(0, quality.num_frames / quality.fps)
    roles.set_xlabel("seconds; coloured: speaks, ticks: blinks")
    return svg(figure)


def tracking_chart(person: ParticipantQuality, fps: float) -> Markup:
    """Reprojection error, head rotation and closure of the eyes over time; lost frames are shaded."""
    figure, (error, turn, eyes) = panels(3.9, 3, sharex=True, height_ratios=[1.3, 1.3, 0.7])
    _curve(error, np.where(person.visible, person.reprojection_error, 0.0), fps, BLUE)
    _limit(error, limits.HIGH_ERROR)
    error.set_ylim(0, max(1.15 * limits.HIGH_ERROR, 1.05 * float(person.reprojection_error.max(initial=0.0))))
    error.set_ylabel("error (px)")
    for axis, (name, color) in enumerate((("nod", BLUE), ("turn", ORANGE), ("tilt", GREEN))):
        _curve(turn, person.rotation[:, axis], fps, color, name)
    turn.set_ylabel("head (°)")
    turn.legend(loc="upper right", ncols=3)
    _curve(eyes, person.blink, fps, GREY)
    eyes.plot(person.blinks, np.full(len(person.blinks), 1.08), "v", color="#222222", markersize=3, clip_on=False)
    eyes.set_ylim(0, 1.05)
    eyes.set_ylabel("eyes shut")
    eyes.set_xlabel("seconds")
    eyes.set_xlim(0, len(person.visible) / fps)
    for axes in (error, turn, eyes):
        for start, stop in lost_runs(person.visible):
            axes.axvspan(start / fps, stop / fps, color=RED, alpha=0.18, linewidth=0)
    return svg(figure)


def busiest(speaking: np.ndarray, length: int) -> int:
    """Where the stretch of `length` frames begins in which this person speaks most."""
    if len(speaking) <= length:
        return 0
    total = np.concatenate([[0], np.cumsum(speaking)])
    return int(np.argmax(total[length:] - total[:-length]))


def mouth_chart(person: ParticipantQuality, envelope: Float[np.ndarray, " num_frames"], fps: float) -> Markup:
    """Mouth opening against the sound where this person speaks most, and how well they fit at every lag."""
    length = round(MOUTH_SECONDS * fps)
    start = busiest(person.speaking, length)
    part = slice(start, start + length)
    times = (np.arange(len(person.opening))[part] + 0.5) / fps
    figure, (mouth, lag) = panels(2.0, columns=2, width_ratios=[3.2, 1])
    sound = mouth.twinx()
    sound.fill_between(times, envelope.min(), envelope[part], color=GREY, alpha=0.35, linewidth=0)
    sound.set_yticks([])
    mouth.set_zorder(sound.get_zorder() + 1)
    mouth.patch.set_visible(False)
    mouth.plot(times, person.opening[part], color=ORANGE)
    mouth.set_ylim(0, 1.1 * max(float(person.opening.max()), 1e-3))
    mouth.set_xlim(times[0], times[-1])
    mouth.set_ylabel("mouth opening")
    mouth.set_xlabel("seconds; grey: loudness of the sound, 300-3000 Hz")
    _lag_chart(lag, person.lips)
    return svg(figure)


def _lag_chart(axes: Axes, lips: Optional[LipSync]) -> None:
    axes.set_xlabel("lips after sound (ms)")
    axes.set_ylabel("correlation")
    if lips is None:
        axes.text(0.5, 0.5, "too little speech\nof this person alone", ha="center", va="center", color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    milliseconds = 1000 * lips.curve.lags
    axes.axvspan(-1000 * limits.LIPS_EARLY, 1000 * limits.LIPS_LATE, color=GREEN, alpha=0.12, linewidth=0)
    axes.plot(milliseconds, lips.curve.correlation, color=BLUE)
    _limit(axes, lips.threshold)
    if lips.certain:
        axes.plot(1000 * lips.offset.seconds, lips.offset.peak, "o", color=BLUE, markersize=4)
    axes.set_xlim(milliseconds[0], milliseconds[-1])


def picture_chart(person: ParticipantQuality, fps: float) -> Markup:
    """Brightness and blur of the face, and the background's change, at the looks."""
    pictures = person.pictures
    times = (pictures.frames + 0.5) / fps
    figure, (light, blur, still) = panels(1.7, columns=3)
    light.plot(times, pictures.brightness, color=ORANGE)
    light.set_ylim(0, 255)
    _limit(light, limits.DARK)
    _limit(light, limits.BRIGHT)
    light.set_ylabel("face brightness")
    blur.plot(times, pictures.blur, color=BLUE)
    blur.set_ylim(0, 1)
    _limit(blur, limits.HIGH_BLUR)
    blur.set_ylabel("face blur")
    still.plot(times, pictures.background_change, color=GREEN)
    still.set_ylim(0, max(1.2 * limits.BACKGROUND_CHANGE, 1.05 * float(pictures.background_change.max())))
    _limit(still, limits.BACKGROUND_CHANGE)
    still.set_ylabel("background change")
    for axes in (light, blur, still):
        axes.set_xlabel("seconds")
    return svg(figure)


# The page.


def figures(person: ParticipantQuality, quality: Quality) -> List[Dict[str, Any]]:
    """The numbers at the head of a participant's part: title, value, and whether it is beyond its limit."""
    pictures, lips = person.pictures, person.lips
    rate = len(person.blinks) / (quality.num_frames / quality.fps)
    lag = f"{1000 * lips.offset.seconds:+.0f} ms" if lips and lips.certain else "not certain"
    off = bool(lips and lips.certain and not -limits.LIPS_EARLY <= lips.offset.seconds <= limits.LIPS_LATE)
    blur, change = float(np.median(pictures.blur)), float(np.median(pictures.background_change))
    brightness = float(np.median(pictures.brightness))
    rows = [
        ("frames lost", f"{person.lost} of {quality.num_frames}", person.lost > limits.LOST_SHARE * quality.num_frames),
        ("reprojection error", f"{person.error:.2f} px", person.error > limits.HIGH_ERROR),
        ("head jitter", f"{person.jitter:.2f}°", person.jitter > limits.HIGH_JITTER),
        ("blinks", f"{60 * rate:.0f} a minute", rate > limits.MANY_BLINKS),
        ("speaks", f"{person.speaking.mean():.0%}", False),
        ("lips after sound", lag, off),
        ("eye to eye", f"{person.eye_distance:.0f} px", person.eye_distance < limits.SMALL_EYES),
        ("face brightness", f"{brightness:.0f} of 255", not limits.DARK <= brightness <= limits.BRIGHT),
        ("face blur", f"{blur:.2f}", blur > limits.HIGH_BLUR),
        ("background change", f"{change:.1f}", change > limits.BACKGROUND_CHANGE),
        ("background never seen", f"{person.background_holes:.0%}", False),
    ]
    return [{"title": title, "value": value, "bad": bool(bad)} for title, value, bad in rows]


def report_html(conversation: Conversation, quality: Quality) -> str:
    """The page."""
    names = {participant.id: participant.name for participant in conversation.participants}
    count = min(12, max(MAX_PICTURES // max(len(quality.participants), 1), 3))
    with matplotlib.rc_context(STYLE):
        people = [
            {
                "id": person.id,
                "name": names[person.id],
                "figures": figures(person, quality),
                "sheet": contact_sheet(conversation, person, count),
                "tracking": tracking_chart(person, quality.fps),
                "mouth": mouth_chart(person, quality.sound.envelope, quality.fps),
                "pictures": picture_chart(person, quality.fps),
            }
            for person in quality.participants
        ]
        timeline = timeline_chart(conversation, quality)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = resources.files("dialogue_nerfstudio.process").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=conversation.root.resolve().name if conversation.root else "conversation",
        inputs=conversation.provenance.get("inputs", []),
        version=conversation.provenance.get("version", ""),
        seconds=quality.num_frames / quality.fps,
        quality=quality,
        voices=voices_sentence(quality.roles),
        names=names,
        people=people,
        timeline=timeline,
        problems=sum(finding.severity == "problem" for finding in quality.findings),
    )


def write_report(conversation: Conversation, quality: Quality, path: Path) -> None:
    """Writes the page, atomically."""
    text = report_html(conversation, quality)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
