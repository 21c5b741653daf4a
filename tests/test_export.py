"""A model without its run: the folder, torch.export, ONNX; and the same detections from all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import potloc_fast.cli
from potloc_fast import Detector
from potloc_fast.config import load_config
from potloc_fast.config.schema import FolderData, GridConfig
from potloc_fast.data import Dataset, Grid, Recording
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.recording import Instance
from potloc_fast.detector import Detection, Stream, typed
from potloc_fast.engine.quality import listed_from
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.export import export, export_folder, pyramid
from potloc_fast.files import write_json
from potloc_fast.integrations import hub
from potloc_fast.integrations.ray import Predictor
from potloc_fast.models import Pyramid

FEATURES = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a boundary head that was never trained."""
    small = {"width": 8, "heads": 2, "levels": 1, "stem": 1, "window": 5, "layer_scale": 0.5, "boundary_head": True}
    root = tmp_path_factory.mktemp("export")
    config = load_config("own", [f"model={json.dumps(small)}", f"data.root={root}", "detect.nms.min_score=0.3"])
    values = np.zeros((90, FEATURES), np.float32)
    recording = Recording("v1", values, Grid(50, 50, 25), "test", (Instance("a", 1, 2),))
    run = Run.create(root / "run", config, Dataset("d", ("a", "b"), (recording,)))
    model = run.build("potloc")
    torch.nn.init.zeros_(model.classifier.bias)  # type: ignore[union-attr,arg-type]
    run.save("potloc", model)
    return run


@pytest.fixture(scope="module")
def features(shared_data: Path) -> np.ndarray:
    """A recording of HAPT's."""
    listing = read_listing(
        FolderData(layout="hapt", root=shared_data / "hapt" / "hapt_uci.zip", grid=GridConfig(window=50))
    )
    return np.array(listing.entries[0].open().features)


# The folder


def test_a_folder_needs_no_run(run: Run, features: np.ndarray, tmp_path: Path) -> None:
    write_json(run.folder / "potloc" / "evaluation.json", {"tiou": [0.3, 0.5], "map": [81.25, 60], "mean": 70.625})
    export(run, tmp_path / "model")
    written = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert written == {"README.md", "config.yaml", "dataset.json", "potloc/model.safetensors"}
    loaded = Detector.load(tmp_path / "model")
    assert loaded(features) == Detector.load(run)(features)
    assert loaded.digest == Detector.load(run).digest
    assert str(run.config.data.root) not in (tmp_path / "model" / "config.yaml").read_text()
    card = (tmp_path / "model" / "README.md").read_text()
    for said in (
        "| classes | a, b |",
        "Subset test: 1 recordings of 0.01 hours with 1 known instances.",
        "| 0.3 | 0.5 | mean |",
        "| 81.2 | 60.0 | 70.6 |",
        f"| a score depends on | {loaded.model.reach} snippets to either side |",
    ):
        assert said in card
    (run.folder / "potloc" / "evaluation.json").unlink()


def test_lists_begin_at_the_same_score(run: Run, tmp_path: Path) -> None:
    none = dict.fromkeys(("points", "once", "shared", "doubled", "missed", "detections", "empty"), 0)
    figures = {"min_score": 0.25, "held_out": False, "hits": none, "per_class": {}, "agreement": 0.0, "curve": []}
    path = run.folder / "potloc" / "quality.json"
    write_json(path, figures | {"boundary_sec": None, "label_tiou": None})
    export(run, tmp_path / "model")
    path.unlink()
    assert listed_from(Run.open(tmp_path / "model")) == 0.25


def test_what_is_there_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder, found something there"):
        export_folder(run, tmp_path)
    with pytest.raises(InputError, match="expected a new or empty folder, found something there"):
        export_folder(run, tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


# The hub, which is not reached


def test_from_pretrained_takes_a_folder(run: Run, features: np.ndarray, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    assert hub.from_pretrained(tmp_path / "model", section=64)(features) == Detector.load(run, section=64)(features)


def test_the_hub(run: Run, features: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = tmp_path / "repository"

    class HfApi:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert (name, private, exist_ok) == ("me/walking", True, True)

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            folder_path.rename(pushed)
            return f"https://hub/{repo_id}"

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        if name != "me/walking":
            raise OSError(f"no repository {name}\nin the world")
        return str(pushed)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    )
    assert hub.push_to_hub(run, "me/walking") == "https://hub/me/walking"
    assert hub.from_pretrained("me/walking")(features) == Detector.load(run)(features)
    with pytest.raises(InputError, match=r"^me/running: expected a folder or a repository of the Hub, got: no repo"):
        hub.from_pretrained("me/running")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'potloc_fast\[hub\]'"):
        hub.from_pretrained("me/walking")


# The same everywhere


def through(
    detector: Detector, score: Callable[..., tuple[torch.Tensor, ...]], features: np.ndarray
) -> list[Detection]:
    """The detections that the detector makes of another program's scores."""

    def model(x: torch.Tensor, mask: torch.Tensor | None) -> Pyramid:
        mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        return pyramid(score(x, mask), x.shape[1], detector.model.levels)

    model.parameters, model.eval, model.training = detector.model.parameters, lambda: None, False  # type: ignore[attr-defined]
    other = Detector(detector.config, detector.classes, detector.features, detector.grid, detector.model)
    other.model = model  # type: ignore[assignment]
    return other(features, "recording")


def assert_same(found: list[Detection], expected: list[Detection]) -> None:
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2:] for row in found], [row[2:] for row in expected], rtol=1e-5, atol=1e-5)


def test_all_forms_of_a_model_detect_the_same(run: Run, features: np.ndarray, tmp_path: Path) -> None:
    detector = Detector.load(run)
    expected = detector(features)
    assert len(expected) > 20
    stream: Stream = detector.stream("recording")
    pushed = [found for snippet in features for found in stream.push(snippet)] + stream.close()
    assert pushed == expected
    predicted = typed(potloc_fast.predict(run, {"recording": features}))
    assert predicted == expected
    np.save(tmp_path / "recording.npy", features)
    columns = Predictor(run.folder)({"path": np.array([str(tmp_path / "recording.npy")])})
    rows = zip(*(columns[name].tolist() for name in Detection._fields), strict=True)
    assert_same(list(map(Detection._make, rows)), expected)
    export(run, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    assert any("potloc_fast" in str(node.target) for node in program.graph.nodes)
    assert_same(through(detector, program.module(), features), expected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(InputError, match=r"pip install 'potloc_fast\[onnx\]'"):
            export(run, tmp_path / "model.onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra")
    pytest.importorskip("onnxscript", reason="onnxscript is an extra")
    export(run, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")

    def score(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = session.run(None, {"features": x.numpy(), "mask": mask.numpy()})
        return tuple(torch.from_numpy(out) for out in found)

    assert_same(through(detector, score, features), expected)
    assert_same(through(detector, score, features[:41]), detector(features[:41]))


def test_export_says_where_it_wrote(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["potloc-fast", "export", str(run.folder), str(tmp_path / "model")])
    with pytest.raises(SystemExit) as end:
        potloc_fast.cli.main()
    assert (end.value.code or 0, capsys.readouterr().out) == (0, f"exported: {tmp_path / 'model'}\n")
