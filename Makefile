# Everything runs in .venv, which is made from the lock file. `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# The first Python on the path that is new enough. Overridden by `make PYTHON=/path/to/python3.12 ...`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
LOCK := requirements-dev.lock
STAMP := .venv/.made-from-$(LOCK)
LLAMACPP_LOCK := requirements-llamacpp.lock
LLAMACPP_STAMP := .venv/.made-from-$(LLAMACPP_LOCK)
# The second folder holds google/api/annotations.proto, of googleapis-common-protos.
PROTOC = PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -I protos \
	-I $$($(BIN)/python -c "import google.api as a, pathlib; print(pathlib.Path(list(a.__path__)[0]).parents[1])")
COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv from the lock file, development tools included

# Only what is in the lock is installed, by its hash; the project itself is linked in.
$(STAMP): $(LOCK) pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "make: Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv || { echo "make: cannot make .venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

llamacpp: $(LLAMACPP_STAMP) ## Add llama.cpp and a small model to .venv

$(LLAMACPP_STAMP): $(STAMP) $(LLAMACPP_LOCK)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(LLAMACPP_LOCK)
	@touch $@

demo: venv ## Run 1,000 requests through everything, on this machine
	@$(BIN)/aibrix-batch demo

demo-real: llamacpp ## Ask a real model 50 questions through everything, on this machine
	@$(BIN)/aibrix-batch demo-real

serve: venv ## Serve all roles in one process on 127.0.0.1:8080
	@$(BIN)/aibrix-batch serve

test: venv ## Run the tests
	@$(BIN)/python -m pytest -q $(ARGS)

check: venv ## Lint, format, types, imports, generated files: what must hold besides the tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@rm -rf .protos-check && mkdir .protos-check && trap 'rm -rf .protos-check' EXIT && \
		$(call generate,.protos-check) && diff -r -x __pycache__ .protos-check protos/gen \
		|| { echo "make: protos/gen is not what protos/ says: run make protos" >&2; exit 1; }
	@$(BIN)/aibrix-batch settings | diff - docs/settings.md \
		|| { echo "make: docs/settings.md is out of date: run make docs" >&2; exit 1; }
	@$(BIN)/aibrix-batch template schema | diff - docs/template.schema.json && \
		$(BIN)/aibrix-batch template schema --profile | diff - docs/profile.schema.json \
		|| { echo "make: the JSON Schemas in docs/ are out of date: run make docs" >&2; exit 1; }

bench: venv ## Measure speed and memory, each against a bare loop
	@$(BIN)/python -m benchmarks

protos: venv ## Generate protos/gen from protos/
	@rm -rf protos/gen/* && $(call generate,protos/gen)

docs: venv ## Generate docs/settings.md and the JSON Schemas
	@$(BIN)/aibrix-batch settings > docs/settings.md
	@$(BIN)/aibrix-batch template schema > docs/template.schema.json
	@$(BIN)/aibrix-batch template schema --profile > docs/profile.schema.json

lock: venv ## Resolve the dependencies anew into the lock files
	@$(COMPILE) --upgrade pyproject.toml --extra dev -o $(LOCK)
	@$(COMPILE) -c $(LOCK) pyproject.toml -o requirements.lock
	@$(COMPILE) -c $(LOCK) pyproject.toml --extra llamacpp -o requirements-llamacpp.lock
	@echo hatchling | $(COMPILE) -c $(LOCK) - -o requirements-build.lock

env: venv ## Make .env and an API key for docker compose
	@deploy/env.sh

clean: ## Delete what the targets above made
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

define generate
$(PROTOC) --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
	$$(find protos/brix protos/externalscaler -name '*.proto' | sort)
endef

.PHONY: help venv llamacpp demo demo-real serve test check bench protos docs lock env clean
