"""Loads the extension, so that `torch.ops.potloc_fast` has its operators."""

from __future__ import annotations

import torch

MINIMUM_TORCH = (2, 10)

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
    raise ImportError(
        f"potloc_fast needs torch 2.10 or newer, found {torch.__version__}: upgrade it with `pip install -U torch`"
    )

try:
    # torch comes first: the extension finds torch's libraries among those already loaded.
    import potloc_fast._C as _C
except ModuleNotFoundError as error:
    raise ImportError(
        "potloc_fast._C is not built: install the package with `pip install .` and start Python outside its source "
        "folder, or install it with `pip install -e .`"
    ) from error

__all__ = ["_C"]
