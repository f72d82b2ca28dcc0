"""One way to make a function an operator of PyTorch, which torch.compile and autograd take as a whole."""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("hyena_vision", "FRAGMENT")


def register_operator(
    name: str,
    function: Callable[..., Any],
    result_like: Callable[..., Any],
    *,
    keep: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register `function` as `hyena_vision::{name}`, with less work per call than `torch.library.custom_op`.

    Args:
        name: Of the operator.
        function: Its schema is read from its annotations. It changes none of its arguments and returns none of them.
        result_like: Takes the same arguments and gives empty tensors of the results' shapes, dtypes and strides.
        keep: `(ctx, inputs, output)`, saves for the backward pass what it needs; None where there is none.
        backward: `(ctx, *grads)` to the gradients of all arguments.

    Returns:
        The operator.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hyena_vision::{name}", result_like, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"hyena_vision::{name}", backward, setup_context=keep, lib=_LIBRARY)
    return getattr(torch.ops.hyena_vision, name).default
