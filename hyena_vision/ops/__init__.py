"""Operators: tensors in, tensors out. Nothing here knows of modules or of timm."""

from hyena_vision.ops.backends import Backend, available_backends
from hyena_vision.ops.hyena import hyena_operator
from hyena_vision.ops.implicit_filter import implicit_kernel
from hyena_vision.ops.long_conv import long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.ops.prepared_kernel import PreparedKernel
from hyena_vision.ops.short_filter import gated_short_filter
from hyena_vision.ops.table import BackendTable, backend_table

__all__ = [
    "Backend",
    "BackendTable",
    "PreparedKernel",
    "available_backends",
    "backend_table",
    "gated_short_filter",
    "hyena_operator",
    "implicit_kernel",
    "long_conv1d",
    "long_conv2d",
    "prepare_kernel1d",
    "prepare_kernel2d",
]
