"""Errors that are shown to the user, and what they are recognised by."""

import errno
import sys
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Data, a setting or a file of the user is wrong.

    The message says what is wrong, where, and how to repair it; it is shown without a traceback.
    """


class DataError(InputError):
    """A data set is wrong: no run on it can succeed."""


class WriteError(InputError):
    """A disk or a folder does not take a file. Another attempt may succeed later."""


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """``; did you mean A or B?`` for a name that may be misspelt; empty if no known name is like it."""
    alike = get_close_matches(name, list(dict.fromkeys(known)), most)
    return f"; did you mean {' or '.join(alike)}?" if alike else ""


def unanswered(error: BaseException) -> str | None:
    """One line for a request that a server did not answer, found among the causes; None for any other error.

    An error while the failure of a request was handled is another error, unless it is MLflow's, which names no causes.
    """
    requests = sys.modules.get("requests")  # without it nothing was requested
    cause: BaseException | None = error
    while requests is not None and cause is not None:
        if isinstance(cause, requests.ConnectionError | requests.Timeout):
            url = getattr(cause.request, "url", None) or "a server"
            return (
                f"{url} does not answer ({type(cause).__name__}). Start it, or wait until it can be reached, and "
                "give the same command again: what was computed is kept"
            )
        of_mlflow = type(cause).__module__.startswith("mlflow.")
        cause = cause.__cause__ or (cause.__context__ if of_mlflow else None)
    return None


def is_of_the_system(error: BaseException) -> bool:
    """Whether the system failed to read (too many open files, no permission), not the content of a file."""
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR)
