"""Typed, checked configuration."""

from __future__ import annotations

from potloc_fast.config.load import dump_config, load_config, parse_config, preset_names
from potloc_fast.config.schema import Config

__all__ = ["Config", "dump_config", "load_config", "parse_config", "preset_names"]
