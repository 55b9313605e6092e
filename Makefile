SHELL := /bin/bash
BIN := .venv/bin
PACKAGES := flows components data_prep evaluation infra tests
.DEFAULT_GOAL := help
SINCE ?= HEAD~1
.PHONY: help setup demo test check lint style format lock clean bench bench-cache bench-train gpu-check rooms

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 24

setup:  ## .venv from requirements.lock; nothing to do when it is current
	@bash infra/setup/setup.sh

demo: setup  ## the whole pipeline on the pocket recipe, in minutes on two cores
	@$(BIN)/animateflow demo

test:  ## lint, types and every test, in two processes (PYTEST_ARGS="-k cache -n 0": more for pytest)
	@bash infra/setup/test.sh $(PYTEST_ARGS)

check: setup  ## lint, types and the nearest tests of what changed since SINCE, in two minutes (default: the last commit)
	@$(BIN)/python -m infra.setup.check --since $(SINCE)

lint: setup style  ## ruff and mypy
	@$(BIN)/mypy

style:
	@$(BIN)/ruff check $(PACKAGES)
	@$(BIN)/ruff format --check $(PACKAGES)

format: setup  ## rewrites the code in the project's form
	@$(BIN)/ruff check --fix $(PACKAGES)
	@$(BIN)/ruff format $(PACKAGES)

bench: bench-cache bench-train  ## every measurement of docs/performance.md

bench-cache: setup  ## videos to latents: ours, the bare VAE, a plain script (10 minutes on two cores)
	@$(BIN)/python -m data_prep.bench --json bench-cache.json

bench-train: setup  ## training steps: ours, the bare UNet, the official step restated (15 minutes on two cores)
	@$(BIN)/python -m components.bench.bench --json bench-train.json
	@$(BIN)/python -m components.bench.bench --tricks

gpu-check: setup  ## what a CUDA GPU does: right, how fast, as predicted; nine minutes (ARGS=--rehearse: small, on the CPU)
	@$(BIN)/python -m infra.gpu_check $(ARGS)

rooms: setup  ## the picture and the table of the rooms in docs/architecture.md, from the imports
	@$(BIN)/python -m infra.setup.rooms_picture

lock: setup  ## requirements.lock from pyproject.toml
	@.tools/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
	  --quiet --output-file requirements.lock

clean:  ## removes the environment and everything made by runs
	rm -rf .venv .tools .animateflow runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
