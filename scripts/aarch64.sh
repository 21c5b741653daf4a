#!/usr/bin/env bash
# Compiles the CPU kernels and the operators for aarch64 with a cross compiler, runs kernels in an emulator, and compares
# what they give with this machine's: scripts/aarch64.sh [python]. Debian has both: g++-aarch64-linux-gnu, qemu-user.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=build/aarch64
mkdir -p "$out"
torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
flags=(-std=c++20 -O2 -fno-math-errno -fno-trapping-math -fopenmp-simd -ffp-contract=off -fPIC -Wall -Wextra -Werror)
flags+=(-Wno-unknown-pragmas -Wno-psabi -Icsrc -isystem "$torch/include" -DTORCH_TARGET_VERSION=0x020a000000000000)
for compiler in "${CXX:-c++}" aarch64-linux-gnu-g++; do
  place=$out/$(basename "$compiler")
  mkdir -p "$place"
  for kernel in csrc/cpu/*.cpp; do
    "$compiler" "${flags[@]}" -DPOTLOC_CAPABILITY=baseline -c "$kernel" -o "$place/$(basename "$kernel").o"
  done
  "$compiler" "${flags[@]}" -static tests/cross/kernels.cpp "$place"/*.cpp.o -o "$place/kernels"
done
for operator in csrc/ops/*.cpp csrc/common/capability.cpp; do
  aarch64-linux-gnu-g++ "${flags[@]}" -c "$operator" -o "$out/$(basename "$operator").o"
done
"$out/$(basename "${CXX:-c++}")/kernels" > "$out/here.txt"
qemu-aarch64 "$out/aarch64-linux-gnu-g++/kernels" > "$out/there.txt"
"$python" - "$out/here.txt" "$out/there.txt" <<'END'
import sys
here, there = ([line.split() for line in open(path)] for path in sys.argv[1:])
assert len(here) > 5000 and [name for name, _ in here] == [name for name, _ in there], "other results"
worst = max(abs(float(a) - float(b)) / max(1, abs(float(a))) for (_, a), (_, b) in zip(here, there))
print(f"aarch64: {len(here)} numbers, {worst:.1e} from this machine's at most")
assert worst < 1e-5
END
