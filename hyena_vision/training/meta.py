"""Models without memory, to look at their shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWING = {Tensor.clamp_, Tensor.erfinv_, Tensor.normal_, Tensor.uniform_}


class _NothingDrawn(TorchFunctionMode):
    """Leaves out what draws weights: on the meta device that is Python, slower than to draw them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DRAWING and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))


@contextmanager
def meta_device() -> Iterator[None]:
    """Put modules and tensors that are made in this context on the meta device, as `torch.device("meta")`, quickly."""
    with torch.device("meta"), _NothingDrawn():
        yield
