#!/usr/bin/env bash
# Runs the operators' tests as on aarch64, on a Debian machine with another processor. It fetches Debian's Python for
# arm64 and the aarch64 wheels of torch 2.10 and of what the tests import, compiles the extension with a cross compiler,
# and runs pytest in an emulator. All of that lies in build/aarch64; a second call fetches nothing.
#
#   scripts/aarch64_tests.sh                         # tests/ops, ten minutes
#   scripts/aarch64_tests.sh tests/ops/test_nms.py   # arguments are pytest's
#
# Debian has the tools: g++-aarch64-linux-gnu, qemu-user. PYTHON (python3) needs pip, cmake, ninja and pybind11.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
export PATH=$(dirname "$python"):$PATH
out=$PWD/build/aarch64
root=$out/root
site=$out/site

if [ ! -e "$out/fetched" ]; then
  # An empty status file: nothing is installed, so apt fetches Python with all that it stands on.
  mkdir -p "$out"/apt/{lists,archives}/partial
  : > "$out/apt/status"
  apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::Cache="$out/apt"
    -o Dir::State="$out/apt" -o Dir::State::status="$out/apt/status")
  "${apt[@]}" update
  "${apt[@]}" install --yes --download-only --no-install-recommends python3 libpython3-dev libstdc++6
  for package in "$out"/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
  done
  [ -e "$root/lib" ] || ln -s usr/lib "$root/lib"  # from Debian 13 on it is in no package that is fetched
  version=$(readlink "$root/usr/bin/python3")
  wheels=("$python" -m pip install --quiet --upgrade --target "$site" --python-version "${version#python}"
    --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64)
  # Its dependencies by name: pip would take those of this machine's processor, which are CUDA.
  "${wheels[@]}" --no-deps torch==2.10.0
  "${wheels[@]}" filelock typing-extensions sympy networkx jinja2 fsspec numpy pydantic PyYAML pytest hypothesis
  touch "$out/fetched"
fi

cmake -G Ninja -S . -B "$out/cmake" -DCMAKE_BUILD_TYPE=Release -DPOTLOC_FAST_STRICT=1 -DPOTLOC_FAST_CUDA=0 \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_CXX_FLAGS="-idirafter $root/usr/include" -DPOTLOC_FAST_TORCH="$site/torch" \
  -DPython_EXECUTABLE="$python" -DPython_INCLUDE_DIR="$(echo "$root"/usr/include/python3.*)" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DPYTHON_MODULE_EXTENSION=.so > /dev/null
cmake --build "$out/cmake" --parallel "${MAX_JOBS:-1}"
rm -rf "$site/potloc_fast"
cp -r potloc_fast "$site"
rm -f "$site"/potloc_fast/*.so
cp "$out/cmake/_C.so" "$site/potloc_fast"

# A processor without SVE, which the emulator takes seven times as long for. CI: else Hypothesis takes drawing, slow as
# it is here, for a fault of the tests. There is one instruction set alone.
exec qemu-aarch64 -cpu neoverse-n1 -L "$root" -E CI=true -E PYTHONPATH="$site" "$root/usr/bin/python3" -P -m pytest \
  --ignore tests/ops/test_instruction_sets.py "${@:-tests/ops}"
