"""The main job: base model, proposals, pseudo-labels, POTLoc model, detections, mAP."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from potloc_fast.config import Config, load_config
from potloc_fast.config.load import leaves
from potloc_fast.config.schema import DetectConfig, SyntheticData, TrainConfig
from potloc_fast.data import Dataset, Recording
from potloc_fast.data.dataset import LabelledSegments, TrainingSet
from potloc_fast.data.derive import derive
from potloc_fast.data.layouts import read_listing
from potloc_fast.data.layouts.synthetic import load_synthetic
from potloc_fast.data.listing import Listing
from potloc_fast.data.points import draw_points, thin_points
from potloc_fast.data.recording import training_faults
from potloc_fast.data.resident import resident
from potloc_fast.data.signals.choose import choose_windows
from potloc_fast.engine.align import align
from potloc_fast.engine.detect import detect
from potloc_fast.engine.device import HALF, float32_products, pick_device
from potloc_fast.engine.distributed import joined, once, rank
from potloc_fast.engine.estimate import training_sec
from potloc_fast.engine.fit import capture_obstacle, fit
from potloc_fast.engine.metrics import log_scores
from potloc_fast.engine.progress import duration
from potloc_fast.engine.quality import assess
from potloc_fast.engine.run import Run, Stage
from potloc_fast.errors import InputError
from potloc_fast.evaluation import (
    Evaluation,
    Segments,
    evaluate,
    read_detections,
    read_ground_truth,
    write_detections,
)
from potloc_fast.files import locked, write_json, writing
from potloc_fast.pseudo_labels import collect_points, generate, read_pseudo_labels

Step = Literal["base", "pseudo-labels", "potloc", "detect"]
STEPS: tuple[Step, ...] = get_args(Step)
STAGES: tuple[Stage, ...] = ("base", "potloc")
WORTH_SAYING = 10.0  # seconds that training takes
_OF_STAGE = ("model.*", "checkpoint.pt", "metrics.jsonl", "tensorboard/*", "detections.json", "evaluation.json")
_WRITTEN: dict[Step, tuple[str, ...]] = {  # by each step, and what is computed from the models that it trains
    "base": (*(f"base/{name}" for name in (*_OF_STAGE, "proposals.json")), "plots/base_*"),
    "pseudo-labels": ("pseudo_labels.json",),
    "potloc": (
        *(f"potloc/{name}" for name in (*_OF_STAGE, "quality.json")),
        *("plots/potloc_*", "plots/quality.png", "round_*/*.*", "round_*/tensorboard/*"),
    ),
    "detect": (
        *("*/detections.json", "*/evaluation.json", "potloc/quality.json"),
        *("plots/train_*", "plots/test_*", "plots/quality.png", "report.html"),
    ),
}


def list_dataset(config: Config) -> Listing | Dataset:
    """List the data set of a configuration, or make it where it is on no disk.

    Raises:
        InputError: the annotations can't be used.
    """
    data = config.data
    if isinstance(data, SyntheticData):
        return load_synthetic(
            recordings=data.recordings, classes=data.classes, length=data.length, width=data.width, seed=config.seed
        )
    return read_listing(data)


def settle_windows(config: Config) -> tuple[Config, list[str]]:
    """Set the keys of `data.windows` that are not set where a data set is of raw signals, see `choose_windows`.

    Raises:
        InputError: the annotations or the samples can't be used.
    """
    if isinstance(config.data, SyntheticData) or config.data.windows.resolved:
        return config, []
    data, reasons = choose_windows(config.data, read_listing(config.data))
    return config.model_copy(update={"data": data}), reasons


def load_dataset(config: Config) -> Dataset:
    """Read and check the data set of a configuration.

    Raises:
        InputError: something in it can't be used.
    """
    config, _ = settle_windows(config)
    data, found = config.data, list_dataset(config)
    dataset = found.open() if isinstance(found, Listing) else found
    if data.points != "file":
        dataset = draw_points(dataset, data.points, seed=config.seed)
    return thin_points(dataset, data.kept_points, seed=config.seed)


def train(
    config: Config | str | Path, run_dir: str | Path, steps: Sequence[Step] | None = None, resume: bool = False
) -> Run:
    """Run the main job, or some steps of it, into a folder.

    - "base" trains the base model on points and writes its proposals for the training recordings
      (base/proposals.json);
    - "pseudo-labels" turns proposals into pseudo_labels.json (Algorithm 1), or draws them from points and features
      alone (`align`);
    - "potloc" trains the POTLoc model on them, or on what `supervision` names instead; of several `rounds` each but the
      last writes proposals and pseudo-labels for the next (round_1/ and so on);
    - "detect" detects with both models in the subset `evaluate.subset` and writes what each scores
      (base/evaluation.json, potloc/evaluation.json); it is left out where all recordings are there to train on.

    A step reads what earlier ones wrote, so that any can be run alone, also from files put there by hand.

    Of several processes that torchrun started each trains on a share of every batch and detects in a share of the
    recordings; the first one writes, to a folder that all of them see.

    Args:
        config: a configuration, or what `load_config` takes.
        run_dir: the folder to write to. What an earlier run left of what the steps write is removed first, unless this
            one is resumed.
        steps: which steps to run, always in the order above; by default all, but "base" where nothing reads what it
            writes.
        resume: go on with a run that was interrupted: models that were trained are kept, and one that was being trained
            goes on after its last whole epoch. On the CPU, with as many processes and threads, the outcome is that of a
            run without a break.

    Returns:
        The run.

    Raises:
        InputError: the data, the configuration or a file of an earlier step can't be used, another training writes to
            the folder, or what is to be resumed was trained with something else. Data, and that the files are there,
            are checked before anything is written.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    if steps is None:
        steps = [step for step in STEPS if step != "base" or config.uses_base]
    for step in steps:
        if step not in STEPS:
            raise InputError(f"{step}: expected steps among {', '.join(STEPS)}")
    config, chosen = settle_windows(config)
    dataset = load_dataset(config)
    for fault in training_faults(dataset, config.evaluate.subset if "detect" in steps else None):
        raise InputError(fault.message)
    recordings = dataset.subset("train")
    config, reasons = derive(config, recordings)
    notes = [*dataset.notes, *chosen, *reasons]
    if "detect" in steps and dataset.only_trains and config.evaluate.subset != "train":
        steps = [step for step in steps if step != "detect"]
        notes.append(f"{dataset.name}: all recordings are there to train on, so that nothing is detected in")
    trained = [s for s in STAGES if s in steps and (Path(run_dir) / s / "model.safetensors").is_file()]
    if trained and not resume:
        notes.append(f"{run_dir}: models of an earlier run are replaced: {', '.join(trained)}")
    tested = dataset.subset(config.evaluate.subset) if "detect" in steps else ()
    _check_earlier_steps(Path(run_dir), steps, config)
    device = pick_device(config.engine)
    with ExitStack() as stack:
        stack.enter_context(joined(device))
        if config.engine.cuda_graph == "on":
            for stage in [stage for stage in STAGES if stage in steps]:
                section = config.base if stage == "base" else config
                if obstacle := capture_obstacle(device, section.loss, section.train):
                    raise InputError(f"engine.cuda_graph: expected {stage} steps that can be captured, but {obstacle}")
        once(stack.enter_context, locked(run_dir))
        if resume:
            _check_same_config(Path(run_dir), config)
        else:
            once(_remove_earlier, Path(run_dir), steps)
        if rank() == 0:
            for note in notes:
                print(note, file=sys.stderr)
        run = Run.create(run_dir, config, dataset)
        with float32_products(config.engine.precision):
            if not resume and rank() == 0:
                took = training_sec(run, recordings, steps, device)
                if took >= WORTH_SAYING:
                    print(f"training will take about {duration(took)} here: a few steps were timed", file=sys.stderr)
            _run_steps(run, dataset, recordings, tested, steps, resume, device)
        return run


def _remove_earlier(folder: Path, steps: Sequence[Step]) -> None:
    """Remove what an earlier run left of what these steps write: it must not be taken for what they wrote."""
    with writing(folder, "a folder to write to"):
        for path in (path for step in steps for pattern in _WRITTEN[step] for path in folder.glob(pattern)):
            path.unlink(missing_ok=True)


def _run_steps(
    run: Run,
    dataset: Dataset,
    recordings: Sequence[Recording],
    tested: Sequence[Recording],
    steps: Sequence[Step],
    resume: bool,
    device: torch.device,
) -> None:
    config = run.config
    if "base" in steps:
        data = TrainingSet(recordings, dataset.classes, **_crops(config.base.train))
        _train_stage(run, "base", dataset, data, resume, device)
        once(write_detections, run.folder / "base" / "proposals.json", _detect(run, "base", recordings, device))
    if "pseudo-labels" in steps:
        labels = run.folder / "pseudo_labels.json"
        if config.pseudo_labels.variant != "aligned":
            once(_write_pseudo_labels, run, "base", recordings, labels)
        elif not (resume and labels.is_file()):
            once(_write_aligned, run, dataset, recordings, device)
    if "potloc" in steps:
        labels = run.folder / "pseudo_labels.json"
        for stage in run.rounds:
            data = TrainingSet(
                recordings, dataset.classes, **_crops(config.train), labels=supervision_of(run, recordings, labels)
            )
            _train_stage(run, stage, dataset, data, resume, device)
            if stage != "potloc":
                labels = run.folder / stage / "pseudo_labels.json"
                once(write_detections, run.folder / stage / "proposals.json", _propose(run, stage, recordings, device))
                once(_write_pseudo_labels, run, stage, recordings, labels)
    if "detect" in steps:
        for stage in STAGES:
            if (run.folder / stage / "model.safetensors").is_file():
                detections = _detect(run, stage, tested, device)
                once(write_detections, run.folder / stage / "detections.json", detections)
                if any(recording.instances for recording in tested):
                    once(_write_evaluation, run, stage)
                else:  # what was scored before a resumption is not of these detections
                    once((run.folder / stage / "evaluation.json").unlink, True)
    if {"potloc", "detect"} & set(steps) and run.weights("potloc").is_file():
        known = assess(run, recordings, _held_out(dataset, config.evaluate.subset), device)
        once(write_json, run.folder / "potloc" / "quality.json", known.model_dump(mode="json"))


def _held_out(dataset: Dataset, subset: str) -> tuple[Recording, ...]:
    """Recordings that were not trained on, with points, where nobody knows more of the subset that is tested."""
    tested = [recording for recording in dataset.recordings if recording.subset == subset != "train"]
    known = any(recording.instances for recording in tested)
    return () if known else tuple(recording for recording in tested if recording.points)


def evaluate_run(run: Run, stage: Stage) -> Evaluation:
    """Score the detections of a stage as the run's configuration says."""
    rules = run.config.evaluate
    truth = read_ground_truth(run.folder / "ground_truth.json", rules.subset)
    # Those that the subset lacks are known, too: a model that detects nothing else scores 0.
    truth = replace(truth, labels=tuple(dict.fromkeys((*truth.labels, *run.classes))))
    return evaluate(run.folder / stage / "detections.json", truth, tiou=rules.tiou, protocol=rules.protocol)


def _write_evaluation(run: Run, stage: Stage) -> None:
    scored = evaluate_run(run, stage)
    write_json(run.folder / stage / "evaluation.json", scored.to_json())
    scores = {
        "mAP/mean": scored.mean,
        **{f"mAP/{tiou:g}": own for tiou, own in zip(scored.tiou, scored.map, strict=True)},
    }
    log_scores(run.folder / stage, dict(leaves(run.config.model_dump(mode="json"))), scores)


def _write_pseudo_labels(run: Run, stage: Stage, recordings: Sequence[Recording], path: Path) -> None:
    """Run Algorithm 1 on the proposals of a stage."""
    proposals = read_detections(run.folder / stage / "proposals.json")
    options = run.config.pseudo_labels.model_dump()
    if options["variant"] == "aligned":
        options["variant"] = "fused"
    labels = generate(proposals, collect_points(recordings, run.classes), **options)
    for note in labels.notes:
        print(note, file=sys.stderr)
    write_json(path, labels.to_results())


def _write_aligned(run: Run, dataset: Dataset, recordings: Sequence[Recording], device: torch.device) -> None:
    points = collect_points(recordings, run.classes)
    labels = align(dataset, points, seed=run.config.seed, device=device)
    for note in labels.notes:
        print(note)
    write_json(run.folder / "pseudo_labels.json", labels.to_results())


def supervision_of(run: Run, recordings: Sequence[Recording], pseudo_labels: Path) -> LabelledSegments | None:
    """What the POTLoc model learns from, by recording; None for the points themselves.

    True instances and proposals have no point of their own: their centres stand for it where labels are sampled.
    """
    supervision = run.config.supervision
    if supervision == "points":
        return None
    if supervision == "ground-truth":
        return {
            recording.id: [
                (item.label, (item.start_sec + item.end_sec) / 2, item.start_sec, item.end_sec)
                for item in recording.instances
            ]
            for recording in recordings
        }
    if supervision == "proposals":
        segments = read_detections(run.folder / "base" / "proposals.json")
        point_sec = (segments.start_sec + segments.end_sec) / 2
    else:
        labels = read_pseudo_labels(pseudo_labels)
        segments, point_sec = labels.segments, labels.point_sec
    grouped: dict[str, list[tuple[str, float, float, float]]] = {video: [] for video in segments.videos}
    columns = zip(segments.video, segments.label, point_sec, segments.start_sec, segments.end_sec, strict=True)
    for video, label, point, start, end in columns:
        grouped[segments.videos[video]].append((segments.labels[label], float(point), float(start), float(end)))
    return grouped


def _check_earlier_steps(folder: Path, steps: Sequence[Step], config: Config) -> None:
    """Refuse steps that need what neither an earlier run nor another of them writes."""
    needs = {"pseudo-labels": ("base", "base/proposals.json")} if config.uses_base else {}
    if config.supervision == "pseudo-labels":
        needs["potloc"] = ("pseudo-labels", "pseudo_labels.json")
    elif config.supervision == "proposals":
        needs["potloc"] = ("base", "base/proposals.json")
    for step, (earlier, name) in needs.items():
        if step in steps and earlier not in steps and not (folder / name).is_file():
            raise InputError(f"{folder / name}: expected what the step {earlier} writes, found none: run that step too")
    if "detect" in steps and not any(s in steps or (folder / s / "model.safetensors").is_file() for s in STAGES):
        raise InputError(
            f"{folder}: expected a trained model to detect with, found none: run the step base or potloc too"
        )


def _crops(config: TrainConfig) -> dict[str, Any]:
    return {"length": config.length, "sampling": config.sampling}


def _check_same_config(folder: Path, config: Config) -> None:
    path = folder / "config.yaml"
    # What a run goes on with may be computed elsewhere.
    if path.is_file() and load_config(path).model_copy(update={"engine": config.engine}) != config:
        raise InputError(f"{path}: expected the configuration that is to be resumed, got another: begin a new run")


def _train_stage(
    run: Run, stage: Stage, dataset: Dataset, data: TrainingSet, resume: bool, device: torch.device
) -> None:
    digest, checkpoint = _digest(run, stage, data), run.folder / stage / "checkpoint.pt"
    if resume and run.weights(stage).is_file():
        if run.digest(stage) != digest:
            raise InputError(
                f"{run.weights(stage)}: expected weights of the training that is to be resumed, got those of another "
                "configuration or other labels: begin a new run"
            )
        once(checkpoint.unlink, True)
        return
    model = run.build(stage)
    if run.config.data.standardize:
        mean, std = dataset.feature_stats("train")
        model.standardize.fit(torch.from_numpy(mean), torch.from_numpy(std))
    section, engine = run.section(stage), run.config.engine
    kept = resident(data, run.config.data.resident, device, HALF.get(engine.precision, torch.float32))
    model = fit(
        model.to(device),
        data,
        len(run.classes),
        section.loss,
        section.train,
        seed=run.config.seed,
        folder=run.folder / stage,
        stage=stage,
        resume=resume,
        engine=engine,
        kept=kept,
        digest=digest,
    )
    once(run.save, stage, model, digest)
    once(checkpoint.unlink, True)


def _digest(run: Run, stage: Stage, data: TrainingSet) -> str:
    """A digest of what a stage's model is trained with: of the features the first snippet of each recording."""
    section, base = run.section(stage), stage == "base" or run.config.backbone == "convolutions"
    sections = (run.config.base.model if base else run.config.model, section.loss, section.train)
    facts = (stage, run.config.seed, run.config.data.standardize, run.classes, *map(repr, sections))
    digest = sha256(repr(facts).encode())
    for recording, labels in zip(data.recordings, data.labels, strict=True):
        digest.update(repr((recording.id, recording.features.shape)).encode())
        for array in (recording.features[:1], labels.points, labels.segments, labels.classes):
            digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def _detect(
    run: Run, stage: Stage, recordings: Sequence[Recording], device: torch.device, rules: DetectConfig | None = None
) -> Segments:
    section, model = run.section(stage), run.load(stage).to(device)
    rules = rules or section.detect
    return detect(model, recordings, run.classes, rules, section.loss.topk_ratio, run.config.engine.precision)


def _propose(run: Run, stage: Stage, recordings: Sequence[Recording], device: torch.device) -> Segments:
    """What the labels of the next round are made from: a boundary head's proposals, and with them those of thresholds.

    The two err differently, and each proposal is a measurement of its own, so that NMS does not average them.
    """
    rules = run.section(stage).detect
    unvoted = rules.nms.model_copy(update={"voting": None})
    found = [
        _detect(run, stage, recordings, device, rules.model_copy(update={"proposals": kind, "nms": unvoted}))
        for kind in dict.fromkeys((rules.proposals, "thresholds"))
    ]
    columns = ("video", "label", "start_sec", "end_sec", "score")
    pooled = (np.concatenate([getattr(part, column) for part in found]) for column in columns)
    return Segments(found[0].videos, found[0].labels, *pooled)
