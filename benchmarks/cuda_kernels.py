"""What CUDA kernels take of a GPU, read from a built library: `python -m benchmarks.cuda_kernels --help`.

Registers and stack come from `cuobjdump --dump-resource-usage`; a stack of 0 means that nothing spills. Traffic and
arithmetic are counted by hand, for the shapes of `bench_cuda`, in `CALLS`.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

COMMITTED = Path(__file__).resolve().parents[1] / "docs" / "cuda_kernels.csv"
KEYS = ("nvcc", "operator", "kernel")
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")

Usage: TypeAlias = tuple[int, int]
"""Registers of a thread, and bytes of its stack."""
Kernels: TypeAlias = dict[tuple[str, str], dict[str, Usage]]
"""By operator and kernel, then by architecture."""


def read(cuobjdump: str, files: Iterable[Path]) -> Kernels:
    """The usage of our kernels in libraries or object files; those of CUB are left out."""
    kernels: Kernels = {}
    for file in files:
        command = [cuobjdump, "--dump-resource-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        mangled = re.findall(r"^ Function (\S+):$", text, re.M)
        command = ["c++filt", *mangled]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        known = dict(zip(mangled, names, strict=True))
        arch = function = ""
        for line in text.splitlines():
            if match := re.match(r"arch = sm_(\d+)(\d)([af]?)$", line):
                arch = f"{match[1]}.{match[2]}{match[3]}"
            elif match := re.match(r" Function (\S+):$", line):
                function = match[1]
            elif (match := re.match(r"  REG:(\d+) STACK:(\d+)", line)) and "potloc" in known[function]:
                place = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_", function)
                operator = place[1] if place else "local_attention"  # the one whose kernels are in headers
                name = re.sub(r"potloc::cuda::|\(anonymous namespace\)::|c10::|^void ", "", known[function])
                name = re.sub(r"\(.*", "", name)
                assert arch, f"{file}: expected a library or an object file, which say what they were compiled for"
                kernels.setdefault((operator, name), {})[arch] = int(match[1]), int(match[2])
    return dict(sorted(kernels.items()))


def load(path: Path) -> dict[str, Kernels]:
    """The committed table, by the version of nvcc."""
    tables: dict[str, Kernels] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            usage = {}
            for arch in ARCHITECTURES:
                if row[arch]:
                    registers, _, stack = row[arch].partition("+")
                    usage[arch] = int(registers), int(stack or 0)
            tables.setdefault(row["nvcc"], {})[row["operator"], row["kernel"]] = usage
    return tables


def save(path: Path, tables: Mapping[str, Kernels]) -> None:
    """Write the table: registers, and after a plus the bytes of a stack where there is one."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*KEYS, *ARCHITECTURES])
        for nvcc, kernels in sorted(tables.items()):
            for (operator, kernel), usage in kernels.items():
                cells = (usage.get(arch) for arch in ARCHITECTURES)
                shown = ["" if c is None else f"{c[0]}+{c[1]}" if c[1] else str(c[0]) for c in cells]
                writer.writerow([nvcc, operator, kernel, *shown])


def worse(found: Kernels, committed: Kernels) -> list[str]:
    """What takes more than the table says, and kernels that it does not have, a line each."""
    lines = []
    for (operator, kernel), usage in found.items():
        for arch, taken in usage.items():
            known = committed.get((operator, kernel), {}).get(arch)
            if known is None and arch in ARCHITECTURES:
                lines.append(f"{operator} {kernel} for {arch}: not in the table")
            elif known is not None and (taken[0] > known[0] or taken[1] > known[1]):
                lines.append(
                    f"{operator} {kernel} for {arch}: {taken[0]} registers and {taken[1]} bytes of stack, "
                    f"the table has {known[0]} and {known[1]}"
                )
    return lines


# What a multiprocessor has: threads, blocks, KiB of shared memory (1 KiB of it goes with each block).
MULTIPROCESSORS = {
    "8.0": (2048, 32, 164),
    "8.6": (1536, 16, 100),
    "8.9": (1536, 24, 100),
    "9.0": (2048, 32, 228),
    "10.0": (2048, 32, 228),
    "12.0": (1536, 24, 100),
}


def blocks_at_once(arch: str, registers: int, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor takes at the same time; registers are given out 256 a warp at a time."""
    most_threads, most_blocks, kibibytes = MULTIPROCESSORS[arch]
    warps = (threads + 31) // 32
    per_warp = (registers * 32 + 255) // 256 * 256
    by_registers = 65536 // per_warp // warps
    return min(most_blocks, most_threads // (warps * 32), by_registers, kibibytes * 1024 // (shared + 1024))


@dataclass(frozen=True)
class Call:
    """A launch.

    Attributes:
        operator: as in the table.
        kernel: as in the table.
        on: the shape.
        threads: of a block.
        shared: bytes of shared memory of a block.
        bytes: that have to be read and written, once each.
        flops: that the result needs, two for a product and its sum; None where comparisons are what is done.
        tensor: whether they run on tensor cores.
    """

    operator: str
    kernel: str
    on: str
    threads: int
    shared: int
    bytes: int
    flops: int | None
    tensor: bool = False


def attention(width: int, rows: int, kernel: str, tensors: int, products: int, on: str) -> Call:
    """In bfloat16 with window 19: `rows` are B H T. A product of rows with their bands takes 2 x 19 x D each."""
    name = f"{kernel}<BFloat16, {width}, false>"
    size = rows * width
    flops = products * 2 * 19 * size
    return Call("local_attention", name, on, 128, 2 * 96 * (width + 8) * 2, tensors * 2 * size + 4 * rows, flops, True)


PAPER, PAPER_ON = 3 * 4 * 2304, "B 3, H 4, T 2304, D 128"
LONG, LONG_ON = 4 * 8 * 65_536, "B 4, H 8, T 65,536, D 64"
SEQUENCES = 3 * 2304 * 512  # of the paper's depthwise convolutions
CALLS = (
    attention(128, PAPER, "forward_kernel", 4, 2, PAPER_ON),
    attention(128, PAPER, "query_grad_kernel", 5, 3, PAPER_ON),
    attention(128, PAPER, "key_grad_kernel", 6, 4, PAPER_ON),
    attention(64, LONG, "forward_kernel", 4, 2, LONG_ON),
    Call(
        *("depthwise_conv", "forward_kernel<BFloat16, float, 3, 8>", "3 x 2304 x 512, 3 filters", 256, 0),
        *(4 * 2 * SEQUENCES, 3 * 3 * 2 * SEQUENCES),
    ),
    Call(
        *("depthwise_conv", "backward_kernel<BFloat16, float, 3, 4>", "3 x 2304 x 512, 3 filters", 256),
        *(4 * 3 * 3 * 256 * 4, 5 * 2 * SEQUENCES, 3 * 3 * 4 * SEQUENCES),
    ),
    Call(
        *("fused_focal_loss", "forward_kernel<float, float, true, true>", "4M x 21", 128),
        *(128 * 41 * 4, 41 * 4 * 2**22, None),
    ),
    Call(
        *("fused_focal_loss", "backward_kernel<float, float, true, true>", "4M x 21", 128),
        *(128 * 41 * 4, 62 * 4 * 2**22, None),
    ),
    Call("background_seeds", "seeds_kernel<float>", "3 videos, 6 levels, 4,536", 128, 0, 6 * 3 * 4536, None),
    Call("score_segments", "count_kernel<float, float>", "4,200 x 2304", 256, 1028, 4 * 4200 * 2304, None),
)
BYTES_S, FLOPS_S, TENSOR_FLOPS_S = 3.35e12, 67e12, 989e12  # of an H100 SXM


def limits(kernels: Kernels, arch: str) -> str:
    """A Markdown table of the calls: what they take, and the time that an H100's limits leave them."""
    lines = [
        "| operator | kernel | shape | MB | MFLOP | registers | shared | blocks at once | threads at once | H100, us |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for call in CALLS:
        registers = kernels[call.operator, call.kernel][arch][0]
        blocks = blocks_at_once(arch, registers, call.threads, call.shared)
        share = blocks * call.threads / MULTIPROCESSORS[arch][0]
        seconds = max(call.bytes / BYTES_S, (call.flops or 0) / (TENSOR_FLOPS_S if call.tensor else FLOPS_S))
        cells = (
            *(call.operator, f"`{call.kernel}`", call.on, f"{call.bytes / 1e6:.3g}"),
            *("" if call.flops is None else f"{call.flops / 1e6:.3g}", registers, call.shared, blocks),
            *(f"{share:.0%}", f"{1e6 * seconds:.3g}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, write or check what kernels take."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_kernels", description=main.__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="libraries or object files with the kernels")
    parser.add_argument("--nvcc", help="the version of nvcc that compiled them, as 13.0.88", required=True)
    parser.add_argument("--cuobjdump", default="cuobjdump", help="the program that reads them")
    parser.add_argument("--write", action="store_true", help=f"put what they take into {COMMITTED.name}")
    parser.add_argument("--limits", metavar="ARCH", help="print the table of limits for an architecture, as 9.0")
    options = parser.parse_args(arguments)
    tables = load(COMMITTED) if COMMITTED.is_file() else {}
    found = read(options.cuobjdump, options.files) if options.files else tables[options.nvcc]
    if options.limits:
        print(limits(found, options.limits))
    elif options.write:
        known = tables.setdefault(options.nvcc, {})
        for kernel, usage in found.items():
            known[kernel] = {**known.get(kernel, {}), **usage}
        tables[options.nvcc] = dict(sorted(known.items()))
        save(COMMITTED, tables)
    elif options.nvcc not in tables:
        print(f"nvcc {options.nvcc} is not in {COMMITTED.name}: --write puts it there")
    else:
        lines = worse(found, tables[options.nvcc])
        print("\n".join(lines) or f"{len(found)} kernels take no more than {COMMITTED.name} says")
        return int(bool(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
