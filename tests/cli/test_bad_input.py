"""Bad input is refused with one clear sentence and exit code 2, and nothing is damaged."""

import importlib.util
import json
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from media import noise_frames, tone, write_video
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation.conversation import load_conversation
from dialogue_nerfstudio.conversation.files import read_npz, write_json, write_npz
from dialogue_nerfstudio.conversation.roles import SpeechSegment, write_rttm
from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_conversation
from dialogue_nerfstudio.conversation.video import FrameReader

needs_mediapipe = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None, reason="process needs mediapipe, and says so before anything else"
)


def no_partial_output(folder: Path) -> None:
    """Neither a finished-looking conversation nor a temporary file."""
    assert not [path for path in folder.rglob(".*") if path.is_file()], "a temporary file is left"
    assert not (folder / "conversation.json").exists() and not (folder / "process.json").exists()


# What `process` is given


@needs_mediapipe
def test_no_file(refused, tmp_path):
    refused("process", tmp_path / "none.mp4", "--output", tmp_path / "out", naming=["none.mp4"])
    assert not (tmp_path / "out").exists()


@needs_mediapipe
def test_not_a_video(refused, tmp_path):
    (tmp_path / "letter.mp4").write_text("Dear nerfstudio, this is a letter.\n" * 100)
    refused("process", tmp_path / "letter.mp4", "--output", tmp_path / "out", naming=["letter.mp4"])
    no_partial_output(tmp_path / "out")


@needs_mediapipe
def test_no_audio_track(refused, tmp_path):
    write_video(tmp_path / "silent.mp4", noise_frames(30))
    sentence = refused("process", tmp_path / "silent.mp4", "--output", tmp_path / "out", naming=["silent.mp4"])
    assert "audio" in sentence or "sound" in sentence
    no_partial_output(tmp_path / "out")


@needs_mediapipe
def test_three_frames(refused, tmp_path):
    write_video(tmp_path / "short.mp4", noise_frames(3), audio=tone(3 / 25))
    refused("process", tmp_path / "short.mp4", "--output", tmp_path / "out", naming=["short.mp4", "3 frame"])
    no_partial_output(tmp_path / "out")


@needs_mediapipe
def test_no_face(refused, tmp_path):
    write_video(tmp_path / "noise.mp4", noise_frames(50), audio=tone(2))
    refused("process", tmp_path / "noise.mp4", "--output", tmp_path / "out", naming=["noise.mp4", "no face"])
    no_partial_output(tmp_path / "out")


@pytest.fixture(scope="module")
def one_person(tmp_path_factory) -> Path:
    """A video of one simulated person, 3 s, with sound."""
    pytest.importorskip("mediapipe", reason="finding faces needs mediapipe")
    folder = tmp_path_factory.mktemp("one") / "simulated"
    simulate_conversation(SimulationConfig(seconds=3.0, size=128, num_people=1, seed=3), folder)
    return folder / "video.mp4"


def test_one_face_where_two_are_asked_for(refused, one_person, tmp_path):
    shutil.copy(one_person, tmp_path / "solo.mp4")
    options = ["--num-people", 2, "--output", tmp_path / "out"]
    refused("process", tmp_path / "solo.mp4", *options, naming=["solo.mp4", "1 face", "2"])
    no_partial_output(tmp_path / "out")


def test_a_face_lost_for_seconds(refused, one_person, tmp_path):
    with FrameReader(one_person) as reader:
        frames = list(reader.iterate())
    # Somebody walks through; black pictures at once would be a shot of their own.
    edges = np.interp(np.arange(len(frames)), [10, 18, 41, 49], [0, 128, 128, 0]).round().astype(int)
    for frame, edge in zip(frames, edges, strict=True):
        frame[:, :edge] = 60
    write_video(tmp_path / "gone.mp4", frames, audio=tone(len(frames) / 25))
    sentence = refused(
        "process", tmp_path / "gone.mp4", "--num-people", 1, "--output", tmp_path / "out", naming=["gone.mp4"]
    )
    assert " s" in sentence
    no_partial_output(tmp_path / "out")


def test_an_rttm_with_unknown_names_for_process(refused, one_person, tmp_path):
    write_rttm(tmp_path / "roles.rttm", [SpeechSegment(0.0, 1.0, "Speaker_9")])
    options = ["--num-people", 1, "--rttm", tmp_path / "roles.rttm", "--output", tmp_path / "out"]
    refused("process", one_person, *options, naming=["Speaker_9"])
    no_partial_output(tmp_path / "out")


def test_a_damaged_rttm_for_process(refused, one_person, tmp_path):
    (tmp_path / "roles.rttm").write_text("SPEAKER x 1 zero 1.0 <NA> <NA> p0 <NA> <NA>\n")
    options = ["--num-people", 1, "--rttm", tmp_path / "roles.rttm", "--output", tmp_path / "out"]
    refused("process", one_person, *options, naming=["roles.rttm", "line 1"])
    no_partial_output(tmp_path / "out")


# What `render` is given


@pytest.fixture
def render(refused, trained, tmp_path):
    """Run a render that must be refused and leave no video."""

    def run(*options: object, naming: list[str], config: Path = trained.config) -> str:
        sentence = refused("render", "--load-config", config, "--output", tmp_path / "out.mp4", *options, naming=naming)
        assert not (tmp_path / "out.mp4").exists() and not (tmp_path / "out.json").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        return sentence

    return run


def test_nan_in_a_motion_file(render, trained, tmp_path):
    motion = load_conversation(trained.data).participant("p1").motion
    motion.expression[7, 3] = np.nan
    motion.save(tmp_path / "broken.npz")
    render("--motion", tmp_path / "broken.npz", naming=["broken.npz", "expression", "frame 7"])


def test_nan_in_a_conversations_motion(render, tmp_path):
    write_tiny_conversation(tmp_path / "chat")
    path = tmp_path / "chat" / "participants" / "p0" / "motion.npz"
    arrays = read_npz(path)
    arrays["head_pose"][2, 0] = np.inf
    write_npz(path, **arrays)
    render("--motion", tmp_path / "chat", naming=["p0", "head_pose", "frame 2"])


def test_another_expression_basis(render, trained, tmp_path):
    motion = load_conversation(trained.data).participant("p1").motion
    motion.expression_basis = "FLAME"
    motion.save(tmp_path / "flame.npz")
    render("--motion", tmp_path / "flame.npz", naming=["flame", "FLAME", "basis"])


def test_a_conversation_of_a_newer_schema(render, tmp_path):
    write_tiny_conversation(tmp_path / "chat")
    manifest = json.loads((tmp_path / "chat" / "conversation.json").read_text())
    write_json(tmp_path / "chat" / "conversation.json", {**manifest, "schema_version": 99})
    render("--motion", tmp_path / "chat", naming=["conversation.json", "99"])


def test_a_half_written_folder(render, tmp_path):
    write_tiny_conversation(tmp_path / "chat")
    (tmp_path / "chat" / "participants" / "p1" / "motion.npz").unlink()
    render("--motion", tmp_path / "chat", naming=["p1", "motion.npz"])


def test_a_folder_whose_processing_never_finished(render, tmp_path):
    (tmp_path / "chat" / "participants").mkdir(parents=True)
    render("--motion", tmp_path / "chat", naming=[str(tmp_path / "chat")])


def test_training_data_that_became_half_written(render, trained, tmp_path):
    """The checkpoint's own conversation lost its last file."""
    data = tmp_path / "chat"
    shutil.copytree(trained.data, data)
    (data / "conversation.json").unlink()
    config = copied_run(trained, tmp_path, lambda config: set_data(config, data))
    render(config=config, naming=[str(data), "conversation.json"])


def test_an_rttm_with_unknown_names(render, tmp_path):
    soundfile.write(tmp_path / "new.wav", tone(1), 16000)
    write_rttm(tmp_path / "roles.rttm", [SpeechSegment(0.0, 1.0, "SPEAKER_00")])
    render("--audio", tmp_path / "new.wav", "--rttm", tmp_path / "roles.rttm", naming=["SPEAKER_00", "p0, p1"])


def test_sound_that_is_none(render, tmp_path):
    (tmp_path / "new.wav").write_text("la la la\n" * 50)
    render("--audio", tmp_path / "new.wav", "--speaker", "p0", naming=["new.wav"])


def test_a_config_that_is_none(render, tmp_path):
    (tmp_path / "config.yml").write_text("just: some yaml\n")
    render(config=tmp_path / "config.yml", naming=["config.yml"])


def test_a_run_without_a_checkpoint(render, trained, tmp_path):
    config = copied_run(trained, tmp_path, lambda config: None)
    for checkpoint in config.parent.rglob("*.ckpt"):
        checkpoint.unlink()
    render(config=config, naming=["checkpoint"])


def test_a_checkpoint_of_another_grid_layout(render, trained, tmp_path):
    def other_layout(config):
        config.pipeline.model.head.grid.log2_hashmap_size = 8
        config.pipeline.model.head.grid.num_levels = 3

    render(config=copied_run(trained, tmp_path, other_layout), naming=["checkpoint"])


def test_a_checkpoint_of_another_kernel(render, trained, tmp_path):
    config = copied_run(trained, tmp_path, lambda config: None)
    (path,) = config.parent.rglob("*.ckpt")
    state = torch.load(path, weights_only=True)
    keys = [key for key in state["pipeline"] if key.endswith("_extra_state")]
    assert keys, "the checkpoint does not say which grid layout it holds"
    for key in keys:
        state["pipeline"][key] = {**state["pipeline"][key], "kernel": "cutlass"}
    torch.save(state, path)
    render(config=config, naming=["kernel", "cutlass"])


def test_a_cut_off_checkpoint(render, trained, tmp_path):
    config = copied_run(trained, tmp_path, lambda config: None)
    (path,) = config.parent.rglob("*.ckpt")
    path.write_bytes(path.read_bytes()[:1000])
    render(config=config, naming=[path.name])


def set_data(config, data: Path) -> None:
    config.data = config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = data


def copied_run(trained, folder: Path, change) -> Path:
    """A copy of the training run whose config was changed."""
    config = yaml.load(trained.config.read_text(), Loader=yaml.Loader)
    shutil.copytree(config.output_dir, folder / "outputs")
    config.output_dir = folder / "outputs"
    change(config)
    path = folder / "outputs" / trained.config.relative_to(trained.config.parents[3])
    path.write_text(yaml.dump(config))
    return path


# A full disk


@contextmanager
def files_of_at_most(size: int):
    """What a disk does when it is full, without root: a write past `size` bytes of a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_rendering(render, tmp_path):
    with files_of_at_most(2_000):
        render(naming=["out.mp4", "disk is full"])


def test_a_full_disk_while_simulating(refused, tmp_path):
    with files_of_at_most(4_000):
        refused("simulate", "--output", tmp_path / "s", "--seconds", 2, "--size", 64, naming=["disk is full"])
    no_partial_output(tmp_path / "s")


def test_a_full_disk_while_processing(refused, one_person, tmp_path):
    with files_of_at_most(20_000):
        refused("process", one_person, "--num-people", 1, "--output", tmp_path / "out", naming=["disk is full"])
    no_partial_output(tmp_path / "out")


def test_a_really_full_disk(tmp_path):
    """A tmpfs of 64 kB in a mount namespace of its own, where the system lets users make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {disk}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "sh", "-c", mount]).returncode != 0:
        pytest.skip("this system does not let users mount a tmpfs")
    command = f"{sys.executable} -m dialogue_nerfstudio.cli.main simulate --output {disk}/s --seconds 2 --size 64"
    script = f"{mount} && {command}; code=$?; find {disk} -type f; exit $code"
    finished = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.startswith("Error: ") and "disk is full" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
    assert "conversation.json" not in finished.stdout and "/." not in finished.stdout


def test_processing_without_mediapipe(tmp_path):
    """On Python 3.12 and later there is none; everything else works there."""
    write_video(tmp_path / "chat.mp4", noise_frames(30), audio=tone(1.2))
    script = (
        "import sys\n"
        "sys.modules['mediapipe'] = None\n"
        "from dialogue_nerfstudio.cli.main import main\n"
        f"sys.exit(main(['process', {str(tmp_path / 'chat.mp4')!r}, '--output', {str(tmp_path / 'out')!r}]))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 2
    (sentence,) = finished.stderr.strip().splitlines()
    assert sentence.startswith("Error: ") and "mediapipe" in sentence
    assert not (tmp_path / "out").exists()


# What a kernel and a scene are asked for


def test_a_kernel_that_is_absent_ends_training(tmp_path, capsys):
    """`ns-train dialogue-nerf --pipeline.model.head.grid.kernel tcnn` where tiny-cuda-nn is not installed."""
    import copy

    from dialogue_nerfstudio.nerf.config import dialogue_nerf

    if importlib.util.find_spec("tinycudann") is not None:
        pytest.skip("tiny-cuda-nn is installed here")
    config = copy.deepcopy(dialogue_nerf.config.pipeline)
    config.datamanager.data = write_tiny_conversation(tmp_path / "chat")
    config.datamanager.cache_folder = tmp_path / "cache"
    config.model.head.grid.kernel = "tcnn"
    with pytest.raises(SystemExit) as stop:
        config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0, grad_scaler=None)
    message = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and message.startswith("Error: ")
    assert "kernel=tcnn" in message and "kernel=auto" in message


def test_people_who_overlap(render, tmp_path):
    places = [{"position": [0.0, 0.0], "yaw": 0.0}, {"position": [0.05, 0.0], "yaw": 0.0}]
    (tmp_path / "places.json").write_text(json.dumps(places))
    render("--layout", "co-located", "--placement", tmp_path / "places.json", naming=["p0", "p1"])


def test_a_camera_path_that_is_none(render, tmp_path):
    (tmp_path / "path.json").write_text('{"camera_path": []}')
    render("--layout", "co-located", "--camera", tmp_path / "path.json", naming=["path.json"])
