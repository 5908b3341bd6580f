# Both main targets set everything up by themselves, in .venv.
PYTHON ?= python3
BIN := .venv/bin

# The oldest and the newest version of Flower that are supported.
FLOWER := 1.41.0 1.42.0

.PHONY: quickstart smollm2 test test-flower lint format clean

quickstart: .venv/run.stamp ## FedAvg beside Ferret on the embedded model and tasks
	$(BIN)/fullfed quickstart

smollm2: .venv/run.stamp ## a real language model of 135 million parameters, in models/smollm2-135m
	$(BIN)/python scripts/fetch_smollm2.py

test: .venv/dev.stamp ## the whole test suite; FULLFED_SHARED names the folder of real data
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-flower: $(FLOWER:%=.venv-flower-%/run.stamp) ## the federation's tests on each of these versions
	for version in $(FLOWER); do \
	  .venv-flower-$$version/bin/python -m pytest tests/flower || exit; done

lint: .venv/dev.stamp
	$(BIN)/ruff check src tests benchmarks scripts examples
	$(BIN)/ruff format --check src tests benchmarks scripts examples
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff check --fix src tests benchmarks scripts examples
	$(BIN)/ruff format src tests benchmarks scripts examples

# torch alone first: its pin decides that no other package brings another build of it.
.venv/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[eval,report]'
	touch $@

.venv/dev.stamp: .venv/run.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Beside .venv, which has everything else.
.venv-flower-%/run.stamp: .venv/dev.stamp
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/rest.pth"
	$(@D)/bin/pip install --quiet --no-deps --ignore-installed flwr==$*
	$(@D)/bin/pip install --quiet 'flwr[simulation]==$*'
	$(@D)/bin/pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-flower-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
