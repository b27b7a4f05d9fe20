"""`ns-dialogue simulate --motion-only`: what it says, writes, extends and refuses."""

import pytest
from safetensors import safe_open

from dialogue_nerfstudio.conversation.motion_shards import read_manifest

SHORT = ("--motion-only", "--num-people", 6, "--seconds", 10, "--workers", 1)


@pytest.fixture(scope="module")
def eighty_seconds():
    return 80.0 / 3600.0


def test_writes_extends_and_says_so(cli, tmp_path, eighty_seconds):
    output = tmp_path / "motion"
    first = cli("simulate", *SHORT, "--hours", eighty_seconds, "--output", output)
    assert first.code == 0 and "8 conversations of 10 s between 6 people" in first.stdout
    assert "6 train, 1 eval, 1 unseen" in first.stdout and f"--data {output}" in first.stdout
    stamps = {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*")}
    more = cli("simulate", *SHORT, "--hours", 1.25 * eighty_seconds, "--output", output)
    assert more.code == 0 and "10 conversations" in more.stdout
    assert {name: (output / name).stat().st_mtime_ns for name in stamps} == stamps
    manifest = read_manifest(output)
    assert len(manifest.conversations) == 10
    with safe_open(output / manifest.conversations[-1].file_name, framework="numpy") as shard:
        assert shard.get_slice("head_pose").get_shape() == [2, 250, 6]


def test_refuses_in_a_sentence(refused, tmp_path):
    output = tmp_path / "motion"
    refused("simulate", "--hours", 2, "--output", output, naming=["--hours is for --motion-only"])
    refused("simulate", "--motion-only", "--hours", 0, "--output", output, naming=["hours is 0"])
    refused("simulate", "--motion-only", "--num-people", 1, "--output", output, naming=["num-people is 1"])
    refused("simulate", "--motion-only", "--workers", 0, "--output", output, naming=["workers is 0"])
    assert not output.exists()
