# Everything from one command. Needs Python 3.11 or newer and make; the environment is made by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 5000
RUNS ?= mlruns

# Waiting OpenMP threads that spin slow two busy processes on the same cores down several times.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.DEFAULT_GOAL := help

.PHONY: help
help:  ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP)  ## make .venv with the pinned dependencies

# torch comes first and exact, so that a CPU wheel is taken where one is at hand, and nothing asks for another.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 setup"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (once; about two minutes)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

.PHONY: demo
demo: setup  ## simulated data, 28 short runs with seven seeds, the answer (5 to 18 minutes on 2 cores; resumes)
	@$(BIN)/python train.py -m experiment=demo variations=0 split.train_size=5,20
	@$(BIN)/python train.py -m experiment=demo variations=10 generator=copy_paste,pixel_ddpm
	@$(BIN)/python compare.py study=demo brief=true

# No variations need no control, and the controls are held against the largest number, so there are two sweeps.
.PHONY: study
study: setup  ## simulated data, 90 runs with nine seeds and both controls, the comparison (about an hour; resumes)
	@$(BIN)/python train.py -m experiment=study
	@$(BIN)/python train.py -m experiment=study variations=10 generator=repeat,copy_paste
	@$(BIN)/python compare.py study=sar_chips_study

.PHONY: test
test: setup  ## all fast tests (about 20 minutes on 2 cores)
	@$(BIN)/python -m pytest -q

.PHONY: check
check: setup  ## ruff, mypy strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# One worker and no job runner: half a gigabyte of memory instead of three.
.PHONY: ui
ui: setup  ## MLflow on loopback; prints the address of the newest study's runs side by side (PORT=5000)
	@address=$$($(BIN)/python -m boxtwin.tracking.mlflow_view $(RUNS) $(PORT)) && \
	  echo "Open, once the server below is up: $$address"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri sqlite:///$(RUNS)/mlflow.db --default-artifact-root $(RUNS)/artifacts

# Runs and what a person labelled or paid for are asked for first; without a terminal they stay, unless CONFIRM=1.
.PHONY: clean
clean:  ## remove environment, caches, stores, built data; runs and labels of yours only if you agree
	@$(PYTHON) -P src/boxtwin/synthesis/clean.py data --runs multirun $(RUNS) reports $(if $(filter 1,$(CONFIRM)),--confirm)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache src/*.egg-info build
