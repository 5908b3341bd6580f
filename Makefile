# Both main targets set everything up by themselves, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint format clean

quickstart: .venv/run.stamp ## FedAvg beside Ferret on the embedded model and tasks
	$(BIN)/fullfed quickstart

test: .venv/dev.stamp ## the whole test suite; FULLFED_SHARED names the folder of real data
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

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

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
