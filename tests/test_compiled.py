from __future__ import annotations

from typing import Any

from potloc_fast.compiled import compiled


def test_a_function_whose_machine_code_can_not_be_kept_is_compiled_all_the_same() -> None:
    # Numba finds no folder for the machine code of what comes from no file, as where neither the package's folder nor
    # the user's can be written to.
    names: dict[str, Any] = {}
    exec(compile("def double(x): return 2 * x", "<no file>", "exec"), names)
    double = compiled(names["double"])
    assert double(21) == 42
    assert double.nopython_signatures
