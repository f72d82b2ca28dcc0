"""Faults that a person could make, one at a time, and the tests that must catch each.

    python tests/faults.py [--only NAME ...] [--jobs N]

plants each fault in a copy of the tree and runs its tests there. A fault that they miss is a gap in the tests.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


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
MLP = "hyena_vision/layers/mlp.py"
ATTENTION = "hyena_vision/layers/hyena_attention.py"
FROM_ATTENTION = "hyena_vision/layers/from_attention.py"
REPLACE = "hyena_vision/models/replace.py"
REPLACED = "hyena_vision/models/_replaced.py"
BLOCKS = "hyena_vision/models/_blocks.py"
CONVERT = "hyena_vision/layers/convert.py"
VIT = "hyena_vision/models/hyena_vit.py"
VIT_FPN = "hyena_vision/models/hyena_vit_fpn.py"
WEIGHTS = "hyena_vision/models/hyena_former_weights.py"
LOOP = "hyena_vision/training/loop.py"
OPTIM = "hyena_vision/training/optim.py"
CHECKPOINT = "hyena_vision/training/checkpoint_files.py"
STATE = "hyena_vision/training/run_state.py"
BAD_IMAGES = "hyena_vision/training/bad_images.py"
LOADER = "hyena_vision/training/seeded_loader.py"
DATA = "hyena_vision/training/pipeline.py"
IMAGE = "hyena_vision/data/image.py"
FOLDER = "hyena_vision/data/folder.py"
CLASSES = "hyena_vision/training/classes.py"
SPLITS = "hyena_vision/training/splits.py"
TRAIN = "hyena_vision/train.py"

FAULTS = [
    # ---- ops: the C++ backend
    Fault(
        "cpp: gradient of the spectrum is conjugate",
        CPP,
        "d = times_conj(b, a);",
        "d = times_conj(a, b);",
        ("ops/test_long_conv_cpp.py::test_sizes",),
    ),
    Fault(
        "cpp: half-frequencies with the other sign",
        CPP,
        "twist_w.push_back(root(-j, 4.0 * size_w))",
        "twist_w.push_back(root(j, 4.0 * size_w))",
        ("ops/test_long_conv_cpp.py::test_sizes",),
    ),
    Fault(
        "cpp: one tap more than the kernel has",
        CPP,
        "if (place < after) return",
        "if (place <= after) return",
        ("ops/test_long_conv_cpp.py::test_kernels_of_any_extent",),
    ),
    Fault(
        "cpp: skip on the middle tap of every line",
        CPP,
        "return a == 0 && b == 0 ? value + centre",
        "return b == 0 ? value + centre",
        ("ops/test_long_conv_cpp.py::test_kernels_of_any_extent",),
    ),
    Fault(
        "cpp: lines of a sequence lose their last token",
        CPP,
        "(length - a - 1) / size_h() + 1",
        "length / size_h()",
        ("ops/test_long_conv_cpp.py::test_sizes",),
    ),
    Fault(
        "cpp: kernels of samples a group of channels apart",
        CPP,
        "long(sample) * blocks * plan.numbers()",
        "long(sample) * group * plan.numbers()",
        ("ops/test_long_conv_cpp.py::test_gates_in_every_dtype",),
    ),
    Fault(
        "cpp: parts of a gradient begin with what is in memory",
        CPP,
        "sample != part);",
        "sample != 0);",
        ("ops/test_long_conv_cpp.py::test_gradients_summed_in_parts_of_the_batch",),
    ),
    Fault(
        "cpp: gradient of the last gate without that gate's cotangent",
        CPP,
        "work.all_back_w<T>(0, dy, dout_gate, {}, {})",
        "work.all_back_w<T>(0, out_gate, dout_gate, {}, {})",
        ("ops/test_long_conv_cpp.py::test_gates_in_every_dtype",),
    ),
    Fault(
        "cpp: second half of an image's columns is added, not subtracted",
        CPP,
        "difference = difference - second",
        "difference = difference + second",
        ("ops/test_long_conv_cpp.py::test_kernels_of_any_extent",),
    ),
    Fault(
        "cpp: bfloat16 is rounded away from even",
        VECTOR,
        "(0x7fffu + ((wide >> 16) & 1u))",
        "0x8000u",
        ("ops/test_long_conv_cpp.py::test_bfloat16_is_rounded_as_torch_does",),
    ),
    Fault(
        "cpp: the tap of the largest displacement does not reach",
        BY_CPP,
        "_Reach(min(middle, n - 1), min(extent - middle, n))",
        "_Reach(min(middle, n - 1), min(extent - middle, n - 1))",
        ("ops/test_fft.py::test_matches_direct_sum",),
    ),
    Fault(
        "cpp: gradient of a repeated kernel is folded off by one",
        BY_CPP,
        "folded.narrow(axis, 1, n - 1).add_",
        "folded.narrow(axis, 0, n - 1).add_",
        ("ops/test_long_conv_cpp.py::test_kernels_of_any_extent",),
    ),
    Fault(
        "cpp: one bfloat16 signal makes all bfloat16",
        BY_CPP,
        "signal is not None and signal.dtype != torch.bfloat16:",
        "signal is not None and signal is not signals[-1] and signal.dtype != torch.bfloat16:",
        ("ops/test_long_conv_cpp.py::test_gate_of_another_dtype",),
    ),
    Fault(
        "cpp: negative views are read as their base",
        BY_CPP,
        "tensor.detach().resolve_neg().to(dtype)",
        "tensor.detach().to(dtype)",
        ("ops/test_long_conv_cpp.py::test_signs_that_are_not_in_memory",),
    ),
    Fault(
        "cpp: runs under function transforms",
        BY_CPP,
        "    if is_watched(x, kernel):\n",
        "    if False:\n",
        ("tools/test_tools.py::test_function_transforms", "ops/test_fft.py::test_exports_with_a_dynamic_size"),
    ),
    # ---- ops: torch.fft
    Fault(
        "fft: transform one too short",
        FFT,
        "max(size + reaching - 1 - start, start + size)",
        "max(size + reaching - 2 - start, start + size)",
        ("ops/test_fft.py::test_matches_direct_sum",),
    ),
    Fault(
        "fft: gradient of the kernel without conj",
        FFT,
        "of_du * of_u.conj_physical()",
        "of_du * of_u",
        ("ops/test_fft.py::test_matches_direct_sum",),
    ),
    Fault(
        "fft: gradient of a circular kernel turned the wrong way",
        FFT,
        "index.sub(middle).remainder",
        "index.add(middle).remainder",
        ("ops/test_fft.py::test_matches_direct_sum",),
    ),
    Fault(
        "fft: gradient of the skip without the batch",
        FFT,
        "(du * u).sum([0, *range(2, x.ndim)])",
        "(du * u).mean(0).sum([*range(1, x.ndim - 1)])",
        ("ops/test_fft.py::test_matches_direct_sum",),
    ),
    Fault(
        "fft: kernel rounded to the dtype of the signal",
        FFT,
        "_reaching_taps(_narrow(kernel, block, axis).to(dtype)",
        "_reaching_taps(_narrow(kernel, block, axis).to(x.dtype).to(dtype)",
        ("ops/test_fft.py::test_kernel_in_float32_under_half_precision_input",),
    ),
    # ---- ops: gates, choice of a backend, prepared kernels
    Fault(
        "gates: gradient of the first gate has the gate in it",
        FFT,
        "(dx * x).to(gate.dtype)",
        "(dx * u).to(gate.dtype)",
        ("layers/test_fast_paths.py::test_all_results_are_those_of_calls",),
    ),
    Fault(
        "gates: gradient of the last gate forgets the first",
        FFT,
        "y = _inverse(of_u * of_kernel,",
        "y = _inverse(_forward(x.to(dtype), axes) * of_kernel,",
        ("layers/test_fast_paths.py::test_all_results_are_those_of_calls",),
    ),
    Fault(
        "gates: product in half precision",
        BACKENDS,
        "x.to(dtype) * gate.to(dtype)",
        "(x * gate).to(dtype)",
        ("ops/test_contract.py::test_products_with_gates_do_not_overflow",),
    ),
    Fault(
        "select: a table counts for circular convolutions",
        BACKENDS,
        "kernel.ndim < x.ndim and not circular",
        "kernel.ndim < x.ndim",
        ("ops/test_table.py::test_calls_follow_the_table", "ops/test_table.py::test_mixers_follow_the_table"),
    ),
    Fault(
        "select: what a card lacks is not asked",
        BACKENDS,
        "if backend.missing() is None and backend.reason(x, kernel) is None:",
        "if backend.missing() is None:",
        ("ops/test_table.py::test_a_table_that_cannot_be_followed_is_not",),
    ),
    Fault(
        "table: a range has its lower end",
        TABLE,
        "low < n <= high for",
        "low <= n <= high for",
        ("ops/test_table.py::test_calls_follow_the_table",),
    ),
    Fault(
        "table: that of other kernels is read",
        TABLE,
        'if name != "hyena_vision" and',
        'if name not in ("hyena_vision", "kernels") and',
        ("ops/test_table.py::test_foreign_and_outdated_tables_are_ignored_with_a_line",),
    ),
    Fault(
        "prepared kernels share memory with the weights",
        PREPARED,
        "tuple(t.clone() if t.untyped_storage()._cdata in arguments else t for t in tensors)",
        "tuple(tensors)",
        ("ops/test_contract.py::test_prepared_kernels_are_copied_and_pickled",),
    ),
    Fault(
        "prepared kernels of samples take any batch",
        PREPARED,
        "x.shape[0] if kernel.ndim == x.ndim else None",
        "None",
        ("ops/test_contract.py::test_prepared_kernels_of_samples_are_for_their_batch",),
    ),
    # ---- ops: short filter
    Fault(
        "short filter: causal sequences lose their beginning, not their end",
        SHORT_TORCH,
        "filtered[..., : x.shape[1]]",
        "filtered[..., -x.shape[1] :]",
        ("ops/test_short_filter.py::test_hand_made_causal_sequence",),
    ),
    Fault(
        "short filter: what crosses rows comes from the wrong end",
        SHORT_TORCH,
        "F.pad(x[..., :shift], (0, 0, 0, 1))",
        "F.pad(x[..., -shift:], (0, 0, 0, 1))",
        ("layers/test_fast_paths.py::test_all_results_are_those_of_calls",),
    ),
    Fault(
        "short filter: neighbours before and after a row are exchanged",
        SHORT_TORCH,
        "rows.split([after, rows.shape[2] - before - after, before], dim=2)",
        "rows.split([before, rows.shape[2] - before - after, after], dim=2)",
        ("layers/test_hyena.py",),
    ),
    Fault(
        "short filter: gradient through a tap from the wrong side",
        SHORT_TRITON,
        "y = row - (i - TOP)",
        "y = row + (i - TOP)",
        ("ops/test_short_filter.py::test_kernels_in_float32",),
    ),
    # ---- ops: the Triton backend, in the interpreter
    Fault(
        "triton: a frequency that is its own conjugate counts twice",
        HALF,
        "((frequencies == 0) | (2 * frequencies == size))",
        "(frequencies == 0)",
        ("ops/test_long_conv_triton.py::test_matches_direct_sum",),
    ),
    Fault(
        "triton: gradient of taps before the centre keeps its sign",
        HALF,
        "return torch.where(index < 0, -values, values)",
        "return values",
        ("ops/test_long_conv_triton.py::test_matches_direct_sum",),
    ),
    Fault(
        "triton: skip in one half of an image's spectrum",
        HALF,
        "parts[..., ::2, :, :] += 0",
        "parts[..., :1, :, :] += 0",
        ("ops/test_long_conv_triton.py::test_matches_direct_sum",),
    ),
    Fault(
        "triton: one token more than the sequence has",
        KERNELS,
        "mask = h + TILE[0] * w < size[0]",
        "mask = h + TILE[0] * w <= size[0]",
        ("ops/test_long_conv_triton.py::test_matches_direct_sum",),
    ),
    Fault(
        "triton: gradient of the other frequencies is conjugate",
        KERNELS,
        "sums[3] + (q * dp - p * dq)",
        "sums[3] + (p * dq - q * dp)",
        ("ops/test_long_conv_triton.py::test_matches_direct_sum",),
    ),
    Fault(
        "triton: spectra are too large for float16",
        BY_TRITON,
        ".clamp_min(1e-30) * (plan.tile_h * plan.tile_w) ** 0.5",
        ".clamp_min(1e-30) / (plan.tile_h * plan.tile_w) ** 0.5",
        ("ops/test_long_conv_triton.py::test_constant_images_and_kernels_stay_in_range",),
    ),
    Fault(
        "triton: gradient of the last gate of tiles in parts",
        BY_TRITON,
        "_transform_w_back(x_w, spectrum, dy, dout_gate)",
        "_transform_w_back(x_w, spectrum, out_gate, dout_gate)",
        ("ops/test_long_conv_triton.py::test_tiles_in_parts_match_direct_sum",),
    ),
    # ---- ops: implicit kernel, and the operator of a mixer
    Fault(
        "implicit kernel: gradient of a decay without its sign",
        IMPLICIT,
        ".squeeze(0) * decay.sign()",
        ".squeeze(0)",
        ("layers/test_implicit_filter.py::test_fast_path_equals_calls_of_the_layers",),
    ),
    Fault(
        "implicit kernel: gradients do not see the shift of the window",
        IMPLICIT,
        "dvalues = grad * (factor if shift is None else factor + shift)",
        "dvalues = grad * factor",
        ("layers/test_implicit_filter.py::test_fast_path_equals_calls_of_the_layers",),
    ),
    Fault(
        "implicit kernel: gradient of the frequency comes too late",
        IMPLICIT,
        "            domega += product.mul_(dproduct).sum(0)",
        "            domega += product.mul_(dproduct * omega).sum(0)",
        ("layers/test_implicit_filter.py::test_fast_path_equals_calls_of_the_layers",),
    ),
    Fault(
        "centre of an even kernel",
        LONG_CONV,
        "return Taps((extent,), (0 if causal else extent // 2,), False)",
        "return Taps((extent,), (0 if causal else (extent - 1) // 2,), False)",
        ("ops/test_long_conv.py", "ops/test_reference.py"),
    ),
    Fault(
        "operator: backward pass of circular images is linear",
        OPERATOR,
        "dy, signals[0], kernel.detach(), skip.detach(), *signals[1:], taps",
        "dy, signals[0], kernel.detach(), skip.detach(), *signals[1:], taps._replace(circular=False)",
        ("layers/test_fast_paths.py::test_all_results_are_those_of_calls",),
    ),
    Fault(
        "operator: gradients of gate and value are exchanged",
        OPERATOR,
        "(dout_gate, dgate, dvalue)",
        "(dout_gate, dvalue, dgate)",
        ("layers/test_fast_paths.py::test_all_results_are_those_of_calls",),
    ),
    Fault(
        "operator: backward pass out of autocast",
        OPERATOR,
        "with torch.enable_grad(), ctx.autocast():",
        "with torch.enable_grad():",
        ("layers/test_fast_paths.py::test_backward_passes_in_autocast_and_out_of_it",),
    ),
    # ---- layers: filters
    Fault(
        "filter: radial window by the square of the distance",
        FILTER,
        "return reduce(torch.add, squares).sqrt().view(-1, 1)",
        "return reduce(torch.add, squares).view(-1, 1)",
        ("layers/test_implicit_filter.py::test_2d_value_by_the_formula",),
    ),
    Fault(
        "filter: coordinates are relative to the base grid",
        FILTER,
        'scales = size if self.coords == "relative" else self.base_size',
        'scales = self.base_size if self.coords == "relative" else size',
        ("layers/test_implicit_filter.py",),
    ),
    Fault(
        "filter: kernels of larger grids are larger, not smaller",
        FILTER,
        "math.prod([base / n for",
        "math.prod([n / base for",
        ("layers/test_implicit_filter.py::test_relative_coordinates_keep_the_integral_at_every_resolution",),
    ),
    Fault(
        "filter: rows before columns",
        FILTER,
        'of_axes[::-1] if self.features == "sinusoid" else of_axes',
        "of_axes",
        ("layers/test_implicit_filter.py::test_sinusoid_features_are_those_of_hyenapixel", "layers/test_convert.py"),
    ),
    Fault(
        "filter: a table is read from its beginning, not its middle",
        FILTER,
        "0 if self.causal else (whole - extent) // 2",
        "0",
        ("layers/test_implicit_filter.py",),
    ),
    Fault(
        "filter: coordinates in the default dtype",
        FILTER,
        "n, dtype=self._dtype, device=device) / scale",
        "n, device=device) / scale",
        ("tools/test_tools.py::test_defaults_change_nothing",),
    ),
    Fault(
        "filter: causal angles go round twice",
        FILTER,
        "(2 if self.causal else 1) * math.pi",
        "(1 if self.causal else 2) * math.pi",
        ("layers/test_implicit_filter.py",),
    ),
    # ---- layers: kept kernels and fast paths
    Fault(
        "kept kernels: stale after a change of the shift",
        FILTER,
        "            self.table_size,\n            self.window_shift,\n",
        "            self.table_size,\n",
        ("layers/test_kept_kernels.py::test_changed_setting_of_the_filter_is_seen",),
    ),
    Fault(
        "kept kernels: one key for an image and its transpose",
        KEPT,
        '"x".join([f"{n}" for n in signal.shape[2:]])',
        '"x".join(sorted([f"{n}" for n in signal.shape[2:]]))',
        ("layers/test_kept_kernels.py::test_sizes_there_and_back",),
    ),
    Fault(
        "kept kernels: stale after a small change",
        KEPT,
        "not torch.equal(kept, weight)",
        "not torch.allclose(kept, weight)",
        ("layers/test_kept_kernels.py::test_the_least_change_of_a_weight_makes_new_kernels",),
    ),
    Fault(
        "kept kernels: skip is not among the weights",
        MIXER,
        "weights = [self.skip, *weights]",
        "weights = list(weights)",
        ("layers/test_kept_kernels.py", "tools/test_changes.py::test_one_element_of_each_weight_and_buffer"),
    ),
    Fault(
        "kept kernels: not dropped by loading",
        MIXER,
        "    def _load_from_state_dict(self, *args, **kwargs) -> None:\n        self.kept.clear()\n",
        "    def _load_from_state_dict(self, *args, **kwargs) -> None:\n",
        ("layers/test_kept_kernels.py::test_switches_and_calls_with_gradients_drop_kernels",),
    ),
    Fault(
        "fast paths: hooks before a call are ignored",
        UNTOUCHED,
        "part._forward_hooks or part._forward_pre_hooks or",
        "part._forward_hooks or",
        ("tools/test_tools.py",),
    ),
    Fault(
        "fast paths: global hooks are ignored",
        UNTOUCHED,
        "if _has_any_global_hook():",
        "if False:",
        ("tools/test_tools.py::test_global_hooks_see_every_module",),
    ),
    Fault(
        "fast paths: forward of an instance is ignored",
        UNTOUCHED,
        '"forward" in part.__dict__ or part._compiled',
        "part._compiled",
        ("tools/test_tools.py::test_forward_of_a_subclass_and_of_an_instance",),
    ),
    Fault(
        "mixer: gates in the wrong order",
        MIXER,
        "gate = gates[self.order - 1 - step]",
        "gate = gates[1 + step]",
        ("layers/test_hyena.py::test_recurrence_step_by_step",),
    ),
    Fault(
        "mixer: gate comes after the norm",
        MIXER,
        "value, gate = norm((value if gate is None else value * gate).movedim(1, -1)).movedim(-1, 1), None",
        "value = norm(value.movedim(1, -1)).movedim(-1, 1)",
        ("layers/test_hyena.py::test_recurrence_step_by_step",),
    ),
    Fault(
        "mixer: groups of channels have the skip of the first step",
        MIXER,
        "self.skip[step, group]",
        "self.skip[0, group]",
        ("layers/test_kept_kernels.py::test_kernels_in_groups_of_channels_equal_kept_ones",),
    ),
    Fault(
        "mixer: causal sequences look ahead",
        MIXER,
        '{"causal": self.causal}',
        '{"causal": False}',
        ("layers/test_hyena.py::test_causal_mixer_sees_nothing_ahead",),
    ),
    Fault(
        "mlp: parts draw their own dropout",
        MLP,
        "if any(drop.training and drop.p for drop in (self.drop1, self.drop2)):",
        "if False:",
        ("layers/test_fast_paths.py::test_dropout_of_an_mlp_draws_for_all_tokens_at_once",),
    ),
    Fault(
        "convert: the three parts of the original are not turned round",
        CONVERT,
        ".chunk(3)[::-1])",
        ".chunk(3))",
        ("layers/test_convert.py::test_hyenapixel_2d_weights_give_its_outputs",),
    ),
    Fault(
        "convert: time of the original from 0 to 1 with an end too many",
        CONVERT,
        "/ max(steps - 1, 1)",
        "/ max(steps, 1)",
        ("layers/test_convert.py",),
    ),
    # ---- models
    Fault(
        "warm start: last norm of an average-pooled ViT",
        VIT,
        r"""re.sub(r"^fc_norm\.", "norm.", key)""",
        "key",
        ("models/test_warm_start.py::test_average_pooled_vit_gives_its_last_norm",),
    ),
    Fault(
        "warm start: blocks that the model does not have are left out",
        VIT,
        'if not key.startswith(("head", "fpn."))]',
        'if not key.startswith(("head", "fpn.", "blocks"))]',
        ("models/test_warm_start.py::test_wrong_architecture_is_one_clear_error",),
    ),
    Fault(
        "vit: both branches of a block have one norm",
        VIT,
        "self.mlp(self.norm2(x))",
        "self.mlp(self.norm1(x))",
        ("models/test_hyena_vit.py::test_block_is_two_residual_branches",),
    ),
    Fault(
        "vit: intermediate features are never normalised",
        VIT,
        "intermediates.append(self.norm(x) if norm else x)",
        "intermediates.append(x)",
        ("models/test_hyena_vit.py::test_intermediates_agree_with_the_forward_pass",),
    ),
    Fault(
        "vit: a new head trains when the model does not",
        VIT,
        "        self.pool.train(self.training)\n        self.head.train(self.training)\n",
        "        self.pool.train(self.training)\n",
        ("models/test_hyena_vit.py::test_reset_classifier_keeps_device_dtype_mode_and_pooling",),
    ),
    Fault(
        "vit: skips are decayed",
        VIT,
        'return {"*.filter.*", "*.skip"}',
        'return {"*.filter.*"}',
        ("models/test_hyena_vit.py::test_parameter_groups",),
    ),
    Fault(
        "vit: models of small patches have the base grid of large ones",
        VIT,
        "_PATCH8 = dict(patch_size=8, base_grid=28)",
        "_PATCH8 = dict(patch_size=8)",
        ("models/test_hyena_vit.py::test_base_grid_is_that_of_the_default_input",),
    ),
    Fault(
        "vit: an entry point of the wrong mixer",
        VIT,
        '"hyena2d_vit_base", pretrained, **{**_BASE, **_2D',
        '"hyena2d_vit_base", pretrained, **{**_BASE, **_1D',
        ("models/test_hyena_vit.py",),
    ),
    Fault(
        "fpn: a row of tokens is lost where their number is odd",
        VIT_FPN,
        "nn.MaxPool2d(2, ceil_mode=True)",
        "nn.MaxPool2d(2)",
        ("models/test_hyena_vit_fpn.py::test_maps_are_those_of_vitdet",),
    ),
    Fault(
        "fpn: the norm that was asked for does not come before the pyramid",
        VIT_FPN,
        "indices=1, norm=norm,",
        "indices=1, norm=False,",
        ("models/test_hyena_vit_fpn.py::test_pyramid_has_no_part_in_features_and_logits",),
    ),
    Fault(
        "fpn: a classifier has a pyramid that learns nothing",
        VIT_FPN,
        'if kwargs.get("features_only"):',
        'if "features_only" in kwargs or fpn_dim:',
        ("models/test_hyena_vit_fpn.py::test_classifier_is_a_plain_hyena_vit",),
    ),
    Fault(
        "fpn: maps that nobody takes keep their weights",
        VIT_FPN,
        "set(range(len(self.fpn))) - set(take_indices)",
        "set(range(max(take_indices) + 1, len(self.fpn)))",
        ("models/test_hyena_vit_fpn.py::test_chosen_maps_need_no_more",),
    ),
    Fault(
        "fpn: weights of a backbone without its norm do not come back",
        VIT,
        '_ABOVE_TRUNK = ("fpn.", "norm.")',
        '_ABOVE_TRUNK = ("fpn.",)',
        ("models/test_hyena_vit_fpn.py::test_own_weights_come_back_whole",),
    ),
    Fault(
        "former: tokens on a side, of sizes that 4 does not divide",
        WEIGHTS,
        "side = (img_size - 3) // 4 + 1",
        "side = img_size // 4",
        ("models/test_hyena_former.py::test_tokens_on_a_side_are_those_of_the_stages",),
    ),
    Fault(
        "former: windows of a resampled table fall off half as fast",
        WEIGHTS,
        "factor *= 2 * table.shape[-1] / size[0]",
        "factor *= table.shape[-1] / size[0]",
        ("models/test_hyena_former_weights.py::test_moving_weights_to_384_pixels_gives_what_the_authors_moved",),
    ),
    Fault(
        "former: a table is resampled without antialiasing",
        WEIGHTS,
        'mode="bicubic", antialias=True',
        'mode="bicubic"',
        ("models/test_hyena_former_weights.py",),
    ),
    Fault(
        "former: windows keep their fall-off when the base size changes",
        WEIGHTS,
        "factor = own_base / base",
        "factor = 1.0",
        ("models/test_hyena_former_weights.py::test_weights_move_between_base_sizes_in_either_layout",),
    ),
    # ---- training
    Fault(
        "training: every step draws the same random numbers",
        LOOP,
        "mix_seed(args.seed, args.rank, epoch, step, STEP)",
        "mix_seed(args.seed, args.rank, epoch, STEP)",
        ("test_train_steps.py",),
    ),
    Fault(
        "training: every batch of an epoch is augmented alike",
        LOADER,
        "*self.key, self.epoch, number, SAMPLE), strict=True)",
        "*self.key, self.epoch, SAMPLE), strict=True)",
        ("training/test_seeded_loader.py",),
    ),
    Fault(
        "training: order of the images is that of the first epoch",
        LOADER,
        "sampler.generator = torch.Generator().manual_seed(mix_seed(*self.key, self.epoch, ORDER))",
        "sampler.generator = torch.Generator().manual_seed(mix_seed(*self.key, ORDER))",
        ("training/test_seeded_loader.py::test_seeds_and_order_change_with_the_epoch",),
    ),
    Fault(
        "training: erasing goes on where another epoch was",
        LOADER,
        "seed_generators(mix_seed(*self.key, self.epoch, self.first, ERASING))",
        "seed_generators(mix_seed(*self.key, self.first, ERASING))",
        ("test_train_steps.py",),
    ),
    Fault(
        "data: a quarter turn to the wrong side",
        IMAGE,
        "6: Image.Transpose.ROTATE_270",
        "6: Image.Transpose.ROTATE_90",
        ("data/test_image.py", "test_train_data.py::test_the_model_sees_upright_pictures_of_its_channels"),
    ),
    Fault(
        "data: 16 bits become white",
        IMAGE,
        'if image.mode.startswith(("I", "F")):',
        'if image.mode.startswith("F"):',
        ("data/test_image.py", "test_train_data.py::test_the_model_sees_upright_pictures_of_its_channels"),
    ),
    Fault(
        "data: what nobody sees is part of the picture",
        IMAGE,
        'Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)',
        "image",
        ("data/test_image.py",),
    ),
    Fault(
        "data: a class is the last folder",
        FOLDER,
        "found[entry.name] = list(self._images(entry.path))",
        "[found.setdefault(os.path.basename(os.path.dirname(p)), []).append(p) for p in self._images(entry.path)]",
        ("data/test_folder.py",),
    ),
    Fault(
        "data: one image in both parts",
        FOLDER,
        "else samples[number:]",
        "else samples[number - 1 :]",
        ("data/test_folder.py",),
    ),
    Fault(
        "data: a folder is its own split",
        FOLDER,
        "return root if os.path.basename(os.path.abspath(root)) in names else None",
        "return root",
        ("data/test_folder.py",),
    ),
    Fault(
        "data: labels keep their own order",
        CLASSES,
        "dataset.target_transform = table.__getitem__",
        "pass",
        ("test_train_data.py::test_evaluation_matches_classes_by_name",),
    ),
    Fault(
        "data: the validation split has classes of its own",
        SPLITS,
        'match_labels(args, validation, "the validation split", classes, source, all_of_them=False)',
        "pass",
        ("test_train_data.py", "test_train_faults.py::test_damaged_data_folders"),
    ),
    Fault(
        "training: after the last image comes none",
        BAD_IMAGES,
        "number = (number + 1) % len(self.dataset)",
        "number = number + 1",
        ("training/test_seeded_loader.py",),
    ),
    Fault(
        "training: an image that cannot be read is of class 0",
        BAD_IMAGES,
        "return self.dataset.transform(blank), -1",
        "return self.dataset.transform(blank), 0",
        ("training/test_seeded_loader.py",),
    ),
    Fault(
        "training: resumes one batch too early",
        LOOP,
        "progress.step = step + 1",
        "progress.step = step",
        ("test_train_resume.py::test_stopped_by_a_signal_and_resumed_is_the_same_run",),
    ),
    Fault(
        "training: a skipped update moves the average",
        LOOP,
        "        if finite:\n            task.update_ema(",
        "        if True:\n            task.update_ema(",
        ("training/test_loop.py::test_skipped_update_leaves_the_average",),
    ),
    Fault(
        "training: a short last group weighs less",
        LOOP,
        "/ min(accum, steps - update * accum)",
        "/ accum",
        ("training/test_loop.py::test_last_group_of_an_epoch_is_the_mean_over_its_own_steps",),
    ),
    Fault(
        "training: gradients that are not finite are used",
        LOOP,
        "any_process(own or not math.isfinite(largest),",
        "any_process(own,",
        ("test_train_faults.py::test_not_finite_stops_before_the_update_and_names_the_images",),
    ),
    Fault(
        "training: validation counts images without a class",
        LOOP,
        "valid = target[:own] >= 0",
        "valid = target[:own] >= -1",
        ("training/test_loop.py::test_images_without_a_class_are_not_counted_and_mirrors_are_averaged",),
    ),
    Fault(
        "training: loss of a scheduled batch as of any other",
        LOOP,
        "return (size / reference) ** power if",
        "return (reference / size) ** power if",
        ("training/test_loop.py::test_scheduled_batches_weigh_as_their_size",),
    ),
    Fault(
        "training: rate of filters without layer decay",
        OPTIM,
        'scale = group.get("lr_scale", 1.0) * lr_scale',
        "scale = lr_scale",
        ("training/test_optim.py::test_filter_rate_multiplies_layer_decay",),
    ),
    Fault(
        "training: rate does not follow accumulated batches",
        OPTIM,
        "batch_size * args.world_size * args.grad_accum_steps",
        "batch_size * args.world_size",
        ("training/test_optim.py::test_base_rate_follows_the_batch_as_in_timm",),
    ),
    Fault(
        "training: checksum of the names alone",
        CHECKPOINT,
        "        digest.update(value.reshape(-1).view(torch.uint8).numpy())\n",
        "",
        ("training/test_checkpoint_files.py",),
    ),
    Fault(
        "training: checksums of an archive are not read",
        CHECKPOINT,
        "(damaged := archive.testzip()) is not None",
        "(damaged := None) is not None",
        ("training/test_checkpoint_files.py",),
    ),
    Fault(
        "training: no second whole checkpoint",
        CHECKPOINT,
        '            os.replace(f"{previous}.tmp", previous)\n',
        "",
        ("training/test_checkpoint_files.py::test_two_whole_checkpoints_at_every_moment_from_the_second_save_on",),
    ),
    Fault(
        "training: the average goes on from the weights",
        STATE,
        'checkpoint.get("state_dict_ema") or weights',
        "weights",
        ("test_train_resume.py::test_stopped_by_a_signal_and_resumed_is_the_same_run",),
    ),
    Fault(
        "training: averages of half an update are saved",
        LOOP,
        "            before_fault()\n",
        "",
        ("test_train_faults.py::test_a_fault_in_training_costs_no_update",),
    ),
    Fault(
        "training: an average of nothing counts",
        LOOP,
        "    parts.ema_counts = share <= MOST_INITIAL\n",
        "    parts.ema_counts = True\n",
        ("test_train_imagenet.py::test_an_average_of_almost_nothing_counts_only_where_it_is_better",),
    ),
    Fault(
        "training: of equal metrics the first is the best",
        CHECKPOINT,
        'return (float(self), -self.loss) > (float(other), -getattr(other, "loss", -math.inf))',
        "return float(self) > float(other)",
        ("test_train_imagenet.py::test_equal_metrics_go_to_the_lower_loss_and_the_time_left_ends_with_the_run",),
    ),
    Fault(
        "training: an epoch that failed in validation is trained again",
        TRAIN,
        "                recorder.save_before(stopped, epoch, progress)\n",
        "",
        ("test_train_faults.py::test_an_epoch_is_not_trained_again_for_a_fault_in_its_validation",),
    ),
    Fault(
        "training: new columns of a summary shift its rows",
        "hyena_vision/training/log.py",
        "columns = [*header[:-1], *new, *header[-1:]]",
        "columns = [*header, *new]",
        ("test_train_resume.py::test_validation_may_be_dropped_and_added_again",),
    ),
    Fault(
        "training: mixed targets are smoothed twice",
        DATA,
        "label_smoothing=args.smoothing,",
        "label_smoothing=2 * args.smoothing,",
        ("training/test_pipeline.py::test_mixed_targets_are_smoothed_once",),
    ),
    Fault(
        "replace: the image reads the first prefix token only",
        ATTENTION,
        "key[:, :count] * value[:, :count]",
        "key[:, :1] * value[:, :1]",
        ("layers/test_hyena_attention.py::test_the_formula",),
    ),
    Fault(
        "replace: prefix tokens read the values of the next token",
        ATTENTION,
        "self._read(query[:, :count], key, value,",
        "self._read(query[:, :count], key, value.roll(1, 1),",
        ("models/test_replace.py::test_each_model",),
    ),
    Fault(
        "replace: keys are rotated in the other layout",
        ATTENTION,
        "half=self.rotate_half)",
        "half=not self.rotate_half)",
        ("models/test_replace.py::test_each_model",),
    ),
    Fault(
        "replace: masks are ignored",
        ATTENTION,
        "if is_causal or not isinstance(grid, tuple | None):",
        "if is_causal:",
        ("layers/test_hyena_attention.py::test_masks_are_refused",),
    ),
    Fault(
        "replace: BEiT's class token has another bias",
        FROM_ATTENTION,
        "table[-1] - table[-3]",
        "table[-1] - table[-2]",
        ("models/test_replace.py::test_each_model",),
    ),
    Fault(
        "replace: separate projections lose their biases",
        FROM_ATTENTION,
        "torch.cat([zeros if layer.bias is None else layer.bias for layer in layers])",
        "torch.cat([zeros for layer in layers])",
        ("models/test_replace.py::test_each_model",),
    ),
    Fault(
        "replace: mixers are not told a new grid",
        REPLACED,
        "layer.set_grid_size(self.patch_embed.grid_size)",
        "pass",
        ("models/test_replace.py::test_each_model",),
    ),
    Fault(
        "replace: prefix kernels are decayed",
        REPLACED,
        '{"*.prefix_kernel"} if',
        '{"*.prefix"} if',
        ("models/test_replace.py::test_filters_are_not_decayed_and_layers_have_their_depth",),
    ),
    Fault(
        "replace: copies carry the old layers",
        REPLACED,
        "    def __reduce__(self) -> tuple:\n        return Originals, ()\n\n\n",
        "\n\n",
        ("models/test_replace.py::test_copies_have_no_original_layers_and_say_so",),
    ),
    Fault(
        "replace: old layers come back in eval mode",
        REPLACE,
        ".train(block.attn.training)",
        ".eval()",
        ("models/test_replace.py::test_training_in_between_changes_no_original_layer",),
    ),
    Fault(
        "replace: rotary positions that nobody reads wait for gradients",
        REPLACE,
        "    _freeze_what_nobody_reads(vit)\n",
        "",
        ("models/test_replace.py::test_every_parameter_gets_a_gradient_also_without_prefix_tokens",),
    ),
    Fault(
        "replace: a saved model is said to be its base",
        REPLACE,
        "dict(vit.pretrained_cfg, architecture=ARCHITECTURE)",
        "dict(vit.pretrained_cfg)",
        ("models/test_replace.py::test_each_model",),
    ),
    Fault(
        "replace: the grid of a call is turned",
        REPLACED,
        "(x.shape[1], x.shape[2]), None",
        "(x.shape[2], x.shape[1]), None",
        ("models/test_replace.py::test_any_size_where_the_model_takes_any",),
    ),
    Fault(
        "replace: a loaded model goes back to attention that was never trained",
        REPLACE,
        "        if not base_kwargs:\n",
        "        if base_kwargs is None:\n",
        ("models/test_replace.py::test_each_model",),
    ),
    Fault(
        "replace: models that check no size are taken",
        REPLACE,
        'not getattr(embed, "strict_img_size", False)',
        "False",
        ("models/test_replace.py::test_refusals_change_nothing",),
    ),
    Fault(
        "blocks: every second begins with the first",
        BLOCKS,
        "range(int(number) - 1, depth",
        "range(0, depth",
        ("models/test_hyena_vit.py::test_blocks_with_attention",),
    ),
    Fault(
        "blocks: the last are the first",
        BLOCKS,
        'if word == "first" else',
        "if word else",
        ("models/test_hyena_vit.py::test_blocks_with_attention",),
    ),
]


def plant(fault: Fault, tree: Path) -> None:
    """Put a fault into a copy of the project."""
    path = tree / fault.path
    text = path.read_text()
    if text.count(fault.find) != 1:
        raise ValueError(f"{fault.name}: {fault.find!r} occurs {text.count(fault.find)} times in {fault.path}")
    path.write_text(text.replace(fault.find, fault.replace))


def caught_by(fault: Fault) -> str | None:
    """The first test that fails with a fault, None if none does.

    Raises:
        RuntimeError: The tests did not begin.
    """
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        for name in filter(None, tracked.split("\0")):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, tree / name)
        plant(fault, tree)
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        if fault.path in (CPP, VECTOR):
            environment["HYENA_VISION_CACHE"] = folder
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [f"tests/{test}" for test in fault.tests]
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if run.returncode == 0:
        return None
    if run.returncode < 0:  # memory that is not the tensor's
        return f"signal {-run.returncode} in {fault.tests[0]}"
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED ")]
    if run.returncode != 1 or not failed:
        raise RuntimeError(f"{fault.name}: the tests did not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return failed[0].removeprefix("FAILED ").split(" - ")[0]


def main() -> int:
    """Plant the faults, and say for each which test caught it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults whose names begin so")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if not args.only or fault.name.startswith(tuple(args.only))]
    missed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for fault, test in zip(chosen, pool.map(caught_by, chosen), strict=True):
            missed += test is None
            print(f"{'MISSED' if test is None else 'caught'}  {fault.name}  {test or ''}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
