"""The console script `ns-dialogue`: picks the subcommand and turns errors into one sentence and an exit code.

Exit codes: 0 done; 1 `doctor` found something required missing; 2 the user can mend it (one sentence on stderr);
130 interrupted. Anything else is a bug and shows its traceback. Command modules import what they need when they run, so
that `--help` stays fast.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Optional, Union

import tyro

from dialogue_nerfstudio.cli.animate import Animate
from dialogue_nerfstudio.cli.demo import Demo
from dialogue_nerfstudio.cli.doctor import Doctor
from dialogue_nerfstudio.cli.dub import Dub
from dialogue_nerfstudio.cli.eval_motion import EvalMotion
from dialogue_nerfstudio.cli.export_motion import ExportMotion
from dialogue_nerfstudio.cli.face_model import FaceModelCommand
from dialogue_nerfstudio.cli.features import Features
from dialogue_nerfstudio.cli.install_pyannote import InstallPyannote
from dialogue_nerfstudio.cli.process import Process
from dialogue_nerfstudio.cli.refit import Refit
from dialogue_nerfstudio.cli.render import Render
from dialogue_nerfstudio.cli.report import Report
from dialogue_nerfstudio.cli.simulate import Simulate
from dialogue_nerfstudio.conversation.errors import DialogueError

Command = Union[
    Annotated[Process, tyro.conf.subcommand("process")],
    Annotated[Features, tyro.conf.subcommand("features")],
    Annotated[Dub, tyro.conf.subcommand("dub")],
    Annotated[Report, tyro.conf.subcommand("report")],
    Annotated[Animate, tyro.conf.subcommand("animate")],
    Annotated[Render, tyro.conf.subcommand("render")],
    Annotated[EvalMotion, tyro.conf.subcommand("eval-motion")],
    Annotated[ExportMotion, tyro.conf.subcommand("export-motion")],
    Annotated[Simulate, tyro.conf.subcommand("simulate")],
    Annotated[FaceModelCommand, tyro.conf.subcommand("face-model")],
    Annotated[Refit, tyro.conf.subcommand("refit")],
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[InstallPyannote, tyro.conf.subcommand("install-pyannote")],
    Annotated[Doctor, tyro.conf.subcommand("doctor")],
]

DESCRIPTION = """\
Avatars of people in conversation, from a video of them talking.

A video becomes a conversation:  ns-dialogue process chat.mp4 --output data/chat

Everybody becomes an avatar, in one network:  ns-train dialogue-nerf --data data/chat

The avatars act a new conversation, with sound:  ns-dialogue render --load-config CONFIG --output new.mp4
"""


def main(args: Optional[Sequence[str]] = None) -> int:
    """Run one command line (default: the program's own) and return its exit code."""
    if not sys.warnoptions:
        # What torch and nerfstudio deprecate is for their developers; on our users' screens it hides the one sentence.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", module=r"nerfstudio\.")
    command = tyro.cli(Command, prog="ns-dialogue", description=DESCRIPTION, args=args)
    try:
        return command.run()
    except DialogueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. Finished stages are kept; the same command goes on from there.", file=sys.stderr)
        return 130


def entrypoint() -> None:
    """For pyproject's scripts."""
    sys.exit(main())


if __name__ == "__main__":
    entrypoint()
