"""What went wrong, in one sentence that a user can act on."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 300  # characters of a message
QUOTED = 60  # of a value in it


class InputError(ValueError):
    """A file, a configuration key or an array that can't be used.

    The message is one sentence on one line, of at most 300 characters: what is wrong (a file or a key), what was
    expected, what was found. The command line prints it alone and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shorten(message, LONGEST))


def shorten(text: str, longest: int = QUOTED) -> str:
    r"""Text for one line of a terminal: what can't be printed is escaped, and what is too long loses its middle.

    >>> shorten("two\nlines")
    'two\\nlines'
    >>> shorten("abcdefghijklmnopqrstuvwxyz", 11)
    'abc ... xyz'
    """
    text = text if len(text) <= 4 * longest else text[: 2 * longest] + text[-2 * longest :]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    head = (longest - 5) // 2
    return text if len(text) <= longest else f"{text[:head]} ... {text[head + 5 - longest :]}"


def quote(value: Any) -> str:
    """Show a value that was found, whatever and however large it is, in a message.

    >>> quote("walk"), quote([[0.5, None]] * 1000)
    ("'walk'", '[[0.5, None], [0.5, None], [0.5, None], [0.5, None], ...]')
    """
    try:
        return shorten(_SHORT.repr(value))
    except Exception:  # an integer of thousands of digits, or an object that can't be shown
        return f"a value of type {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = QUOTED
_SHORT.maxlevel = _SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 4
