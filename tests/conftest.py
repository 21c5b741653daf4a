"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from potloc_fast.ops._library import _C


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real recordings and annotations that lies beside the repository, where there is one."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the data folder ../shared/data is not beside the repository")
    return path


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """A GPU; tests that take it skip where there is none, or fail if POTLOC_FAST_REQUIRE_CUDA=1."""
    if _C.cuda_architectures and torch.cuda.is_available():
        return torch.device("cuda")
    reason = "no GPU here" if _C.cuda_architectures else "built without CUDA kernels"
    if os.environ.get("POTLOC_FAST_REQUIRE_CUDA") == "1":
        pytest.fail(f"POTLOC_FAST_REQUIRE_CUDA=1: {reason}")
    pytest.skip(reason)


def pytest_configure() -> None:
    # Small tensors are slower on more threads, and sums in torch's own kernels depend on their number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Take back what a test has set."""
    yield
    torch.set_num_threads(1)
