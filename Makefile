# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in so many processes, each with its servers of its own.
JOBS ?= 2
SOAK_MINUTES ?= 10

.PHONY: demo test test-long lint bench loadtest reliability fuzz soak clean help

help:  ## Show what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# uv takes a sixth of pip's time. It knows nothing of pip's settings: where it finds no index, pip does the work.
$(VENV)/.serve: WHAT := .
$(VENV)/.dev: WHAT := .[train,bench,dev]
$(VENV)/.serve $(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv && \
		$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --editable '$(WHAT)' || \
		$(BIN)/python -m pip install --quiet --editable '$(WHAT)'
	touch $@

demo: $(VENV)/.serve  ## Start the embedded Triton and the web page in front of it.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lungstreams demo

test: $(VENV)/.dev  ## Run the tests, on the real embedded Triton; those marked long are left out, and counted.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-long: $(VENV)/.dev  ## Run what `make test` leaves out: full-width networks, the largest loads, faults a second way.
	PATH="$(CURDIR)/$(BIN):$$PATH" LUNGSTREAMS_LONG_TESTS=1 $(BIN)/python -m pytest -m long

lint: $(VENV)/.dev  ## ruff and mypy, strict.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

loadtest: $(VENV)/.serve  ## A minute of load on an embedded Triton, held against 5.33 s a case.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lungstreams loadtest --duration 60

bench: $(VENV)/.dev  ## Speed beside what one would use instead, in one run, into docs/benchmarks.md.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lungstreams bench --out docs

reliability: $(VENV)/.dev  ## Hostile input, overload and faults, counted, into docs/reliability.md.
	PATH="$(CURDIR)/$(BIN):$$PATH" LUNGSTREAMS_LONG_TESTS=1 $(BIN)/python -m pytest -m reliability
	$(BIN)/python -m tests.reliability

fuzz: $(VENV)/.dev  ## Ten thousand damaged files and every bomb through all that reads files.
	$(BIN)/python -m tests.hostile.run --mutations 10000

soak: $(VENV)/.dev  ## SOAK_MINUTES of load, faults and bad input at once; a row for docs/reliability.md.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.soak.run --minutes $(SOAK_MINUTES)

clean:  ## Remove what was built, but not what was trained.
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
