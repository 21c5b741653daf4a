"""What is written is of the documented form and comes back; what tools write is read; what is malformed is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from potloc_fast.errors import InputError
from potloc_fast.formats import FORMATS, Events, Options, format_of, read, write
from potloc_fast.formats.source import Source

WRITTEN = [name for name, form in FORMATS.items() if form.SUFFIX]
# What the times of a format are whole multiples of; 0 where they are written as they are.
UNITS = {"csv": 1e-3, "boris": 1e-3, "elan": 1e-3, "srt": 1e-3, "audacity": 1e-6, "raven": 1e-6}
WITHOUT_SCORES = {"audacity", "srt"}

Row = tuple[str, float, float, float]


def events_of(recordings: dict[str, list[Row]]) -> Events:
    events = Events(Path("made"))
    for name, rows in recordings.items():
        events.recordings[name] = None
        for label, start, end, score in rows:
            events.add("made", name, label, start, end, score)
    return events


def rows_of(events: Events) -> dict[str, list[Row]]:
    return {
        name: [(row.label, row.start_sec, row.end_sec, row.score) for row in rows]
        for name, rows in events.by_recording().items()
    }


SAMPLE: dict[str, list[Row]] = {
    "walk 1": [
        ("stand up", 0.1234567, 2.5, 0.9),
        ("stand up", 2.0, 3.5006, 0.25),  # overlaps the first and the next one
        ("stand up", 2.25, 3.0, 0.125),
        ("stand up", 3.5006, 61.0, 0.5),  # begins where another one ends
        ('say "hi", <b> & é', 1.0, 3725.5, 0.75),
        ("clap", 4.5, 4.5, 0.5),  # points, two of them at once
        ("clap", 4.5, 4.5, 0.25),
        ("stand up", 70.0, 70.0, 0.1),  # a point of a class that has segments as well
        ("stand up score", 5.0, 6.0, 0.3),  # called as the tier of another's scores
    ],
    "empty": [],
    "räcke": [("sit", 0.0, 1.0, 1.0)],
}


def as_read(form: str, rows: list[Row]) -> list[Row]:
    """What is left of rows in the units of a format, and of their scores where it has a place for them."""
    unit = UNITS.get(form, 0)
    digits = round(1 / unit) if unit else 0
    time: Callable[[float], float] = (lambda sec: round(sec * digits) / digits) if unit else (lambda sec: sec)
    kept = [(label, time(a), time(b), 1.0 if form in WITHOUT_SCORES else s) for label, a, b, s in rows]
    return sorted(kept, key=lambda row: (row[1], row[2], row[0], row[3]))


@pytest.mark.parametrize("form", WRITTEN)
def test_what_is_written_comes_back(form: str, tmp_path: Path) -> None:
    written = write(tmp_path / f"out{FORMATS[form].SUFFIX}", events_of(SAMPLE))
    assert written == tmp_path / ("out" + FORMATS[form].SUFFIX if FORMATS[form].SEVERAL else "out")
    if written.is_dir():
        assert sorted(path.name for path in written.iterdir()) == sorted(
            f"{name}{FORMATS[form].SUFFIX}" for name in SAMPLE
        )
    found = read(written)
    expected = {name: as_read(form, rows) for name, rows in SAMPLE.items()}
    if form == "csv":  # a table has rows alone
        del expected["empty"]
    assert rows_of(found).keys() == expected.keys()
    for name, rows in expected.items():
        for mine, theirs in zip(rows_of(found)[name], rows, strict=True):
            assert mine[0] == theirs[0]
            assert mine[1:] == pytest.approx(theirs[1:], rel=0, abs=1e-9)


@pytest.mark.parametrize("form", WRITTEN)
def test_what_is_written_is_recognised(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"walk{FORMATS[form].SUFFIX}", events_of({"walk": [("sit", 1.0, 2.0, 0.5)]}))
    assert format_of(Source(path)) == form
    for suffix in FORMATS[form].SHARED:  # as whoever renames it
        renamed = path.rename(tmp_path / f"renamed{suffix}")
        assert format_of(Source(renamed)) == form
        renamed.rename(path)


def test_points_are_written_as_the_plain_layout_has_them(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", events_of({"v": [("a", 2.0, 2.0, 1.0), ("b", 1.5, 1.5, 1.0)]}))
    assert (tmp_path / "p.csv").read_text() == "recording,label,time_sec\nv,a,2.000\nv,b,1.500\n"


# The documented forms, read strictly


def one(tmp_path: Path, form: str, options: Options | None = None) -> str:
    path = write(tmp_path / f"walk{FORMATS[form].SUFFIX}", events_of({"walk": SAMPLE["walk 1"]}), options=options)
    return path.read_text(encoding="utf-8")


def test_audacity(tmp_path: Path) -> None:
    lines = one(tmp_path, "audacity").splitlines()
    assert lines[0] == "0.123457\t2.500000\tstand up"
    assert all(re.fullmatch(r"\d+\.\d{6}\t\d+\.\d{6}\t[^\t]+", line) for line in lines)


def test_srt(tmp_path: Path) -> None:
    blocks = one(tmp_path, "srt").split("\n\n")
    assert blocks.pop() == ""
    assert blocks[1] == '2\n00:00:01,000 --> 01:02:05,500\nsay "hi", <b> & é'
    clock = r"\d{2,}:[0-5]\d:[0-5]\d,\d{3}"
    for number, block in enumerate(blocks, start=1):
        assert re.fullmatch(rf"{number}\n{clock} --> {clock}\n[^\n]+", block)


def test_raven(tmp_path: Path) -> None:
    head, *rows = (line.split("\t") for line in one(tmp_path, "raven").splitlines())
    frequencies = ["Low Freq (Hz)", "High Freq (Hz)"]
    assert head == [
        "Selection",
        "View",
        "Channel",
        "Begin Time (s)",
        "End Time (s)",
        *frequencies,
        "Annotation",
        "Score",
    ]
    assert rows[0] == ["1", "Waveform 1", "1", "0.123457", "2.500000", "0.0", "1.0", "stand up", "0.9000"]
    assert [row[0] for row in rows] == [str(i + 1) for i in range(len(SAMPLE["walk 1"]))]
    assert {len(row) for row in rows} == {len(head)}


def test_textgrid(tmp_path: Path) -> None:
    rows: list[Row] = [('a "b"', 1.25, 2.0, 1.0), ('a "b"', 2.0, 2.5, 1.0), ("c", 3.0, 3.0, 1.0)]
    text = write(tmp_path / "v.TextGrid", events_of({"v": rows})).read_text()
    tier, points = text.split("    item [1]:\n")[1].split("    item [2]:\n")
    assert text.startswith(
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0.0\nxmax = 3.0\ntiers? <exists>\n'
    )
    head, *intervals = re.split(r"        intervals \[(?:\d+)\]:\n", tier)
    assert re.findall(r"name = (.*)\n|size = (\d+)", head) == [('"a ""b"""', ""), ("", "4")]
    assert [re.findall(r" = (.*)\n", interval) for interval in intervals] == [  # without gaps, from xmin to xmax
        ["0.0", "1.25", '""'],
        ["1.25", "2.0", '"a ""b"""'],
        ["2.0", "2.5", '"a ""b"""'],
        ["2.5", "3.0", '""'],
    ]
    assert re.findall(r" = (.*)\n", points) == ['"TextTier"', '"c"', "0.0", "3.0", "1", "3.0", '"c"']


def test_elan(tmp_path: Path) -> None:
    root = ElementTree.fromstring(one(tmp_path, "elan"))
    order = [child.tag for child in root]
    rank = ["HEADER", "TIME_ORDER", "TIER", "LINGUISTIC_TYPE", "CONSTRAINT"]
    assert order == sorted(order, key=rank.index)
    assert root.attrib["FORMAT"] == "3.0"
    assert root.find("HEADER").attrib["TIME_UNITS"] == "milliseconds"
    slots = {slot.attrib["TIME_SLOT_ID"]: int(slot.attrib["TIME_VALUE"]) for slot in root.iter("TIME_SLOT")}
    assert list(slots.values()) == sorted(slots.values())
    kinds = {kind.attrib["LINGUISTIC_TYPE_ID"]: kind.attrib for kind in root.iter("LINGUISTIC_TYPE")}
    names = [tier.attrib["TIER_ID"] for tier in root.iter("TIER")]
    assert len(set(names)) == len(names)
    seen: dict[str, str] = {}  # the tier of each annotation
    for tier in root.iter("TIER"):
        kind, own = kinds[tier.attrib["LINGUISTIC_TYPE_REF"]], []
        for item in tier.iter("ALIGNABLE_ANNOTATION"):
            assert kind["TIME_ALIGNABLE"] == "true"
            assert item.attrib["ANNOTATION_ID"] not in seen
            seen[item.attrib["ANNOTATION_ID"]] = tier.attrib["TIER_ID"]
            own.append(tuple(slots[item.attrib[f"TIME_SLOT_REF{i}"]] for i in (1, 2)))
        for item in tier.iter("REF_ANNOTATION"):
            assert kind["CONSTRAINTS"] == "Symbolic_Association"
            assert seen[item.attrib["ANNOTATION_REF"]] == tier.attrib["PARENT_REF"]
            assert item.attrib["ANNOTATION_ID"] not in seen
            seen[item.attrib["ANNOTATION_ID"]] = tier.attrib["TIER_ID"]
        assert all(start < end for start, end in own)
        assert all(end <= start for (_, end), (start, _) in pairwise(sorted(own)))
    assert len(seen) == 2 * len(SAMPLE["walk 1"])


def test_boris_pairs_starts_and_stops(tmp_path: Path) -> None:
    project = json.loads(one(tmp_path, "boris"))
    assert project["project_format_version"] == "7.0"
    kinds = {entry["code"]: entry for entry in project["behaviors_conf"].values()}
    assert {code: entry["type"] for code, entry in kinds.items()} == {
        "stand up": "State event",
        'say "hi", <b> & é': "State event",
        "stand up score": "State event",
        "clap": "Point event",
    }
    rows = project["observations"]["walk"]["events"]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    pending: dict[tuple[str, ...], float] = {}
    spans = []
    for time, subject, code, modifier, _ in rows:  # the n-th event of a kind stops it where n is even
        assert modifier in ("", *kinds[code]["modifiers"].get("0", {}).get("values", ()))
        key = (subject, code, modifier)
        if kinds[code]["type"] == "Point event":
            spans.append((code, time, time))
        elif key in pending:
            spans.append((code, pending.pop(key), time))
        else:
            pending[key] = time
    assert not pending
    assert sorted(spans) == sorted((label, round(a, 3), round(b, 3)) for label, a, b, _ in SAMPLE["walk 1"])


def test_label_studio(tmp_path: Path) -> None:
    (task,) = json.loads(one(tmp_path, "label-studio"))
    (prediction,) = task["predictions"]
    assert task["data"] == {"csv": "walk"}
    results = prediction["result"]
    assert len({result["id"] for result in results}) == len(SAMPLE["walk 1"])
    for result in results:
        assert {key: result[key] for key in ("from_name", "to_name", "type")} == {
            "from_name": "label",
            "to_name": "ts",
            "type": "timeserieslabels",
        }
        value = result["value"]
        assert set(value) == {"start", "end", "instant", "timeserieslabels"}
        assert value["instant"] == (value["start"] == value["end"])
        assert 0 <= result["score"] <= 1


def test_frames_of_label_studio(tmp_path: Path) -> None:
    fps = Options(fps=25)
    rows = [("a", 0.4, 1.2, 0.5), ("a", 2.01, 2.01, 0.5)]
    path = write(tmp_path / "x.label-studio.json", events_of({"v": rows}), options=fps)
    (task,) = json.loads(path.read_text())
    values = [result["value"] for result in task["predictions"][0]["result"]]
    assert [value["ranges"] for value in values] == [[{"start": 11, "end": 30}], [{"start": 51, "end": 51}]]
    assert values[0]["timelinelabels"] == ["a"]
    assert rows_of(read(path, options=fps))["v"] == [("a", 0.4, 1.2, 0.5), ("a", 2.02, 2.02, 0.5)]
    with pytest.raises(InputError, match="expected --fps"):
        read(path)


def test_via(tmp_path: Path) -> None:
    project = json.loads(one(tmp_path, "via"))
    assert set(project) == {"project", "config", "attribute", "file", "metadata", "view"}
    assert project["project"]["vid_list"] == list(project["view"]) == ["1"]
    assert project["file"]["1"]["fname"] == "walk"
    for entry in project["metadata"].values():
        assert entry["vid"] in project["view"]
        assert (entry["flg"], entry["xy"]) == (0, [])
        number = str({2: 1, 1: 2}[len(entry["z"])])
        assert project["attribute"][number]["anchor_id"] == f"FILE1_Z{len(entry['z'])}_XY0"
        assert entry["av"][number] in project["attribute"][number]["options"]


# What tools write

TABULAR = """Observation id,Time offset (s),Subject,Behavior,Behavioral category,Modifier #1,Behavior type,Time,Comment
walk,0.0,,jump,,,POINT,1.250,
walk,0.0,ann,run,,fast,START,2.000,
walk,0.0,bob,run,,fast,START,3.000,score 0.5
walk,0.0,ann,run,,fast,STOP,4.000,
walk,0.0,bob,run,,fast,STOP,5.500,
late,100.0,,jump,,,POINT,101.500,
"""
PREAMBLE = """Observation id\twalk

Media file(s)
Player #1\twalk.mp4

Observation date\t2018-01-01 10:00:00
Time offset (s)\t1.0

Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tModifiers\tComment\tStatus
2.5\twalk.mp4\t60\t25\t\tjump\t\t\t\tPOINT
3.0\twalk.mp4\t60\t25\t\trun\t\t\t\tSTART
4.0\twalk.mp4\t60\t25\t\trun\t\t\t\tSTOP
"""
AGGREGATED = """Observation id,Subject,Behavior,Behavior type,Start (s),Stop (s),Duration (s),Comment start,Comment stop
walk,,jump,POINT,1.25,1.25,NA,,
walk,ann,"run, fast",STATE,2,4,2,score 0.25,
"""
PROJECT = {
    "behaviors_conf": {
        "0": {"code": "jump", "type": "Point event"},
        "1": {"code": "run", "type": "State event with coding map"},
    },
    "observations": {
        "walk": {
            "time offset": 10,
            "events": [
                [14.5, "", "run", "", ""],
                [12, "", "run", "", "tired"],
                [13, "ann", "run", "", "", 325],
                [11.25, "", "jump", "", ""],
                [15.0, "ann", "run", "", ""],
            ],
        },
        "nothing": {"events": []},
    },
}
RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin File\tSpecies\n"
    "1\tWaveform 1\t1\t1.5\t2.5\t\t\tdawn.wav\twren\n"
    "1\tSpectrogram 1\t1\t1.5\t2.5\t100\t900\tdawn.wav\twren\n"
    "2\tSpectrogram 1\t1\t3\t3.25\t100\t900\tdusk.wav\towl\n"
)
SHORT_TEXTGRID = '''File type = "ooTextFile"
Object class = "TextGrid"

0
5
<exists>
2
"IntervalTier"
"words"
0
5
3
0
1.5
""
1.5
2.5
"say ""hi"""
2.5
5
""
"TextTier"
"clicks"
0
5
2
3.5
"tap"
4.5
""
'''
LONG_TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 5
tiers? <exists> ! a remark with "quotes" and 7
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 5
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "two words"
        intervals [2]:
            xmin = 1.5
            xmax = 5
            text = ""
"""
EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2020-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0">
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"/>
    <TIME_ORDER>
        <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="1250"/>
        <TIME_SLOT TIME_SLOT_ID="ts2"/>
        <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="2000"/>
        <TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="2001"/>
    </TIME_ORDER>
    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="gesture">
        <ANNOTATION>
            <ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts3">
                <ANNOTATION_VALUE>wave &amp; point</ANNOTATION_VALUE>
            </ALIGNABLE_ANNOTATION>
        </ANNOTATION>
        <ANNOTATION>
            <ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
                <ANNOTATION_VALUE></ANNOTATION_VALUE>
            </ALIGNABLE_ANNOTATION>
        </ANNOTATION>
        <ANNOTATION>
            <ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
                <ANNOTATION_VALUE>not aligned</ANNOTATION_VALUE>
            </ALIGNABLE_ANNOTATION>
        </ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="hand" PARENT_REF="gesture" TIER_ID="which hand">
        <ANNOTATION>
            <REF_ANNOTATION ANNOTATION_ID="a4" ANNOTATION_REF="a1">
                <ANNOTATION_VALUE>left</ANNOTATION_VALUE>
            </REF_ANNOTATION>
        </ANNOTATION>
    </TIER>
</ANNOTATION_DOCUMENT>
"""


def region(start: float, end: float, label: str, **more: object) -> dict[str, object]:
    value = {"start": start, "end": end, "instant": start == end, "timeserieslabels": [label]}
    return {"type": "timeserieslabels", "from_name": "l", "to_name": "ts", "value": value, **more}


TASKS = [
    {
        "id": 7,
        "data": {"note": "of ann", "csv": "/data/upload/3/1a2b3c4d-walk.csv"},
        "annotations": [
            {"was_cancelled": True, "result": [region(0, 1, "no")]},
            {
                "result": [
                    region(1.5, 2.5, "run"),
                    region(4.0, 4.0, "jump"),
                    {"type": "choices", "value": {"choices": ["good"]}},
                ]
            },
            {"result": [region(0, 1, "second thoughts")]},
        ],
        "predictions": [{"result": [region(0, 1, "guess", score=0.5)]}],
    },
    {"id": 8, "data": {"csv": "s3://b/late.csv?sig=1"}, "predictions": [{"result": [region(0, 1, "run", score=0.5)]}]},
]
MINIMAL = [{"id": 7, "csv": "walk.csv", "label": [region(1, 2, "run")["value"]]}]
VIA = {
    "project": {"vid_list": ["1"]},
    "config": {},
    "attribute": {
        "1": {"aname": "object", "anchor_id": "FILE1_Z1_XY1", "type": 1, "options": {}},
        "2": {"aname": "action", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}},
        "3": {"aname": "kind", "anchor_id": "FILE1_Z1_XY0", "type": 2, "options": {"0": "jump", "1": "clap"}},
    },
    "file": {"1": {"fid": 1, "fname": "https://example.org/v/walk%201.mp4", "type": 4, "loc": 2, "src": ""}},
    "view": {"1": {"fid_list": [1]}},
    "metadata": {
        "a": {"vid": "1", "flg": 0, "z": [1, 2.5], "xy": [], "av": {"2": "run"}},
        "b": {"vid": "1", "flg": 0, "z": [4.25], "xy": [], "av": {"3": "0,1"}},
        "c": {"vid": "1", "flg": 0, "z": [5], "xy": [2, 1, 1, 9, 9], "av": {"1": "cup"}},
        "d": {"vid": "1", "flg": 0, "z": [6, 7], "xy": [], "av": {}},
    },
}

RUN: dict[str, list[Row]] = {"walk": [("jump", 1.25, 1.25, 1.0), ("run", 2.0, 4.0, 1.0), ("run", 3.0, 5.5, 0.5)]}
WORDS: dict[str, list[Row]] = {"f": [('say "hi"', 1.5, 2.5, 1.0), ("tap", 3.5, 3.5, 1.0), ("clicks", 4.5, 4.5, 1.0)]}
TOOLS: dict[str, tuple[str, object, dict[str, list[Row]]]] = {
    "tabular": ("f.csv", TABULAR, {**RUN, "late": [("jump", 1.5, 1.5, 1.0)]}),
    "tabular with tabs": ("f.tsv", TABULAR.replace(",", "\t"), {**RUN, "late": [("jump", 1.5, 1.5, 1.0)]}),
    "with preamble": ("f.tsv", PREAMBLE, {"walk": [("jump", 1.5, 1.5, 1.0), ("run", 2.0, 3.0, 1.0)]}),
    "aggregated": ("f.csv", AGGREGATED, {"walk": [("jump", 1.25, 1.25, 1.0), ("run, fast", 2.0, 4.0, 0.25)]}),
    "project": (
        "f.boris",
        PROJECT,
        {"walk": [("jump", 1.25, 1.25, 1.0), ("run", 2.0, 4.5, 1.0), ("run", 3.0, 5.0, 1.0)], "nothing": []},
    ),
    "audacity": (
        "f.txt",
        "1.0\t1.0\tpoint\n\\\t6928.4\t6928.4\n2\t2.5\ta\tb\r\n",
        {"f": [("point", 1.0, 1.0, 1.0), ("a\tb", 2.0, 2.5, 1.0)]},
    ),
    "no labels": ("f.txt", "\n", {"f": []}),
    "srt": (
        "f.srt",
        "1\n00:00:01,500 --> 00:01:02.250 X1:40\ntwo\nlines\n\n\n2\n01:00:00,000 --> 01:00:01,000\nx\n",
        {"f": [("two lines", 1.5, 62.25, 1.0), ("x", 3600.0, 3601.0, 1.0)]},
    ),
    "short TextGrid": ("f.TextGrid", SHORT_TEXTGRID, WORDS),
    "long TextGrid": ("f.textgrid", LONG_TEXTGRID, {"f": [("two words", 0.0, 1.5, 1.0)]}),
    "TextGrid with remarks": (  # a mark is read at once where it looks as usual, else value by value: both are the same
        "f.TextGrid",
        LONG_TEXTGRID.replace('"two words"', '"say ""hi"""  ! and 3').replace(
            "= 1.5\n            xmax", "= 1.5 ! <x>\n x"
        ),
        {"f": [('say "hi"', 0.0, 1.5, 1.0)]},
    ),
    "ELAN": ("f.eaf", EAF, {"f": [("wave & point", 1.25, 2.0, 1.0), ("gesture", 2.0, 2.0, 1.0)]}),
    "tasks": (
        "f.json",
        TASKS,
        {"walk": [("run", 1.5, 2.5, 1.0), ("jump", 4.0, 4.0, 1.0)], "late": [("run", 0.0, 1.0, 0.5)]},
    ),
    "minimal tasks": ("f.json", MINIMAL, {"walk": [("run", 1.0, 2.0, 1.0)]}),
    "VIA": (
        "f.json",
        VIA,
        {"walk 1": [("run", 1.0, 2.5, 1.0), ("clap", 4.25, 4.25, 1.0), ("jump", 4.25, 4.25, 1.0)]},
    ),
}


@pytest.mark.parametrize("kind", TOOLS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_tools_write_is_read(kind: str, encoding: str, tmp_path: Path) -> None:
    name, content, expected = TOOLS[kind]
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert rows_of(read(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("kind", "note"),
    [("ELAN", "no times of their own: 2"), ("tasks", "of the same task: 1"), ("VIA", "have no label: 1")],
)
def test_what_is_left_out_is_said(kind: str, note: str, tmp_path: Path) -> None:
    name, content, _ = TOOLS[kind]
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (found,) = read(tmp_path / name).notes
    assert note in found


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/3/1a2b3c4d-walk 1.csv", "walk 1"),
        ("/data/local-files/?d=mine/walk%201.csv", "walk 1"),
        ("https://example.org/mine/walk%201.csv?signed=yes", "walk 1"),
        ("s3://mine/1a2b3c4d-walk.csv", "1a2b3c4d-walk"),
        ("http://[", "["),
        ("walk", "walk"),
        ("", "7"),
    ],
)
def test_recordings_of_label_studio(address: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([{"id": 7, "data": {"csv": address}, "annotations": []}]))
    assert list(read(tmp_path / "t.json").recordings) == [name]


@pytest.mark.parametrize("file", ["rec.1.selections.txt", "rec.1.Table.1.selections.txt", "rec.1.txt"])
def test_recordings_of_raven(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(RAVEN.replace("Begin File", "Sound").replace("Species", "Annotation"))
    assert list(read(tmp_path / file).recordings) == ["rec.1"]


def test_columns_with_other_names(tmp_path: Path) -> None:
    table = tmp_path / "walk.csv"
    table.write_text("Start (s),what,until\n1.5,run,2\n3,jump,\n")
    names = Options(columns={"label": "what", "start": "Start (s)", "end": "until"})
    assert rows_of(read(table, options=names)) == {"walk": [("run", 1.5, 2.0, 1.0), ("jump", 3.0, 3.0, 1.0)]}
    (tmp_path / "x.selections.txt").write_text(RAVEN)
    found = read(tmp_path / "x.selections.txt", options=Options(columns={"label": "Species"}))
    assert rows_of(found) == {"dawn": [("wren", 1.5, 2.5, 1.0)], "dusk": [("owl", 3.0, 3.25, 1.0)]}
    # The columns that one asks for go before what a tool is known to write.
    (tmp_path / "b.csv").write_text(AGGREGATED)
    asked = Options(columns={"label": "Behavior", "start": "Start (s)", "recording": "Observation id"})
    assert rows_of(read(tmp_path / "b.csv", options=asked))["walk"][1] == ("run, fast", 2.0, 2.0, 1.0)


def test_a_folder_holds_each_recording_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\t2\tx\n")
    (tmp_path / "b.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\ny\n")
    (tmp_path / "b.wav").write_bytes(b"RIFF")  # lies beside its labels
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7")
    assert rows_of(read(tmp_path)) == {"a": [("x", 1.0, 2.0, 1.0)], "b": [("y", 1.0, 2.0, 1.0)]}
    (tmp_path / "b.txt").write_text("1\t2\tx\n")
    with pytest.raises(InputError, match=r"b\.txt: expected each recording in one file, found 'b' in b\.srt"):
        read(tmp_path)


BOMB = EAF.replace('UTF-8"?>', 'UTF-8"?>\n<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>')
MALFORMED: list[tuple[str, object, str]] = [
    ("f.csv", "recording,label,start_sec,end_sec\nv,a,1,2\nv,a,3,2\n", "line 3: expected finite times and an end"),
    ("f.csv", "recording,label,start_sec,end_sec\nv,a,1,2\nv,a,soon,2\n", "line 3: expected a number as start_sec"),
    ("f.csv", "recording,label,start_sec\nv,,1\n", "line 2: expected a label, got ''"),
    ("f.csv", "recording,label\nv,a\n", "line 1: expected a column time_sec or start_sec"),
    ("f.csv", "recording,label,time_sec\nv,a,1,b\n", "line 2: expected 3 cells, got 4"),
    ("f.csv", "recording,label,time_sec\nv,a,inf\n", "line 2: expected finite times"),
    ("f.csv", "recording,label,time_sec\nv,a,1_0\n", "line 2: expected a number as time_sec, got '1_0'"),
    ("f.csv", TABULAR.replace("POINT,1.250", "POINT,NA"), "line 2: expected a number as Time, got 'NA'"),
    ("f.csv", TABULAR.replace("STOP,4.000", "START,4.000"), "line 5: expected a STOP of 'run' first"),
    ("f.csv", TABULAR.replace("START,2.000", "POINT,2.000"), "line 5: expected a START of 'run' before its STOP"),
    ("f.csv", TABULAR.replace("STOP,5.500", "POINT,5.500"), "line 4: expected a STOP of 'run' after its START"),
    ("f.csv", TABULAR.replace("STOP,5.500", "HALT,5.500"), "line 6: expected POINT, START or STOP, got 'HALT'"),
    ("f.tsv", PREAMBLE.replace("3.0\t", "4.5\t"), "line 12: expected finite times and an end that is not before"),
    ("f.csv", AGGREGATED.replace(",2,4,2,", ",5,4,2,"), "line 3: expected finite times and an end"),
    ("f.txt", "1\t2\ta\n3\tb\n", "line 2: expected start, end and label with tabs between them, got '3"),
    ("f.txt", "1\t2\ta\n3\tx\tb\n", "line 2: expected a number as seconds, got 'x'"),
    ("f.srt", "1\n00:00:01,000 -> 00:00:02,000\na\n", "line 2: expected HH:MM:SS,mmm --> HH:MM:SS,mmm"),
    ("f.srt", "1\n00:00:01,000 --> 00:00:02,000\n\n", "line 2: expected a label"),
    ("f.TextGrid", SHORT_TEXTGRID.replace("2.5\n5", "2.5\nfive"), "line 21: expected a time, got"),
    ("f.TextGrid", SHORT_TEXTGRID.replace("1.5\n2.5", "2.5\n1.5"), "line 18: expected finite times and an end"),
    ("f.TextGrid", SHORT_TEXTGRID.replace("5\n3\n0", "5\n4\n0"), "line 22: expected a time, got '"),
    ("f.TextGrid", LONG_TEXTGRID.replace("= 1.5\n", "= -1.5\n"), "line 18: expected finite times and an end"),
    ("f.TextGrid", LONG_TEXTGRID.replace("= 1.5\n", "= 1.5.0\n"), "line 17: expected a time, got '1.5.0'"),
    (
        "f.TextGrid",
        LONG_TEXTGRID.replace("IntervalTier", "TextTier"),
        "line 17: expected the text of a mark, got '1.5'",
    ),
    ("f.TextGrid", SHORT_TEXTGRID[:-4], "line 29: expected the text of a mark, got the end of the file"),
    ("f.TextGrid", SHORT_TEXTGRID.replace('"TextTier"', '"Spectrum"'), "line 22: expected IntervalTier or TextTier"),
    ("f.TextGrid", "ooBinaryFile\x08TextGrid", "expected ooTextFile"),
    ("f.eaf", EAF.replace("</TIER>", "", 1), "line 34: expected XML, got: mismatched tag"),
    ("f.eaf", EAF.replace('"1250"', '"soon"'), "line 5: expected milliseconds, got 'soon'"),
    ("f.eaf", EAF.replace('"1250"', '"1_250"'), "line 5: expected milliseconds, got '1_250'"),
    ("f.eaf", EAF.replace('"1250"', f'"{"9" * 400}"'), "line 5: expected milliseconds, got '999"),
    ("f.eaf", EAF.replace('TIME_SLOT_REF1="ts1" ', "", 1), "line 12: expected TIME_SLOT_REF1"),
    ("f.eaf", EAF.replace('REF2="ts3"', 'REF2="ts9"'), "line 12: expected a time slot of the file, got 'ts9'"),
    ("f.eaf", EAF.replace('"1250"', '"2250"'), "line 12: expected finite times and an end"),
    ("f.eaf", EAF.replace('"milliseconds"', '"PAL-frames"'), "line 3: expected times in milliseconds"),
    ("f.eaf", "<html/>", "line 1: expected an ANNOTATION_DOCUMENT, got 'html'"),
    ("f.eaf", BOMB, "line 2: expected no document type"),
    ("f.boris", {"observations": {}}, "expected a project with behaviors_conf and observations"),
    ("f.boris", {**PROJECT, "behaviors_conf": {}}, "expected a behaviour of the ethogram, got 'jump'"),
    (
        "f.boris",
        {**PROJECT, "observations": {"w": {"events": [[1, "", "run", "", ""]]}}},
        "observations['w'].events[0]: expected a STOP of 'run'",
    ),
    (
        "f.boris",
        {**PROJECT, "observations": {"w": {"events": [[True, "", "jump", "", ""]]}}},
        "observations['w'].events[0]: expected a number as a time, got True",
    ),
    ("f.boris", {**PROJECT, "observations": {"w": {"events": [[1]]}}}, "observations['w'].events[0]: expected [time"),
    (
        "f.json",
        [{"data": {"csv": "w"}, "annotations": [{"result": [region(2, 1, "a")]}]}],
        "[0].annotations[0].result[0]: expected finite times",
    ),
    (
        "f.json",
        [
            {
                "data": {"csv": "w"},
                "annotations": [{"result": [{"value": {"start": "2020-01", "timeserieslabels": []}}]}],
            }
        ],
        "[0].annotations[0].result[0]: expected a number as start, got '2020-01'",
    ),
    ("f.json", {**VIA, "view": {"1": {"fid_list": [2]}}}, "view['1']: expected a file that has a name"),
    ("f.json", {**VIA, "metadata": {"a": {"z": [1]}}}, "metadata['a']: expected vid (a view), z, xy and av"),
]


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED, ids=[f"{i}" for i in range(len(MALFORMED))])
def test_malformed_files_are_refused(name: str, content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)


def test_what_can_not_be_written_is_refused(tmp_path: Path) -> None:
    for form in ("srt", "elan"):
        with pytest.raises(InputError, match="v: expected times of 0 s or later"):
            write(tmp_path / "out", events_of({"v": [("a", -0.5, 1.0, 1.0)]}), form)
    with pytest.raises(InputError, match="expected one of the suffixes"):
        write(tmp_path / "out.docx", events_of(SAMPLE))
    with pytest.raises(InputError, match="expected events to write, found none"):
        write(tmp_path / "out.eaf", events_of({}))
    with pytest.raises(InputError, match="BORIS reads"):
        write(tmp_path / "out.csv", events_of(SAMPLE), "boris-export")
    assert not list(tmp_path.iterdir())
