#!/usr/bin/env bash
# Builds the kernels for every architecture, in build/cuda-matrix, and holds what they take against
# docs/cuda_kernels.csv: scripts/cuda_matrix.sh [python [nvcc...]]. By default with the nvcc on PATH and the newest that
# there is as a package. WRITE=1 puts what was found into the table. It goes on where an earlier call stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$(command -v "${1:-python3}")")
shift || true
work=$PWD/build/cuda-matrix
PYTHON=$python scripts/install_nvcc.sh "$work/newest"
newest=$(echo "$work"/newest/nvidia/cu*/bin/nvcc)
cuobjdump=$(dirname "$newest")/cuobjdump
[ $# -gt 0 ] || set -- nvcc "$newest"
torch=$("$python" -c 'import torch; print(torch.__path__[0])')
status=0
for nvcc; do
  version=$("$nvcc" --version | sed -n 's/.*, V//p')
  PATH="$(dirname "$python"):$PATH" CUDACXX=$nvcc TORCH_CUDA_ARCH_LIST=All cmake -G Ninja -S . -B "$work/$version" \
    -DCMAKE_BUILD_TYPE=Release -DPOTLOC_FAST_CUDA=1 -DPOTLOC_FAST_TORCH="$torch" -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > /dev/null
  PATH="$(dirname "$python"):$PATH" cmake --build "$work/$version" --target cuda_kernels --parallel "${MAX_JOBS:-1}"
  objects=("$work/$version"/CMakeFiles/cuda_kernels.dir/csrc/cuda/*.o)
  # What ptxas was told lies beside the PTX, and a driver that compiles it obeys: that may be of rounding alone.
  for object in "${objects[@]}"; do
    ! "$cuobjdump" "$object" | grep 'ptxasOptions = *[^ ]' | grep -v '= *--fmad false *$' || status=1
  done
  "$python" -m benchmarks.cuda_kernels "${objects[@]}" --nvcc "$version" --cuobjdump "$cuobjdump" ${WRITE:+--write} \
    || status=1
done
exit $status
