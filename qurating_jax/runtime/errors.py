"""Errors that are meant for the user: one line that says what is wrong, where, and what to do."""

from typing import Any

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_UNRESOLVED = 3
EXIT_LIMIT = 4
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A failure that the user can mend; the command prints its one line and leaves with `exit_code`."""

    exit_code = EXIT_ERROR


class UsageError(UserError):
    """A wrong option, config key or value (exit 2)."""

    exit_code = EXIT_USAGE


class Interrupted(UserError):
    """Stopped by a signal after the state was saved; the same command resumes (exit 130)."""

    exit_code = EXIT_INTERRUPTED


class Incomplete(UserError):
    """A stage that has saved its work and lacks some of it; `counts` say how much is there (`--json` prints them)."""

    def __init__(self, message: str, counts: dict[str, Any]) -> None:
        super().__init__(message)
        self.counts = counts


class Unresolved(Incomplete):
    """Everything was tried, and some items have no result (exit 3)."""

    exit_code = EXIT_UNRESOLVED


class LimitReached(Incomplete):
    """Stopped at a limit that the user set; the same command with a higher one resumes (exit 4)."""

    exit_code = EXIT_LIMIT


def exit_code_of(error: BaseException) -> int:
    """The code that the command leaves with for `error`."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, UserError) else EXIT_ERROR
