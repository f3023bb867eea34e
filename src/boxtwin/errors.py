"""The errors that a person is meant to read."""


class InputError(ValueError):
    """Something the user gave is wrong: data, a setting, a file.

    The message says what is wrong, where it stands and how to mend it; it is shown alone, without a traceback.
    """


class DataError(InputError):
    """A data set is wrong, whatever the other settings are: no other run on it can succeed either."""


class WriteError(InputError):
    """A disk or a folder does not take a file: full, read-only, closed. Trying again later may go well."""
