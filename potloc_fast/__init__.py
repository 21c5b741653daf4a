"""Temporal action localization from point labels: POTLoc, its operators, and the tools around them.

>>> import potloc_fast
>>> run = potloc_fast.train("synthetic", "runs/synthetic")  # doctest: +SKIP
>>> detections = potloc_fast.predict(run, ["recording.npy"])  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potloc_fast import ops
    from potloc_fast.config import load_config
    from potloc_fast.detector import Detector
    from potloc_fast.engine.predict import predict
    from potloc_fast.engine.train import train
    from potloc_fast.evaluation import evaluate

    __version__: str

__all__ = ["Detector", "__version__", "evaluate", "load_config", "ops", "predict", "train"]

# All is imported when first used: whoever only wants an operator does not wait for Numba or pydantic, nor whoever
# only evaluates for torch.
_HOMES = {
    "Detector": "potloc_fast.detector",
    "evaluate": "potloc_fast.evaluation",
    "load_config": "potloc_fast.config",
    "predict": "potloc_fast.engine.predict",
    "train": "potloc_fast.engine.train",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("potloc_fast.ops")
    if name == "__version__":
        return import_module("importlib.metadata").version("potloc_fast")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
