"""Models without memory, to look at their shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWING = {Tensor.clamp_, Tensor.erfinv_, Tensor.normal_, Tensor.uniform_}
_DRAWING |= {nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_}  # which torch hands over whole


class _NothingDrawn(TorchFunctionMode):
    """Leaves out what draws weights: on the meta device that is Python, slower than to draw them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DRAWING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*args, **(kwargs or {}))


@contextmanager
def meta_device() -> Iterator[None]:
    """Put modules and tensors that are made in this context on the meta device, as `torch.device("meta")`, quickly."""
    with torch.device("meta"), _NothingDrawn():
        yield
