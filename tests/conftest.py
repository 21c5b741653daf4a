"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from potloc_fast.engine.device import unusable

# For tests of benchmarks/. At the end, so that the installed package goes before the folder beside the tests.
sys.path.append(str(Path(__file__).resolve().parents[1]))


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
    reason = unusable(0)
    if reason is None:
        return torch.device("cuda")
    if os.environ.get("POTLOC_FAST_REQUIRE_CUDA") == "1":
        pytest.fail(f"POTLOC_FAST_REQUIRE_CUDA=1: {reason}")
    pytest.skip(f"no GPU to use: {reason}")


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """Chromium without a window; tests that take it skip where it is not installed."""
    chromium, chromedriver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no Chromium and chromedriver here")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1100"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(chromedriver))
    browser.set_script_timeout(60)
    yield browser
    browser.quit()


@pytest.fixture
def little_room() -> Callable[[int], AbstractContextManager[None]]:
    """A block in which files over a size are refused, as on a full disk."""

    @contextmanager
    def block(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return block


def pytest_configure() -> None:
    # Small tensors are slower on more threads, and sums in torch's own kernels depend on their number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Take back what a test has set."""
    yield
    torch.set_num_threads(1)
