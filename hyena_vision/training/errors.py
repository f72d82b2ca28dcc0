"""Errors that are the user's to mend, shown as one line without a traceback."""


class UserError(Exception):
    """A run that cannot start or go on for a reason that the user can mend; `exit_code` is that of the program."""

    exit_code = 1


class ConfigError(UserError):
    """A wrong argument or configuration value."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """Return the message of an exception as one line.

    An exception that crossed from a loader's worker process carries the worker's traceback as its message; the last
    line of that names the exception and then says what happened.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Original Traceback" in str(error):
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(lines)
