"""What went wrong, in one sentence that a user can act on."""

from __future__ import annotations


class InputError(ValueError):
    """A file, a configuration key or an array that can't be used.

    The message is one sentence: what is wrong (a file or a key), what was expected, what was found. The command
    line prints it alone and exits with status 2.
    """
