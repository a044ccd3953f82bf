"""The one exception that means "your input, not our bug"."""


class InputError(Exception):
    """Bad input, said in one line: what is wrong, where, what was expected and what to do.

    The command line prints the message and exits with code 2; from Python it is an ordinary exception.
    """
