from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from potloc_fast.compiled import compiled


def test_a_function_whose_machine_code_can_not_be_kept_is_compiled_all_the_same() -> None:
    # Numba finds no folder for the machine code of what comes from no file, as where neither the package's folder nor
    # the user's can be written to.
    names: dict[str, Any] = {}
    exec(compile("def double(x): return 2 * x", "<no file>", "exec"), names)
    double = compiled(names["double"])
    assert double(21) == 42
    assert double.nopython_signatures


def other_process(path: Path) -> Any:
    """The compiled function of a file, as another process would make it."""
    spec = importlib.util.spec_from_file_location("triple_of", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return compiled(module.triple)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "other", "folder"])
def test_damaged_machine_code_is_made_anew(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / "triple_of.py"
    path.write_text("def triple(x):\n    return 3 * x\n")
    assert other_process(path)(2) == 6
    [kept] = (tmp_path / "__pycache__").glob(f"*{suffix}")
    content = kept.read_bytes()
    kept.unlink()
    if damage == "folder":  # can be neither read nor written
        kept.mkdir()
    else:
        kept.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "other": b"\x00" * 999}[damage])
    assert other_process(path)(2) == 6
    if damage != "folder":
        healed = other_process(path)
        assert healed(2) == 6
        assert sum(healed.stats.cache_hits.values()) == 1
