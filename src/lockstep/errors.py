"""The one exception a user's mistake may raise: its text is shown, its stack trace is not."""


class LockstepError(Exception):
    """A problem the user can act on. The message names the file, row or setting, and the way out."""


class Busy(LockstepError):
    """Another process has what is needed; later it works."""
