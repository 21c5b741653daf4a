"""Functions compiled by Numba."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numba
from numba.core.caching import FunctionCache


class _Cache(FunctionCache):
    """Machine code kept on disk, where nothing that can't be read or written is more than a loss of time.

    A damaged file can raise nearly any exception, and Numba passes them all on.
    """

    def load_overload(self, *args: Any) -> Any:
        try:
            return super().load_overload(*args)
        except Exception:
            with suppress(Exception):
                self.flush()  # a damaged index would stay for ever
            return None

    def save_overload(self, *args: Any) -> None:
        with suppress(Exception):
            super().save_overload(*args)


def compiled(function: Any) -> Any:
    """Compile `function` when it is first called, and keep the machine code on disk for later processes.

    Numba recompiles what it kept once the file of `function` has changed, but looks at no other file: `function` may
    call no compiled function of another one.

    Returns:
        The function, which lets other threads run meanwhile.
    """
    dispatcher = numba.njit(function, nogil=True)
    with suppress(RuntimeError, OSError):  # neither the folder of the file nor the user's cache can be written to
        dispatcher._cache = _Cache(function)
    return dispatcher
