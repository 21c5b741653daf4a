#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, sanitizers, benchmarks. Offline, in the environment that `python3` is in,
# with nvcc, torch 2.10 or newer and the packages of pyproject.toml's dependencies and extra `dev` installed.
# Writes benchmarks/results/<gpu>.{csv,md}; give another folder as the first argument.
# The whole schedule of THUMOS'14 needs the annotations in ../shared/data/thumos14 and 1 GB of disk, detection in a long
# recording 30 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}

TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
export TORCH_CUDA_ARCH_LIST POTLOC_FAST_CUDA=1
python3 -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

# pytest, not `python3 -m pytest`: the tests run against the package that was just installed.
export POTLOC_FAST_REQUIRE_CUDA=1
pytest -q --ignore tests/test_style.py  # the style needs no GPU

if command -v compute-sanitizer > /dev/null; then
  # What the sanitizers can't work on here is said, and does not hide the rest.
  short='test_a_step_can_be_captured or (test_batched_nms and 2000 and float32) or (test_score_segments and float32)'
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 99 pytest -q tests/ops/test_cuda.py -k "$short" ||
      { [ $? -ne 99 ] && echo "compute-sanitizer --tool $tool does not work here"; }
  done
fi

python3 -m benchmarks --id 'cuda-*' --out "$results"
