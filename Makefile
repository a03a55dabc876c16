# The words people type. Every target creates .venv when it is missing.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
PAPERMILL := $(BIN)/papermill --cwd . --log-output --no-progress-bar

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# uv, inside the venv, installs what requirements.lock pins, hashes checked. torch comes from pip at
# the locked version, so that your pip configuration (an index of CPU builds, a folder of wheels)
# decides which build; from the public index that is the CUDA build, and pip adds what it needs.
.venv/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Darkroom needs Python >= 3.11; say which: make PYTHON=python3.12")'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv "$$(grep -oE '^torch==[0-9.]+' requirements.lock)"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

install: .venv/.installed ## make .venv and install everything into it

lock: .venv/.installed ## pin pyproject's dependencies anew in requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock

demo: .venv/.installed ## index, train and validate on real photographs: notebooks 01, 03, 04 into runs/tiny/
	@mkdir -p runs/tiny
	@set -e; for name in 01_data_index 03_train 04_validate; do \
	  echo "== $$name"; \
	  $(PAPERMILL) notebooks/$$name.ipynb runs/tiny/$$name.ipynb -f params/tiny.yaml; \
	done
	@$(BIN)/python -c 'import json; status = json.load(open("runs/tiny/status.json")); \
	  print("runs/tiny:", status); raise SystemExit(status["status"] != "completed")'

test: .venv/.installed ## every test but the slow ones, no network needed
	$(BIN)/python -m pytest -n 2

lab: .venv/.installed ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --ServerApp.root_dir=. notebooks

lint: .venv/.installed ## ruff: lint and format, notebooks too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

BASE ?= params/tiny.yaml
OUT ?= runs/shards
SIZE ?= 256MiB
shards: .venv/.installed ## write the images of BASE as WebDataset shards: make shards BASE=params/tiny.yaml OUT=runs/shards SIZE=256MiB
	$(BIN)/python -m darkroom.shards "$(OUT)" --base "$(BASE)" --size "$(SIZE)"

bench: .venv/.installed ## every benchmark, one after the other
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

accept: .venv/.installed ## the long acceptance runs (hours); the tests hold shortened copies
	$(BIN)/python -m pytest -n 2 -m slow
	@failed=""; for file in accept/*.py; do \
	  echo "== $$file"; $(BIN)/python $$file || failed="$$failed $$file"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

.PHONY: help install lock demo test lab lint shards bench accept
