# `make train` and `make test` work on a fresh clone: each makes .venv first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A new folder for every `make train`: nothing that was saved is written over.
RUN := $(shell date +%Y%m%d-%H%M%S)
OUTPUT ?= output/digits-$(RUN)

.PHONY: help train test test-floor test-gpu bench lint clean

help:
	@echo "make train       train Hyena and the attention ViT on real images, print the comparison"
	@echo "make test        lint and all tests"
	@echo "make test-floor  the tests with the oldest supported versions (Python 3.10)"
	@echo "make test-gpu    the tests of the fused kernels, on a GPU"
	@echo "make bench       operators and models against attention, tables and figures into output/"
	@echo "make lint        ruff and the direction of imports"

$(VENV)/.train: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, got " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train]"
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,lint]"
	touch $@

train: $(VENV)/.train
	$(BIN)/python train_imagenet.py -c configs/digits.yaml --output $(OUTPUT) --experiment hyena2d
	$(BIN)/python train_imagenet.py -c configs/digits_vit.yaml --output $(OUTPUT) --experiment attention
	$(BIN)/python -m hyena_vision.training.report $(OUTPUT)/hyena2d $(OUTPUT)/attention

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# One test process per core: threads of several would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
test: lint
	$(PYTEST)

# On a machine with a GPU: the kernels as they run there.
test-gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/.train
	$(BIN)/python -m hyena_vision.benchmark ops --check --output output/bench-$(RUN)
	$(BIN)/python -m hyena_vision.benchmark models --batch-memory 0.2 --rounds 3 --time-limit 10 --output output/bench-$(RUN)

# Kept in step with the lower bounds in pyproject.toml.
FLOOR := torch==2.8.0 torchvision==0.23.0 timm==1.0.27 einops==0.8.0
.venv-floor/.test: pyproject.toml
	test -x .venv-floor/bin/python || python3.10 -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check $(FLOOR) --editable ".[test]"
	touch $@

test-floor: .venv-floor/.test
	.venv-floor/bin/python -m pytest

clean:
	rm -rf $(VENV) .venv-floor output build dist *.egg-info
