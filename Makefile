# `make quickstart` and `make test` each set up what they need in .venv, offline after that.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help quickstart test test-kernels lint bench format clean

help:
	@echo "make quickstart  set up, then train and verify on a demonstration corpus (10 min)"
	@echo "make test        set up, then run all tests"
	@echo "make test-kernels   the numerical tests again, with the kernels of an old CPU"
	@echo "make lint        ruff: check and format"
	@echo "make bench       all benchmarks against their peers: benchmarks/RESULTS.md"
	@echo "make format      let ruff mend what it can"
	@echo "make clean       remove $(VENV) and what the quickstart made"

$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $$($(PYTHON) --version), expected Python 3.10 or newer; make PYTHON=python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

quickstart: $(READY)
	$(BIN)/python recipes/VoxCeleb/SpeakerRec/quickstart.py

# One worker and one thread a core: two workers are done in about half the time. Files in
# their own order: by their number of tests the longest, which have few, would come last.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile \
		--no-loadscope-reorder

# Products of the same numbers differ in their last bits from CPU to CPU, as OpenBLAS
# (numpy), MKL, oneDNN and torch choose kernels by its instructions. These are the oldest
# of each, which every x86-64 has: what passes with them and with this machine's own asks
# for no more than the arithmetic gives.
KERNELS := OPENBLAS_CORETYPE=Prescott MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default
NUMERICAL := tests/scoring tests/lobes tests/pruning tests/features \
	tests/test_losses.py

test-kernels: $(READY)
	$(KERNELS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 \
		--dist loadfile -m "not slow" $(NUMERICAL)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py $(BENCH_ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) quickstart
