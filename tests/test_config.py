from __future__ import annotations

import re
from pathlib import Path

import pytest

from potloc_fast.config import Config, dump_config, load_config, parse_config, preset_names
from potloc_fast.errors import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source: str | Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_a_run_that_did_not_use_a_key_of_before_still_loads(tmp_path: Path) -> None:
    config = load_config("hapt")
    text = dump_config(config)
    older = text.replace("pseudo_labels:\n", "pseudo_labels:\n  centre_prior: false\n")
    assert older != text
    assert load_config(write(tmp_path, older)) == config
    used = older.replace("centre_prior: false", "centre_prior: true")
    assert "unknown key pseudo_labels.centre_prior" in refusal(write(tmp_path, used))


def test_preset_names() -> None:
    video = ["activitynet12", "activitynet13", "beoid", "gtea", "thumos14", "thumos14_released"]
    assert preset_names() == sorted([*video, "hapt", "hapt_boundaries", "own", "synthetic"])


def test_own_recordings_are_read_from_any_layout_with_their_points() -> None:
    own, hapt = load_config("own", ["data.root=x"]), load_config("hapt_boundaries", ["data.root=x"])
    assert (own.data.layout, own.data.points, own.data.standardize) == ("auto", "file", True)
    assert own.pseudo_labels.variant == "aligned"
    assert (own.data.grid.window, hapt.data.grid.window) == (None, 50)
    assert (own.rounds, hapt.rounds) == (2, 1)
    assert (own.detect.nms.voting, hapt.detect.nms.voting) == (0.7, 0.5)
    nms = own.detect.nms.model_copy(update={"voting": 0.5})
    same = {"data": hapt.data, "auto": (), "pseudo_labels": hapt.pseudo_labels, "rounds": 1}
    assert own.model_copy(update={**same, "detect": own.detect.model_copy(update={"nms": nms})}) == hapt


def test_thumos14_has_the_papers_values() -> None:
    config = load_config("thumos14")
    assert config.data.layout == "auto"
    assert (config.model.window, config.model.levels, config.loss.radius) == (19, 4, 2)
    assert config.base.loss.radius is None
    for train in (config.train, config.base.train):
        assert (train.epochs, train.batch_size, train.length, train.lr) == (100, 3, 2304, 1e-4)
        assert (train.sampling, train.optimizer) == ("random", "adam")
    assert config.evaluate.tiou == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def test_activitynet12_has_the_papers_values() -> None:
    config = load_config("activitynet12")
    assert config.model.window == 7
    for train in (config.train, config.base.train):
        assert (train.length, train.epochs, train.batch_size, train.sampling) == (192, 50, 64, "linear")
        assert train.lr == 1e-4
    assert config.evaluate.tiou == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_a_file_changes_its_preset_key_by_key(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "preset: thumos14\nmodel: {levels: 2}\nbase: {train: {epochs: 7}}\n"))
    want = load_config("thumos14").model_dump()
    want["model"]["levels"] = 2
    want["base"]["train"]["epochs"] = 7
    assert config.model_dump() == want


def test_a_file_can_build_on_another_file(tmp_path: Path) -> None:
    below = tmp_path / "below.yaml"
    below.write_text("preset: synthetic\nseed: 3\n")
    config = load_config(write(tmp_path, f"preset: {below}\ntrain: {{epochs: 2}}\n"))
    assert (config.data.layout, config.seed, config.train.epochs) == ("synthetic", 3, 2)


def test_defaults_fill_the_rest(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "data: {layout: lacp}\n"))
    assert (config.seed, config.data.root, config.pseudo_labels.variant) == (0, None, "paper")


def test_overrides_are_read_as_yaml() -> None:
    config = load_config(
        "thumos14",
        [
            "train.epochs=5",
            "loss.radius=null",
            "train.lr=0.003",
            "data.root=some/folder",
            "detect.nms={method: gaussian, sigma: 0.3}",
            "detect.nms.voting=0.5",
            "evaluate.tiou=[0.5]",
            "data.standardize=true",
        ],
    )
    assert (config.train.epochs, config.loss.radius, config.train.lr) == (5, None, 0.003)
    assert config.base.train.epochs == 100
    assert config.data.root == Path("some/folder")
    assert (config.detect.nms.method, config.detect.nms.sigma, config.detect.nms.voting) == ("gaussian", 0.3, 0.5)
    assert config.evaluate.tiou == (0.5,)
    assert config.data.standardize is True


def test_an_override_can_hold_an_equals_sign() -> None:
    assert load_config("thumos14", ["data.root=a=b"]).data.root == Path("a=b")


def test_overrides_leave_the_preset_as_it_is() -> None:
    load_config("thumos14", ["model.levels=1"])
    assert load_config("thumos14").model.levels == 4


def test_a_grid_holds_both_ends() -> None:
    config = load_config("hapt", ["detect.class_thresholds={start: 0.1, stop: 0.3, step: 0.1}"])
    assert config.detect.class_thresholds is not None
    assert config.detect.class_thresholds.values() == pytest.approx([0.1, 0.2, 0.3])
    config = load_config("thumos14")
    assert config.detect.class_thresholds is not None
    assert config.detect.class_thresholds.values() == [0.4]
    assert config.base.detect.class_thresholds is not None
    assert len(config.base.detect.class_thresholds.values()) == 9


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("hapt").seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", "hapt: unknown key train.epoch, did you mean train.epochs?"),
        ("model.windw=5", "hapt: unknown key model.windw, did you mean model.window?"),
        ("modl.window=5", "hapt: unknown key modl, did you mean model?"),
        ("data.roott=x", "hapt: unknown key data.roott, did you mean data.root?"),
        ("base.train.epoch=1", "hapt: unknown key base.train.epoch, did you mean base.train.epochs?"),
        ("zzzzzzzzz=1", "hapt: unknown key zzzzzzzzz"),
        (
            "data.layout=csv",
            "hapt: key data.layout: expected 'auto', 'plain', 'lacp', 'hrpro', 'wtalc', "
            "'backtal', 'actionformer', 'opentad', 'hapt', 'synthetic', got 'csv'",
        ),
        ("model.window=4", "hapt: key model.window: expected an odd number, got 4"),
        ("model.window=-3", "hapt: key model.window: expected greater than 0, got -3"),
        ("train.epochs=many", "hapt: key train.epochs: expected a valid integer"),
        ("train.epochs=", "hapt: key train.epochs: expected a valid integer, got None"),
        ("train.lr=0", "hapt: key train.lr: expected greater than 0, got 0"),
        ("train.optimizer=sgd", "hapt: key train.optimizer: expected 'adam' or 'adamw', got 'sgd'"),
        (
            "loss.background_threshold=1.5",
            "hapt: key loss.background_threshold: expected less than or equal to 1, got 1.5",
        ),
        ("detect.class_thresholds={start: 0}", "hapt: key detect.class_thresholds.stop is missing"),
        ("train=3", "hapt: key train: expected a valid dictionary or instance of TrainConfig, got 3"),
        ("train.epochs", "train.epochs: expected an override of the form KEY=VALUE, such as train.epochs=5"),
        ("=5", "=5: expected an override of the form KEY=VALUE, such as train.epochs=5"),
        ("train.epochs=[1", "override train.epochs: expected YAML, got "),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    found = refusal("hapt", override)
    assert found.startswith(message) if message.endswith((" ", "integer")) else found == message


def test_every_key_is_checked_even_without_its_section(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\n")
    assert refusal(path) == f"{path}: key data is missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {layout: hapt}\ntrain: {epochs: 3\nseed: 1\n", "expected YAML, got .* in line 3, column 5"),
        ("data: {layout: hapt}\n\ttrain: 1\n", "expected YAML, got .* in line 2, column 1"),
        ("- 1\n- 2\n", "expected a mapping of keys to values, got list"),
        ("", "expected a mapping of keys to values, got NoneType"),
        ("just words\n", "expected a mapping of keys to values, got str"),
        ("data: {layout: lacp}\nmodel: {window: 8}\n", "key model.window: expected an odd number, got 8"),
        ("data: {}\n", "key data.layout is missing"),
        ("data: {layout: lacp, recordings: 3}\n", r"unknown key data.recordings, did you mean data.recordings\?"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert re.fullmatch(f"{re.escape(str(path))}: {message}", refusal(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "run.yaml") == f"{tmp_path / 'run.yaml'}: expected a file, found none"


def test_an_unknown_preset_is_named(tmp_path: Path) -> None:
    presets = ", ".join(preset_names())
    assert refusal("thumos") == f"thumos: expected a YAML file or one of the presets {presets}, did you mean thumos14?"
    assert refusal("zzz") == f"zzz: expected a YAML file or one of the presets {presets}"
    assert refusal(write(tmp_path, "preset: zzz\n")) == f"zzz: expected a YAML file or one of the presets {presets}"


def test_parse_config_names_its_source() -> None:
    assert isinstance(parse_config({"data": {"layout": "hapt"}}, "here"), Config)
    with pytest.raises(InputError, match=r"^checkpoint\.safetensors: unknown key extra"):
        parse_config({"data": {"layout": "hapt"}, "extra": 1}, "checkpoint.safetensors")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.width=9", "key model: expected a width that is a multiple of heads"),
        ("train={sampling: linear, length: null}", "key train: expected a length to interpolate to"),
        ("detect={class_thresholds: null, actionness_thresholds: null}", "key detect: expected class_thresholds or"),
        (
            "detect.proposals=boundaries",
            "key detect: expected model.boundary_head: true where proposals are boundaries",
        ),
        ("base.detect.proposals=boundaries", "key base: expected detect.proposals: thresholds, as the base model has"),
        ("loss.topk_ratio=0.5", "key loss.topk_ratio: expected greater than or equal to 1"),
    ],
)
def test_values_that_exclude_each_other(override: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_config("hapt", [override])


def test_the_finest_level_is_one_of_the_models() -> None:
    own = ["model.levels=2", "detect.finest_level=2"]
    assert load_config("hapt_boundaries", own).detect.finest_level == 2
    with pytest.raises(InputError, match=r"key detect: expected a finest_level of at most model\.levels, 2, got"):
        load_config("hapt_boundaries", ["model.levels=2", "detect.finest_level=3"])
