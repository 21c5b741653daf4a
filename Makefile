# `make demo` and `make test` need Python 3.10 to 3.14 and a C++20 compiler; everything else they install into .venv.
PYTHON ?= python3
# The torch to install where .venv has none: any from 2.10 on will do. TORCH_ARGS can name an index of CPU-only builds.
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR ?= runs/demo

.PHONY: demo test nightly install clean

demo: $(BIN)/.installed
	$(BIN)/potloc-fast demo $(if $(DATA),--data "$(DATA)") --run-dir "$(RUN_DIR)"

test: $(BIN)/.tested
	$(BIN)/pytest
	$(BIN)/pytest --doctest-modules --pyargs potloc_fast
	$(BIN)/python -m benchmarks --quick --compare benchmarks/results/amd-epyc.csv --max-regression 60%

# The long forms of what the tests do for a few minutes; `make -k nightly` goes on after a failure.
NIGHTLY := nightly-operators nightly-files nightly-kills nightly-memory nightly-sanitizers
.PHONY: $(NIGHTLY)
nightly: $(NIGHTLY)
$(NIGHTLY): $(BIN)/.tested
nightly-operators:
	$(BIN)/python -m tests.faults.operators --count 200000
nightly-files:
	$(BIN)/python -m tests.faults.files --count 50000
nightly-kills:
	$(BIN)/python -m tests.faults.kills --count 500
nightly-memory:
	$(BIN)/python -m tests.faults.memory --predictions 10000 --steps 100000
nightly-sanitizers:
	COUNT=20000 scripts/sanitize.sh $(BIN)/python

# All kernels for all architectures, with the nvcc that is here and with the newest; what they take of a GPU is held
# against docs/cuda_kernels.csv. Five minutes of one core for each nvcc.
.PHONY: cuda-matrix
cuda-matrix: $(BIN)/.torch
	$(BIN)/python -m pip install --quiet "cmake>=3.24" "ninja>=1.11" "pybind11>=2.13,<4"
	scripts/cuda_matrix.sh $(BIN)/python

install: $(BIN)/.installed

$(BIN)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) "$(TORCH)"
	touch $@

SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find cmake csrc scripts potloc_fast -name '*.so' -prune -o -type f \
	-not -path '*/__pycache__/*' -print)

$(BIN)/.installed: $(BIN)/.torch $(SOURCES)
	$(BIN)/python -m pip install ".[report]"
	touch $@

# Warnings and spills are errors here alone. These four architectures serve every GPU from 8.0 on, without PTX, beside
# which nvcc would keep what it is told of warnings and spills.
$(BIN)/.tested: $(BIN)/.torch $(SOURCES)
	POTLOC_FAST_STRICT=1 TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-8.0 9.0 10.0 12.0}" \
		$(BIN)/python -m pip install ".[dev]"
	touch $@ $(BIN)/.installed

clean:
	rm -rf build $(VENV) *.egg-info
