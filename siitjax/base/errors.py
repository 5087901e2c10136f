"""The one line between what a user can mend and a bug."""


class UserError(ValueError):
    """What was given cannot be used.

    The message says what was given, what is accepted, and how to go on. A command prints it as one line and exits
    with 2; every other error is a bug, and keeps its traceback.
    """


def one_line(error: BaseException | str) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
