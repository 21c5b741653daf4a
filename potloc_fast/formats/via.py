"""Projects of the VGG Image Annotator, version 3 (VIA): temporal segments and moments in JSON, seconds."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from potloc_fast.errors import InputError, quote
from potloc_fast.formats.events import Events, fault
from potloc_fast.formats.source import Options, Source, media_stem

TITLE = "VIA 3"
SUFFIX = ".via.json"
OWN: tuple[str, ...] = (".via.json",)
SHARED: tuple[str, ...] = (".json",)
SEVERAL = True

_PARTS = ("attribute", "file", "metadata", "view")
_TEXT, _CHECKBOX, _SELECT = 1, 2, 4  # types of attributes
_VIDEO, _LOCAL = 4, 1  # the type and the location of a file
_SCORE = "score"  # the name of the attribute that holds scores


def recognize(source: Source) -> bool:
    """Whether the parts of a project are there."""
    return isinstance(source.json, dict) and set(_PARTS) <= set(source.json)


def read(source: Source, options: Options, events: Events) -> None:
    """Take the segments and moments of all files, each a recording that is called as its file.

    The label is the first attribute of an entry that is one of times. Regions in pictures are passed over; what has no
    label is left out, with a note.
    """
    content = source.json
    if not recognize(source) or not all(isinstance(content[part], dict) for part in _PARTS):
        raise InputError(f"{source.path}: expected a project with {', '.join(_PARTS)}, got {quote(content)}")
    names = {}
    for view, entry in content["view"].items():
        try:
            names[view] = media_stem(content["file"][str(entry["fid_list"][0])]["fname"])
        except (AttributeError, IndexError, KeyError, TypeError):
            place = f"view[{quote(view)}]"
            raise fault(source.path, place, f"expected a file that has a name, got {quote(entry)}") from None
        events.recordings[names[view]] = None
    attributes = {number: _attribute(given) for number, given in content["attribute"].items()}
    unlabelled = 0
    for key, entry in content["metadata"].items():
        place = f"metadata[{key!r}]"
        try:
            times, region, values, view = entry["z"], entry["xy"], entry["av"], str(entry["vid"])
            moment = isinstance(times, list) and len(times) in (1, 2) and not region
            name, pairs = names[view], values.items()
        except (AttributeError, KeyError, TypeError):
            expected = "expected vid (a view), z, xy and av"
            raise fault(source.path, place, f"{expected}, got {quote(entry)}") from None
        if not moment:
            continue
        start, end = events.number(place, times[0], "a time"), events.number(place, times[-1], "a time")
        labels: list[str] = []
        score = 1.0
        for number, value in pairs:
            attribute = attributes.get(number, _OTHER)
            if attribute.scores:
                score = events.number(place, value, "a score")
            elif attribute.labels and value != "" and not labels:
                if not isinstance(value, str):
                    raise fault(source.path, place, f"expected text as value of {quote(number)}, got {quote(value)}")
                chosen = value.split(",") if attribute.several else [value]
                labels = [str(attribute.options.get(one, one)) for one in chosen]
        unlabelled += not labels
        for label in labels:
            events.add(place, name, label, start, end, score)
    if unlabelled:
        events.notes.append(f"{source.path}: segments left out that have no label: {unlabelled}")


class _Attribute(NamedTuple):
    scores: bool  # whether it holds scores
    labels: bool  # whether it is one of times
    several: bool  # whether it holds several labels at once
    options: dict[str, Any]  # text by what stands for it


_OTHER = _Attribute(False, False, False, {})


def _attribute(given: Any) -> _Attribute:
    if not isinstance(given, dict):
        return _OTHER
    options = given.get("options")
    timed = str(given.get("anchor_id")).endswith(("Z1_XY0", "Z2_XY0", "ZN_XY0"))
    several = given.get("type") == _CHECKBOX
    return _Attribute(given.get("aname") == _SCORE, timed, several, options if isinstance(options, dict) else {})


def write(events: Events, options: Options) -> str:
    """A file and a view for each recording, an entry for each event; labels are options to select from."""
    found = events.by_recording()
    labels = {label: str(number) for number, label in enumerate(dict.fromkeys(events.label), start=1)}
    attribute = {
        number: {
            "aname": name,
            "anchor_id": f"FILE1_Z{count}_XY0",
            "type": kind,
            "desc": desc,
            "options": {number: label for label, number in labels.items()} if kind == _SELECT else {},
            "default_option_id": "",
        }
        for number, name, count, kind, desc in (
            ("1", "label", 2, _SELECT, "label of a segment"),
            ("2", "label of a moment", 1, _SELECT, "label of a moment"),
            ("3", _SCORE, 2, _TEXT, "score of a detection"),
        )
    }
    scored = events.scored
    entries = []
    for vid, rows in enumerate(found.values(), start=1):
        for number, (start, end, label, score) in enumerate(rows):
            point = start == end
            times = f"{start!r}" if point else f"{start!r}, {end!r}"
            values = f'"{2 if point else 1}": "{labels[label]}"' + (f', "3": "{score:.4f}"' if scored else "")
            entries.append(
                f'"{vid}_{number:08d}": {{"vid": "{vid}", "flg": 0, "z": [{times}], "xy": [], "av": {{{values}}}}}'
            )
    views = {str(vid): name for vid, name in enumerate(found, start=1)}
    project = {
        "project": {
            "pid": "__VIA_PROJECT_ID__",
            "rev": "__VIA_PROJECT_REV_ID__",
            "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
            "pname": "potloc_fast",
            "creator": "potloc_fast",
            "created": 0,
            "data_format_version": "3.1.1",
            "vid_list": list(views),
        },
        "config": {
            "file": {"loc_prefix": {str(location): "" for location in range(1, 5)}},
            "ui": {
                "file_content_align": "center",
                "file_metadata_editor_visible": True,
                "spatial_metadata_editor_visible": True,
                "temporal_segment_metadata_editor_visible": True,
                "spatial_region_label_attribute_id": "",
                "gtimeline_visible_row_count": "4",
            },
        },
        "attribute": attribute,
        "file": {
            vid: {"fid": vid, "fname": name, "type": _VIDEO, "loc": _LOCAL, "src": name} for vid, name in views.items()
        },
        "view": {vid: {"fid_list": [vid]} for vid in views},
    }
    head = json.dumps(project, allow_nan=False)[:-1]
    return f'{head}, "metadata": {{{", ".join(entries)}}}}}\n'
