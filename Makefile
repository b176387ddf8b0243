# Everything runs from a project-local .venv; each target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := $(VENV)/.peers-installed

.PHONY: run test test-slow test-long bench-env check format setup clean

run: setup              ## train the five-agent swarm on HalfCheetah (two to three minutes on two cores)
	$(BIN)/swarm run halfcheetah

test: setup             ## the tests that CI runs
	$(BIN)/python -m pytest

test-slow: setup        ## tests that train or kill processes for minutes
	$(BIN)/python -m pytest -m slow --timeout 900

test-long: setup        ## storms, soaks and sweeps
	$(BIN)/python -m pytest -m long --timeout 5400

bench-env: $(PEERS)     ## the bridge beside the physics alone, EnvPool and Gymnasium (two to three minutes)
	$(BIN)/swarm bench bridge --json > results/bridge.json.new
	mv results/bridge.json.new results/bridge.json

check: setup            ## format, lint, strict types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,export,sb3]'
	touch $(STAMP)

$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	touch $(PEERS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
