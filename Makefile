# `make train` and `make test` work on a fresh clone: each makes .venv first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A new folder for every `make train`: nothing that was saved is written over.
RUN := $(shell date +%Y%m%d-%H%M%S)
OUTPUT ?= output/digits-$(RUN)

.PHONY: help train test test-interop faults test-floor test-gpu test-gpu-env gpu-report bench bench-accuracy lint clean

help:
	@echo "make train       train Hyena and the attention ViT on real images, print the comparison"
	@echo "make test        lint and all tests"
	@echo "make test-floor  the tests with the oldest supported versions (Python 3.10)"
	@echo "make test-interop  the tests with libraries that take the models as backbones (docs/libraries.md)"
	@echo "make test-gpu    the tests of the fused kernels, on a GPU"
	@echo "make gpu-report  all that a GPU has to tell, in parts: PART=1 to 11, PART=\"1 2 3\""
	@echo "make test-gpu-env  the tests of the fused kernels with the versions of a GPU machine (torch 2.11), without a GPU"
	@echo "make faults      plant a hundred faults, one at a time, and see that tests catch each (long)"
	@echo "make bench       operators and models against attention, tables and figures into output/"
	@echo "make bench-accuracy  what models learn on generated tasks against their cost (a day of two cores; goes on)"
	@echo "make lint        ruff, the direction of imports, and types"

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
	$(BIN)/mypy

# One test process per core: threads of several would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
test: lint
	$(PYTEST)

# They are skipped where the libraries are missing.
test-interop: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[interop]"
	$(PYTEST) tests/tools/test_interop.py

# Before tests are made fewer, and after.
faults: $(VENV)/.test
	$(BIN)/python tests/faults.py --jobs 2

# Machines with a GPU often come with an environment and without a network: PYTHON is taken if it has all that is needed.
NEEDED := torch, torchvision, timm, einops, PIL, pytest, hypothesis, matplotlib, sklearn
define ON_GPU
@if why=$$($(PYTHON) -c 'import $(NEEDED); torch.cuda.init()' 2>&1); then python=$(PYTHON); \
else echo "$(PYTHON) is not taken: $$(echo "$$why" | tail -n 1)"; \
$(MAKE) --no-print-directory $(VENV)/.test && python=$(BIN)/python || exit; fi; set -x; $$python
endef

# The kernels as they run there.
test-gpu:
	$(ON_GPU) -m pytest -m gpu tests/ops tests/layers tests/benchmark

# All measurements that are owed, each part at most eight minutes; a part that is called again goes on.
PART ?=
REPORT ?= output/gpu-report
gpu-report:
	$(ON_GPU) -m hyena_vision.benchmark gpu-report --output $(REPORT) $(if $(PART),--part $(PART))

# The versions of a GPU machine of today, without a GPU; Triton 3.6 interprets with numpy below 2.4 only.
GPU_VERSIONS := torch==2.11.0 torchvision==0.26.0 'numpy<2.4'
.venv-gpu/.test: pyproject.toml
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check $(GPU_VERSIONS) --editable ".[test]"
	touch $@

test-gpu-env: .venv-gpu/.test
	OMP_NUM_THREADS=1 .venv-gpu/bin/python -m pytest -n auto tests/ops tests/layers tests/benchmark

bench: $(VENV)/.train
	$(BIN)/python -m hyena_vision.benchmark ops --check --output output/bench-$(RUN)
	$(BIN)/python -m hyena_vision.benchmark models --img-sizes 224 512 1024 2048 -b 16 4 1 1 --rounds 3 --time-limit 10 --output output/bench-$(RUN)

# The five contenders for patches of $(1) pixels, of one width and depth. A call that was ended goes on where it was.
HYENA = hyena2d_iso_tiny patch_size=$(1) base_grid={size/$(1)}
CONTENDERS = "attention: vit_tiny_patch16_224 patch_size=$(1) embed_dim=64 depth=4 num_heads=4 class_token=False global_pool=avg" \
	"1D causal: $(HYENA) mixer_layer=hyena1d causal=True" "1D: $(HYENA) mixer_layer=hyena1d" "2D: $(HYENA)" \
	"hybrid: $(HYENA) attn_blocks=[1,3] num_heads=4"
ACCURACY = OMP_NUM_THREADS=1 $(BIN)/python -m hyena_vision.benchmark accuracy --lrs 2e-3 6e-3 2e-2 --seeds 3 --jobs 2
bench-accuracy: $(VENV)/.train
	$(ACCURACY) --task hyena/spatial_recall --recipe configs/spatial_recall.yaml --img-sizes 32 64 \
		--models $(call CONTENDERS,4) --output output/accuracy/spatial_recall

# Kept in step with the lower bounds in pyproject.toml.
FLOOR := torch==2.8.0 torchvision==0.23.0 timm==1.0.27 einops==0.8.0
.venv-floor/.test: pyproject.toml
	test -x .venv-floor/bin/python || python3.10 -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check $(FLOOR) --editable ".[test]"
	touch $@

test-floor: .venv-floor/.test
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -n auto --dist worksteal

clean:
	rm -rf $(VENV) .venv-floor .venv-gpu output build dist *.egg-info
