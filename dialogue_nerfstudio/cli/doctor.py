"""`ns-dialogue doctor`: what is installed, which kernels and back ends are live, and how to get the rest."""

import contextlib
import importlib
import importlib.metadata
import json
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Callable, Optional

import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError

PACKAGE = "dialogue-nerfstudio"

REINSTALL = f"pip install --force-reinstall {PACKAGE}"

TCNN_INSTALL = "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'"

MEDIAPIPE_PIN = "0.10.9"
"""The only version whose models are in the wheel and whose protobuf is nerfstudio's; no wheel past Python 3.11."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    """what was looked at"""
    ok: bool
    """whether it works"""
    required: bool
    """whether anything but `needed_for` fails without it"""
    detail: str
    """version or reason"""
    needed_for: str = ""
    """what does not work without it"""
    fix: str = ""
    """a command that gets it; empty when nothing is missing"""


def package_version(name: str) -> Optional[str]:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def probe(name: str, required: bool, needed_for: str, fix: str, action: Callable[[], str]) -> Check:
    """Run `action`, which returns the detail to show or raises if the thing does not work."""
    try:
        return Check(name, True, required, action(), needed_for)
    except Exception as error:  # a broken installation raises anything, and doctor's job is to say which
        reason = str(error).strip().splitlines()
        sentence = reason[0] if reason else "no message"
        detail = sentence if isinstance(error, DialogueError) else f"{type(error).__name__}: {sentence}"
        return Check(name, False, required, detail, needed_for, fix)


def check_python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def check_torch() -> str:
    import torch

    cuda = torch.cuda.is_available()
    device = f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}" if cuda else "no CUDA device"
    return f"{torch.__version__}, {device}, {torch.get_num_threads()} threads"


def check_torchvision() -> str:
    """Import it and run an operator: with the CPU-only torch wheel it imports, or not, but has none."""
    import torch
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    return torchvision.__version__


def check_nerfstudio() -> str:
    importlib.import_module("nerfstudio.engine.trainer")
    return package_version("nerfstudio") or "installed, version unknown"


def check_entry_point() -> str:
    names = [entry.name for entry in importlib.metadata.entry_points(group="nerfstudio.method_configs")]
    if "dialogue-nerf" not in names:
        raise LookupError("nerfstudio does not see the method dialogue-nerf")
    from nerfstudio.configs.method_configs import all_methods

    ours = sorted(name for name in all_methods if name.startswith("dialogue-nerf"))
    return "ns-train " + ", ".join(ours)


def check_kernel(kernel: str) -> Callable[[], str]:
    """An action that encodes a few points with a hash grid kernel, on the device it is for."""

    def action() -> str:
        import torch

        from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig, resolve_kernel

        device = "cuda" if torch.cuda.is_available() and kernel != "numba" else "cpu"

        resolved = resolve_kernel(kernel, torch.device(device))
        grid = HashGrid(HashGridConfig(num_levels=2, log2_hashmap_size=8, kernel=kernel)).to(device)
        grid(torch.rand(8, 3, device=device)).sum().backward()
        return f"{resolved}, forward and backward run on {device}"

    return action


def check_encoder(codec: str) -> Callable[[], str]:
    def action() -> str:
        import av

        return f"{av.Codec(codec, 'w').long_name} (PyAV {av.__version__})"

    return action


def check_import(module: str, distribution: str) -> Callable[[], str]:
    def action() -> str:
        importlib.import_module(module)
        return package_version(distribution) or "installed, version unknown"

    return action


def check_installed(distribution: str) -> Callable[[], str]:
    """An action that does not import it, for what takes seconds to import."""
    return lambda: importlib.metadata.version(distribution)


def check_speaker_encoder() -> str:
    """The weights inside Resemblyzer's wheel; its own import needs webrtcvad, which this project does without."""
    distribution = importlib.metadata.distribution("Resemblyzer")
    weights = [file for file in distribution.files or [] if file.name == "pretrained.pt"]
    if not weights or not weights[0].locate().is_file():
        raise FileNotFoundError("pretrained.pt is not in the installed package")
    return f"{distribution.version}, weights found"


def check_pins() -> list[Check]:
    """Every requirement of this package against what is installed."""
    from packaging.requirements import Requirement

    checks = []
    for line in importlib.metadata.requires(PACKAGE) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = package_version(requirement.name)
        if version is None:
            checks.append(
                Check(requirement.name, False, True, "not installed", "everything", f"pip install '{requirement}'")
            )
        elif not requirement.specifier.contains(version, prereleases=True):
            detail = f"{version}, but {requirement.specifier} is needed"
            checks.append(Check(requirement.name, False, True, detail, "everything", f"pip install '{requirement}'"))
    return checks


def collect_checks() -> list[Check]:
    """Look at everything; takes a few seconds, as torch and nerfstudio are imported."""
    mediapipe_fix = (
        f"pip install --no-deps mediapipe=={MEDIAPIPE_PIN}"
        if platform.python_version_tuple() < ("3", "12")
        else "make an environment with Python 3.10 or 3.11: mediapipe 0.10.9 has no wheel for this one"
    )
    checks = [
        probe("Python", True, "everything", "", check_python),
        probe("torch", True, "everything", "pip install torch torchvision", check_torch),
        probe(
            "torchvision", True, "everything (nerfstudio imports it)",
            "pip install --force-reinstall torch torchvision   # both from the same index", check_torchvision,
        ),
        probe("nerfstudio", True, "training and rendering", "pip install nerfstudio==1.1.5", check_nerfstudio),
        probe("method registered", True, "ns-train dialogue-nerf", REINSTALL, check_entry_point),
        probe("hash grid kernel: auto", True, "training and rendering", REINSTALL, check_kernel("auto")),
        probe("hash grid kernel: numba", False, "speed on a CPU", "pip install numba", check_kernel("numba")),
        probe(
            "hash grid kernel: triton", False, "speed on an NVIDIA GPU",
            "pip install triton   # and an NVIDIA GPU with a CUDA build of torch", check_kernel("triton"),
        ),
        probe(
            "hash grid kernel: tcnn", False, "nothing: triton does the same without compiling",
            f"{TCNN_INSTALL}   # needs an NVIDIA GPU and a CUDA toolkit; used with kernel=tcnn only",
            check_kernel("tcnn"),
        ),
        probe("H.264 encoder", True, "writing videos", "pip install --force-reinstall av", check_encoder("libx264")),
        probe("AAC encoder", True, "writing sound", "pip install --force-reinstall av", check_encoder("aac")),
        probe("mediapipe", False, "ns-dialogue process", mediapipe_fix, check_import("mediapipe", "mediapipe")),
        probe(
            "face-alignment", False, "process --tracker face-alignment (optional)",
            "pip install --no-deps face-alignment==1.5.0", check_import("face_alignment", "face-alignment"),
        ),
        probe(
            "silero-vad", False, "finding speech in process",
            "pip install silero-vad", check_import("silero_vad", "silero-vad"),
        ),
        probe(
            "Resemblyzer", False, "telling voices apart in process",
            "pip install --no-deps Resemblyzer==0.1.4", check_speaker_encoder,
        ),
        probe(
            "transformers", False, "the audio features hubert and wav2vec2",
            "pip install 'dialogue-nerfstudio[speech]'", check_import("transformers", "transformers"),
        ),
        probe(
            "Ray", False, "ns-dialogue process --engine ray",
            f"pip install '{PACKAGE}[ray]'", check_installed("ray"),
        ),
        probe("ffprobe", False, "nothing here; handy for looking at videos", "apt install ffmpeg", find_ffprobe),
    ]  # fmt: skip
    return checks + check_pins()


def find_ffprobe() -> str:
    path = shutil.which("ffprobe")
    if path is None:
        raise FileNotFoundError("not on the PATH")
    return path


@dataclass
class Doctor:
    """Show what is installed, which kernels and back ends are live, and how to get the rest."""

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        """Exit code 0 when everything required works, else 1."""
        # Libraries greet on stdout when imported; only the JSON belongs there.
        with contextlib.redirect_stdout(sys.stderr):
            checks = collect_checks()
        healthy = all(check.ok for check in checks if check.required)
        if self.as_json:
            print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
        else:
            _print_table(checks, healthy)
        return 0 if healthy else 1


def _print_table(checks: list[Check], healthy: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    def mark(check: Check) -> Any:
        return "[green]works[/]" if check.ok else ("[red]missing[/]" if check.required else "[yellow]without[/]")

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "state", "detail"):
        table.add_column(title)
    for check in checks:
        table.add_row(check.name, mark(check), check.detail)
    console = Console()
    console.print(table)
    for check in checks:
        if not check.ok:
            console.print(f"\n[bold]{check.name}[/] is needed for {check.needed_for}. To get it:\n  {check.fix}")
    console.print("\n[green]Everything required works.[/]" if healthy else "\n[red]Something required is missing.[/]")
