#!/usr/bin/env bash
# Everything that needs a GPU, in parts of at most four minutes:
#
#   scripts/gpu_check.sh                  all parts; those that passed before on this commit and GPU are not repeated
#   scripts/gpu_check.sh kernels two      these parts, in any case
#   scripts/gpu_check.sh wheels FOLDER    beforehand, with a network: collect what a bare machine lacks, but for torch
#
# Needed: Linux, nvcc, compute-sanitizer (of the CUDA toolkit), nvidia-smi, and in the environment of `python3` torch
# 2.10 or newer for CUDA, and the packages of pyproject.toml: build-system.requires, dependencies and the extra dev.
# They are checked first. What comes out is in RESULTS (benchmarks/results/gpu): gpu_check.csv, with a row for each part
# and the verdict in the last one, a log for each part, and the benchmarks.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
results=${RESULTS:-benchmarks/results/gpu}
table=$results/gpu_check.csv
most=240  # seconds of a part

packages() {
  python3 - <<'END'
import sys
try:
    import tomllib
except ImportError:
    import pip._vendor.tomli as tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
needed = project["build-system"]["requires"] + project["project"]["dependencies"]
needed += project["project"]["optional-dependencies"]["dev"]
print("\n".join(sorted({one for one in needed if not one.startswith("torch")})))
END
}

if [ "${1:-}" = wheels ]; then
  mapfile -t names < <(packages)
  exec python3 -m pip download --dest "${2:?expected a folder}" "${names[@]}"
fi

# Prints what is missing, a line each.
missing() {
  for tool in nvcc compute-sanitizer nvidia-smi c++ timeout; do
    command -v "$tool" > /dev/null || echo "the program $tool, on PATH"
  done
  packages | python3 -c '
import importlib.metadata, re, sys
for line in sys.stdin:
    try:
        importlib.metadata.version(re.match(r"[\w.-]+", line)[0])
    except importlib.metadata.PackageNotFoundError:
        print("the package", line.strip())
try:
    import torch
    if not torch.cuda.is_available():
        print("a GPU that torch", torch.__version__, "finds")
except ImportError:
    print("the package torch")'
}

# The parts. pytest, not `python3 -m pytest`: the tests run against the package that the build installed.
build() { python3 -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .; }
usable() { potloc-fast info && potloc-fast info --json | grep -q '"usable": true'; }
attention() { pytest -q tests/ops/test_cuda.py -k attention; }
kernels() { pytest -q tests/ops/test_cuda.py -k 'not attention'; }
steps() { pytest -q tests/test_step.py tests/data/test_resident.py; }
short='(test_local_attention and 67 and bfloat16) or (test_depthwise_conv and 67) or test_background_seeds'
short+=' or (test_batched_nms and 2000-1 and float32) or (test_score_segments and float32)'
short+=' or (test_fused_focal_loss and 1000 and float32)'
sanitize() {
  compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 99 pytest -q tests/ops/test_cuda.py -k "$2"
}
# Torch's caching allocator hands out parts of large blocks, in which an access out of bounds meets no boundary.
memory() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize memcheck "$short"; }
races() { sanitize racecheck "$short"; }
capture() { sanitize memcheck test_a_step_can_be_captured; }
training() {
  local out=$results/run
  rm -rf "$out"
  for engine in engine.precision=fp32 engine.precision=bf16 engine.precision=fp16 'engine.cuda_graph=on'; do
    potloc-fast train synthetic engine.device=cuda "$engine" --run-dir "$out/$engine" || return 1
  done
}
benchmarks() { python3 -m benchmarks --id 'cuda-*' --out "$results"; }
# The second GPU alone; two processes over NCCL as one; and a process that fails alone ends the other.
two() {
  [ "$(nvidia-smi --list-gpus | wc -l)" -ge 2 ] || { echo "only one GPU here" && return 77; }
  local out=$results/two same='engine.device=cuda model.drop_path=0 base.model.dropout=0 model.dropout=0'
  rm -rf "$out"
  # shellcheck disable=SC2086  # words
  LOCAL_RANK=1 potloc-fast train synthetic $same --run-dir "$out/second" \
    && torchrun --nproc-per-node=2 -m potloc_fast train synthetic $same --run-dir "$out/both" \
    && python3 - "$out" <<'END' || return 1
import json, sys
first = [json.loads(open(f"{sys.argv[1]}/{run}/base/metrics.jsonl").readline()) for run in ("second", "both")]
assert abs(first[0]["total"] - first[1]["total"]) < 1e-3 * abs(first[0]["total"]), first
END
  timeout 60 torchrun --nproc-per-node=2 --no-python bash -c \
    '[ "$LOCAL_RANK" = 0 ] || exec false; exec potloc-fast train synthetic engine.device=cuda --run-dir '"$out/alone"
  local status=$?
  [ $status -ne 0 ] && [ $status -ne 124 ]
}

parts=(build usable attention kernels steps memory races capture training benchmarks two)
if [ "${1:-}" = _part ]; then  # a part in a process of its own, which `timeout` can end
  "$2"
  exit
fi
for part; do
  [[ " ${parts[*]} " == *" $part "* ]] || { echo "$0: expected wheels or ${parts[*]}, got $part" >&2 && exit 2; }
done
lacking=$(missing)
if [ -n "$lacking" ]; then
  printf '%s: this is missing here:\n%s\n' "$0" "$lacking" >&2
  echo "'$0 wheels FOLDER' collects packages, where there is a network" >&2
  exit 2
fi
mkdir -p "$results"
TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
export TORCH_CUDA_ARCH_LIST POTLOC_FAST_CUDA=1 POTLOC_FAST_REQUIRE_CUDA=1 RESULTS=$results
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1 | tr ',' ' ')
commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
touch "$table"
grep -v '^verdict,' "$table" > "$table.new"
mv "$table.new" "$table"
[ -s "$table" ] || echo 'part,outcome,seconds,gpu,commit' > "$table"
repeat=$#
[ $# -gt 0 ] || set -- "${parts[@]}"
for part; do
  if [ "$repeat" = 0 ] && grep -q "^$part,passed,[0-9]*,$gpu,$commit$" "$table"; then
    continue
  fi
  echo "== $part"
  began=$SECONDS
  timeout --kill-after=10 "$most" "$0" _part "$part" 2>&1 | tee "$results/$part.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) outcome=passed ;;
    77) outcome=skipped ;;
    124 | 137) outcome="failed: over $most s" ;;
    99) outcome="failed: compute-sanitizer found something" ;;
    *) outcome="failed: status $status" ;;
  esac
  grep -v "^$part,.*,$gpu,$commit$" "$table" > "$table.new"
  echo "$part,$outcome,$((SECONDS - began)),$gpu,$commit" >> "$table.new"
  mv "$table.new" "$table"
  [ "$outcome" = passed ] || [ "$part" != build ] || break
done
# The verdict: what of the parts has passed, and what failed or is still to be done, on this GPU and commit.
open=()
for part in "${parts[@]}"; do
  grep -qE "^$part,(passed|skipped),[0-9]*,$gpu,$commit$" "$table" || open+=("$part")
done
verdict=passed
[ ${#open[@]} -eq 0 ] || verdict="not passed: ${open[*]}"
echo "verdict,$verdict,,$gpu,$commit" | tee -a "$table"
[ ${#open[@]} -eq 0 ]
