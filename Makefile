# Two commands for newcomers: `make demo` and `make test`. Both set up .venv by themselves and need
# Python 3.10+ (with venv), a C++20 compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SECONDS ?= 600

# What the installed package is made of: when any of it is newer, the package is built again.
SOURCES := pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake) $(shell find csrc src -type f)

.PHONY: demo test lint test-arm oracle bench fuzz stubs clean

demo: $(VENV)/.lab
	$(BIN)/kvant demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check python tests benchmarks examples tools
	$(BIN)/ruff format --check python tests benchmarks examples tools
	$(BIN)/mypy

# The aarch64 library, cross-compiled and run under qemu-user. On Debian:
# apt-get install g++-aarch64-linux-gnu qemu-user
test-arm: $(VENV)/.dev
	$(BIN)/python -m pytest -m arm tests/arm

# The checks against third parties at full size, and those that need llama.cpp, torch, transformers.
oracle: $(VENV)/.peers
	KVANT_ORACLE_BLOCKS=1000000 $(BIN)/python -m pytest tests/kernels/test_oracles.py tests/reference -s
	$(BIN)/python -m pytest tests/models tests/test_llama_cpp.py

bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks.report

fuzz: $(VENV)/.dev
	$(BIN)/python tools/fuzz_gguf.py --seconds $(SECONDS)

# The stub of the extension is committed; a test compares.
stubs: $(VENV)/.dev
	$(BIN)/python tools/make_stubs.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.lab: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet -e ".[lab]"
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ $(VENV)/.lab

$(VENV)/.peers: $(VENV)/.dev
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(BIN)/python -m pip install --quiet -e ".[peers]"
	@touch $@

clean:
	rm -rf $(VENV) build dist
