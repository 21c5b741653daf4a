# `make demo` and `make test` need Python 3.10 to 3.13 and a C++20 compiler; everything else they install into .venv.
PYTHON ?= python3
# The torch to install where .venv has none: any from 2.10 on will do. TORCH_ARGS can name an index of CPU-only builds.
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR ?= runs/demo

.PHONY: demo test install clean

demo: $(BIN)/.installed
	$(BIN)/potloc-fast demo $(if $(DATA),--data "$(DATA)") --run-dir "$(RUN_DIR)"

test: $(BIN)/.tested
	$(BIN)/pytest
	$(BIN)/pytest --doctest-modules --pyargs potloc_fast
	$(BIN)/python -m benchmarks --quick --compare benchmarks/results/amd-epyc.csv --max-regression 60%

install: $(BIN)/.installed

$(BIN)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) "$(TORCH)"
	touch $@

SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc scripts potloc_fast -name '*.so' -prune -o -type f \
	-not -path '*/__pycache__/*' -print)

$(BIN)/.installed: $(BIN)/.torch $(SOURCES)
	$(BIN)/python -m pip install .
	touch $@

$(BIN)/.tested: $(BIN)/.torch $(SOURCES)
	$(BIN)/python -m pip install ".[dev]"
	touch $@ $(BIN)/.installed

clean:
	rm -rf build $(VENV) *.egg-info
