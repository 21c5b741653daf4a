"""The study of suggestions: what is labelled grows, and both arms begin alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from potloc_fast.config import load_config
from potloc_fast.engine.train import load_dataset

study = pytest.importorskip("benchmarks.suggest", reason="benchmarks/ is part of the repository")
SMALL = ("pseudo_labels.variant=released", "rounds=1", "train.epochs=1", "base.train.epochs=1", "model.width=16")


def test_both_arms_begin_alike_and_label_more_each_turn(tmp_path: Path) -> None:
    root = study.prepare("synthetic", None, False, tmp_path)
    pool = load_dataset(load_config("own", [f"data.root={root}"])).subset("train")
    held = {row["recording"] for row in study.read_rows(root / "recordings.csv") if row["subset"] == "test"}
    arms = [study.curve(root, pool, chosen, 3, 2, 0, tmp_path / "study", *SMALL) for chosen in (True, False)]
    assert [[row["arm"] for row in rows] for rows in arms] == [["suggested"] * 2, ["random"] * 2]
    (first, more), (again, other) = arms
    assert (first["clicks"], first["map"]) == (again["clicks"], again["map"])
    assert more["clicks"] > first["clicks"]
    assert other["clicks"] > first["clicks"]
    for name in ("first", "suggested_1", "random_1"):
        data = tmp_path / "study" / "seed_0" / name / "data"
        subsets = {row["recording"]: row["subset"] for row in study.read_rows(data / "recordings.csv")}
        assert {recording for recording, subset in subsets.items() if subset == "test"} == held
        pointed = {row["recording"] for row in study.read_rows(data / "points.csv")}
        assert len(pointed) == (3 if name == "first" else 6)
        assert pointed == {recording for recording, subset in subsets.items() if subset == "train"}
