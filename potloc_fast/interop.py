"""Checkpoints of the authors' released code, read and written."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from potloc_fast.config import load_config
from potloc_fast.data import Grid
from potloc_fast.engine.run import Run, Stage
from potloc_fast.errors import InputError, shorten
from potloc_fast.files import check_kind, check_members, locked, write_bytes
from potloc_fast.models import BaseModel, POTLoc

# What one of their tensors is here: a convolution [O, I, 3] is [3, O, I], one of width 1 [O, I, 1] is a matrix,
# values of channels [1, C, 1] are a vector, and a depthwise convolution [C, 1, 3] is one of several filters [3, C].
Form = Literal["same", "convolution", "matrix", "channels", "depthwise"]
Layout = dict[str, tuple[str, Form]]  # ours by theirs

THUMOS14_CLASSES = (
    "BaseballPitch",
    "BasketballDunk",
    "Billiards",
    "CleanAndJerk",
    "CliffDiving",
    "CricketBowling",
    "CricketShot",
    "Diving",
    "FrisbeeCatch",
    "GolfSwing",
    "HammerThrow",
    "HighJump",
    "JavelinThrow",
    "LongJump",
    "PoleVault",
    "Shotput",
    "SoccerPenalty",
    "TennisSwing",
    "ThrowDiscus",
    "VolleyballSpiking",
)
"""The classes of THUMOS'14 in the order of the released models' outputs."""


@overload
def load_released(path: str | Path, kind: Literal["base"]) -> BaseModel: ...
@overload
def load_released(path: str | Path, kind: Literal["main"], *, heads: int = 4, window: int = 13) -> POTLoc: ...
def load_released(
    path: str | Path, kind: Literal["base", "main"], *, heads: int = 4, window: int = 13
) -> BaseModel | POTLoc:
    """Read a checkpoint of the authors' code. Nothing in the file is run.

    The model scores features `Tensor[B, T, F]` as theirs does. Theirs pads a recording to 768 snippets or, where it is
    longer, to a multiple of 48; padding leaks into the scores at the end of it, and does so here. `detect` with the
    section `detect` of the preset `thumos14_released` does all that, as does `predict` in a folder that
    `import_released` made.

    Args:
        path: `base_model.pkl`, the weights alone, or `epoch_045.pth.tar`, of which the averaged ones are taken.
        kind: the model that it is of.
        heads: number of attention heads of the main model, which weights don't show.
        window: width of its attention, odd; 13 is what their 12 comes to.

    Returns:
        The model, in eval mode, with all sizes as in the file.

    Raises:
        InputError: the file is missing, no checkpoint, of another model, or needs more than tensors and numbers.

    Example:
        >>> model = load_released("epoch_045.pth.tar", "main")  # doctest: +SKIP
        >>> model(torch.from_numpy(features)[None]).logits.sigmoid()  # doctest: +SKIP
    """
    state = _read(path)
    if kind == "main":
        if not isinstance(state.get("state_dict_ema"), Mapping):
            raise InputError(f"{path}: expected the key state_dict_ema of a main model, found {_some(state)}")
        state = state["state_dict_ema"]
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    if kind == "main":
        state = {key: value for key, value in state.items() if not key.startswith("cls_module.")}  # which it never uses
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{path}: expected floats under {key}, got {found}")
    with torch.device("meta"):
        model = _build_base(state, path) if kind == "base" else _build_main(state, path, heads, window)
    own, layout = _own_state(model), _layout(model)
    for key in sorted(layout.keys() | state.keys()):
        if key not in state:
            raise InputError(f"{path}: expected the key {key} of a {kind} model, found none")
        if key not in layout:
            raise InputError(f"{path}: expected the keys of a {kind} model, found {key} as well")
        name, form = layout[key]
        want, got = list(_to_theirs(own[name], form).shape), list(state[key].shape)
        if got != want:
            raise InputError(f"{path}: expected {key} to have shape {want}, got {got}")
    weights = {name: _to_ours(state[key], form).float().contiguous() for key, (name, form) in layout.items()}
    features = own["standardize.mean"].shape
    weights |= {"standardize.mean": torch.zeros(features), "standardize.std": torch.ones(features)}
    for name in model.state_dict().keys() - weights.keys():
        weights[name] = torch.stack([weights.pop(f"{name}.{k}") for k in range(3)])
    model.load_state_dict(weights, assign=True)
    return model.eval()


def save_released(model: BaseModel | POTLoc, path: str | Path, prefix: str = "") -> None:
    """Write a checkpoint that the authors' modules load, all keys in place.

    A main model is written as the averaged weights of a checkpoint; the part of it that theirs never uses is zero.

    Args:
        model: one that needs no standardized features, which theirs don't know. The main model scores the padding of
            theirs only with `padding_leaks`.
        path: the file to write.
        prefix: what their keys begin with; their script for testing wants "module.".

    Raises:
        InputError: the model has what theirs lacks.

    Example:
        >>> save_released(model, "epoch_045.pth.tar", prefix="module.")  # doctest: +SKIP
    """
    own, layout = _own_state(model), _layout(model)
    mean, std = own.pop("standardize.mean"), own.pop("standardize.std")
    if mean.any() or (std != 1).any():
        raise InputError(f"{path}: expected a model of features as they are, got one that standardizes them")
    for name in own.keys() - {name for name, _ in layout.values()}:
        raise InputError(f"{path}: expected a model with the parts of the released one, got one with {name}")
    state = {key: _to_theirs(own[name], form).contiguous() for key, (name, form) in layout.items()}
    if isinstance(model, POTLoc):
        features, scores = len(mean), len(own["classifier.bias"])
        state |= {
            "cls_module.conv_1.0.weight": torch.zeros(features, features, 3),
            "cls_module.conv_1.0.bias": torch.zeros(features),
            "cls_module.classifier.0.weight": torch.zeros(scores, features, 1),
        }
    state = {prefix + key: value for key, value in state.items()}
    content = BytesIO()  # given a path, torch refuses some names, and doesn't tell why it can't write
    torch.save({"state_dict_ema": state} if isinstance(model, POTLoc) else state, content)
    write_bytes(path, content.getbuffer())


def import_released(
    run_dir: str | Path,
    *,
    base: str | Path | None = None,
    main: str | Path | None = None,
    config: str | Path = "thumos14_released",
    classes: Sequence[str] = THUMOS14_CLASSES,
) -> Run:
    """Make the folder of a run from released checkpoints: `predict` then works with the main model in it.

    `potloc-fast train RUN_DIR/config.yaml data.root=... --run-dir RUN_DIR --steps detect` scores both on a data set.

    Args:
        run_dir: the folder to write to.
        base: the base model's checkpoint.
        main: the main model's.
        config: a preset or file that says how to detect; heads and window are its, other sizes are the checkpoints'.
        classes: names of the classes, in the order of the models' outputs.

    Returns:
        The run.

    Raises:
        InputError: no checkpoint is given, one can't be used, or the sizes don't fit together. Nothing is written then.

    Example:
        >>> run = import_released("runs/released", main="epoch_045.pth.tar")  # doctest: +SKIP
        >>> potloc_fast.predict(run, ["video.npy"])  # doctest: +SKIP
    """
    settings = load_config(config)
    models: dict[Stage, BaseModel | POTLoc] = {}
    overrides = []
    if base is not None:
        models["base"] = own = load_released(base, "base")
        overrides.append(f"base.model.hidden={own.classifier.in_features}")
    if main is not None:
        models["potloc"] = whole = load_released(main, "main", heads=settings.model.heads, window=settings.model.window)
        width = whole.classifier.weight.shape[2]
        sizes = {"width": width, "levels": len(whole.norms) - 1, "stem": whole.stem, "mlp_ratio": _mlp_ratio(whole)}
        overrides += [f"model.{name}={size}" for name, size in sizes.items()]
    for path, model in zip((path for path in (base, main) if path is not None), models.values(), strict=True):
        found = model.classifier.weight.shape[-2] - 1
        if found != len(classes):
            raise InputError(f"{path}: expected a model of {len(classes)} classes, got one of {found}")
    widths = {len(model.standardize.mean) for model in models.values()}
    if len(widths) != 1:
        raise InputError(
            f"{run_dir}: expected checkpoints of the same width of features, got {sorted(widths)}"
            if widths
            else f"{run_dir}: expected a checkpoint of the base or the main model, got none"
        )
    run = Run(
        Path(run_dir), load_config(config, overrides), tuple(classes), widths.pop(), Grid(fps=25, window=16, stride=16)
    )
    with locked(run_dir):
        run.write()
        for stage, model in models.items():
            run.save(stage, model)
    return run


def _read(path: str | Path) -> Mapping[str, Any]:
    check_kind(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another version, before the error that follows
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    check_members(archive, path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected a checkpoint, found none") from None
    except OSError as error:
        raise InputError(f"{path}: expected a readable checkpoint, got: {error.strerror}") from None
    except Exception as error:  # what a file that is none makes of the reader is anything
        needs = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if needs:
            raise InputError(
                f"{path}: expected tensors and numbers alone, got a file that runs {needs[1]} as it is read, which is "
                "not safe"
            ) from None
        raise InputError(f"{path}: expected a checkpoint that torch.save wrote, got something else") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a checkpoint with weights by their names, got {type(content).__name__}")
    return content


def _some(state: Mapping[str, Any]) -> str:
    return shorten(", ".join(str(key) for key in list(state)[:3])) or "none"


def _shape(state: Mapping[str, Tensor], key: str, path: str | Path) -> tuple[int, int, int]:
    if key not in state:
        raise InputError(f"{path}: expected the key {key}, found {_some(state)}")
    shape = tuple(state[key].shape)
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"{path}: expected {key} to have three dimensions, got shape {list(shape)}")
    return shape


def _build_base(state: Mapping[str, Tensor], path: str | Path) -> BaseModel:
    hidden, features, _ = _shape(state, "cls_module.conv_1.0.weight", path)
    scores, _, _ = _shape(state, "cls_module.classifier.0.weight", path)
    return BaseModel(features, scores - 1, hidden)


def _build_main(state: Mapping[str, Tensor], path: str | Path, heads: int, window: int) -> POTLoc:
    width, features, _ = _shape(state, "backbone.embd.0.conv.weight", path)
    scores, _, _ = _shape(state, "cls_head.cls_head.conv.weight", path)
    if width % heads:
        raise InputError(f"{path}: expected a width that is a multiple of {heads} heads, got {width}")
    matches = [re.match(r"backbone\.(stem|branch)\.(\d+)\.", key) for key in state]
    blocks = {match[0] for match in matches if match}
    stem = sum(block.startswith("backbone.stem.") for block in blocks)
    ratio = 4
    if blocks:
        ratio = max(1, _shape(state, f"{min(blocks)}mlp.0.weight", path)[0] // width)
    return POTLoc(
        features,
        scores - 1,
        width=width,
        heads=heads,
        levels=len(blocks) - stem,
        window=window,
        stem=stem,
        mlp_ratio=ratio,
        padding_leaks=True,
    )


def _mlp_ratio(model: POTLoc) -> int:
    for block in model.blocks:
        return int(block.get_parameter("mlp.0.weight").shape[0] // model.classifier.weight.shape[2])
    return 4


def _layout(model: BaseModel | POTLoc) -> Layout:
    """Where each weight of the released model is in ours."""
    if isinstance(model, BaseModel):
        return {
            "cls_module.conv_1.0.weight": ("conv.weight", "convolution"),
            "cls_module.conv_1.0.bias": ("conv.bias", "same"),
            "cls_module.classifier.0.weight": ("classifier.weight", "matrix"),
        }
    layout: Layout = {}

    def affine(theirs: str, ours: str, form: Form) -> None:
        layout[f"{theirs}.weight"] = (f"{ours}.weight", form)
        layout[f"{theirs}.bias"] = (f"{ours}.bias", "channels" if form == "channels" else "same")

    for i in range(2):
        for conv, norm, ours in (
            ("backbone.embd", "backbone.embd_norm", "embedding"),
            ("cls_head.head", "cls_head.norm", "decoder"),
        ):
            layout[f"{conv}.{i}.conv.weight"] = (f"{ours}.convs.{i}.weight", "convolution")
            affine(f"{norm}.{i}", f"{ours}.norms.{i}", "channels")
    for i in range(len(model.blocks)):
        theirs = f"backbone.stem.{i}" if i < model.stem else f"backbone.branch.{i - model.stem}"
        ours = f"blocks.{i}"
        for k, name in enumerate(("query", "key", "value")):
            layout[f"{theirs}.attn.{name}_conv.conv.weight"] = (f"{ours}.attention.conv.weight.{k}", "depthwise")
            affine(f"{theirs}.attn.{name}_norm", f"{ours}.attention.norms.{k}", "channels")
            affine(f"{theirs}.attn.{name}", f"{ours}.attention.projections.{k}", "matrix")
        affine(f"{theirs}.attn.proj", f"{ours}.attention.output", "matrix")
        for k, (name, mlp) in enumerate((("attn", "0"), ("mlp", "3"))):
            affine(f"{theirs}.ln{k + 1}", f"{ours}.norms.{k}", "channels")
            affine(f"{theirs}.mlp.{mlp}", f"{ours}.mlp.{2 * k}", "matrix")
            layout[f"{theirs}.drop_path_{name}.scale"] = (f"{ours}.branches.{k}.scale", "channels")
    for level in range(len(model.norms)):
        affine(f"neck.fpn_norms.{level}", f"norms.{level}", "channels")
    affine("cls_head.cls_head.conv", "classifier", "convolution")
    return layout


def _own_state(model: BaseModel | POTLoc) -> dict[str, Tensor]:
    """Our weights by name; filters that share a tensor each have a name, as theirs do."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".attention.conv.weight"):
            state |= {f"{name}.{k}": tensor[k] for k in range(3)}
        else:
            state[name] = tensor
    return state


def _to_theirs(tensor: Tensor, form: Form) -> Tensor:
    if form == "convolution":
        return tensor.permute(1, 2, 0)
    if form == "depthwise":
        return tensor.t().unsqueeze(1)
    if form == "matrix":
        return tensor.unsqueeze(2)
    return tensor.view(1, -1, 1) if form == "channels" else tensor


def _to_ours(tensor: Tensor, form: Form) -> Tensor:
    if form == "convolution":
        return tensor.permute(2, 0, 1)
    if form == "depthwise":
        return tensor.squeeze(1).t()
    if form == "matrix":
        return tensor.squeeze(2)
    return tensor.view(-1) if form == "channels" else tensor
