"""Recordings with their labels, the time grid they live on, and the batches a model is trained on."""

from __future__ import annotations

from potloc_fast.data.grid import Grid
from potloc_fast.data.recording import Dataset, Instance, Point, Recording, load_features, validate

__all__ = ["Dataset", "Grid", "Instance", "Point", "Recording", "load_features", "validate"]
