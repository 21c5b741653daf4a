"""Numbers as files hold them."""

from __future__ import annotations

from typing import Any


def to_number(value: Any) -> float:
    """The number that text or JSON holds, as other programs read it: Python itself takes True for 1 and "1_0" for 10.

    Raises:
        TypeError, ValueError: it is none, or larger than a float can be.

    >>> to_number("2.5"), to_number(3)
    (2.5, 3.0)
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError(value)
    try:
        return float(value)
    except OverflowError:
        raise ValueError(value) from None
