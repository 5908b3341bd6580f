# Both main targets set everything up by themselves, in .venv.
PYTHON ?= python3
BIN := .venv/bin

# The oldest and the newest version of Flower that are supported.
FLOWER := 1.41.0 1.42.0

.PHONY: quickstart smollm2 test test-flower lint format docs package lock clean

quickstart: .venv/run.stamp ## FedAvg beside Ferret on the embedded model and tasks
	$(BIN)/fullfed quickstart

smollm2: .venv/run.stamp ## a real language model of 135 million parameters, in models/smollm2-135m
	$(BIN)/python scripts/fetch_smollm2.py

test: .venv/dev.stamp ## the whole test suite; FULLFED_SHARED names the folder of real data
	$(BIN)/pytest -n 4 --dist loadfile

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

docs: .venv/dev.stamp ## the pages, in site/; a link that leads nowhere is an error
	$(BIN)/mkdocs build --strict

package: .venv/dev.stamp ## the sdist and the wheel, in dist/; the quickstart from the wheel in an empty environment
	rm -rf dist .venv-wheel
	$(BIN)/pyproject-build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet --constraint constraints.txt torch
	.venv-wheel/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd $${TMPDIR:-/tmp} && rm -rf fullfed-wheel && $(CURDIR)/.venv-wheel/bin/fullfed quickstart --out fullfed-wheel

lock: .venv/dev.stamp ## constraints.txt: the versions that are installed here, of everything
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^fullfed'; } > constraints.new
	mv constraints.new constraints.txt

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
	rm -rf .venv .venv-flower-* .venv-wheel dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
