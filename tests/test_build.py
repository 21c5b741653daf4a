"""The build: what kernels are compiled for and with, and what becomes of a build where they can't be."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pybind11
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# The repository's folder is not on the path, as the tests run against the installed package.
spec = importlib.util.spec_from_file_location("cuda_kernels", ROOT / "benchmarks" / "cuda_kernels.py")
assert spec is not None
assert spec.loader is not None
cuda_kernels: Any = importlib.util.module_from_spec(spec)
sys.modules["cuda_kernels"] = cuda_kernels
spec.loader.exec_module(cuda_kernels)

# cmake and ninja lie beside the Python that runs the tests, which need not be on PATH.
ENVIRONMENT = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}
NVCC_12_4 = "sm_75\nsm_80\nsm_86\nsm_87\nsm_89\nsm_90\n"
NVCC_13_0 = NVCC_12_4 + "sm_100\nsm_103\nsm_110\nsm_120\nsm_121\n"
CUB = {"nms.cu", "score_segments.cu"}


def architectures(asked: str, known: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "ask.cmake"
    script.write_text(
        f"cmake_minimum_required(VERSION 3.24)\ninclude({ROOT}/cmake/cuda_architectures.cmake)\n"
        f'cuda_architectures(found "{asked}" "{known}")\nmessage("found: ${{found}}")\n'
        'cuda_code_options(options "${found}")\nmessage("options: ${options}")\n'
    )
    return subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, check=False, env=ENVIRONMENT)


@pytest.mark.parametrize(
    ("asked", "known", "want", "left_out"),
    [
        ("", NVCC_13_0, "8.0;8.6;8.9;9.0;10.0;12.0+PTX", []),
        ("", NVCC_12_4, "8.0;8.6;8.9;9.0+PTX", []),
        ("All", NVCC_13_0, "8.0;8.6;8.9;9.0;10.0;12.0+PTX", []),
        ("common", NVCC_12_4, "8.0;8.6;8.9;9.0+PTX", []),
        ("7.5 8.0 8.6 9.0 10.0 12.0+PTX", NVCC_13_0, "8.0;8.6;9.0;10.0;12.0+PTX", ["7.5"]),
        ("7.0;7.5;8.0, 9.0a", NVCC_12_4, "8.0;9.0a", ["7.0", "7.5"]),
        ("Hopper", NVCC_13_0, "9.0", []),
        ("ampere;Ada+PTX", NVCC_13_0, "8.0;8.6;8.9+PTX", []),
        ("Ampere+Tegra", NVCC_13_0, "8.7", []),
        ("Turing Blackwell", NVCC_12_4, "", ["7.5", "10.0", "10.3", "12.0", "12.1"]),
        ("10.0f 9.0 9.0", NVCC_13_0, "10.0f;9.0", []),
    ],
)
def test_architectures_as_people_set_them(
    asked: str, known: str, want: str, left_out: list[str], tmp_path: Path
) -> None:
    done = architectures(asked, known, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"found: {want}\n" in done.stderr
    lines = [line for line in done.stdout.splitlines() if "left out" in line]
    assert [line.split(": ")[1].split()[0] for line in lines] == left_out


def test_what_nvcc_is_told(tmp_path: Path) -> None:
    done = architectures("8.0 9.0a 9.0a+PTX", NVCC_13_0, tmp_path)
    codes = ["80,code=sm_80", "90a,code=sm_90a", "90a,code=compute_90a"]  # each once
    assert done.stderr.splitlines()[-1] == "options: " + ";".join(f"--generate-code=arch=compute_{c}" for c in codes)


@pytest.mark.parametrize("word", ["Hoper", "sm_90", "90", "9.0+ptxx", "Auto"])
def test_another_word_stops_the_build(word: str, tmp_path: Path) -> None:
    done = architectures(f"8.0 {word}", NVCC_13_0, tmp_path)
    assert done.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST: expected versions such as" in done.stderr
    assert f"got '{word}'" in " ".join(done.stderr.split())


@pytest.fixture
def nvcc() -> str:
    found = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if found is None:
        pytest.skip("no nvcc here")
    return found


def configured(folder: Path, torch_folder: Path, archs: str, *options: str) -> tuple[str, dict[str, list[str]]]:
    """What CMake says, and the command that compiles each CUDA file."""
    done = subprocess.run(
        [
            *("cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"),
            *(f"-DPOTLOC_FAST_TORCH={torch_folder}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
            *(f"-DPython_EXECUTABLE={sys.executable}", *options),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**ENVIRONMENT, "TORCH_CUDA_ARCH_LIST": archs},
    )
    commands = json.loads((folder / "compile_commands.json").read_text())
    cuda = {Path(entry["file"]).name: entry["command"].split() for entry in commands if entry["file"].endswith(".cu")}
    return " ".join((done.stdout + done.stderr).split()), cuda


def test_a_build_that_people_use_is_not_strict(nvcc: str, tmp_path: Path) -> None:
    said, commands = configured(tmp_path, Path(torch.__file__).parent, "9.0+PTX")
    assert "CUDA kernels: yes, for 9.0+PTX" in said
    assert commands.keys() >= CUB
    for command in commands.values():
        assert not [word for word in command if "error" in word.lower() or "ptxas" in word]
    # What nvcc is told of warnings and spills is kept beside the PTX, and a driver that compiles it would obey.
    subprocess.run(commands["background_seeds.cu"], check=True, cwd=tmp_path)
    (built,) = tmp_path.rglob("background_seeds.cu.o")
    for word in (b"warn-on-spills", b"warning-as-error"):
        assert word not in built.read_bytes()


def test_a_strict_build_spares_files_with_kernels_of_others(nvcc: str, tmp_path: Path) -> None:
    # Torch's version is read alone; this one is for an older CUDA than any nvcc that compiles the kernels.
    header = tmp_path / "torch" / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.10.0'\ncuda: Optional[str] = '11.8'\n")
    said, commands = configured(tmp_path / "build", tmp_path / "torch", "8.0", "-DPOTLOC_FAST_STRICT=ON")
    assert "torch of CUDA 11.8: the kernels need a driver for CUDA" in said
    for name, command in commands.items():
        strict = {"-Werror=all-warnings", "-Xptxas=--warn-on-spills,--warning-as-error"} & set(command)
        assert len(strict) == (0 if name in CUB else 2), name
        assert ("--fmad=false" in command) == (name in CUB), name


def test_no_architecture_left_is_a_build_without_kernels(nvcc: str, tmp_path: Path) -> None:
    said, commands = configured(tmp_path, Path(torch.__file__).parent, "7.5")
    assert "CUDA kernels: no, TORCH_CUDA_ARCH_LIST='7.5' leaves no GPU" in said
    assert commands == {}


def test_a_kernel_takes_no_more_than_the_table_says(nvcc: str, tmp_path: Path) -> None:
    # One file for one GPU; `make cuda-matrix` has all.
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = version.split(", V")[1].split()[0]
    tables = cuda_kernels.load(cuda_kernels.COMMITTED)
    if version not in tables:
        pytest.skip(f"docs/cuda_kernels.csv has no nvcc {version}")
    command = [nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-arch=sm_90", "-cubin", "-Xptxas=-v"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{ROOT / 'csrc'}"]
    command += ["-isystem", str(Path(torch.__file__).parent / "include")]
    command += ["-o", str(tmp_path / "cubin"), str(ROOT / "csrc" / "cuda" / "background_seeds.cu")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    names = subprocess.run(["c++filt"], input=said, capture_output=True, text=True, check=True).stdout
    found: dict[Any, Any] = {}
    for name, stack, registers in re.findall(
        r"entry function '.*?(seeds_kernel<.*?>).*?(\d+) bytes stack frame.*?Used (\d+) registers", names, re.S
    ):
        kernel = name.replace("c10::", "")
        found["background_seeds", kernel] = {"9.0": (int(registers), int(stack))}
    assert len(found) == 4
    assert cuda_kernels.worse(found, tables[version]) == []


def test_what_takes_more_is_told(tmp_path: Path) -> None:
    known = {("nms", "a<float>"): {"8.0": (40, 0), "9.0": (64, 8)}}
    cuda_kernels.save(tmp_path / "table.csv", {"13.0.88": known})
    assert cuda_kernels.load(tmp_path / "table.csv") == {"13.0.88": known}
    assert cuda_kernels.worse({("nms", "a<float>"): {"8.0": (40, 0), "9.0": (32, 8)}}, known) == []
    assert cuda_kernels.worse({("nms", "a<float>"): {"8.0": (41, 0)}, ("nms", "b"): {"9.0": (1, 0)}}, known) == [
        "nms a<float> for 8.0: 41 registers and 0 bytes of stack, the table has 40 and 0",
        "nms b for 9.0: not in the table",
    ]
    # As NVIDIA's occupancy tables have it.
    assert cuda_kernels.blocks_at_once("9.0", registers=128, threads=256, shared=0) == 2
    assert cuda_kernels.blocks_at_once("9.0", registers=129, threads=256, shared=0) == 1
    assert cuda_kernels.blocks_at_once("8.6", registers=32, threads=128, shared=52_224) == 1
    assert cuda_kernels.blocks_at_once("8.6", registers=32, threads=128, shared=49_152) == 2


FAKE_CMAKE = """#!/bin/sh
echo "$*" >> {log}
case "$*" in *"--target cuda_kernels_if_any"*)
    echo "nvcc -Werror=all-warnings -c nms.cu"
    echo "{root}/csrc/cuda/nms.cu(7): error: no such thing"
    exit 1;;
esac
"""


@pytest.mark.parametrize(("cuda", "strict"), [("auto", "0"), ("auto", "1"), ("0", "0"), ("1", "0")])
def test_kernels_that_do_not_compile_are_left_out(cuda: str, strict: str, tmp_path: Path) -> None:
    log, fake = tmp_path / "log", tmp_path / "bin" / "cmake"
    fake.parent.mkdir()
    fake.write_text(FAKE_CMAKE.format(log=log, root=ROOT))
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    environment |= {"POTLOC_FAST_CUDA": cuda, "POTLOC_FAST_STRICT": strict}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert calls[0].startswith("--fresh")
    assert calls[-1].startswith("--build")
    if (cuda, strict) == ("auto", "0"):
        reason = "csrc/cuda/nms.cu(7): error: no such thing"
        assert f"built without CUDA kernels, as nvcc failed ({reason})" in done.stderr
        assert "POTLOC_FAST_CUDA=1 pip install ." in done.stderr
        assert calls[2].endswith(f"-DPOTLOC_FAST_WITHOUT_CUDA=nvcc failed: {reason}")
        assert len(calls) == 4
    else:  # asked for, kernels are built with the rest, and what fails ends the build
        assert len(calls) == 2
        assert "cuda_kernels_if_any" not in log.read_text()
