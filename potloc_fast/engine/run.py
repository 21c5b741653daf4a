"""The folder of a run: what is in it, and how it is read back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from potloc_fast.config import Config, dump_config, load_config
from potloc_fast.data import Dataset, Grid
from potloc_fast.engine.distributed import once
from potloc_fast.errors import InputError
from potloc_fast.files import read_json, write_bytes, write_json, write_text
from potloc_fast.models import BaseModel as PointBaseModel
from potloc_fast.models import POTLoc

Stage: TypeAlias = str  # "base", "potloc", or "round_1" and so on for the rounds of POTLoc before the last
Model: TypeAlias = PointBaseModel | POTLoc


@dataclass(frozen=True)
class Run:
    """A run's folder and what it was made with.

    Attributes:
        folder: config.yaml, dataset.json, ground_truth.json; `base/` and `potloc/` with weights, logs, detections and
            their evaluation; pseudo_labels.json; plots/.
        config: the resolved configuration.
        classes: names of the classes, in the order of the models' outputs.
        features: channels of a snippet.
        grid: where snippets lie in time; None where the recordings differ in that.
    """

    folder: Path
    config: Config
    classes: tuple[str, ...]
    features: int
    grid: Grid | None

    @classmethod
    def create(cls, folder: str | Path, config: Config, dataset: Dataset) -> Run:
        """Start a run: write what does not depend on training."""
        grids = {recording.grid for recording in dataset.recordings}
        width = dataset.recordings[0].features.shape[1]
        run = cls(Path(folder), config, dataset.classes, width, grids.pop() if len(grids) == 1 else None)
        once(run.write)
        once(write_json, run.folder / "ground_truth.json", dataset.ground_truth())
        return run

    def write(self) -> None:
        """Write what `open` reads: config.yaml and dataset.json."""
        write_text(self.folder / "config.yaml", dump_config(self.config))
        facts = {"classes": self.classes, "features": self.features, "grid": self.grid and asdict(self.grid)}
        write_json(self.folder / "dataset.json", facts)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Read a run back.

        Raises:
            InputError: the folder holds no run.
        """
        folder = Path(folder)
        if not (folder / "dataset.json").is_file():
            raise InputError(f"{folder}: expected the folder of a run, with config.yaml and dataset.json, found none")
        facts = read_json(folder / "dataset.json")
        config = load_config(folder / "config.yaml")
        try:
            grid = None if facts["grid"] is None else Grid(**facts["grid"])
            return cls(folder, config, tuple(facts["classes"]), int(facts["features"]), grid)
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{folder / 'dataset.json'}: expected classes, features and grid as training wrote them, "
                "got something else"
            ) from None

    def build(self, stage: Stage) -> Model:
        """An untrained model of a stage; its weights follow from the configured seed."""
        torch.manual_seed(self.config.seed)
        if stage == "base" or self.config.backbone == "convolutions":
            return PointBaseModel(self.features, len(self.classes), **self.config.base.model.model_dump())
        return POTLoc(self.features, len(self.classes), **self.config.model.model_dump())

    def weights(self, stage: Stage) -> Path:
        """The file with the weights of a stage's model."""
        return self.folder / stage / "model.safetensors"

    def save(self, stage: Stage, model: Model, digest: str = "") -> None:
        """Write the weights of a stage's model, with a digest of what it was trained with."""
        tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
        write_bytes(self.weights(stage), save(tensors, {"trained_with": digest}))

    def digest(self, stage: Stage) -> str | None:
        """The digest that the weights of a stage's model were saved with; None where the file has none."""
        try:
            with safe_open(self.weights(stage), "pt") as file:
                return (file.metadata() or {}).get("trained_with")
        except SafetensorError as error:
            raise InputError(f"{self.weights(stage)}: expected weights as training writes them, got: {error}") from None

    def load(self, stage: Stage) -> Model:
        """The trained model of a stage, ready for detection.

        Raises:
            InputError: it was not trained yet, or its file is damaged.
        """
        path = self.weights(stage)
        if not path.is_file():
            raise InputError(f"{path}: expected the weights of the {stage} model, found none: train that stage first")
        model = self.build(stage)
        try:
            model.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path}: expected weights that fit {self.folder / 'config.yaml'}, got: {reason}"
            ) from None
        return model.eval()
