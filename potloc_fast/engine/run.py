"""The folder of a run: what is in it, and how it is read back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
from pydantic import AfterValidator, BaseModel, Field, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from potloc_fast.config import Config, dump_config, load_config
from potloc_fast.config.schema import BaseStage, Frames, Rate
from potloc_fast.data import Dataset, Grid
from potloc_fast.engine.distributed import once
from potloc_fast.engine.environment import environment
from potloc_fast.errors import InputError, quote, shorten
from potloc_fast.files import read_json, write_bytes, write_json, write_text
from potloc_fast.models import BaseModel as PointBaseModel
from potloc_fast.models import POTLoc
from potloc_fast.notebook import html_table

Stage: TypeAlias = str  # "base", "potloc", or "round_1" and so on for the rounds of POTLoc before the last
Model: TypeAlias = PointBaseModel | POTLoc


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("expected each class once")
    return names


class _GridFacts(BaseModel):
    fps: Rate
    window: Frames
    stride: Frames


class _Facts(BaseModel):
    """What dataset.json holds."""

    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_each_once)]
    features: PositiveInt
    grid: _GridFacts | None


@dataclass(frozen=True)
class Run:
    """A run's folder and what it was made with.

    Attributes:
        folder: config.yaml, dataset.json, ground_truth.json, environment.json; `base/` and `potloc/` with weights,
            logs, detections and their evaluation; pseudo_labels.json; plots/.
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
        once(write_json, run.folder / "environment.json", environment())
        once(write_json, run.folder / "ground_truth.json", dataset.ground_truth())
        return run

    def _repr_html_(self) -> str:
        """Show in a notebook what is in it, and the mean mAP of what was scored."""
        rows = [("classes", ", ".join(self.classes)), ("channels", self.features)]
        for stage in ("base", "potloc"):
            path = self.folder / stage / "evaluation.json"
            if path.is_file():
                rows.append((f"mean mAP, {stage} (%)", f"{read_json(path)['mean']:.1f}"))
            elif self.weights(stage).is_file():
                rows.append((stage, "trained"))
        return html_table(f"Run in {self.folder}", ("", ""), rows)

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
        if not os.path.isfile(folder / "dataset.json"):
            raise InputError(f"{folder}: expected the folder of a run, with config.yaml and dataset.json, found none")
        facts = read_json(folder / "dataset.json")
        config = load_config(folder / "config.yaml")
        try:
            known = _Facts.model_validate(facts)
        except ValidationError:
            raise InputError(
                f"{folder / 'dataset.json'}: expected classes, features and grid as training wrote them, "
                f"got {quote(facts)}"
            ) from None
        grid = None if known.grid is None else Grid(**known.grid.model_dump())
        return cls(folder, config, known.classes, known.features, grid)

    def build(self, stage: Stage) -> Model:
        """An untrained model of a stage; its weights follow from the configured seed."""
        torch.manual_seed(self.config.seed)
        if stage == "base" or self.config.backbone == "convolutions":
            return PointBaseModel(self.features, len(self.classes), **self.config.base.model.model_dump())
        return POTLoc(self.features, len(self.classes), **self.config.model.model_dump())

    def weights(self, stage: Stage) -> Path:
        """The file with the weights of a stage's model."""
        return self.folder / stage / "model.safetensors"

    @property
    def rounds(self) -> tuple[Stage, ...]:
        """The stages in which a POTLoc model is trained, each but the first on labels that the one before made.

        There is one where no such labels are learned from.
        """
        rounds = self.config.rounds if self.config.supervision == "pseudo-labels" else 1
        return (*(f"round_{number}" for number in range(1, rounds)), "potloc")

    @property
    def pseudo_labels(self) -> Path:
        """The file with the pseudo-labels that the POTLoc model of the last round learned from."""
        return self.folder.joinpath(*self.rounds[-2:-1], "pseudo_labels.json")

    def section(self, stage: Stage) -> BaseStage | Config:
        """The keys of a stage: the section `base`, or the whole configuration.

        Rounds before the last, whose models make labels and nothing else, take half the epochs: the labels are as good.
        """
        if stage == "base":
            return self.config.base
        if stage == "potloc":
            return self.config
        own = self.config.train
        halved = {"epochs": (own.epochs + 1) // 2, "warmup_epochs": own.warmup_epochs / 2}
        return self.config.model_copy(update={"train": own.model_copy(update=halved)})

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
        fitting = f"{path}: expected weights that fit {self.folder / 'config.yaml'} and dataset.json"
        try:
            with torch.device("meta"):  # nothing is allocated, let alone initialized, before the shapes are compared
                model = self.build(stage)
            wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
            with safe_open(path, "pt") as file:
                found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                for name in sorted(wanted.keys() | found.keys(), key=lambda name: (name in wanted, name)):
                    if found.get(name) != wanted.get(name):
                        raise InputError(
                            f"{fitting}, got {_shape(found, name)} for {shorten(name)} of {_shape(wanted, name)}"
                        )
                weights = {name: file.get_tensor(name).float() for name in wanted}
        except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{fitting}, got: {shorten(str(error), 150)}") from None
        model.load_state_dict(weights, assign=True)
        return model.eval()


def _shape(shapes: Mapping[str, Sequence[int]], name: str) -> str:
    return f"shape {quote(shapes[name])}" if name in shapes else "none"
