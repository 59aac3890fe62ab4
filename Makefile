# Everything runs in an environment of its own, from the installed package, as a user has it.
PYTHON ?= python3
VENV := .venv
# A file of versions to install, for other ones than the newest.
CONSTRAINTS := /dev/null
EXTRAS := cloud,examples,jax,serving,test,tuner
# What is installed and tested: this tree, or a wheel that was built from it.
PACKAGE := .
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check
SOURCES := $(shell find archive keras_export_callbacks -name "*.py") pyproject.toml README.md

.PHONY: test pytest pytest-jax smoke coverage mutation test-jax test-buckets test-fast test-oldest test-oldest-jax \
	test-versions test-recipes readers zoo lint types docs demo benchmark pictures dist clean

test: lint types pytest pytest-jax

QUICK := $(BIN)/pytest -n 2 -m "not slow and not zoo and not buckets"

pytest: $(VENV)/installed
	$(QUICK)
	$(BIN)/pytest -n 2 -m "buckets and not slow"
	$(BIN)/pytest -n 2 --dist worksteal -m "slow and not zoo and not buckets"

# A fit, and the tests of local directories: minutes, for systems that are tested seldom.
smoke: demo
	$(BIN)/pytest -m "not slow and not buckets" tests/archive/store tests/test_triggers.py

# Of the lines and branches that run in the process of a test. Tests that start processes do not count.
coverage: $(VENV)/installed
	$(QUICK) --cov --cov-report=term $(ARGS)

# How many small changes of the pure files the tests notice. `pyproject.toml` lists the files.
MUTANTS := build/mutation
mutation: $(VENV)/installed
	$(PIP) ".[mutation]"
	rm -rf $(MUTANTS) && mkdir -p $(MUTANTS)
	cp -rL keras_export_callbacks tests pyproject.toml $(MUTANTS)
	cd $(MUTANTS) && $(abspath $(BIN))/mutmut run $(ARGS) && $(abspath $(BIN))/mutmut results \
		&& $(abspath $(BIN))/mutmut export-cicd-stats && cat mutants/mutmut-cicd-stats.json

# Keras runs on one backend in a process, so that these tests run once for each.
ON_BOTH := tests/callbacks $(addprefix tests/test_,cli.py exporter.py measured_weights.py metrics.py \
	summaries.py told_in_time.py triggers.py worker.py)
SEARCH := tests/e2e/test_distributed_search.py
test-jax: $(VENV)/installed
	KERAS_BACKEND=jax $(BIN)/pytest -n 2 -m "not slow" tests/on_jax $(ON_BOTH)
	KERAS_BACKEND=jax $(BIN)/pytest $(SEARCH)

pytest-jax: $(VENV)/installed
	KERAS_BACKEND=jax $(BIN)/pytest -n 2 -m "not slow and not zoo" tests/on_jax

# Also with many writers at once, kills, freezes and lost answers.
test-buckets: $(VENV)/installed
	$(BIN)/pytest -n 2 -m buckets

test-fast: lint
	$(QUICK)

# The lower bounds in pyproject.toml. JAX needs a newer TensorFlow.
test-oldest:
	$(MAKE) pytest VENV=.venv-oldest CONSTRAINTS=tests/oldest.txt \
		EXTRAS=cloud,examples,serving,test,tuner

test-oldest-jax:
	$(MAKE) test-jax VENV=.venv-oldest-jax CONSTRAINTS=tests/oldest_jax.txt

test-versions: test test-oldest test-oldest-jax

# What docs/recipes.md says of other packages; they are large.
test-recipes: $(VENV)/installed
	$(PIP) ".[recipes]"
	$(BIN)/pytest -k test_recipes

# The table of what other programs than TensorFlow make of each kind of model.
readers: $(VENV)/installed
	$(PIP) ".[readers]"
	$(BIN)/pytest tests/e2e/test_readers.py -s
	KERAS_BACKEND=jax $(BIN)/pytest tests/on_jax/test_readers.py -s

# Models of keras.applications and keras-hub, through the comparison and back; and training that goes on
# with every optimizer and layer.
zoo: $(VENV)/installed
	$(PIP) ".[zoo]"
	$(BIN)/pytest -n 2 -m zoo

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/installed
	$(BIN)/mypy

# The site, from docs/ and the docstrings. A link that leads nowhere is an error.
docs: $(VENV)/installed
	$(PIP) ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: $(VENV)/installed
	$(BIN)/python examples/quickstart.py

benchmark: $(VENV)/installed
	$(PIP) ".[benchmark]"
	$(BIN)/python benchmarks/run.py $(ARGS)

# Each picture in docs/pictures, from a new run. `pause.svg` is from the results of a benchmark, which
# ARGS="--json benchmarks/results.json" saves.
pictures: $(VENV)/installed
	for picture in terminal tensorboard_chart strip_run strip pause; do \
		$(BIN)/python docs/pictures/$$picture.py || exit 1; \
	done

dist: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

$(VENV)/dependencies: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint $(CONSTRAINTS) "$(PACKAGE)[$(EXTRAS)]"
	touch $@

$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	$(PIP) --no-deps --force-reinstall $(PACKAGE)
	rm -rf build *.egg-info
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-oldest-jax build dist site *.egg-info
