#!/usr/bin/env bash
# Everything that needs a GPU, part by part: build, kernels, benchmarks, sanitizers, tests. Arguments name the parts to
# do; all without. One that fails does not keep the next from being done, but for the build.
# Offline, in the environment that `python3` is in, with nvcc, torch 2.10 or newer and the packages of pyproject.toml's
# dependencies and extra `dev` installed. Writes benchmarks/results/<gpu>.{csv,md}; RESULTS names another folder.
# The whole schedule of THUMOS'14 needs the annotations in ../shared/data/thumos14 and 1 GB of disk, detection in a long
# recording 30 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
export TORCH_CUDA_ARCH_LIST POTLOC_FAST_CUDA=1 POTLOC_FAST_REQUIRE_CUDA=1
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

# pytest, not `python3 -m pytest`: the tests run against the package that the build installed.
kernels() {
  pytest -q tests/ops/test_cuda.py tests/test_step.py tests/data/test_resident.py
}

benchmarks() {
  python3 -m benchmarks --id 'cuda-*' --out "${RESULTS:-benchmarks/results}"
}

sanitizers() {
  local short status
  short='test_a_step_can_be_captured or (test_batched_nms and 2000-1 and float32) or (test_score_segments and float32)'
  for tool in memcheck racecheck; do
    status=0
    compute-sanitizer --tool "$tool" --error-exitcode 99 pytest -q tests/ops/test_cuda.py -k "$short" || status=$?
    if [ $status -eq 99 ]; then
      return 99
    elif [ $status -ne 0 ]; then
      echo "compute-sanitizer --tool $tool does not work here"
    fi
  done
}

tests() {
  pytest -q --ignore tests/test_style.py  # the style needs no GPU
}

[ $# -gt 0 ] || set -- build kernels benchmarks sanitizers tests
failed=()
for part; do
  case $part in
    build) python3 -m pip install --quiet --no-build-isolation --no-deps --force-reinstall . ;;
    kernels | benchmarks | sanitizers | tests) "$part" || failed+=("$part") ;;
    *) echo "$0: expected build, kernels, benchmarks, sanitizers or tests, got $part" >&2 && exit 2 ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
