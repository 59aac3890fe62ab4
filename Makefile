# Everything runs in .venv, from the installed package, as a user has it.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find archive keras_export_callbacks -name '*.py') pyproject.toml README.md

.PHONY: test test-fast lint types demo benchmark clean

test: lint types
	$(BIN)/pytest -n 2 -m "not slow"
	$(BIN)/pytest -n 2 -m slow

test-fast: .venv/installed
	$(BIN)/pytest -n 2 -m "not slow"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Not from here: the package's folder lacks archive/, which installing puts into it.
types: .venv/installed
	cd .venv && bin/mypy --config-file ../pyproject.toml -p keras_export_callbacks

demo: .venv/installed
	$(BIN)/python examples/quickstart.py

benchmark: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check ".[benchmark]"
	$(BIN)/python benchmarks/run.py $(ARGS)

.venv/dependencies: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check ".[examples,serving,test,tuner]"
	touch $@

.venv/installed: .venv/dependencies $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	rm -rf build *.egg-info
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
