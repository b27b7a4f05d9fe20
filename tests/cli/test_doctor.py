"""Doctor looks at the real installation and says how to get what is missing."""

import json

from dialogue_nerfstudio.cli import doctor
from dialogue_nerfstudio.cli.doctor import Check, check_pins, probe


def test_json_lists_the_checks(cli):
    result = cli("doctor", "--json")
    report = json.loads(result.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    kernels = tuple(f"hash grid kernel: {kernel}" for kernel in ("auto", "numba", "triton", "tcnn"))
    for name in ("Python", "torch", "nerfstudio", "method registered", *kernels, "H.264 encoder", "mediapipe"):
        assert name in checks
    assert checks["H.264 encoder"]["ok"] and checks["hash grid kernel: auto"]["ok"]
    for check in report["checks"]:
        assert check["detail"] and check["ok"] == (check["ok"] or not check["fix"])
        assert check["ok"] or check["fix"], f"no way to get {check['name']}"
    assert result.code == (0 if report["ok"] else 1)
    assert report["ok"] == all(check["ok"] for check in report["checks"] if check["required"])


def test_something_required_missing_is_exit_code_1(cli, monkeypatch):
    checks = [Check("torch", False, True, "not installed", "everything", "pip install torch")]
    monkeypatch.setattr(doctor, "collect_checks", lambda: checks)
    result = cli("doctor")
    assert result.code == 1 and "pip install torch" in result.stdout


def test_something_optional_missing_is_exit_code_0(cli, monkeypatch):
    checks = [Check("mediapipe", False, False, "not installed", "ns-dialogue process", "pip install mediapipe")]
    monkeypatch.setattr(doctor, "collect_checks", lambda: checks)
    result = cli("doctor")
    assert result.code == 0 and "pip install mediapipe" in result.stdout


def test_a_broken_import_is_reported_not_raised():
    def broken():
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    check = probe("torchvision", True, "everything", "pip install torchvision", broken)
    assert not check.ok and check.detail == "RuntimeError: operator torchvision::nms does not exist"


def test_pins_find_wrong_and_missing_versions(monkeypatch):
    wanted = ["numpy>=99", "surely-not-installed", "pillow", "pytest>=99; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    found = {check.name: check for check in check_pins()}
    assert set(found) == {"numpy", "surely-not-installed"}
    assert ">=99 is needed" in found["numpy"].detail
    assert found["surely-not-installed"].fix == "pip install 'surely-not-installed'"
