#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer, into build/sanitize, and runs the operators'
# tests and random calls under them: scripts/sanitize.sh [python]. The first report ends it.
#
# ThreadSanitizer is not for this: the kernels' threads are those of torch's OpenMP, which is not built for it, so that
# all that they hand over would be reported. Instead the tests compare bits for 1 to several threads.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$(command -v "${1:-python}")")
out=$PWD/build/sanitize
POTLOC_FAST_SANITIZE=address,undefined POTLOC_FAST_CUDA=0 "$python" setup.py -q build --build-base "$out" --build-lib "$out/lib"
# The sanitizers' libraries must be there before Python is; Python itself leaks, and handles its own faults.
compiler=${CXX:-c++}
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
export LD_PRELOAD PYTHONPATH="$out/lib:$PWD"
export ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1
cd "$out"
"$python" -c 'import sys, potloc_fast; sys.exit(not potloc_fast.__file__.startswith(sys.argv[1]))' "$out/lib"
"$python" -m pytest -q --config-file ../../pyproject.toml --rootdir ../.. ../../tests/ops
"$python" -m tests.faults.operators --count "${COUNT:-2000}"
