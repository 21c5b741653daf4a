"""A trained model without its run: a folder with a model card, a program of torch.export, or ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potloc_fast.config import dump_config
from potloc_fast.config.schema import FolderData
from potloc_fast.engine.run import Model, Run
from potloc_fast.errors import InputError
from potloc_fast.files import atomic, read_json, write_bytes, write_json, write_text
from potloc_fast.models import Pyramid

EXAMPLE = (2, 64)  # recordings and snippets with which a model is traced; neither number is kept


def export(run: Run | str | Path, out: str | Path) -> None:
    """Write the POTLoc model of a run for use elsewhere.

    Args:
        run: a run, or its folder.
        out: a `.pt2` file (`export_program`), an `.onnx` file (`export_onnx`), or else a folder (`export_folder`).

    Raises:
        InputError: the run has no trained model, there can't be such a file or folder, or ONNX is not installed.
    """
    {".pt2": export_program, ".onnx": export_onnx}.get(Path(out).suffix, export_folder)(run, out)


def export_folder(run: Run | str | Path, out: str | Path) -> None:
    """Write a folder that `Detector.load`, and every command that takes a run, takes without the run.

    It holds `potloc/model.safetensors`, with the statistics by which features are standardized, `config.yaml`, without
    the places of the data, `dataset.json`, with the classes and the time grid, `potloc/quality.json`, with the score
    from which lists begin, and a model card, `README.md`.
    """
    run, out = _open(run), Path(out)
    model = run.load("potloc")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected a new or empty folder, found something there")
    data = run.config.data
    if isinstance(data, FolderData):
        data = data.model_copy(update=dict.fromkeys(("root", "annotations", "features", "points_file")))
    write_text(out / "config.yaml", dump_config(run.config.model_copy(update={"data": data})))
    write_json(out / "dataset.json", read_json(run.folder / "dataset.json"))
    write_bytes(out / "potloc" / "model.safetensors", run.weights("potloc").read_bytes())
    if (quality := run.folder / "potloc" / "quality.json").is_file():
        write_json(out / "potloc" / "quality.json", read_json(quality))
    write_text(out / "README.md", model_card(run, model))


def model_card(run: Run, model: Model) -> str:
    """What a run's model is, what it was trained on, how good it is and what it can't do, in Markdown."""
    data, grid = run.config.data, run.grid
    truth, scored = run.folder / "ground_truth.json", run.folder / "potloc" / "evaluation.json"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        ("classes", ", ".join(run.classes)),
        ("input", f"features of {run.features} channels, one row a snippet"),
        ("a snippet", "as each recording says" if grid is None else f"{grid.snippet_sec:g} s"),
        ("parameters", f"{parameters:,}"),
        ("a score depends on", f"{model.reach} snippets to either side"),
    ]
    lines = [
        *("---", "library_name: potloc_fast", "tags: [temporal-action-localization, point-supervision]", "---", ""),
        *("# Temporal action localization, trained from point labels", ""),
        *("| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), ""),
        *("    import potloc_fast", "    detector = potloc_fast.Detector.load(FOLDER)", "    detector(features)", ""),
        *("## What it was trained on", ""),
        f"Recordings in the layout `{data.layout}`; supervision: {run.config.supervision}; "
        f"{run.config.train.epochs} epochs, seed {run.config.seed}.",
    ]
    if truth.is_file():
        entries = list(read_json(truth)["database"].values())
        for subset in dict.fromkeys(entry["subset"] for entry in entries):
            own = [entry for entry in entries if entry["subset"] == subset]
            count, hours = (
                sum(len(entry["annotations"]) for entry in own),
                sum(entry["duration"] for entry in own) / 3600,
            )
            lines.append(f"Subset {subset}: {len(own)} recordings of {hours:.2f} hours with {count} known instances.")
    lines += ["", "## How good it is", ""]
    if scored.is_file():
        result = read_json(scored)
        heads = [f"{tiou:g}" for tiou in result["tiou"]]
        cells = [f"{value:.1f}" for value in (*result["map"], result["mean"])]
        lines += [
            f"mAP (%) at tIoU, on the subset `{run.config.evaluate.subset}`:",
            "",
            "| " + " | ".join([*heads, "mean"]) + " |",
            "| " + " | ".join("---" for _ in cells) + " |",
            "| " + " | ".join(cells) + " |",
        ]
    else:
        lines.append("It was not scored.")
    lines += [
        *("", "## Limits", ""),
        "It knows the classes above alone, and features made as those that it was trained on. How it does on other "
        "people, devices or places than those of its data was not measured here.",
        "",
    ]
    return "\n".join(lines)


def export_program(run: Run | str | Path, out: str | Path) -> None:
    """Write a program of `torch.export`, for any number of recordings of any length over 2**levels.

    `torch.export.load(out).module()(features, mask)` gives what `Scores` says, once `potloc_fast.ops` is imported: its
    operators are in the program.
    """
    program = _program(_open(run))
    with atomic(out) as temporary:
        torch.export.save(program, temporary)


def export_onnx(run: Run | str | Path, out: str | Path) -> None:
    """Write ONNX of plain operators, with the inputs `features` and `mask` and the outputs that `Scores` names.

    Raises:
        InputError: onnx or onnxscript is not installed.
    """
    run = _open(run)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError(
            f"{out}: expected onnx and onnxscript to write it, found none: pip install 'potloc_fast[onnx]'"
        ) from None
    table = torch.export.default_decompositions()
    table[torch.ops.potloc_fast.local_attention.default] = _plain_attention
    table[torch.ops.potloc_fast.depthwise_conv.default] = _plain_convolution
    program = _program(run)
    outputs = ["logits", "valid", *(["distances"] if run.config.model.boundary_head else [])]
    made = torch.onnx.export(
        program.run_decompositions(table),
        dynamo=True,
        external_data=False,
        input_names=["features", "mask"],
        output_names=outputs,
        verbose=False,
    )
    assert made is not None  # where a path is given, that is
    with atomic(out) as temporary:
        made.save(str(temporary))


class Scores(nn.Module):
    """A model with tensors for what it returns.

    `forward` takes features `[B, T, F]` and their mask `[B, T]`, and gives logits `[B, S, C + 1]`, which of them are of
    real snippets `[B, S]` and, of a boundary head, distances `[B, S, 2]`: level after level, S the sum of
    ceil(T / 2**l).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Score snippets."""
        found = self.model(features, mask)
        return (found.logits, found.mask, *(() if found.distances is None else (found.distances,)))


def pyramid(outputs: tuple[Tensor, ...], length: int, levels: int) -> Pyramid:
    """What `Scores` gives, or a program made of it, as the model returns it.

    Args:
        outputs: the tensors.
        length: T.
        levels: number of the model's down-sampling blocks.
    """
    logits, mask, *distances = outputs
    lengths = tuple(-(-length // 2**level) for level in range(levels + 1))
    return Pyramid(logits, mask, lengths, distances[0] if distances else None)


def _open(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run.open(run)


def _program(run: Run) -> torch.export.ExportedProgram:
    model = Scores(run.load("potloc"))
    size, length = EXAMPLE
    length = max(length, 2 ** (run.config.model.levels + 2))
    example = (torch.zeros(size, length, run.features), torch.ones(size, length, dtype=torch.bool))
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(model, example, dynamic_shapes={"features": axes, "mask": axes})


def _plain_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """What `ops.local_attention` computes, without a [T, T]: a key of each offset in the band for all queries."""
    radius, length = window // 2, q.shape[2]

    def band(x: Tensor, dim: int) -> Tensor:
        """`[..., T, window, ...]`: what lies at each offset."""
        return torch.stack([x.narrow(dim, offset, length) for offset in range(window)], dim + 1)

    valid = q.new_ones(q.shape[0], length) if key_mask is None else key_mask.to(q.dtype)
    valid = band(F.pad(valid, (radius, radius)), 1).unsqueeze(1)  # [B, 1, T, window]
    keys, values = (band(F.pad(x, (0, 0, radius, radius)), 2) for x in (k, v))
    scores = (q.unsqueeze(3) * keys).sum(-1) * scale + (valid - 1) * 1e30
    weights = scores.softmax(-1) * valid
    return (weights.unsqueeze(-1) * values).sum(3), scores.logsumexp(-1)


def _plain_convolution(x: Tensor, weight: Tensor, stride: int, mask: Tensor | None) -> list[Tensor]:
    """What `ops.depthwise_conv` computes, as grouped convolutions."""
    if mask is not None:
        x = x * mask.unsqueeze(-1)
    channels = x.transpose(1, 2)
    return [
        F.conv1d(channels, kernel.t().unsqueeze(1), None, stride, 1, 1, x.shape[2]).transpose(1, 2)
        for kernel in weight.unbind()
    ]
