"""Detection files, their mean average precision, and what lies behind it."""

from potloc_fast.evaluation.analysis import Analysis, analyse
from potloc_fast.evaluation.average_precision import ClassResult, Evaluation, Protocol, evaluate
from potloc_fast.evaluation.segments import (
    Segments,
    read_ambiguous,
    read_detections,
    read_ground_truth,
    write_detections,
)

__all__ = [
    "Analysis",
    "ClassResult",
    "Evaluation",
    "Protocol",
    "Segments",
    "analyse",
    "evaluate",
    "read_ambiguous",
    "read_detections",
    "read_ground_truth",
    "write_detections",
]
