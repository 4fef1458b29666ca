# make demo | make test | make test-slow; everything lands in .venv/ and artefacts/, which git ignores.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A plain torch brings several GB of CUDA. On a machine without a GPU name PyTorch's index of CPU wheels here:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
DOCUMENTS ?= 1000
PRETRAIN ?= 0
export TOKENIZERS_PARALLELISM := false
# Torch's threads sleep where they wait for each other: spinning, two of them on cores that others use too are 20 times slower than one.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-slow lint clean
setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml infra/demo-packages.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[aws,beam,gcp,train,demo,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r infra/demo-packages.txt
	$(BIN)/python -m training.warm_up
	touch $@

demo: setup
	$(BIN)/python -m infra.demo --documents $(DOCUMENTS) $(if $(filter 1,$(PRETRAIN)),--pretrain)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: setup lint
	$(BIN)/pytest -m "not slow"

# Clusters start and lose nodes here, by the clock: on a machine that others use too, one that failed runs again once, and the last line counts it (`rerun`).
test-slow: setup
	$(BIN)/pytest -m slow --numprocesses 2 --dist loadfile --reruns 1

clean:
	rm -rf artefacts build
