"""What timm keeps about the size of a model's input."""

from collections.abc import Sequence
from typing import Any

from torch import nn

try:
    from timm.models._input import update_model_input_size
except ImportError:

    def update_model_input_size(model: nn.Module, img_size: int | Sequence[int] | None, **model_args: Any) -> None:
        """Do nothing: timm before 1.0.31 keeps no record of a resize."""


__all__ = ["update_model_input_size"]
