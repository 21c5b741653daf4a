"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real recordings and annotations that lies beside the repository, where there is one."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the data folder ../shared/data is not beside the repository")
    return path


def pytest_configure() -> None:
    # Small tensors are slower on more threads, and sums in torch's own kernels depend on their number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Take back what a test has set."""
    yield
    torch.set_num_threads(1)
