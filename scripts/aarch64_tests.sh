#!/usr/bin/env bash
# Runs the operators' tests for aarch64 in an emulator: scripts/aarch64_tests.sh PYTHON [pytest's arguments]. PYTHON is a
# Python 3.11, as Debian 12 has, with cmake, ninja and pybind11. Of Debian, g++-aarch64-linux-gnu and qemu-user must be
# installed. Python and its libraries for arm64 (Debian's packages), torch and the rest (wheels) are put into
# build/aarch64 once; the machine stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$(command -v "${1:?expected a Python 3.11}")")
shift
out=$PWD/build/aarch64
root=$out/root
mkdir -p "$out/apt/lists/partial" "$out/apt/cache/archives/partial" "$out/debs" "$root"

if [ ! -e "$root/usr/bin/python3.11" ]; then
  options=(-o "APT::Architecture=arm64" -o "APT::Architectures=arm64")
  options+=(-o "Dir::State::lists=$out/apt/lists" -o "Dir::Cache=$out/apt/cache")
  apt-get "${options[@]}" update --quiet
  packages=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libssl3 libffi8)
  packages+=(libexpat1 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1)
  (cd "$out/debs" && apt-get "${options[@]}" download "${packages[@]}")
  for package in "$out"/debs/*.deb; do
    dpkg -x "$package" "$root"
  done
fi

# 2.10 is the last torch whose wheel for aarch64 is without CUDA. Its libraries for CUDA would be those of this machine.
wheels=(--quiet --target "$out/site" --upgrade --only-binary=:all: --python-version 3.11)
for age in 2_28 2_17; do
  wheels+=(--platform "manylinux_${age}_aarch64")
done
wheels+=(--platform manylinux2014_aarch64)
if [ ! -e "$out/site/pytest" ]; then
  "$python" -m pip install "${wheels[@]}" --no-deps torch==2.10.0
  "$python" -m pip install "${wheels[@]}" filelock fsspec jinja2 networkx sympy typing-extensions \
    numpy pydantic PyYAML "pytest>=8" "hypothesis>=6.100"
fi

PATH="$(dirname "$python"):$PATH" cmake -G Ninja -S . -B "$out/cmake" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DPOTLOC_FAST_CUDA=0 -DPOTLOC_FAST_TORCH="$out/site/torch" -DPython_EXECUTABLE="$python" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > /dev/null
PATH="$(dirname "$python"):$PATH" cmake --build "$out/cmake" --parallel "${MAX_JOBS:-$(nproc)}"

# A copy, beside which no extension for this machine lies.
rm -rf "$out/run"
mkdir "$out/run"
cp -r potloc_fast tests pyproject.toml "$out/run"
rm -f "$out"/run/potloc_fast/_C*.so
cp "$out"/cmake/_C*.so "$out/run/potloc_fast/_C.so"
cd "$out/run"
# The emulator starts no second Python, and there is no instruction set below the baseline.
qemu-aarch64 -L "$root" -E PYTHONPATH="$out/site" "$root/usr/bin/python3.11" -m pytest -q tests/ops \
  --ignore tests/ops/test_instruction_sets.py "$@"
