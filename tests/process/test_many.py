"""Many recordings: everything is done once or explained, whatever is killed in between."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import many_work
import pytest

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.process import engines
from dialogue_nerfstudio.process.engines import LocalEngine, RayEngine, check_address
from dialogue_nerfstudio.process.manifest import Entry, Manifest, read_manifest
from dialogue_nerfstudio.process.many import ManyConfig, process_many, recording_fingerprint, run_tasks
from dialogue_nerfstudio.process.pipeline import ProcessConfig
from dialogue_nerfstudio.process.recordings import Recording, find_recordings, output_names


def _engine(kind: str, work, tmp_path: Path, workers: int = 2):
    if kind == "local":
        return LocalEngine(work, workers, tmp_path / "log")
    pytest.importorskip("ray")
    return RayEngine(work, workers, None)


def _run(tmp_path: Path, work, tasks: dict, engine: str = "local", retries: int = 1, again: bool = False, watch=None):
    for name, task in tasks.items():
        task.setdefault("output", str(tmp_path / name))
    wanted = [Entry(name, name, "same") for name in tasks]
    with Manifest(tmp_path) as manifest:
        config = ManyConfig(retries=retries, again=again)
        entries = run_tasks(
            manifest, wanted, tasks, _engine(engine, work, tmp_path), config, watch or (lambda e, r: None)
        )
    return {entry.source: entry for entry in entries}


def _log(tmp_path: Path, name: str) -> list:
    return (tmp_path / f"{name}.log").read_text().split("\n")[:-1]


RAY_HELPERS = ("ray.dashboard.agent", "ray._private.runtime_env.agent.main")
"""What Ray starts beside itself, and waits for 15 s (fixed in its compiled part)."""


def _skip_if_too_busy_for_ray(error: DialogueError) -> None:
    """Skips where Ray could not start because this machine is too slow just now: its helpers, which start side by side,
    need longer than half of what Ray gives them only to be imported. Where they do not, Ray's failure is a failure."""
    if "Ray cannot be started here" not in str(error):
        return
    started = time.monotonic()
    helpers = [subprocess.Popen([sys.executable, "-c", f"import {module}"]) for module in RAY_HELPERS]
    codes = [helper.wait() for helper in helpers]
    seconds = time.monotonic() - started
    if codes == [0, 0] and seconds > 7.5:
        pytest.skip(f"Ray gives its helpers 15 s to start, and to import them alone took {seconds:.1f} s: {error}")


WHOLE = [f"{what} {stage}" for stage in ("one", "two", "three") for what in ("begun", "done")]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_killed_worker_loses_nothing_and_repeats_nothing(tmp_path, engine, monkeypatch):
    # Where Ray's workers find the module of the work; the package itself is installed everywhere.
    folders = [str(Path(many_work.__file__).parent), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
    tasks = {"a": {}, "b": {"die": "two"}, "c": {}, "d": {"die": "three"}}
    try:
        entries = _run(tmp_path, many_work.staged, tasks, engine)
    except DialogueError as error:
        _skip_if_too_busy_for_ray(error)
        raise
    assert {name: (entry.state, entry.attempts) for name, entry in entries.items()} == {
        "a": ("done", 1),
        "b": ("done", 2),
        "c": ("done", 1),
        "d": ("done", 2),
    }
    assert _log(tmp_path, "a") == _log(tmp_path, "c") == WHOLE
    assert _log(tmp_path, "b") == [*WHOLE[:3], *WHOLE[2:]], "only the stage that was killed ran again"
    assert _log(tmp_path, "d") == [*WHOLE[:5], *WHOLE[4:]]
    again = _run(tmp_path, many_work.staged, tasks, engine)
    assert all(entry.state == "done" for entry in again.values()) and _log(tmp_path, "a") == WHOLE


def test_kill_9_from_outside(tmp_path):
    go, killed = tmp_path / "go", threading.Event()
    tasks = {name: {"go": str(go)} for name in ("a", "b", "c")}

    def kill_one() -> None:
        pids = tmp_path / "a" / "pids"
        while not (pids.exists() and pids.read_text().endswith("\n")):
            time.sleep(0.02)
        os.kill(int(pids.read_text()), signal.SIGKILL)
        killed.set()
        go.touch()

    thread = threading.Thread(target=kill_one)
    thread.start()
    entries = _run(tmp_path, many_work.says_its_process, tasks)
    thread.join()
    assert killed.is_set()
    assert [(entry.state, entry.attempts) for entry in entries.values()] == [("done", 2), ("done", 1), ("done", 1)]
    assert all(_log(tmp_path, name) == WHOLE for name in tasks)
    assert len(set((tmp_path / "a" / "pids").read_text().split())) == 2


def test_a_killed_program_goes_on_where_it_was(tmp_path):
    """The program itself, not only a worker: its workers end with it, and the next run does what is left."""
    script = (
        "import sys; from pathlib import Path; import many_work\n"
        "from dialogue_nerfstudio.process.engines import LocalEngine\n"
        "from dialogue_nerfstudio.process.manifest import Entry, Manifest\n"
        "from dialogue_nerfstudio.process.many import ManyConfig, run_tasks\n"
        "root = Path(sys.argv[1])\n"
        "tasks = {'a': {'output': str(root / 'a'), 'go': str(root)},"
        " 'b': {'output': str(root / 'b'), 'go': str(root / 'go')}}\n"
        "if __name__ == '__main__':\n"
        "    with Manifest(root) as manifest:\n"
        "        run_tasks(manifest, [Entry(n, n, 'same') for n in tasks], tasks,"
        " LocalEngine(many_work.says_its_process, 1, root / 'log'), ManyConfig())\n"
    )
    (tmp_path / "program.py").write_text(script)
    path = os.pathsep.join([str(Path(many_work.__file__).parent), *sys.path])
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    pids = tmp_path / "b" / "pids"
    while not (pids.exists() and pids.read_text().endswith("\n")):
        assert program.poll() is None
        time.sleep(0.02)
    with pytest.raises(DialogueError, match="Another run"), Manifest(tmp_path):
        pass
    program.kill()
    program.wait()
    worker = int(pids.read_text())
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split(")")[1]:
        time.sleep(0.02)
    states = {entry.source: entry.state for entry in read_manifest(tmp_path / "manifest.jsonl").values()}
    assert states == {"a": "done", "b": "running"}
    (tmp_path / "go").touch()
    tasks = {name: {"go": str(tmp_path / "go")} for name in ("a", "b")}
    entries = _run(tmp_path, many_work.says_its_process, tasks)
    assert [(entry.state, entry.attempts) for entry in entries.values()] == [("done", 1), ("done", 2)]
    assert _log(tmp_path, "a") == _log(tmp_path, "b") == WHOLE


def test_failures_are_told_apart_and_the_rest_goes_on(tmp_path):
    tasks = {name: {"how": name} for name in ("refuse", "bug", "full disk", "dies", "fine")}
    entries = _run(tmp_path, many_work.as_told, tasks)
    assert entries["refuse"].state == "refused" and entries["refuse"].attempts == 1, "it would say the same again"
    assert entries["refuse"].reason == "There is nobody in it."
    assert entries["full disk"].state == "failed" and entries["full disk"].attempts == 2
    assert entries["bug"].state == "failed" and "ZeroDivisionError" in entries["bug"].reason
    details = entries["bug"].reason.partition("Details: ")[2]
    assert "Traceback" in Path(details).read_text() and "as_told" in Path(details).read_text()
    assert "exit code 3" in entries["dies"].reason and entries["dies"].attempts == 2
    assert entries["fine"].state == "done" and entries["fine"].conversations[0]["num_frames"] == 5
    lines = (tmp_path / "manifest.jsonl").read_text().strip().split("\n")
    assert [json.loads(line)["source"] for line in lines] == list(tasks), "one line each at the end"
    for task in tasks.values():
        task["how"] = "fine"
    entries = _run(tmp_path, many_work.as_told, tasks)
    assert entries["refuse"].state == "refused" and entries["bug"].state == "done"
    assert _run(tmp_path, many_work.as_told, tasks, again=True)["refuse"].state == "done"


def test_a_conversation_that_was_deleted_is_made_again(tmp_path):
    _run(tmp_path, many_work.staged, {"a": {}, "b": {}})
    (tmp_path / "a" / "conversation.json").unlink()
    entries = _run(tmp_path, many_work.staged, {"a": {}, "b": {}})
    assert entries["a"].attempts == 2 and entries["b"].attempts == 1
    assert (tmp_path / "a" / "conversation.json").exists() and _log(tmp_path, "a") == WHOLE


def test_progress_reaches_the_watcher(tmp_path):
    seen = []
    _run(tmp_path, many_work.says_its_process, {"a": {"go": str(tmp_path)}}, watch=lambda e, r: seen.append(dict(r)))
    assert {"a": ("waiting", 0.5)} in seen and seen[-1] == {}


def test_a_torn_last_line_is_left_out_and_others_are_not(tmp_path):
    with Manifest(tmp_path) as manifest:
        manifest.rewrite([Entry("a", "a", "x"), Entry("b", "b", "x")])
        manifest.record(Entry("a", "a", "x", state="done"))
    path = tmp_path / "manifest.jsonl"
    with open(path, "a") as stream:
        stream.write('{"source": "b", "output": "b", "fing')
    assert {e.source: e.state for e in read_manifest(path).values()} == {"a": "done", "b": "waiting"}
    path.write_text("not\n" + path.read_text())
    with pytest.raises(DialogueError, match=r"manifest\.jsonl, line 1"):
        read_manifest(path)


def test_thousands_of_recordings_are_scanned_and_recorded_at_once(tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    videos.mkdir()
    for index in range(3000):
        (videos / f"{index:04d}.mp4").touch()
    reads = []
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self))
    recordings = find_recordings([videos])
    names = output_names(recordings, {})
    assert len(recordings) == len(set(names.values())) == 3000 and not reads, "only names are looked at"
    assert [recording.source.name for recording in recordings] == sorted(os.listdir(videos))
    wanted = [Entry(str(r.source), names[str(r.source)], recording_fingerprint(r, ProcessConfig())) for r in recordings]
    written = [0]
    with Manifest(tmp_path / "out") as manifest:
        manifest.rewrite(wanted)
        size = manifest.path.stat().st_size
        for entry in wanted[:50]:
            manifest.record(entry)
            written[0] = max(written[0], manifest.path.stat().st_size - size)
        assert written[0] < 50 * 1000, "a change of state is a line, not the file again"
    assert len(read_manifest(tmp_path / "out" / "manifest.jsonl")) == 3000


def test_names_stay_from_run_to_run_and_never_meet(tmp_path):
    paths = [tmp_path / "x" / "talk.mp4", tmp_path / "y" / "talk.mov", tmp_path / "z" / "talk.mp4"]
    first = output_names([Recording(paths[1], (paths[1],))], {})
    names = output_names([Recording(path, (path,)) for path in paths], first)
    assert [names[str(path)] for path in paths] == ["talk.mp4", "talk", "z-talk"]


def test_options_that_make_no_sense_are_one_sentence(tmp_path):
    for config, many, message in (
        (ProcessConfig(), ManyConfig(workers=0), "workers"),
        (ProcessConfig(), ManyConfig(retries=-1), "retries"),
        (ProcessConfig(), ManyConfig(ray_address="auto"), "engine ray"),
        (ProcessConfig(audio=(Path("a.wav"),)), ManyConfig(), "same name"),
        (ProcessConfig(rttm=Path("a.rttm")), ManyConfig(), "same name"),
    ):
        with pytest.raises(DialogueError, match=message):
            process_many([], tmp_path, config, many)


def test_without_ray_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DialogueError, match=r"pip install 'dialogue-nerfstudio\[ray\]'"):
        process_many([], tmp_path, ProcessConfig(), ManyConfig(engine="ray"))


@pytest.mark.parametrize("address", [None, "auto"])
def test_ray_that_cannot_start_is_one_sentence(monkeypatch, tmp_path, address):
    ray = pytest.importorskip("ray")
    calls = []

    def fails(**options):
        calls.append(options)
        raise Exception("The current node timed out during startup.\nThis could happen for many reasons.")

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    (tmp_path / "a.mp4").touch()
    recordings = find_recordings([tmp_path / "a.mp4"])
    many = ManyConfig(engine="ray", ray_address=address)
    with pytest.raises(DialogueError) as refusal:
        process_many(recordings, tmp_path / "out", ProcessConfig(), many)
    sentence = str(refusal.value)
    assert "(The current node timed out during startup)" in sentence and "--engine local" in sentence
    assert "\n" not in sentence and ("auto" if address else "started here") in sentence
    tries = 1 if address else engines.START_TRIES
    assert calls.count("shutdown") == len(calls) - calls.count("shutdown") == tries
    entries = read_manifest(tmp_path / "out" / "manifest.jsonl").values()
    assert [(entry.state, entry.attempts) for entry in entries] == [("waiting", 0)], "nothing was begun"


@pytest.mark.parametrize(
    ("address", "message"),
    [("127.0.0.1:1", "No Ray cluster answers"), ("ray://127.0.0.1:1", "No Ray cluster answers"),
     ("nowhere", "no address"), ("host:port", "no address")],
)  # fmt: skip
def test_an_address_without_a_cluster(address, message):
    with pytest.raises(DialogueError, match=message):
        check_address(address)


def test_an_ended_worker_says_how(tmp_path):
    with LocalEngine(many_work.as_told, 1, tmp_path / "log") as engine:
        engine.start("a", {"how": "dies"})
        events = []
        while not events:
            events = engine.wait(1.0)
    assert events[0].kind == "lost" and events[0].key == "a"
    assert engines.attempt(many_work.as_told, "a", {"how": "refuse"}, print).kind == "refused"
