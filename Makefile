# Two commands for newcomers: `make demo` and `make test`. Both set up .venv by themselves and need
# Python 3.10+ (with venv), a C++20 compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SECONDS ?= 600
OPERATIONS ?= 1000000
ASAN_VENV ?= .venv-asan

# What the installed package is made of: when any of it is newer, the package is built again.
SOURCES := pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake) $(shell find csrc src -type f)

.PHONY: demo test lint test-arm test-asan oracle bench fuzz stubs clean

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

# The kernels and the borders under AddressSanitizer and UndefinedBehaviorSanitizer of gcc, installed
# beside the usual package. libstdc++ stands with libasan, which must know its __cxa_throw.
# A limit of address space cannot hold where ASan maps terabytes, and a child forked in the middle of another
# thread's call now and then inherits a lock of ASan's own.
test-asan: $(ASAN_VENV)/.dev
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0:allocator_may_return_null=1 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 HYPOTHESIS_PROFILE=few KVANT_THREADS=2 \
	$(ASAN_VENV)/bin/python -m pytest tests/kernels tests/border -k "not gives_no_more_threads and not fork_in_the_middle"

# The checks against third parties at full size, and those that need llama.cpp, torch, transformers.
oracle: $(VENV)/.peers
	KVANT_ORACLE_BLOCKS=1000000 $(BIN)/python -m pytest tests/kernels/test_oracles.py tests/reference -s
	$(BIN)/python -m pytest tests/models tests/lab/test_llama_cpp.py tests/bench/test_ggml.py

# Everything that is measured, into build/bench: bench.json, bench.md, roofline.png. A look:
# make bench BENCH=--quick
bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks.report --out build/bench $(BENCH)

fuzz: $(VENV)/.dev
	$(BIN)/python tools/fuzz_gguf.py --seconds $(SECONDS)
	$(BIN)/python tests/kv/random_operations.py --operations $(OPERATIONS)

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

$(ASAN_VENV)/.dev: $(SOURCES)
	$(PYTHON) -m venv $(ASAN_VENV)
	CC=gcc CXX=g++ $(ASAN_VENV)/bin/python -m pip install --quiet -e ".[dev]" \
		-C cmake.define.KVANT_SANITIZE=address,undefined -C build-dir="build-asan/{wheel_tag}"
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(BIN)/python -m pip install --quiet -e ".[peers]"
	@touch $@

clean:
	rm -rf $(VENV) $(ASAN_VENV) build build-asan dist
