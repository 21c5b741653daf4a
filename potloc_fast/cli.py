"""The command line, `potloc-fast`."""

from __future__ import annotations

import faulthandler
import io
import json
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from potloc_fast.errors import InputError, quote
from potloc_fast.names import file_name, find_name, normalize
from potloc_fast.numbers import to_number

if TYPE_CHECKING:
    from potloc_fast.data import Recording
    from potloc_fast.detector import Detector
    from potloc_fast.engine.run import Run
    from potloc_fast.evaluation import Segments

CONFIG_HELP = (
    "A preset (own, hapt, hapt_boundaries, synthetic, thumos14, thumos14_released, activitynet12, activitynet13, gtea "
    "or beoid), or a YAML file."
)
OVERRIDES_HELP = "Changes to it, such as data.root=FOLDER or train.epochs=20."


class _Commands(TyperGroup):
    """The commands; a file that ends too early is not what typer takes it for, the end of what a user types."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError("a file ended before it should") from error


app = typer.Typer(
    cls=_Commands,
    help="Temporal action localization from point labels.",
    epilog="Your own recordings: check-data own data.root=FOLDER data.grid.fps=SNIPPETS_A_SECOND; train; predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
SHARED_ARCHIVE = Path("../shared/data/hapt/hapt_uci.zip")
SHOWN_DETECTIONS = 15
MOST_THRESHOLDS = 100


class Protocol(str, Enum):
    """Rules of evaluation."""

    activitynet = "activitynet"
    thumos = "thumos"


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Variant(str, Enum):
    """Variants of Algorithm 1."""

    paper = "paper"
    released = "released"
    fused = "fused"


class Form(str, Enum):
    """Formats of pictures."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


@app.command(epilog="Example: potloc-fast train hapt data.root=hapt.zip train.epochs=20 --run-dir runs/hapt")
def train(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=OVERRIDES_HELP)] = None,
    run_dir: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("runs/run"),
    steps: Annotated[
        str | None,
        typer.Option(help="Steps to run, comma-separated: base, pseudo-labels, potloc, detect.", show_default="all"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
) -> None:
    """Train both stages from point labels, detect in the test recordings, and score."""
    from potloc_fast.config import load_config

    settings = load_config(config, overrides or ())
    with _going_on("the same command with --resume goes on"):
        _run_pipeline(settings, run_dir, steps and steps.split(","), resume)


@app.command(epilog="Example: potloc-fast ablate levels hapt data.root=hapt.zip train.epochs=20 --jobs 2")
def ablate(
    study: Annotated[
        str,
        typer.Argument(
            help="supervision (Table 2 of the paper), levels (Table 3), window, radius, gamma, points, kept-points, "
            "algorithm, rounds, windows (of raw recordings) or extensions."
        ),
    ],
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=OVERRIDES_HELP)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm, with the seeds 0, 1 and so on.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Processes to spread the runs over.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("runs/ablation"),
) -> None:
    """Train the variants of a study with several seeds: a CSV, a table and a plot. A call that broke off goes on."""
    from potloc_fast.config import load_config
    from potloc_fast.engine.ablate import ablate, to_table
    from potloc_fast.plots import plot_ablation

    outcomes = ablate(study, load_config(config, overrides or ()), out, range(seeds), jobs)
    with _picture(out / f"{study}.png") as path:
        plot_ablation(outcomes, path)
    console.print(to_table(outcomes))
    print(f"everything is in {out}: {study}.csv, {study}.md, {study}.png")


@app.command("import-released", epilog="Example: potloc-fast import-released runs/released --main epoch_045.pth.tar")
def import_released(
    run_dir: Annotated[Path, typer.Argument(help="The folder to write to.")],
    main: Annotated[Path | None, typer.Option(help="Checkpoint of the main model (.pth.tar).")] = None,
    base: Annotated[Path | None, typer.Option(help="Checkpoint of the base model (.pkl).")] = None,
    config: Annotated[str, typer.Option(help="A preset or file that says how to detect.")] = "thumos14_released",
    classes: Annotated[
        Path | None,
        typer.Option(help="Names of the classes, one a line, in the order of the outputs.", show_default="THUMOS'14"),
    ] = None,
) -> None:
    """Make a run folder from checkpoints of the authors' code, to predict with."""
    from potloc_fast.interop import THUMOS14_CLASSES, import_released, read_classes

    names = THUMOS14_CLASSES if classes is None else read_classes(classes)
    run = import_released(run_dir, base=base, main=main, config=config, classes=names)
    print(f"try: potloc-fast predict {run.folder} FEATURES.npy")


@app.command(epilog="Example: potloc-fast predict runs/hapt recording.npy -o detections.json")
def predict(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Features, a file (.npy, .npz, .pt, .csv, .pkl) a recording or HDF5: rows are snippets. With --into "
            "also folders, patterns in quotes, and - for a list on standard input.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="JSON or CSV to write, or a file for an annotation tool (.boris, .eaf, .TextGrid, .txt for Audacity; "
            "see docs/annotations.md); a picture of each recording goes beside it.",
        ),
    ] = Path("detections.json"),
    min_score: Annotated[
        float | None,
        typer.Option(
            help="Leave out detections that score less; 0 keeps all. By default training chose it for tables and all "
            "files but JSON, which holds all.",
            show_default=False,
        ),
    ] = None,
    snippet_sec: Annotated[
        float | None, typer.Option(help="Seconds that a snippet lasts, if not as in training.", show_default=False)
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="A folder for a result a recording, written as each is done.", show_default=False),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="With --into: what results are, json, jsonl, csv or parquet.")
    ] = "json",
    shard: Annotated[
        str | None, typer.Option(help="With --into: a share of the recordings, such as 3/16.", show_default=False)
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="With --into: draw each recording.")] = False,
    watch: Annotated[
        Path | None,
        typer.Option(help="With --into: detect in what appears in this folder, until Ctrl-C.", show_default=False),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Where to compute; by default as in training.")] = None,
    trusted: Annotated[
        bool,
        typer.Option("--trusted", help="Load pickled features, which can run any code: only from those you trust."),
    ] = False,
) -> None:
    """Detect actions in recordings: tables, a file (JSON, CSV or an annotation tool's), and pictures.

    With --into: in an archive, by as many processes as are started, going on where an earlier call stopped. The exit
    status is 1 where recordings could not be read.
    """
    from potloc_fast.detector import Detector
    from potloc_fast.engine.distributed import joined, rank
    from potloc_fast.engine.predict import read_recordings
    from potloc_fast.engine.quality import listed_from
    from potloc_fast.engine.run import Run
    from potloc_fast.evaluation import write_detections
    from potloc_fast.files import replaceable
    from potloc_fast.formats import format_for
    from potloc_fast.plots import draw

    if min_score is not None and math.isnan(min_score):
        raise InputError("--min-score: expected a number, got nan")
    where: Any = None if device is None else device.value
    if into is None:
        for name, value in (("--shard", shard), ("--plots", plots or None), ("--watch", watch)):
            if value is not None:
                raise InputError(f"{name}: expected the folder of results too, --into, found none")
    if not files and watch is None:
        raise InputError("predict: expected recordings to detect in, found none")
    run = Run.open(run_dir)
    detector = Detector.load(run, device=where, snippet_sec=snippet_sec)
    if into is not None:
        least = listed_from(run, min_score, form)
        _detect_in_archive(detector, files or [], into, form, shard, plots, watch, least, trusted)
        return
    with joined(detector.device):
        recordings = read_recordings(detector, files or [], trusted)
        found = detector.segments(recordings, alone=False)
    if rank() > 0:
        return
    shown = found.scored(listed_from(run, min_score))
    detections = found.scored(listed_from(run, min_score, format_for(output) or "json"))
    written = write_detections(output, detections)
    for index, recording in enumerate(recordings):
        console.print(_detection_table(shown, index))
        if replaceable(output):  # beside a pipe or a device no picture is wanted
            with _picture(output.with_name(f"{output.stem}_{file_name(recording.id)}.png")) as picture:
                draw(detector, recording, detections, picture)
                print(f"picture: {picture}")
    print(f"{len(detections)} detections: {written}")
    if len(shown) < len(found):
        print(f"{len(found) - len(shown)} with lower scores are left out of lists; --min-score 0 shows all")


@app.command(
    epilog='Example: potloc-fast convert events.csv points.TextGrid --columns label=behavior,start="Start (s)"'
)
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file, or a folder of files.")],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The file to write; a folder, where the format holds one recording and there are several.",
        ),
    ],
    read_as: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The format of IN, where name and content don't tell: csv, boris, boris-export, elan, textgrid, "
            "audacity, raven, srt, label-studio, via or json (the ActivityNet form).",
            show_default=False,
        ),
    ] = None,
    write_as: Annotated[
        str | None, typer.Option("--to", help="The format of OUT, where its name doesn't tell.", show_default=False)
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="The columns of a table that have other names: recording, label, start, end, time, score.",
            show_default=False,
        ),
    ] = None,
    recording: Annotated[
        str | None,
        typer.Option(help="The recording of a file that names none; by default as the file.", show_default=False),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second, for Label Studio's videos.", show_default=False)
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out what scores less.", show_default=False)] = None,
) -> None:
    """Take annotations or detections from one tool to another: docs/annotations.md has the formats."""
    from potloc_fast.convert import convert, parse_columns
    from potloc_fast.formats import Options

    options = Options(recording, {} if columns is None else parse_columns(columns), fps)
    events, written = convert(source, target, read_as=read_as, write_as=write_as, options=options, min_score=min_score)
    for note in events.notes:
        print(f"warning: {note}", file=sys.stderr)
    count = len(events.recordings)
    print(f"{len(events)} events of {count} recording{'s' * (count != 1)}: {written}")


def _detect_in_archive(
    detector: Detector,
    inputs: Sequence[Path],
    into: Path,
    form: str,
    share: str | None,
    plots: bool,
    watched: Path | None,
    min_score: float | None,
    trusted: bool,
) -> None:
    from potloc_fast.archive import Archive, Meter, Outcome, find, shard, watch

    failures: list[str] = []

    def told(outcome: Outcome, unopened: Sequence[str] = ()) -> None:
        for reason in (*unopened, *outcome.failed.values()):
            failures.append(reason)
            print(f"left out: {reason}", file=sys.stderr)
        rate = outcome.snippets / max(outcome.seconds, 1e-9)
        print(
            f"{outcome.done} recordings done, {outcome.there} were there: {into} ({outcome.detections} detections, "
            f"{outcome.snippets} snippets in {outcome.seconds:.1f} s, {rate:.0f} a second)",
            flush=True,
        )

    given = [path for path in inputs if str(path) != "-"]
    if len(given) < len(inputs):
        given += [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()]
    items, unopened = find(detector, given, trusted, into)
    items = items if share is None else shard(items, share)
    if not items and not unopened and watched is None:
        raise InputError(f"{' '.join(map(str, inputs))}: expected recordings to detect in, found none")
    archive = Archive(detector, into, form, min_score, plots)
    with _going_on("the same command goes on"):
        if items or unopened:
            with Meter(len(items)) as meter:
                outcome = archive.detect(items, meter)
            told(outcome, list(unopened.values()))
        if watched is not None:
            watch(archive, watched, trusted, told)
    if failures:
        raise typer.Exit(1)


@app.command(epilog="Example: potloc-fast export runs/own walking; potloc-fast export runs/own walking.onnx")
def export(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run.")],
    out: Annotated[
        Path,
        typer.Argument(
            help="A folder, which predict takes as it takes a run; or a file, .pt2 (torch.export) or .onnx."
        ),
    ],
) -> None:
    """Write the trained model of a run for use elsewhere, with a model card."""
    from potloc_fast.export import export

    export(run_dir, out)
    print(f"exported: {out}")


@app.command(epilog="Example: potloc-fast evaluate detections.json gt.json --subset test --tiou 0.3:0.7:0.1 --json -")
def evaluate(
    detections: Annotated[
        Path, typer.Argument(help="Detections in the ActivityNet form, or a file of an annotation tool.")
    ],
    ground_truth: Annotated[
        Path, typer.Argument(help="Ground truth in the ActivityNet form, or a file of an annotation tool.")
    ],
    subset: Annotated[str | None, typer.Option(help="Only the videos of this subset.")] = None,
    tiou: Annotated[str, typer.Option(help="Thresholds: FIRST:LAST:STEP, or comma-separated.")] = "0.1:0.7:0.1",
    protocol: Annotated[Protocol, typer.Option(help="Rules of evaluation.")] = Protocol.activitynet,
    ambiguous: Annotated[Path | None, typer.Option(help="Ambiguous segments: lines of VIDEO START END.")] = None,
    json_output: Annotated[str | None, typer.Option("--json", help="JSON to write; - prints it alone.")] = None,
) -> None:
    """Score detections: mean average precision, for each threshold and class."""
    from potloc_fast.evaluation import evaluate
    from potloc_fast.files import write_json

    result = evaluate(
        detections,
        ground_truth,
        tiou=_thresholds(tiou),
        protocol=protocol.value,
        subset=subset,
        ambiguous=ambiguous,
    )
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if json_output == "-":
        print(json.dumps(result.to_json()))
        return
    console.print(result.table())
    if json_output is not None:
        write_json(json_output, result.to_json())


@app.command(epilog="Example: potloc-fast analyse detections.json gt.json --subset test --plot analysis.png")
def analyse(
    detections: Annotated[
        Path, typer.Argument(help="Detections in the ActivityNet form, or a file of an annotation tool.")
    ],
    ground_truth: Annotated[
        Path, typer.Argument(help="Ground truth in the ActivityNet form, or a file of an annotation tool.")
    ],
    subset: Annotated[str | None, typer.Option(help="Only the videos of this subset.")] = None,
    tiou: Annotated[float, typer.Option(help="The threshold.")] = 0.5,
    json_output: Annotated[str | None, typer.Option("--json", help="JSON to write; - prints it alone.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
) -> None:
    """Say what detections find, miss and get wrong: errors, sensitivity, recall, F1 and calibration."""
    from potloc_fast.evaluation import analyse
    from potloc_fast.files import write_json

    result = analyse(detections, ground_truth, tiou=tiou, subset=subset)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if plot is not None:
        from potloc_fast.plots import plot_analysis

        plot_analysis(result, plot)
    if json_output == "-":
        print(json.dumps(result.to_json()))
        return
    for table in result.tables():
        console.print(table)
    if json_output is not None:
        write_json(json_output, result.to_json())


@app.command(epilog="Example: potloc-fast report runs/hapt, or potloc-fast report detections.json gt.json")
def report(
    source: Annotated[Path, typer.Argument(metavar="RUN|DETECTIONS", help="The folder of a run, or detections.")],
    ground_truth: Annotated[
        Path | None, typer.Argument(help="With detections: ground truth in the ActivityNet form.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML to write; by default report.html, in the folder of the run."),
    ] = None,
    subset: Annotated[str | None, typer.Option(help="With detections: only the videos of this subset.")] = None,
) -> None:
    """Write a report as one HTML file: scores, charts, and the recordings to look at and to mend labels in."""
    from potloc_fast.report import of_files, of_run, write_report
    from potloc_fast.report.page import check_packages

    check_packages()
    if ground_truth is not None:
        found, folder = of_files(source, ground_truth, subset), Path()
    elif source.is_file():
        raise InputError(f"{source}: expected the folder of a run, or detections and their ground truth, got one file")
    else:
        from potloc_fast.engine.run import Run

        if subset is not None:
            raise InputError(f"--subset: expected with detections alone: {source} says itself what was tested")
        found, folder = of_run(Run.open(source)), source
    for note in found.notes:
        print(f"warning: {note}", file=sys.stderr)
    output = folder / "report.html" if output is None else output
    write_report(output, found)
    print(f"report: {output}")


@app.command(epilog="Example: potloc-fast suggest runs/mine --count 3 -o clicks.csv")
def suggest(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run.")],
    count: Annotated[int, typer.Option(min=1, help="How many recordings.")] = 5,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("suggested.csv"),
    device: Annotated[Device | None, typer.Option(help="Where to compute; by default as in training.")] = None,
) -> None:
    """Say which recordings without points to label next, and where to look: a table of points to fill in.

    It holds the points that there are and, below them, a row for each action that the model sees in the suggested
    recordings, its label left open. Write labels down, remove what is no action, add what is missing, and train with
    data.points_file=suggested.csv.
    """
    from potloc_fast.engine.run import Run
    from potloc_fast.engine.train import load_dataset
    from potloc_fast.suggest import suggest, write_suggestions

    run = Run.open(run_dir)
    recordings = load_dataset(run.config).recordings
    found = suggest(run, recordings, device=None if device is None else device.value)[:count]
    write_suggestions(output, recordings, found)
    table = Table("recording", "actions seen", "doubt", title="To label next")
    for each in found:
        table.add_row(escape(each.recording), str(len(each.actions)), f"{each.doubt:.1f}")
    console.print(table)
    rows = sum(len(each.actions) for each in found)
    print(f"{rows} rows to fill in: {output}; then train with data.points_file={output}")


@app.command(epilog="Example: potloc-fast plot runs/hapt exp01_user01 exp02_user01 --format svg")
def plot(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run.")],
    recordings: Annotated[
        list[str] | None, typer.Argument(help="Names of recordings; by default all that were tested.")
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="What to draw as.")] = Form.png,
) -> None:
    """Draw recordings with scores, truth, points, pseudo-labels and detections, into the folder plots of the run."""
    from potloc_fast.engine.run import Run
    from potloc_fast.engine.train import load_dataset

    run = Run.open(run_dir)
    dataset = load_dataset(run.config)
    known = {recording.id: recording for recording in dataset.recordings}
    chosen = [find_name(normalize(name), known) for name in recordings or ()]
    for name, found in zip(recordings or (), chosen, strict=True):
        if found is None:
            raise InputError(f"{quote(name)}: expected a recording of {dataset.name} such as {min(known)}, found none")
    shown = [known[name] for name in dict.fromkeys(chosen) if name]
    subset = "train" if dataset.only_trains else run.config.evaluate.subset
    _plot_recordings(run, shown or dataset.subset(subset), form.value)


@app.command(
    "pseudo-labels", epilog="Example: potloc-fast pseudo-labels proposals.json points.csv --fps fps.json -o labels.json"
)
def pseudo_labels(
    proposals: Annotated[Path, typer.Argument(help="Proposals in the ActivityNet form, seconds.")],
    points: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns class, video_id and point (native frames), or an annotation tool's file."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON to write.")],
    fps: Annotated[
        Path | None, typer.Option(help="JSON with the frame rate of each video, which a CSV needs.", show_default=False)
    ] = None,
    variant: Annotated[Variant, typer.Option(help="Variant of Algorithm 1.")] = Variant.paper,
) -> None:
    """Turn proposals and points into pseudo-labels (Algorithm 1)."""
    from potloc_fast.evaluation import read_detections
    from potloc_fast.files import write_json
    from potloc_fast.pseudo_labels import generate, read_points

    found = read_points(points, fps)
    labels = generate(read_detections(proposals), found, variant.value)
    for note in labels.notes:
        print(f"warning: {note}", file=sys.stderr)
    write_json(output, labels.to_results())
    print(f"{len(labels)} pseudo-labels for {len(found)} points: {output}")


@app.command("init", epilog="Example: potloc-fast init my_data && potloc-fast check-data my_data/config.yaml")
def init_folder(
    folder: Annotated[Path, typer.Argument(help="A folder with recordings: signals/ or features/, and tables.")],
) -> None:
    """Look at a folder of recordings, say what it holds, and write config.yaml and recordings.csv into it."""
    from potloc_fast.data.init import init

    plan = init(folder)
    for sentence in plan.said:
        print(sentence)
    print(plan.config, end="")
    written = [folder / "config.yaml", *([folder / "recordings.csv"] if plan.recordings is not None else [])]
    print(f"written: {', '.join(map(str, written))}")
    print(f"next: potloc-fast check-data {folder / 'config.yaml'}")


@app.command("check-data", epilog="Example: potloc-fast check-data thumos14 data.root=thumos14")
def check_data(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=OVERRIDES_HELP)] = None,
    json_output: Annotated[str | None, typer.Option("--json", help="JSON to write; - prints it alone.")] = None,
) -> None:
    """Read a data set whole: what training would stumble over, what looks odd, and what is in it.

    The exit status is 1 where training would fail.
    """
    from potloc_fast.config import load_config
    from potloc_fast.data.check import check
    from potloc_fast.engine.train import list_dataset, settle_windows
    from potloc_fast.files import write_json

    settings, chosen = settle_windows(load_config(config, overrides or ()))
    report = check(list_dataset(settings), settings, chosen)
    if json_output == "-":
        print(json.dumps(report.to_json(), allow_nan=False))
    else:
        console.print(report.render(), soft_wrap=True)
        if json_output is not None:
            write_json(json_output, report.to_json())
    if report.faults:
        raise typer.Exit(1)


@app.command(epilog="Example: potloc-fast demo --data hapt.zip --run-dir runs/hapt")
def demo(
    data: Annotated[str | None, typer.Option(help="The HAPT archive or its folder, or 'synthetic'.")] = None,
    run_dir: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("runs/demo"),
) -> None:
    """Run the main job on real recordings of daily activities (HAPT), from points to mAP.

    Without --data the archive is taken from ../shared/data where it lies there, else it is downloaded.
    """
    from potloc_fast.config import load_config
    from potloc_fast.data.download import fetch_hapt

    if data == "synthetic":
        config = load_config("synthetic")
    else:
        if data:
            root = Path(data)
        else:
            root = SHARED_ARCHIVE if SHARED_ARCHIVE.is_file() else fetch_hapt(Path.home() / ".cache" / "potloc_fast")
        config = load_config("own", ["data.layout=hapt", f"data.root={root}", "data.points=gaussian"])
    with _going_on(f"potloc-fast train {run_dir / 'config.yaml'} --run-dir {run_dir} --resume goes on"):
        run = _run_pipeline(config, run_dir)
        _write_example(run)
        with _picture(run.folder / "report.html") as path:
            from potloc_fast.report import of_run, write_report

            write_report(path, of_run(run))
            print(f"report: {path}")


@app.command(epilog="Example: potloc-fast info --json")
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False) -> None:
    """Say what was built, for what, and what is usable here."""
    import torch

    import potloc_fast
    from potloc_fast.engine.device import unusable
    from potloc_fast.ops._library import _C

    facts: dict[str, Any] = {
        "version": potloc_fast.__version__,
        "torch": torch.__version__,
        "cuda": {
            "compiled": bool(_C.cuda_architectures),
            "archs": _C.cuda_architectures.split(),
            "usable": unusable(0) is None,
            "reason": unusable(0) if _C.cuda_architectures else f"no kernels: {_C.without_cuda}",
        },
        "cpu": {"capability": _C.cpu_capability(), "threads": torch.get_num_threads(), "compiler": _C.compiler},
    }
    if as_json:
        print(json.dumps(facts))
        return
    table = Table("what", "found", title="potloc_fast")
    for key, value in facts.items():
        for name, entry in value.items() if isinstance(value, dict) else [("", value)]:
            table.add_row(f"{key} {name}".strip(), str(entry))
    console.print(table)


@contextmanager
def _going_on(how: str) -> Iterator[None]:
    """Say how to go on after Ctrl-C, and after a scheduler's SIGTERM, which is taken for it."""
    from potloc_fast.engine.distributed import leave, rank  # and torch: a signal amid its import can raise anything

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if rank() == 0:
            print(f"\ninterrupted: {how}", file=sys.stderr)
        status = 128 + (interrupt.args or (signal.SIGINT,))[0]
        leave(status)
        raise typer.Exit(status) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _picture(path: Path) -> Iterator[Path]:
    """Draw to a path: no picture is worth the work that it shows, and one that fails is a warning."""
    try:
        yield path
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"warning: {path}: a picture was left out: {reason}", file=sys.stderr)


def _run_pipeline(config: Any, run_dir: Path, steps: Sequence[str] | None = None, resume: bool = False) -> Run:
    """Train, then print the tables and draw the pictures of the run."""
    from potloc_fast.engine.distributed import rank
    from potloc_fast.engine.train import evaluate_run, load_dataset, train
    from potloc_fast.plots import plot_losses

    run = train(config, run_dir, steps, resume)  # type: ignore[arg-type]  # checked there
    found = run.folder / "potloc" / "detections.json"
    # Without the step, what is there may be of an earlier training.
    detected = (steps is None or "detect" in steps) and found.is_file()
    if detected:
        with _picture(run.folder / "plots"):
            dataset = load_dataset(config)
            subsets = dict.fromkeys(("train", config.evaluate.subset))
            _plot_recordings(run, [dataset.subset(name)[0] for name in subsets])
    if rank() > 0:
        return run
    table = Table("model", *(f"{t:g}" for t in config.evaluate.tiou), "mean", title="mAP (%) at tIoU")
    for stage, title in (("base", "base model"), ("potloc", "POTLoc")):
        if (run.folder / stage / "metrics.jsonl").is_file():
            with _picture(run.folder / "plots" / f"{stage}_losses.png") as picture:
                plot_losses(run.folder / stage / "metrics.jsonl", picture)
        if detected and (run.folder / stage / "evaluation.json").is_file():
            result = evaluate_run(run, stage)
            table.add_row(title, *(f"{value:.1f}" for value in result.map), f"{result.mean:.1f}")
            if stage == "potloc":
                console.print(result.table())
    if table.row_count:
        console.print(table)
    _print_quality(run, steps)
    if detected:
        print(f"detections: {found}" if table.row_count else f"detections, with no ground truth to score them: {found}")
    print(f"everything is in {run.folder}")
    return run


def _print_quality(run: Run, steps: Sequence[str] | None) -> None:
    """Say what points tell of the run, where these steps found it out, and draw it."""
    from potloc_fast.engine.quality import read_quality
    from potloc_fast.plots import plot_quality

    known = read_quality(run) if steps is None or {"potloc", "detect"} & set(steps) else None
    if known is not None:
        with _picture(run.folder / "plots" / "quality.png") as picture:
            plot_quality(known, picture)
        print(*known.sentences(), sep="\n")


def _plot_recordings(run: Run, recordings: Sequence[Recording], form: str = "png") -> None:
    """Figure 2 for each of these recordings."""
    from potloc_fast.detector import Detector
    from potloc_fast.engine.distributed import rank
    from potloc_fast.plots import draw
    from potloc_fast.pseudo_labels import read_pseudo_labels

    detector = Detector.load(run)
    detections = detector.segments(recordings, alone=False)
    if rank() > 0:
        return
    path = run.pseudo_labels
    labels = read_pseudo_labels(path).segments if path.is_file() else None
    for recording in recordings:
        with _picture(run.folder / "plots" / f"{recording.subset}_{file_name(recording.id)}.{form}") as picture:
            draw(detector, recording, detections, picture, labels)
            print(f"picture: {picture}")


def _write_example(run: Run) -> None:
    """Keep the features of one recording that training never saw, to try `predict` on."""
    import numpy as np

    from potloc_fast.engine.train import load_dataset
    from potloc_fast.files import atomic

    recording = load_dataset(run.config).subset(run.config.evaluate.subset)[0]
    path = run.folder / "example" / f"{file_name(recording.id)}.npy"
    with atomic(path) as temporary:
        np.save(temporary, np.asarray(recording.features))
    print(f"try: potloc-fast predict {run.folder} {path}")


def _detection_table(detections: Segments, video: int) -> Table:
    rows = (detections.video == video).nonzero()[0]
    rows = rows[detections.score[rows].argsort(kind="stable")[::-1]]
    name = escape(detections.videos[video])
    title = f"{name}: {min(len(rows), SHOWN_DETECTIONS)} best of {len(rows)} detections"
    table = Table("class", "start (s)", "end (s)", "score", title=title)
    for i in rows[:SHOWN_DETECTIONS]:
        table.add_row(
            escape(detections.labels[detections.label[i]]),
            f"{detections.start_sec[i]:.2f}",
            f"{detections.end_sec[i]:.2f}",
            f"{detections.score[i]:.3f}",
        )
    return table


def _thresholds(text: str) -> list[float]:
    """Parse FIRST:LAST:STEP (LAST included) or a comma-separated list."""
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            count = int((last - first) / step + 1e-9) + 1
            # Rounded, so that 0.1 + 2 * 0.1 is the 0.3 that was meant.
            values = [round(first + i * step, 10) for i in range(count if count <= MOST_THRESHOLDS else 0)]
        else:
            values = [to_number(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        values = []
    if not values or not all(0 <= value <= 1 for value in values) or len(set(values)) < len(values):
        raise InputError(
            f"--tiou: expected FIRST:LAST:STEP or a list such as 0.3,0.5, of at most {MOST_THRESHOLDS} within 0 to 1, "
            f"each once, got {quote(text)}"
        )
    return values


def main() -> None:
    """Run the command line; what the user can mend is answered in one sentence, with exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack letters of a name
    if sys.stderr is not None and not faulthandler.is_enabled():
        faulthandler.enable()  # a file that is cut while it is mapped ends the process: not without a word
    status: Any = 0
    try:
        if "" in sys.argv[1:]:  # as of a variable of the shell that is not set; as a path, it would be this folder
            raise InputError(f"argument {sys.argv[1:].index('') + 1}: expected text, got none")
        app(prog_name="potloc-fast")
    except SystemExit as end:
        status = end.code
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        status = _refuse(f"{place}expected a file that can be used, got: {error.strerror or error}")
    except InputError as error:
        status = _refuse(str(error))
    if distributed := sys.modules.get("potloc_fast.engine.distributed"):
        distributed.leave(status or 0)
    sys.exit(status)


def _refuse(sentence: str) -> int:
    print(f"potloc-fast: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
