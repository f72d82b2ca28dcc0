# `make train` and `make test` work on a fresh clone: each makes .venv first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A new folder for every `make train`: nothing that was saved is written over.
RUN := $(shell date +%Y%m%d-%H%M%S)
OUTPUT ?= output/far-digit-$(RUN)

.PHONY: help train test test-interop faults test-floor test-gpu test-gpu-env gpu-report bench bench-accuracy lint clean

help:
	@echo "make train       train Hyena and the attention ViT on images of 256 pixels, print the comparison"
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
	$(BIN)/python train_imagenet.py -c configs/far_digit.yaml --output $(OUTPUT) --experiment hyena2d
	$(BIN)/python train_imagenet.py -c configs/far_digit_vit.yaml --output $(OUTPUT) --experiment attention
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

# What docs/evidence.md shows. A call that was ended goes on where it was; trials.csv in EVIDENCE is the record.
EVIDENCE ?= output/evidence
BENCHMARK = OMP_NUM_THREADS=1 $(BIN)/python -m hyena_vision.benchmark
RECALL = --task hyena/spatial_recall --recipe configs/spatial_recall.yaml --jobs 2
FIXED = $(subst spatial_recall ,spatial_recall:fixed=true ,$(RECALL))
ATTENTION = attention: vit_tiny_patch16_224 embed_dim=64 depth=4 num_heads=4 class_token=False global_pool=avg patch_size
# What was measured before filters began with a wider window; these were the defaults in 2D and 1D.
NARROW = slow_decay=3.0 fast_decay=0.6
NARROW_1D = mixer_layer=hyena1d slow_decay=1.5 fast_decay=0.3
NARROW_JSON = ,"slow_decay":3.0,"fast_decay":0.6
DEFAULT = hyena2d_iso_tiny patch_size=4 base_grid={size/4}
HYENA = $(DEFAULT) $(NARROW)
# fc_norm=False: a norm after the last block, as the others have. By default timm puts it behind the pooling.
CONTENDERS = "$(ATTENTION)=4 fc_norm=False" "1D causal: $(DEFAULT) $(NARROW_1D) causal=True" "1D: $(DEFAULT) $(NARROW_1D)" \
	"2D: $(HYENA)" "hybrid: $(HYENA) attn_blocks=[1,3] num_heads=4"
# One far digit: patches of 16 pixels, and the largest of all tokens in place of their mean, which hides a few with ink
FAR = $(subst fc_norm=False,,$(subst global_pool=avg ,,$(subst patch_size=4,patch_size=16 global_pool=max fc_norm=True,\
	$(subst {size/4},{size/16},$(subst $(NARROW),,$(subst $(NARROW_1D),mixer_layer=hyena1d,$(CONTENDERS)))))))
IN_VIT = hyena_replaced base=vit_tiny_patch16_224 replace=[{"mixer":"hyena2d","blocks":"all","filter_dim":32,"base_grid":{size/4}$(NARROW_JSON)}] \
	patch_size=4 embed_dim=64 depth=4 num_heads=1 class_token=False global_pool=avg fc_norm=False
VARIANTS = "2D: $(HYENA)" "no softcap: $(HYENA) softcap=0" "softcap 1: $(HYENA) softcap=1.0" \
	"order 3: $(HYENA) order=3" "gates SiLU: $(HYENA) gate_act=silu" \
	"gates SiLU and sigmoid: $(HYENA) gate_act=silu out_gate_act=sigmoid" "norm of values: $(HYENA) value_norm=True" \
	"norm of gates: $(HYENA) gate_norm=True" "norm of output: $(HYENA) out_norm=True" "no window: $(HYENA) window=none" \
	"exponential window: $(HYENA) window=exponential" "Gaussian window: $(HYENA) window=gaussian" \
	"omega_0 3: $(HYENA) omega_0=3.0" "omega_0 30: $(HYENA) omega_0=30.0" "circular: $(HYENA) padding=circular" \
	"short filter 1: $(HYENA) short_kernel_size=1" "short filter 5: $(HYENA) short_kernel_size=5" \
	'ViT, no positions: $(IN_VIT) pos_embed=none' 'ViT, learnt positions: $(IN_VIT) pos_embed=learn'
DEFAULT8 = hyena2d_iso_tiny patch_size=8 base_grid={size/8}
HYENA8 = $(DEFAULT8) $(NARROW)
HYENAPIXEL = hpx_former_s18 depths=[1,1,2,1] dims=[16,32,64,96] base_img_size={size/1}
CONVOLUTIONS = convolutions: convnext_atto patch_size=4 output_stride=8 depths=[1,1,1,1] dims=[64,64,64,64]
bench-accuracy: $(VENV)/.train
	$(BENCHMARK) accuracy $(RECALL) --lrs 2e-3 6e-3 2e-2 --img-sizes 32 --models $(CONTENDERS) --output $(EVIDENCE)/spatial_recall
	$(BENCHMARK) accuracy $(RECALL) --lrs 6e-3 2e-2 --img-sizes 64 --models $(CONTENDERS) "2D, no window: $(HYENA) window=none" \
		--output $(EVIDENCE)/spatial_recall_64
	$(BENCHMARK) accuracy $(RECALL) --lrs 6e-3 --img-sizes 32 --models $(VARIANTS) --output $(EVIDENCE)/ablations
	$(BENCHMARK) accuracy $(FIXED) --lrs 6e-3 2e-2 --img-sizes 64 --models "$(ATTENTION)=8 fc_norm=False" "2D: $(HYENA8)" \
		"2D, no window: $(HYENA8) window=none" "2D, wider window: $(DEFAULT8)" --output $(EVIDENCE)/spatial_recall_fixed
	$(BENCHMARK) accuracy $(RECALL) --lrs 6e-3 --img-sizes 32 64 --models "2D, wider window: $(DEFAULT)" \
		"1D, wider window: $(DEFAULT) mixer_layer=hyena1d" --output $(EVIDENCE)/wider_window
	$(BENCHMARK) accuracy --task hyena/far_digits:fewest=1,most=1 --recipe configs/far_digit.yaml --jobs 2 --lrs 3e-3 6e-3 \
		--img-sizes 256 --models $(FAR) --output $(EVIDENCE)/far_digit
	$(BENCHMARK) transfer --task sklearn/digits --recipe configs/digits.yaml --train-size 64 --img-sizes 96 128 --jobs 2 \
		--models "$(ATTENTION)=8" "$(CONVOLUTIONS)" "2D relative: $(HYENA8)" "2D absolute: $(HYENA8) coords=absolute" \
		"2D relative, short filter 1: $(HYENA8) short_kernel_size=1" \
		"2D relative, dilated: $(HYENA8) short_dilation={at/64}" "1D relative: $(DEFAULT8) $(NARROW_1D)" \
		"2D relative, dilated, wider window: $(DEFAULT8) short_dilation={at/64}" \
		"HyenaPixel relative: $(HYENAPIXEL)" "HyenaPixel absolute: $(HYENAPIXEL) coords=absolute" \
		--more "--epochs 1 --warmup-epochs 0 --lr 3e-4" --output $(EVIDENCE)/transfer --args --epochs 10 --warmup-epochs 1
	$(BENCHMARK) stability --task hyena/far_digits --recipe configs/stability.yaml --img-size 256 \
		--models "2D: $(HYENA) depth=8" --output $(EVIDENCE)/stability

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
