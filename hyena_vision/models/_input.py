"""What timm and libraries above it ask about the size of a model's input and maps."""

from collections.abc import Sequence
from typing import Any

from torch import nn

try:
    from timm.models._input import update_model_input_size
except ImportError:

    def update_model_input_size(model: nn.Module, img_size: int | Sequence[int] | None, **model_args: Any) -> None:
        """Do nothing: timm before 1.0.31 keeps no record of a resize."""


def refuse_output_stride(variant: str, kwargs: dict[str, Any]) -> None:
    """Raise ValueError if the keywords of an entry point ask for dilation in place of downsampling."""
    stride = kwargs.pop("output_stride", None)
    if stride is not None:
        raise ValueError(
            f"{variant} has the strides that its feature_info says, and no output_stride, got output_stride={stride}; "
            "take a decoder that needs no dilated encoder, such as UPerNet or FPN"
        )


__all__ = ["refuse_output_stride", "update_model_input_size"]
