"""Other people's programs and libraries read what is written, and what they write is read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from praatio import textgrid
from pympi import Eaf

from potloc_fast.formats import Events, read, write


@pytest.fixture
def events() -> Events:
    made = Events(Path("made"))
    for label, start, end, score in (
        ("stand up", 0.1234567, 2.5, 0.9),
        ("stand up", 2.0, 3.5, 0.25),
        ('say "hi" & é', 1.0, 3725.5, 0.75),
        ("clap", 4.5, 4.5, 0.5),
    ):
        made.add("made", "walk", label, start, end, score)
    return made


def test_praatio_reads(events: Events, tmp_path: Path) -> None:
    path = write(tmp_path / "walk.TextGrid", events)
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="error")
    assert (grid.minTimestamp, grid.maxTimestamp) == (0.0, 3725.5)
    tiers = {tier.name: [tuple(entry) for entry in tier.entries] for tier in grid.tiers}
    assert tiers == {
        "stand up": [(0.1234567, 2.5, "stand up")],
        "stand up score": [(0.1234567, 2.5, "0.9000")],
        "stand up 2": [(2.0, 3.5, "stand up")],
        "stand up 2 score": [(2.0, 3.5, "0.2500")],
        'say "hi" & é': [(1.0, 3725.5, 'say "hi" & é')],
        'say "hi" & é score': [(1.0, 3725.5, "0.7500")],
        "clap": [(4.5, "clap")],
        "clap score": [(4.5, "0.5000")],
    }


@pytest.mark.parametrize("form", ["short_textgrid", "long_textgrid"])
def test_praatio_writes(form: str, tmp_path: Path) -> None:
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("words", [(0.5, 1.25, 'say "hi"'), (2, 3, "é")], 0, 5))
    grid.addTier(textgrid.PointTier("clicks", [(0.75, "tap"), (4, "tap")], 0, 5))
    grid.save(str(tmp_path / "walk.TextGrid"), form, includeBlankSpaces=True)
    found = read(tmp_path / "walk.TextGrid")
    assert [tuple(row[:3]) for row in found.by_recording()["walk"]] == [
        (0.5, 1.25, 'say "hi"'),
        (0.75, 0.75, "tap"),
        (2.0, 3.0, "é"),
        (4.0, 4.0, "tap"),
    ]


PRAAT = """
form: "Read, count, write"
    text: "path", ""
    text: "encoding", ""
endform
Text writing preferences: encoding$
Read from file: path$
tiers = Get number of tiers
for tier to tiers
    name$ = Get tier name: tier
    appendInfoLine: name$
endfor
Save as text file: path$ + ".long.TextGrid"
Save as short text file: path$ + ".short.TextGrid"
"""


@pytest.mark.skipif(not shutil.which("praat"), reason="Praat (praat in Debian) is not installed")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_praat_reads_and_writes(encoding: str, events: Events, tmp_path: Path) -> None:
    events.add("made", "walk", 'back\\slash ! <b> 3 ""', 10.0, 11.0, 0.5)
    path = write(tmp_path / "walk.TextGrid", events)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    (tmp_path / "script.praat").write_text(PRAAT)
    command = ["praat", "--run", str(tmp_path / "script.praat"), str(path), encoding.upper()]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    assert names[:4] == ["stand up", "stand up score", "stand up 2", "stand up 2 score"]
    rows = read(path).by_recording()["walk"]
    for form in ("long", "short"):
        again = path.with_name(f"walk.TextGrid.{form}.TextGrid")
        assert again.read_bytes().startswith(b"\xfe\xff" if encoding == "utf-16" else b"File")
        assert list(read(again).by_recording().values()) == [rows]


def test_pympi_reads(events: Events, tmp_path: Path) -> None:
    eaf = Eaf(str(write(tmp_path / "walk.eaf", events)))
    tiers = {name: [entry[:3] for entry in eaf.get_annotation_data_for_tier(name)] for name in eaf.get_tier_names()}
    assert tiers == {
        "stand up": [(123, 2500, "stand up")],
        "stand up score": [(123, 2500, "0.9000")],
        "stand up 2": [(2000, 3500, "stand up")],
        "stand up 2 score": [(2000, 3500, "0.2500")],
        'say "hi" & é': [(1000, 3725500, 'say "hi" & é')],
        'say "hi" & é score': [(1000, 3725500, "0.7500")],
        "clap": [(4500, 4501, "clap")],
        "clap score": [(4500, 4501, "0.5000")],
    }


def test_pympi_writes(tmp_path: Path) -> None:
    eaf = Eaf(author="ann")
    eaf.add_tier("gesture")
    eaf.add_annotation("gesture", 500, 1250, "wave & point")
    eaf.add_annotation("gesture", 2000, 3000, "")
    eaf.to_file(str(tmp_path / "walk.eaf"))
    found = read(tmp_path / "walk.eaf")
    assert [tuple(row[:3]) for row in found.by_recording()["walk"]] == [
        (0.5, 1.25, "wave & point"),
        (2.0, 3.0, "gesture"),
    ]
