"""The page is well-formed, complete in itself, and no name becomes markup."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from quality_truth import FPS, FRAMES, good_person, lost, measured_folder

from dialogue_nerfstudio.conversation import load_conversation
from dialogue_nerfstudio.process.quality import measure_quality
from dialogue_nerfstudio.process.report import busiest, extremes, overlay, report_html, sheet_frames, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '"><script>alert(1)</script>&$x$'


class Page(HTMLParser):
    """Checks that tags nest, and gathers what the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.references, self.tags = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    conversation = load_conversation(measured_folder(tmp_path_factory.mktemp("report") / "chat"))
    conversation.participants[0].name = EVIL
    conversation.provenance["inputs"] = [EVIL]
    return conversation


@pytest.fixture(scope="module")
def page(chat) -> str:
    return report_html(chat, measure_quality(chat))


def test_the_page_nests_and_refers_to_nothing_outside(page):
    parsed = Page(page)
    assert parsed.references and all(ref.startswith(("data:image/jpeg;base64,", "#")) for ref in parsed.references)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    # Nothing in the style sheets fetches either; the names of XML's dialects are no addresses.
    rest = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert "http" not in rest and "@import" not in rest
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", rest))
    assert len(page) < 3_000_000


def test_names_stay_text(page):
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_every_chart_is_there_and_well_formed(page):
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 1 + 3 * 2
    for chart in charts:
        ElementTree.fromstring(chart)
    identifiers = [set(re.findall(r' id="([^"]*)"', chart)) for chart in charts]
    for chart, mine in zip(charts, identifiers, strict=True):
        assert set(re.findall(r"#([\w-]+)[\")]", chart)) - set(re.findall(r"#([0-9a-f]{6})\b", chart)) <= mine


def test_findings_are_told_with_their_advice(chat, page):
    quality = measure_quality(chat)
    assert quality.findings
    from markupsafe import escape

    for finding in quality.findings:
        assert str(escape(finding.problem)) in page and str(escape(finding.advice)) in page


def test_the_file_is_the_page(chat, page, tmp_path):
    write_report(chat, measure_quality(chat), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page, "the same folder gives the same page"


def test_the_sheet_shows_the_worst_frames():
    person = good_person()
    person.reprojection_error[[77, 80, 300]] = [9.0, 8.0, 7.0]
    person.visible[:] = lost(400, 402)
    frames = sheet_frames(person, 12)
    assert {77, 300, 400} <= set(frames) and 80 not in frames, "80 is beside a worse one"
    assert len(frames) >= 9 and frames == sorted(set(frames)) and min(frames) >= 0 and max(frames) < FRAMES


def test_extremes_keep_peaks():
    values = np.sin(np.arange(20000) / 900)
    values[[4321, 15000]] = [5.0, -5.0]
    index, kept = extremes(values, 1000)
    assert len(index) <= 1000 and 4321 in index and 15000 in index
    np.testing.assert_array_equal(values[index], kept)
    assert len(extremes(values[:500], 1000)[0]) == 500


def test_the_stretch_with_most_speech():
    speaking = np.zeros(1000, bool)
    speaking[600:700] = True
    assert 500 <= busiest(speaking, 200) <= 600
    assert busiest(speaking[:100], round(12 * FPS)) == 0


def test_overlay_puts_labels_and_landmarks_where_they_are():
    picture, label = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.uint8)
    label[64:] = 1
    landmarks = np.full((478, 2), 32.0)
    shown = overlay(picture, label, landmarks, size=64)
    assert shown.shape == (64, 64, 3)
    assert shown[16, 16].max() > 100 and shown[5, 50].max() == 0
    assert shown[50, 50].argmax() == 2, "a torso is blue"


def test_summary_is_json(chat):
    summary = json.loads(json.dumps(measure_quality(chat).summary(), allow_nan=False))
    assert set(summary["participants"]) == {"p0", "p1"} and summary["findings"]
