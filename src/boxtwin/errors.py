"""The errors that a person is meant to read."""

import errno
import sys


class InputError(ValueError):
    """Something the user gave is wrong: data, a setting, a file.

    The message says what is wrong, where it stands and how to mend it; it is shown alone, without a traceback.
    """


class DataError(InputError):
    """A data set is wrong, whatever the other settings are: no other run on it can succeed either."""


class WriteError(InputError):
    """A disk or a folder does not take a file: full, read-only, closed. Trying again later may go well."""


def unanswered(error: BaseException) -> str | None:
    """One line for a request that a server did not answer, found among the causes; None for any other error.

    An error that came up while that of a request was handled is another error, unless it is MLflow's: MLflow does not
    name causes.
    """
    requests = sys.modules.get("requests")  # nothing was asked of a server where nobody has imported it
    seen: BaseException | None = error
    while requests is not None and seen is not None:
        if isinstance(seen, requests.ConnectionError | requests.Timeout):
            url = getattr(seen.request, "url", None) or "a server"
            return (
                f"{url} does not answer ({type(seen).__name__}). Start it, or wait until it can be reached, and "
                "give the same command again: what was computed is kept"
            )
        is_mlflows = type(seen).__module__.startswith("mlflow.")
        seen = seen.__cause__ or (seen.__context__ if is_mlflows else None)
    return None


def is_of_the_system(error: BaseException) -> bool:
    """Whether reading failed because of the system (too many open files, no permission), not of what a file holds."""
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR)
