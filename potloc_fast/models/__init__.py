"""The two models, as plain modules."""

from __future__ import annotations

from potloc_fast.models.base import BaseModel
from potloc_fast.models.potloc import POTLoc
from potloc_fast.models.pyramid import Pyramid

__all__ = ["BaseModel", "POTLoc", "Pyramid"]
