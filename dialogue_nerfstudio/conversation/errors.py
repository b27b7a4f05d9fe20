"""The one exception whose message is meant for the user."""


class DialogueError(Exception):
    """Something the user can mend: one clear sentence naming the file, frame or option, and the way out.

    The command line prints it without a traceback and exits with code 2.
    """
