from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import potloc_fast
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.interop import THUMOS14_CLASSES, import_released, load_released, read_classes, save_released
from potloc_fast.models import BaseModel, POTLoc

MAIN = {"features": 5, "classes": 3, "width": 8, "heads": 4, "window": 13, "padding_leaks": True}


def make_main(**sizes: Any) -> POTLoc:
    torch.manual_seed(0)
    model = POTLoc(**(MAIN | sizes))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.eval()


def make_base(**sizes: int) -> BaseModel:
    torch.manual_seed(0)
    return BaseModel(**({"features": 5, "classes": 3, "hidden": 7} | sizes)).eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def saved(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("state_dict_ema", content)


def block_keys(block: str) -> dict[str, list[int]]:
    shapes = {f"{block}.attn.{name}_conv.conv.weight": [8, 1, 3] for name in ("query", "key", "value")}
    norms = [f"{block}.attn.{name}_norm" for name in ("query", "key", "value")] + [f"{block}.ln1", f"{block}.ln2"]
    for norm in norms:
        shapes |= {f"{norm}.weight": [1, 8, 1], f"{norm}.bias": [1, 8, 1]}
    for name in ("query", "key", "value", "proj"):
        shapes |= {f"{block}.attn.{name}.weight": [8, 8, 1], f"{block}.attn.{name}.bias": [8]}
    shapes |= {f"{block}.mlp.0.weight": [16, 8, 1], f"{block}.mlp.0.bias": [16]}
    shapes |= {f"{block}.mlp.3.weight": [8, 16, 1], f"{block}.mlp.3.bias": [8]}
    return shapes | {f"{block}.drop_path_{name}.scale": [1, 8, 1] for name in ("attn", "mlp")}


def test_main_checkpoints_have_the_released_keys_and_shapes(tmp_path: Path) -> None:
    save_released(make_main(stem=1, levels=2, mlp_ratio=2), tmp_path / "m.pth.tar")
    shapes = {
        "backbone.embd.0.conv.weight": [8, 5, 3],
        "backbone.embd.1.conv.weight": [8, 8, 3],
        "cls_head.head.0.conv.weight": [8, 8, 3],
        "cls_head.head.1.conv.weight": [8, 8, 3],
        "cls_head.cls_head.conv.weight": [4, 8, 3],
        "cls_head.cls_head.conv.bias": [4],
        "cls_module.conv_1.0.weight": [5, 5, 3],
        "cls_module.conv_1.0.bias": [5],
        "cls_module.classifier.0.weight": [4, 5, 1],
    }
    norms = [f"{name}.{i}" for name in ("backbone.embd_norm", "cls_head.norm") for i in range(2)]
    for norm in norms + [f"neck.fpn_norms.{level}" for level in range(3)]:
        shapes |= {f"{norm}.weight": [1, 8, 1], f"{norm}.bias": [1, 8, 1]}
    for block in ("backbone.stem.0", "backbone.branch.0", "backbone.branch.1"):
        shapes |= block_keys(block)
    assert {key: list(value.shape) for key, value in saved(tmp_path / "m.pth.tar").items()} == shapes


def test_base_checkpoints_have_the_released_keys_and_shapes(tmp_path: Path) -> None:
    save_released(make_base(), tmp_path / "b.pkl")
    assert {key: list(value.shape) for key, value in saved(tmp_path / "b.pkl").items()} == {
        "cls_module.conv_1.0.weight": [7, 5, 3],
        "cls_module.conv_1.0.bias": [7],
        "cls_module.classifier.0.weight": [4, 7, 1],
    }


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"stem": 0, "levels": 0},
        {"stem": 3, "levels": 1, "mlp_ratio": 2},
        {"stem": 0, "levels": 11, "classes": 1, "features": 8},
        {"width": 4, "mlp_ratio": 1},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_main_models_survive_the_round_trip_bit_for_bit(tmp_path: Path, sizes: dict[str, int], prefix: str) -> None:
    model, path = make_main(**sizes), tmp_path / "m.pth.tar"
    save_released(model, path, prefix)
    assert all(key.startswith(prefix) for key in saved(path))
    found = load_released(path, "main")
    assert same(found, model)
    assert not found.training
    features = torch.randn(2, 20, len(model.standardize.mean))
    mask = torch.arange(20)[None] < torch.tensor([[20], [13]])
    assert torch.equal(found(features, mask).logits, model(features, mask).logits)
    again = tmp_path / "again.pth.tar"
    save_released(found, again, prefix)
    first, second = saved(path), saved(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_base_models_survive_the_round_trip_bit_for_bit(tmp_path: Path) -> None:
    save_released(make_base(), tmp_path / "b.pkl")
    found = load_released(tmp_path / "b.pkl", "base")
    assert same(found, make_base())
    assert not found.training


def test_what_is_loaded_can_be_trained_and_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    save_released(make_main(), tmp_path / "m.pth.tar")
    state = torch.get_rng_state()
    model = load_released(tmp_path / "m.pth.tar", "main")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    model.train()(torch.randn(1, 9, 5)).logits.sum().backward()


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (Path("trap"),))  # type: ignore[return-value]


def change(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Change the averaged weights of a checkpoint; None takes a key away."""

    def apply(checkpoint: dict[str, Any]) -> Any:
        state = checkpoint["state_dict_ema"]
        for key, value in values.items():
            state[key] = value
            if value is None:
                del state[key]
        return checkpoint

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            change(**{"backbone.stem.1.ln2.bias": None}),
            "expected the key backbone.stem.1.ln2.bias of a main model, found none",
        ),
        (change(**{"backbone.embd.0.conv.weight": None}), "expected the key backbone.embd.0.conv.weight, found backb"),
        (change(**{"cls_head.cls_head.conv.weight": None}), "expected the key cls_head.cls_head.conv.weight, found"),
        (change(**{"neck.extra": torch.zeros(3)}), "expected the keys of a main model, found neck.extra as well"),
        (
            change(**{"backbone.stem.0.attn.proj.bias": torch.zeros(9)}),
            r"expected backbone.stem.0.attn.proj.bias to have shape \[8\], got \[9\]",
        ),
        (
            change(**{"backbone.embd.1.conv.weight": torch.zeros(8, 8, 5)}),
            r"expected backbone.embd.1.conv.weight to have shape \[8, 8, 3\], got \[8, 8, 5\]",
        ),
        (
            change(**{"backbone.embd.0.conv.weight": torch.zeros(8, 5)}),
            r"expected backbone.embd.0.conv.weight to have three dimensions, got shape \[8, 5\]",
        ),
        (change(**{"backbone.embd.0.conv.weight": torch.zeros(6, 5, 3)}), "a multiple of 4 heads, got 6"),
        (
            change(**{"backbone.stem.0.ln1.bias": torch.zeros(1, 8, 1).int()}),
            "expected floats under backbone.stem.0.ln1.bias, got torch.int32",
        ),
        (change(**{"backbone.stem.0.ln1.bias": 3}), "expected floats under backbone.stem.0.ln1.bias, got int"),
        (
            lambda checkpoint: checkpoint["state_dict_ema"],
            "expected the key state_dict_ema of a main model, found back",
        ),
        (lambda _: {}, "expected the key state_dict_ema of a main model, found none"),
        (lambda _: [1, 2], "expected a checkpoint with weights by their names, got list"),
        (lambda _: torch.zeros(3), "expected a checkpoint with weights by their names, got Tensor"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "m.pth.tar"
    save_released(make_main(), path)
    torch.save(edit(torch.load(path, weights_only=True)), path)
    with pytest.raises(InputError, match=f"^{path}: .*{message}"):
        load_released(path, "main")


def test_a_model_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    save_released(make_main(), tmp_path / "m")
    save_released(make_base(), tmp_path / "b")
    with pytest.raises(InputError, match="expected the key state_dict_ema of a main model, found cls_module"):
        load_released(tmp_path / "b", "main")
    with pytest.raises(InputError, match=r"expected floats under state_dict_ema, got dict"):
        load_released(tmp_path / "m", "base")


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pth.tar"
    torch.save({"state_dict_ema": {}, "args": Trap()}, path)
    with pytest.raises(InputError, match=r"expected tensors and numbers alone, got a file that runs \S+ as it is read"):
        load_released(path, "main")
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="expected"):
        load_released(path, "main")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"{}", b"\x80\x02}q\x00.", b"\x93NUMPY\x01\x00", b"\x1f\x8b\x08", 3]
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes | int) -> None:
    path = tmp_path / "m.pth.tar"
    save_released(make_main(), path)
    path.write_bytes(path.read_bytes()[: -100 * content] if isinstance(content, int) else content)
    for kind in ("base", "main"):
        with pytest.raises(InputError, match=f"^{path}: expected .*checkpoint") as caught:
            load_released(path, kind)  # type: ignore[call-overload]
        assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: expected a checkpoint, found none"):
        load_released(tmp_path / "nothing", "base")
    with pytest.raises(InputError, match="expected a readable checkpoint, got: Is a directory"):
        load_released(tmp_path, "base")


def test_standardized_features_are_not_theirs(tmp_path: Path) -> None:
    model = make_base()
    model.standardize.fit(torch.ones(5), torch.ones(5))
    with pytest.raises(InputError, match=r"b.pkl: expected a model of features as they are, got one that standardizes"):
        save_released(model, tmp_path / "b.pkl")
    model = make_base()
    model.extra = nn.Linear(2, 2, bias=False)
    with pytest.raises(InputError, match=r"b.pkl: expected a model with the parts .* got one with extra.weight"):
        save_released(model, tmp_path / "b.pkl")
    assert not (tmp_path / "b.pkl").exists()


def test_an_imported_run_predicts(tmp_path: Path) -> None:
    main, base = make_main(classes=20, stem=1, levels=1, mlp_ratio=2), make_base(classes=20)
    save_released(main, tmp_path / "m.pth.tar")
    save_released(base, tmp_path / "b.pkl")
    run = import_released(tmp_path / "run", base=tmp_path / "b.pkl", main=tmp_path / "m.pth.tar")
    assert Run.open(tmp_path / "run") == run
    assert run.classes == THUMOS14_CLASSES == tuple(sorted(THUMOS14_CLASSES))
    assert same(run.load("potloc"), main)
    assert same(run.load("base"), base)
    features = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    detections = potloc_fast.predict(run, {"video": features})
    assert len(detections)
    assert detections.end_sec.max() <= (40 + 1) * 0.64


def test_names_of_classes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffwalk \r\n\r\nsit down\r\n".encode())
    assert read_classes(path) == ("walk", "sit down")
    for content, message in (("\n", "one a line, found none"), ("a\nb\na\n", "each class once, found 'a' 2 times")):
        path.write_text(content)
        with pytest.raises(InputError, match=f"classes.txt: expected .*{message}"):
            read_classes(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "run: expected a checkpoint of the base or the main model, got none"),
        ({"main": "m"}, "m: expected a model of 20 classes, got one of 3"),
        (
            {"main": "m", "base": "b", "classes": ("a", "b", "c")},
            r"expected checkpoints of the same width .*got \[5, 6\]",
        ),
    ],
)
def test_imports_that_do_not_fit_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_released(make_main(), "m")
    save_released(make_base(features=6), "b")
    with pytest.raises(InputError, match=message):
        import_released("run", **given)
    assert not Path("run").exists()
