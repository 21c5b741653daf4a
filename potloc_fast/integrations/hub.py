"""Models on the Hugging Face Hub, in the folders that `potloc-fast export` writes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from potloc_fast.detector import Detector
from potloc_fast.engine.run import Run
from potloc_fast.errors import InputError
from potloc_fast.export import export_folder


def from_pretrained(name: str | Path, *, revision: str | None = None, **options: Any) -> Detector:
    """Load a model from the Hub, or from a folder that `export` wrote.

    Args:
        name: a folder; or a repository, `owner/name`.
        revision: a branch, tag or commit of the repository.
        options: what `Detector.load` takes.

    Raises:
        InputError: there is no such model, or huggingface_hub is not installed.
    """
    if Path(name).is_dir():
        return Detector.load(name, **options)
    hub = _hub()
    try:
        folder = hub.snapshot_download(str(name), revision=revision, allow_patterns=["*.yaml", "*.json", "potloc/*"])
    except (OSError, ValueError) as error:  # whatever is wrong with a name, the network or the rights is one of these
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{name}: expected a folder or a repository of the Hub, got: {reason}") from None
    return Detector.load(folder, **options)


def push_to_hub(run: Run | str | Path, name: str, *, private: bool = True) -> str:
    """Export a run and upload it.

    Args:
        run: a run, or its folder.
        name: the repository, `owner/name`, which is made where it is missing.
        private: whether a new repository is for its owner alone.

    Returns:
        The address of the commit.

    Raises:
        InputError: the run has no trained model, or huggingface_hub is not installed.
    """
    api = _hub().HfApi()
    with tempfile.TemporaryDirectory() as folder:
        export_folder(run, Path(folder) / "model")
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=Path(folder) / "model"))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            "huggingface_hub: expected it to be installed, found none: pip install 'potloc_fast[hub]'"
        ) from None
    return huggingface_hub
