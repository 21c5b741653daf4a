"""Detection files and their mean average precision."""

from potloc_fast.evaluation.average_precision import ClassResult, Evaluation, Protocol, evaluate
from potloc_fast.evaluation.segments import (
    Segments,
    read_ambiguous,
    read_detections,
    read_ground_truth,
    write_detections,
)

__all__ = [
    "ClassResult",
    "Evaluation",
    "Protocol",
    "Segments",
    "evaluate",
    "read_ambiguous",
    "read_detections",
    "read_ground_truth",
    "write_detections",
]
