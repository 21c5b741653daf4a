"""Reading a configuration: a preset or a YAML file, overrides on top, and one sentence for what is wrong with it."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ValidationError

from potloc_fast.config.schema import Config
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import read_text
from potloc_fast.names import normalize

DEEPEST = 10  # files that build on one another
LARGEST = 10_000  # values in a configuration, those of aliases counted each time
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, which is ten times as fast, where it is there
_PRESETS = resources.files("potloc_fast.config") / "presets"


def preset_names() -> list[str]:
    """The names of the presets that come with the package."""
    return sorted(Path(entry.name).stem for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a preset or a YAML file and apply overrides.

    A YAML file may begin with `preset: NAME`: its keys then change that preset's.

    Args:
        source: a preset's name, or the path of a YAML file.
        overrides: changes such as `train.epochs=5`; the value is read as YAML, that of a key for text or a path is
            taken as it is, and nothing after the sign means none.

    Returns:
        The checked configuration.

    Raises:
        InputError: there is no such preset or file, a key is unknown, or a value is wrong.

    Example:
        >>> load_config("hapt", overrides=["train.epochs=5"]).train.epochs
        5
    """
    values = _read(source)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"{shorten(override)}: expected an override of the form KEY=VALUE, such as train.epochs=5")
        *path, last = key.split(".")
        section = values
        for part in path:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[last] = (text or None) if key in _TEXTS else _parse(text, f"override {key}")
        _settle(values, [key])
    return parse_config(values, str(source))


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Check a configuration given as nested mappings; `source` names it in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def dump_config(config: Config) -> str:
    """The configuration, all keys resolved, as YAML that `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(source: str | Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    path = Path(source)
    if str(source) in preset_names():
        text, name = (_PRESETS / f"{source}.yaml").read_text(encoding="utf-8"), str(source)
    elif path.suffix in (".yaml", ".yml") or os.path.exists(path):
        text, name = read_text(path), str(path)
    else:
        close = difflib.get_close_matches(str(source), preset_names(), n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise InputError(f"{source}: expected a YAML file or one of the presets {', '.join(preset_names())}{hint}")
    values = _parse(text, name)
    if not isinstance(values, dict):
        raise InputError(f"{name}: expected a mapping of keys to values, got {type(values).__name__}")
    base = values.pop("preset", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise InputError(f"{name}: key preset: expected the name of a preset or file, got {quote(base)}")
    if len(below) == DEEPEST:
        raise InputError(
            f"{name}: key preset: expected files that end at a preset, got {quote(base)} after {DEEPEST} more"
        )
    inherited = _read(base, (*below, name))
    _settle(inherited, dict(leaves(values)))
    return merge(inherited, values)


def _settle(values: dict[str, Any], keys: Iterable[str]) -> None:
    """Keys that are set are not derived any more."""
    settled = set(keys)
    if isinstance(values.get("auto"), list):
        values["auto"] = [key for key in values["auto"] if key not in settled]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested mappings, and their values.

    >>> dict(leaves({"train": {"epochs": 5, "lr": 0.1}, "seed": 0}))
    {'train.epochs': 5, 'train.lr': 0.1, 'seed': 0}
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(key: str, value: Any) -> dict[str, Any]:
    """The value of a dotted key in nested mappings.

    >>> nested("train.epochs", 5)
    {'train': {'epochs': 5}}
    """
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _parse(text: str, name: str) -> Any:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, name, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(
            f"{name}: expected YAML, got {getattr(error, 'problem', None) or 'something else'}{where}"
        ) from None
    except InputError:
        raise
    except (ValueError, RecursionError, OverflowError) as error:  # dates and numbers that are none, nests without end
        raise InputError(f"{name}: expected YAML, got: {error}") from None


def _check(node: yaml.Node, name: str, sizes: dict[yaml.Node, int]) -> int:
    """Refuse keys that stand twice, and aliases that unfold to too much; returns the number of values in a node."""
    if node in sizes:
        return sizes[node]
    sizes[node] = LARGEST  # an alias within what it stands for
    size = 1
    if isinstance(node, yaml.MappingNode):
        found = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, normalize(key.value)) in found:
                    where = f"line {key.start_mark.line + 1}, column {key.start_mark.column + 1}"
                    raise InputError(f"{name}: expected each key once, found {quote(key.value)} again in {where}")
                found.add((key.tag, normalize(key.value)))
            size += _check(key, name, sizes) + _check(value, name, sizes)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, name, sizes) for item in node.value)
    if size > LARGEST:
        raise InputError(f"{name}: expected at most {LARGEST} values, got more, or aliases that stand for more")
    sizes[node] = size
    return size


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys of `below` with those of `above` in their place."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError) -> str:
    """The first error in one sentence."""
    first = error.errors()[0]
    # The layout names the member of the union that was tried: it is no key of the file.
    path = [shorten(str(part)) for i, part in enumerate(first["loc"]) if not (i == 1 and first["loc"][0] == "data")]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _keys(Config), n=1, cutoff=0.5)
        return f"unknown key {key}" + (f", did you mean {close[0]}?" if close else "")
    if first["type"] == "missing":
        return f"key {key} is missing"
    if first["type"] == "union_tag_not_found":
        return f"key {key}.layout is missing"
    if first["type"] == "union_tag_invalid":
        return f"key {key}.layout: expected {first['ctx']['expected_tags']}, got {quote(first['ctx']['tag'])}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = message if message.startswith("expected") else f"expected {message}"
    return f"key {key}: {message}, got {quote(first['input'])}"


def _keys(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The type of every key below a section, by its dotted name."""
    keys: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field.annotation
        annotation = field.annotation
        union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        for member in typing.get_args(annotation) if union else (annotation,):
            if typing.get_origin(member) is None and isinstance(member, type) and issubclass(member, BaseModel):
                keys |= _keys(member, f"{prefix}{name}.")
    return keys


def _is_text(annotation: Any) -> bool:
    """Whether all that a key takes is text, a path or nothing."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return all(_is_text(member) or member is types.NoneType for member in typing.get_args(annotation))
    if typing.get_origin(annotation) is Annotated:
        return _is_text(typing.get_args(annotation)[0])
    return annotation in (str, Path)


_TEXTS = {key for key, annotation in _keys(Config).items() if _is_text(annotation)}
