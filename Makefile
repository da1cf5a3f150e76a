# Every target makes its own virtual environment from a bare python3.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup demo test test-slow lint check bench clean

setup: $(STAMP)

# `pip install --group` needs pip 25.1 or later, hence the upgrade first.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[studies]" --group dev
	touch $(STAMP)

demo: setup
	$(BIN)/symmetrax run demo

# XLA's older emitters and a single piece of code per program compile in two thirds of the time. Flags that an
# XLA does not know end the process, hence the trial.
QUICK := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1

# Files stay whole, since their tests share fixtures and compiled programs, and in the order of pyproject.toml.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	XLA_FLAGS="$$XLA_FLAGS $(QUICK)" $(BIN)/python -c "import jax; jax.devices()" >/dev/null 2>&1 \
	  && export XLA_FLAGS="$$XLA_FLAGS $(QUICK)"; \
	$(BIN)/python -m pytest $(TWO) -m "not slow"

# All tests, every program optimized as users have it.
test-slow: setup
	OPTIMIZE_ALL=1 $(BIN)/python -m pytest $(TWO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test

bench: setup
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/symmetrax bench

clean:
	rm -rf .venv
