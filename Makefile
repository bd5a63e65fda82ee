# Targets with a line of help after `##` are listed by `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# The first Python that is new enough; PYTHON=... names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
ARGS ?=

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## the Debian packages that the tests need (root installs them)
	@PYTHON=$(PYTHON) scripts/deps

venv: .venv/installed ## .venv with the package, editable, and what develops it

.venv/installed: pyproject.toml | deps
	@[[ -n "$(PYTHON)" ]] || { echo "venv: no Python 3.11 or newer: install one, or name it (PYTHON=...)" >&2; exit 1; }
	@echo "venv: installing into .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

lint: venv ## ruff and mypy; shellcheck where it is installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy --strict --no-error-summary cortexd cortexctl bench
	@! command -v shellcheck >/dev/null || shellcheck $$(grep -lE '^\#!.*bash' scripts/* .ci/*)

test: deps venv lint ## lint and every test but the whole machines; ARGS="-k name" goes to pytest
	@$(BIN)/pytest $(ARGS)

test-private: deps venv ## the private systemd from outside (`make test` runs in it, where root is a user)
	@CORTEX_LAB=1 $(BIN)/pytest -p no:cacheprovider tests/test_scripts.py -k TestPrivateSystemd

test-machine: venv ## boots whole Debian 12 and 13 machines and tests cortexd as a user has it there; ARGS="trixie 36"
	@tests/machine/run $(ARGS)

test-faults: deps venv ## kills cortexd at every await of every use-case on the real systemd; ARGS="-k stop"
	@FAULTS=real $(BIN)/pytest -q tests/faults/test_kill_points.py $(ARGS)

test-vllm: deps venv ## a real vLLM for CPUs (3.4 GB, once); ARGS="-k name" goes to pytest
	@PYTHON=$(BIN)/python scripts/get-vllm .demo/vllm
	@TEST_VLLM=1 $(BIN)/pytest tests/vllm $(ARGS)

soak: deps venv ## thirty models under random kills and hangs, the daemon's own included; MINUTES=5
	@MINUTES=$(or $(MINUTES),5) $(BIN)/pytest -q -s tests/soak/soak.py $(ARGS)

bench: deps venv ## cortexd beside its peers: bench/results.json, docs/performance.md; ARGS="status start", SHORT=1
	@$(BIN)/python -m bench $(if $(SHORT),--short) $(ARGS)

demo: venv ## a real llama-server as a service: start, ask, kill, watch it come back
	@scripts/demo

install: ## for this user: cortexd, cortexctl, units, D-Bus activation, manual page, completion
	@PYTHON=$(PYTHON) scripts/install

uninstall: ## what `make install` put there; REMOVE_MODELS=1 removes registered models too
	@scripts/uninstall

man: venv ## build/cortexctl.1
	@mkdir -p build
	@$(BIN)/python -m cortexctl.docs man >build/cortexctl.1

completion: venv ## build/cortexctl.{bash,zsh,fish}
	@mkdir -p build
	@for shell in bash zsh fish; do $(BIN)/python -m cortexctl.docs $$shell >build/cortexctl.$$shell; done

clean: ## everything that the other targets made in this folder
	@rm -rf .venv .demo build .coverage .mypy_cache .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help deps venv lint test test-private test-machine test-faults test-vllm soak bench demo install uninstall man completion clean
