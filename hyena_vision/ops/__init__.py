"""Operators: tensors in, tensors out. Nothing here knows of modules or of timm."""

from hyena_vision.ops.backends import Backend, available_backends
from hyena_vision.ops.lazy_kernel import LazyKernel
from hyena_vision.ops.long_conv import PreparedKernel, long_conv1d, long_conv2d, prepare_kernel1d, prepare_kernel2d
from hyena_vision.ops.short_filter import gated_short_filter

__all__ = [
    "Backend",
    "LazyKernel",
    "PreparedKernel",
    "available_backends",
    "gated_short_filter",
    "long_conv1d",
    "long_conv2d",
    "prepare_kernel1d",
    "prepare_kernel2d",
]
