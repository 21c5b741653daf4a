"""Functions compiled by Numba."""

from __future__ import annotations

from typing import Any

import numba


def compiled(function: Any) -> Any:
    """Compile `function` when it is first called, and keep the machine code on disk for later processes.

    Numba recompiles what it kept once the file of `function` has changed, but looks at no other file: `function` may
    call no compiled function of another one.

    Returns:
        The function, which lets other threads run meanwhile.
    """
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # neither the folder of the file nor the user's cache can be written to
        return numba.njit(function, nogil=True)
