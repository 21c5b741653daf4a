"""Builds the CUDA kernels with the host compiler, on the harness in `cuda_host.h`, and hands out their operators."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`torch.ops.potloc_fast_cuda_host`: each operator's CUDA kernels, run on the CPU."""
    folder = tmp_path_factory.mktemp("cuda_host")
    kernels = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    sources = [*kernels, *sorted((ROOT / "tests" / "cuda_host").glob("*.cpp"))]
    sources += [ROOT / "csrc" / "ops" / f"{kernel.stem}.cpp" for kernel in kernels]
    torch_folder = Path(torch.__file__).parent
    compiler = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    # As nvcc is told for kernels that decide by thresholds.
    compiler += [
        "-ffp-contract=off",
        "-DPOTLOC_CUDA",
        "-DPOTLOC_CUDA_HOST",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
    ]
    compiler += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cuda_host'}", "-isystem", str(torch_folder / "include")]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.parent.name}-{source.name}.o"
        run([*compiler, "-Werror", "-x", "c++", "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    shared = folder / "libpotloc_fast_cuda_host.so"
    run([compiler[0], "-shared", *objects, "-o", str(shared), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"])
    torch.ops.load_library(shared)
    return torch.ops.potloc_fast_cuda_host


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:5000]


@pytest.fixture
def host(library: Any) -> Iterator[Any]:
    """The library, whose tensors last as long as a test."""
    yield library
    library.release()


@pytest.fixture
def guarded(host: Any) -> Callable[[Tensor], Tensor]:
    """Copies a tensor, with its strides, to memory that ends where an inaccessible page begins."""

    def copy(tensor: Tensor) -> Tensor:
        size = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        flat = tensor.new_zeros(size if tensor.numel() else 0)
        flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)
        return host.guard(flat).as_strided(tensor.shape, tensor.stride())

    return copy
