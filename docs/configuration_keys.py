"""The reference of the configuration as Markdown, made from the schema and the presets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from potloc_fast.config import load_config
from potloc_fast.config.load import preset_names
from potloc_fast.config.schema import Config

_KINDS = {"null": "`null`", "boolean": "`true` or `false`", "string": "text", "number": "number", "integer": "integer"}
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def tables() -> str:
    """All keys, a heading each: what it takes, its default, its meaning, and what presets make of it."""
    schema = Config.model_json_schema()
    places: dict[str, list[tuple[str, ...]]] = {}
    _find(schema, schema["$defs"], (), places)
    return "\n".join(
        line
        for title, paths in places.items()
        for line in _section(schema["$defs"].get(title, schema), schema["$defs"], sorted(paths, key=len))
    )


def _find(section: Any, sections: Any, path: tuple[str, ...], places: dict[str, list[tuple[str, ...]]]) -> None:
    """Where in a configuration each section stands: some have several places."""
    places.setdefault(section["title"], []).append(path)
    for name, field in section["properties"].items():
        for title in _sections_in(field):
            _find(sections[title], sections, (*path, name), places)


def _sections_in(field: dict[str, Any]) -> list[str]:
    """The sections that a key holds: none but where it is a section itself."""
    return [part["$ref"].rsplit("/", 1)[1] for part in (field, *field.get("oneOf", ())) if "$ref" in part]


def _section(section: dict[str, Any], sections: dict[str, Any], paths: Sequence[tuple[str, ...]]) -> Iterator[str]:
    made_up = section["title"] == "SyntheticData"
    named = " and ".join(f"`{'.'.join(path)}`" for path in paths)
    keys = {name: field for name, field in section["properties"].items() if not _sections_in(field)}
    if not keys:
        return
    yield f"## {named if paths[0] else 'Top level'}{', layout `synthetic`' if made_up else ''}\n"
    if paths[0]:
        yield f"{_paragraph(section['description'])}\n"
    defaults = Config(data={"layout": "synthetic" if made_up else "auto"}).model_dump(mode="json")
    for name, field in keys.items():
        yield f"### `{'.'.join((*paths[0], name))}`\n"
        told = [] if name in section.get("required", ()) else [_code(_at(defaults, paths[0], name))]
        told += [
            f"{_code(_at(defaults, path, name))} in `{'.'.join(path)}`"
            for path in paths[1:]
            if told and _at(defaults, path, name) != _at(defaults, paths[0], name)
        ]
        yield f"{_paragraph(field['description'])}\n"
        yield f"- takes: {_kind(field, sections)}"
        yield f"- default: {', '.join(told) or 'none, it must be set'}"
        for path in paths:
            changed = _changes(path, name, defaults)
            if changed:
                yield f"- {_code('.'.join(path)) + ' in' if len(paths) > 1 else 'in'} presets: {changed}"
        yield ""


def _changes(path: Sequence[str], name: str, defaults: dict[str, Any]) -> str:
    """The values that presets give a key, each with the presets that do."""
    values: dict[str, list[str]] = {}
    for preset in preset_names():
        config = load_config(preset).model_dump(mode="json")
        if path[:1] == ("data",) and (config["data"]["layout"] == "synthetic") != (
            defaults["data"]["layout"] == "synthetic"
        ):
            continue
        value, derived = _at(config, path, name), ".".join((*path, name)) in config["auto"]
        if derived or value != _at(defaults, path, name):
            values.setdefault("from the recordings" if derived else _code(value), []).append(f"`{preset}`")
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())


def _at(values: dict[str, Any], path: Sequence[str], name: str) -> Any:
    return reduce(getitem, (*path, name), values)


def _kind(field: dict[str, Any], sections: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "$ref" in field:
        section = sections[field["$ref"].rsplit("/", 1)[1]]
        return f"`{{{', '.join(section['properties'])}}}`"
    if "anyOf" in field:
        return " or ".join(_kind(part, sections) for part in field["anyOf"])
    if "enum" in field:
        return ", ".join(_code(value) for value in field["enum"])
    if "const" in field:
        return _code(field["const"])
    if field["type"] == "array":
        return f"list of: {_kind(field['items'], sections)}"
    limits = [f"{sign} {field[limit]:g}" for limit, sign in _LIMITS.items() if limit in field]
    return " ".join([field.get("format") or _KINDS[field["type"]], ", ".join(limits)]).strip()


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _paragraph(text: str) -> str:
    return " ".join(text.split())
