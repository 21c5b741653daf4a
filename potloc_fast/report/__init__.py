"""A report on a run, or on anybody's detections: one HTML file to look at, and to mend labels in."""

from potloc_fast.report.data import Report, of_files, of_run
from potloc_fast.report.page import render, write_report

__all__ = ["Report", "of_files", "of_run", "render", "write_report"]
