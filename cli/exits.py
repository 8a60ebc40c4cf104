"""How a command ends: the exit codes that docs/cli.md promises, and the errors that lead to them."""

from __future__ import annotations

OK = 0
FAILED = 1
REFUSED = 2
INTERRUPTED = 130


class Refused(Exception):
    """What was asked for is wrong: flags, settings or the input file. Nothing was sent to an engine. Exit code 2."""


class Failed(Exception):
    """It was right, and did not work. Exit code 1."""


def innermost(error: BaseException) -> BaseException:
    """The error inside of groups that hold only one, as task groups make them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
