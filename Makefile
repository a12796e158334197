# Every target makes its own virtual environment first; Python 3.10 or newer is all it needs.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# what `make demo` needs; an environment that has everything serves as well
DEMO := $(if $(wildcard $(READY)),$(READY),$(VENV)/.ready-demo)

.DEFAULT_GOAL := help
.PHONY: help demo space test test-lowest test-all conformance check format bench bench-quick laws bench-search \
  bench-memory bench-cache bench-packing clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	touch $(READY)

$(VENV)/.ready-demo: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[demo]"
	touch $@

demo: $(DEMO)  ## train on easy-VQA, evaluate on its test split, answer three questions (about 10 minutes on two cores)
	$(BIN)/modeling-mm demo

space: $(DEMO)  ## open the Space on the model that make demo trained
	cd hub_space && MM_MODEL_ID=$(abspath runs/easy_vqa) $(abspath $(BIN)/python) app.py

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist loadfile $(TESTS)

test-lowest: TESTS = $(addprefix tests/,model training hub commands/test_end_to_end.py data/test_chat_tokens.py)
test-lowest:  ## those that need transformers, with the lowest supported one, in an environment of their own
	$(MAKE) test VENV=$(VENV)-lowest CONSTRAINTS=constraints-lowest.txt TESTS="$(TESTS)"

test-all: $(READY)  ## every test that this machine can run
	$(BIN)/python -m pytest

conformance: $(READY)  ## transformers' own test suites on our classes; writes docs/conformance.md (about a minute)
	$(BIN)/python -m pytest -q -rfE -m conformance --conformance-page docs/conformance.md tests/conformance

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## side by side with LLaVA, Mllama, BLIP-2 and dual encoders; writes benchmarks/RESULTS.md (half an hour)
	$(BIN)/python benchmarks/run.py

bench-quick: $(READY)  ## the same with small pictures, to see that each row is there; writes nothing that is kept
	$(BIN)/python benchmarks/run.py --quick --output $(shell mktemp -d)

laws: $(READY)  ## what the nearest models get wrong and ours right; writes benchmarks/LAWS.md
	$(BIN)/python benchmarks/laws.py

bench-search: $(READY)  ## kills while indexing, latency and recall of search; writes benchmarks/SEARCH.md (minutes)
	$(BIN)/python benchmarks/search.py

bench-memory: $(READY)  ## memory of one contrastive step over 4,096 pairs; writes benchmarks/GRAD_CACHE.md (8 GB)
	$(BIN)/python benchmarks/grad_cache.py

bench-cache: $(READY)  ## epochs with and without the cache of a frozen tower; writes benchmarks/FEATURE_CACHE.md
	$(BIN)/python benchmarks/feature_cache.py

bench-packing: $(READY)  ## packed, grouped and padded conversations; writes benchmarks/PACKING.md (minutes)
	$(BIN)/python benchmarks/packing.py

clean:  ## remove the environment and all runs
	rm -rf $(VENV) $(VENV)-lowest runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
