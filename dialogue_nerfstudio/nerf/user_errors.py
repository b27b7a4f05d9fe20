"""User errors inside nerfstudio's own commands: one sentence on stderr and exit code 2, as ns-dialogue does."""

import sys
from contextlib import contextmanager
from typing import Iterator

from dialogue_nerfstudio.conversation import DialogueError


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the process with the message of a DialogueError; only entry points that nerfstudio calls use this.

    Raises:
        SystemExit: code 2.
    """
    try:
        yield
    except DialogueError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
