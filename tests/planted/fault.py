"""What a planted fault is, and where it can be planted."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One planted fault.

    Attributes:
        name: Of the fault.
        path: File that it is planted in.
        find: Text that occurs there exactly once.
        replace: What a mistaken person would have written.
        tests: What must catch it, as pytest takes it, below `tests/`.
    """

    name: str
    path: str
    find: str
    replace: str
    tests: tuple[str, ...]


CPP = "hyena_vision/ops/cpp/long_conv.cpp"
VECTOR = "hyena_vision/ops/cpp/vector.h"
BY_CPP = "hyena_vision/ops/cpp/long_conv.py"
FFT = "hyena_vision/ops/fft.py"
LONG_CONV = "hyena_vision/ops/long_conv.py"
BACKENDS = "hyena_vision/ops/backends.py"
TABLE = "hyena_vision/ops/table.py"
PREPARED = "hyena_vision/ops/prepared_kernel.py"
SHORT = "hyena_vision/ops/short_filter.py"
SHORT_TORCH = "hyena_vision/ops/short_filter_torch.py"
HALF = "hyena_vision/ops/triton/half_frequency.py"
BY_TRITON = "hyena_vision/ops/triton/long_conv.py"
KERNELS = "hyena_vision/ops/triton/long_conv_kernels.py"
SHORT_TRITON = "hyena_vision/ops/triton/short_filter_kernels.py"
IMPLICIT = "hyena_vision/ops/implicit_filter.py"
OPERATOR = "hyena_vision/ops/hyena.py"
MIXER = "hyena_vision/layers/hyena.py"
FILTER = "hyena_vision/layers/implicit_filter.py"
KEPT = "hyena_vision/layers/kept_kernels.py"
UNTOUCHED = "hyena_vision/layers/untouched.py"
SOFTCAP = "hyena_vision/layers/softcap.py"
MLP = "hyena_vision/layers/mlp.py"
ATTENTION = "hyena_vision/layers/hyena_attention.py"
FROM_ATTENTION = "hyena_vision/layers/from_attention.py"
REPLACE = "hyena_vision/models/replace.py"
REPLACED = "hyena_vision/models/_replaced.py"
BLOCKS = "hyena_vision/models/_blocks.py"
CONVERT = "hyena_vision/layers/convert.py"
VIT = "hyena_vision/models/hyena_vit.py"
DENSE = "hyena_vision/models/dense.py"
VIT_FPN = "hyena_vision/models/hyena_vit_fpn.py"
WEIGHTS = "hyena_vision/models/hyena_former_weights.py"
METERS = "hyena_vision/training/meters.py"
LOOP = "hyena_vision/training/loop.py"
OPTIM = "hyena_vision/training/optim.py"
CHECKPOINT = "hyena_vision/training/checkpoint_files.py"
STATE = "hyena_vision/training/run_state.py"
CONVERSION = "hyena_vision/training/conversion.py"
MODEL = "hyena_vision/training/model.py"
BAD_IMAGES = "hyena_vision/training/bad_images.py"
LOADER = "hyena_vision/training/seeded_loader.py"
DATA = "hyena_vision/training/pipeline.py"
IMAGE = "hyena_vision/data/image.py"
FOLDER = "hyena_vision/data/folder.py"
CLASSES = "hyena_vision/training/classes.py"
SPLITS = "hyena_vision/training/splits.py"
TRAIN = "hyena_vision/train.py"
