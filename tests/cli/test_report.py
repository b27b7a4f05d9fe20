"""`ns-dialogue report` on folders: the page, the terminal's summary, and exit code 2 for what cannot be trained on."""

from pathlib import Path

import numpy as np
import pytest
from quality_truth import measured_folder
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation.files import read_npz, write_npz


@pytest.fixture
def chat(tmp_path) -> Path:
    return measured_folder(tmp_path / "chat")


def test_the_page_and_the_summary(cli, chat):
    result = cli("report", chat)
    assert result.code == 0, result.stderr
    assert (chat / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "lost in 3 of 75 frames" in " ".join(result.stdout.split()) and "report.html" in result.stdout


def test_another_place(cli, chat, tmp_path):
    assert cli("report", chat, "--output", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").is_file() and not (chat / "report.html").exists()


def test_a_frozen_face_cannot_be_trained_on(cli, chat):
    path = chat / "participants" / "p1" / "tracking.npz"
    tracking = read_npz(path)
    tracking["landmarks"] = np.repeat(tracking["landmarks"][:1], len(tracking["landmarks"]), axis=0)
    write_npz(path, **tracking)
    result = cli("report", chat)
    assert result.code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Participant p1: Nothing in this face moves" in result.stderr and "--num-people" in result.stderr
    assert "Not usable for training" in (chat / "report.html").read_text()


def test_folders_that_are_none(refused, tmp_path):
    refused("report", tmp_path / "none", naming=["none"])
    write_tiny_conversation(tmp_path / "tiny")
    refused("report", tmp_path / "tiny", naming=["face.npz", "ns-dialogue process"])
