"""Weights of other projects' Hyena operators, as modules of this one.

Each function reads the original's state dict, infers sizes from its shapes, and gives a mixer that computes the same
function on the grid that the weights were made for. What a state dict does not tell is taken to be the originals'
default: no activation after the gates, a window shift of 0 in 1D, no normalisation of the filter. The position features
come along as learnt tables.
"""

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from hyena_vision.layers.hyena import Hyena1d, Hyena2d


def hyena1d_from_safari(state_dict: Mapping[str, Tensor], *, filter_layout: str = "channel_order") -> Hyena1d:
    """Build the causal operator of the Hyena paper's code from its weights.

    Args:
        state_dict: Of the original's `HyenaOperator` (num_heads 1, inner_factor 1).
        filter_layout: How the filter's (order - 1) * dim channels are laid out: "channel_order" in the package
            (src/models/sequence/hyena.py), "order_channel" in its standalone file and in HyenaPixel. They differ for
            order > 2.

    Returns:
        A mixer for up to l_max tokens; beyond that its kernel is zero, where the original cuts the signal.

    Raises:
        KeyError: A weight is missing.
        ValueError: The layout is unknown, or there are weights that this operator does not have.

    Source:
        HazyResearch/safari (Apache-2.0), the code of arXiv:2302.10866.

    Example:
        >>> type(hyena1d_from_safari(state_dict)).__name__
        'Hyena1d'
    """
    return _hyena1d(state_dict, filter_layout, causal=True)


def hyena1d_from_hyenapixel(state_dict: Mapping[str, Tensor]) -> Hyena1d:
    """Build HyenaPixel's bidirectional 1D operator ("HB") from its weights.

    Args:
        state_dict: Of the original's `HyenaOperator` with `is_causal=False`.

    Returns:
        A mixer equal to the original on (l_max + 1) / 2 tokens, its own table's length being l_max.

    Raises:
        KeyError: A weight is missing.
        ValueError: There are weights that this operator does not have.

    Source:
        spravil/HyenaPixel (Apache-2.0), the code of arXiv:2402.19305.

    Example:
        >>> type(hyena1d_from_hyenapixel(state_dict)).__name__
        'Hyena1d'
    """
    return _hyena1d(state_dict, "order_channel", causal=False)


def hyena2d_from_hyenapixel(state_dict: Mapping[str, Tensor]) -> Hyena2d:
    """Build HyenaPixel's 2D operator ("HPX") from its weights.

    Args:
        state_dict: Of the original's `HyenaPixelOperator` with an implicit filter of odd extent K.

    Returns:
        A mixer equal to the original on grids of (K + 1) / 2.

    Raises:
        KeyError: A weight is missing.
        ValueError: K is even, the distances are no multiple of those in pixels, or there are weights that this operator
            does not have.

    Source:
        spravil/HyenaPixel (Apache-2.0), the code of arXiv:2402.19305.

    Example:
        >>> type(hyena2d_from_hyenapixel(state_dict)).__name__
        'Hyena2d'
    """
    extent = state_dict["long_conv.z"].shape[-1]
    if extent % 2 == 0:
        raise ValueError(f"the kernel must have odd extent, got {extent}")
    dim = state_dict["pointwise_conv.weight"].shape[1]
    hidden, _ = _filter_layers(state_dict, "long_conv.implicit_filter.")
    norm = "qk_norm.weight" in state_dict
    decay = "long_conv.deltas" in state_dict
    mixer = Hyena2d(
        dim,
        short_kernel_size=state_dict["depthwise_conv.weight"].shape[-1],
        gate_norm=norm,
        out_norm=norm,
        norm_layer=partial(nn.LayerNorm, eps=1e-5, bias=False),
        softcap=0.0,
        features="sinusoid",
        filter_emb_dim=state_dict["long_conv.z"].shape[1],
        filter_dim=hidden[0][0].shape[0],
        num_inner_layers=len(hidden) - 1,
        learn_features=True,
        window="radial" if decay else "none",
        base_grid=(extent + 1) // 2,
        dtype=state_dict["long_conv.z"].dtype,
    )
    mixer.load_state_dict(hyenapixel2d_weights(state_dict, mixer))
    return mixer


def hyenapixel2d_weights(state_dict: Mapping[str, Tensor], mixer: Hyena2d) -> dict[str, Tensor]:
    """Write the weights of HyenaPixel's 2D operator as those of a mixer of its shape.

    Args:
        state_dict: Of the original's `HyenaPixelOperator`.
        mixer: What they are for. Its base grid is a square, the grid on which both are to be equal.

    Returns:
        A state dict of the mixer, but for the size of its table `filter.z`, which is the original's.

    Raises:
        KeyError: A weight is missing.
        ValueError: As `hyena2d_from_hyenapixel`.
    """
    dim = mixer.dim
    hidden, out = _filter_layers(state_dict, "long_conv.implicit_filter.")
    # The original multiplies chunks 0 and 1 before the convolution and chunk 2 after it.
    weights = {
        f"{ours}.{kind}": torch.cat(state_dict[f"{theirs}.{kind}"].flatten(1 if kind == "weight" else 0).chunk(3)[::-1])
        for ours, theirs in (("qkv", "pointwise_conv"), ("short_filter", "depthwise_conv"))
        for kind in ("weight", "bias")
    }
    weights["short_filter.weight"] = weights["short_filter.weight"].reshape(mixer.short_filter.weight.shape)
    weights["proj.weight"] = state_dict["out_proj.weight"].flatten(1)
    weights["proj.bias"] = state_dict["out_proj.bias"]
    weights["skip"] = state_dict["long_conv.bias"].reshape(1, dim)
    weights["filter.z"] = state_dict["long_conv.z"][0]
    weights.update(_filter_weights(hidden, out))
    if "long_conv.deltas" in state_dict:
        # Theirs is per pixel of displacement, ours per image extent.
        scale = _distance_scale(state_dict["long_conv.distance_map"]) * mixer.filter.base_size[0]
        weights["filter.decay"] = _at_least_float32(state_dict["long_conv.deltas"]).flatten() * scale
        weights["filter.shift"] = state_dict["long_conv.shift"].flatten()
    if "qk_norm.weight" in state_dict:
        weights["gate_norms.0.weight"] = state_dict["qk_norm.weight"]
        weights["out_norm.weight"] = state_dict["out_norm.weight"]
    _check_known(state_dict, r"(pointwise_conv|depthwise_conv|out_proj|qk_norm|out_norm)\.\w+|long_conv\..+")
    return weights


def _distance_scale(distance_map: Tensor) -> float:
    """Factor of a map (1, 1, K, K) over the distances from its middle in pixels; one fine-tuned at 384 px has 1.16."""
    given = distance_map[0, 0].double()
    axis = torch.arange(len(given)).to(given) - len(given) // 2
    pixels = torch.hypot(axis[:, None], axis)
    scale = (given.sum() / pixels.sum()).item() if len(given) > 1 else 1.0
    tolerance = max(1e-3, 2 * torch.finfo(distance_map.dtype).eps)
    if not torch.allclose(given, scale * pixels, rtol=tolerance, atol=tolerance):
        raise ValueError("long_conv.distance_map must be a multiple of the distances in pixels from the centre")
    return scale


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_known(state_dict: Mapping[str, Tensor], pattern: str) -> None:
    unknown = [key for key in state_dict if not re.fullmatch(pattern, key)]
    if unknown:
        raise ValueError(f"the state dict has weights that this operator does not have, such as {unknown[0]!r}")


def _hyena1d(state_dict: Mapping[str, Tensor], filter_layout: str, causal: bool) -> Hyena1d:
    if filter_layout not in ("channel_order", "order_channel"):
        raise ValueError(f"filter_layout must be 'channel_order' or 'order_channel', got {filter_layout!r}")
    width, dim = state_dict["in_proj.weight"].shape
    order = width // dim - 1
    table = state_dict["filter_fn.pos_emb.z"][0]
    length = table.shape[0]
    hidden, _ = _filter_layers(state_dict, "filter_fn.implicit_filter.")
    norm = "out_norm.weight" in state_dict
    mixer = Hyena1d(
        dim,
        causal=causal,
        order=order,
        short_kernel_size=state_dict["short_filter.weight"].shape[-1],
        gate_norm=norm,
        out_norm=norm,
        norm_layer=partial(nn.LayerNorm, eps=1e-5, bias=False),
        softcap=0.0,
        filter_emb_dim=table.shape[1],
        filter_dim=hidden[0][0].shape[0],
        num_inner_layers=len(hidden) - 1,
        learn_features=True,
        window="exponential",
        coords="absolute" if causal else "relative",
        base_grid=(1, length if causal else (length + 1) // 2),
        dtype=table.dtype,
    )
    mixer.load_state_dict(_weights1d(state_dict, mixer, filter_layout))
    return mixer


def hyenapixel1d_weights(state_dict: Mapping[str, Tensor], mixer: Hyena1d) -> dict[str, Tensor]:
    """Write the weights of HyenaPixel's bidirectional 1D operator as those of a mixer of its shape.

    Args:
        state_dict: Of the original's `HyenaOperator` with `is_causal=False`.
        mixer: What they are for; on its base grid both are equal.

    Returns:
        A state dict of the mixer, but for the size of its table `filter.z`, which is the original's.

    Raises:
        KeyError: A weight is missing.
        ValueError: There are weights that this operator does not have.
    """
    return _weights1d(state_dict, mixer, "order_channel")


def _weights1d(state_dict: Mapping[str, Tensor], mixer: Hyena1d, filter_layout: str) -> dict[str, Tensor]:
    dim, order = mixer.dim, mixer.order
    table = state_dict["filter_fn.pos_emb.z"][0]
    hidden, out = _filter_layers(state_dict, "filter_fn.implicit_filter.")

    def by_order(channels: Tensor) -> Tensor:
        if filter_layout == "order_channel":
            return channels
        return channels.unflatten(0, (dim, order - 1)).transpose(0, 1).flatten(0, 1)

    weights = {
        f"{ours}.{kind}": state_dict[f"{theirs}.{kind}"]
        for ours, theirs in (("qkv", "in_proj"), ("short_filter", "short_filter"), ("proj", "out_proj"))
        for kind in ("weight", "bias")
    }
    weights["skip"] = by_order(state_dict["filter_fn.bias"]).reshape(order - 1, dim)
    weights["filter.z"] = table.T
    # Their time runs from 0 to 1 over the table, our coordinates advance by 1 in a base grid.
    steps = len(table) if mixer.causal else (len(table) + 1) // 2
    decay = (
        _at_least_float32(state_dict["filter_fn.modulation.deltas"]).flatten()
        * mixer.filter.base_size[0]
        / max(steps - 1, 1)
    )
    weights["filter.decay"] = by_order(decay)
    weights.update(_filter_weights(hidden, by_order(out)))
    if "out_norm.weight" in state_dict:
        for index in range(order - 1):
            weights[f"gate_norms.{index}.weight"] = state_dict[f"qk_norm.{index}.weight"]
        weights["out_norm.weight"] = state_dict["out_norm.weight"]
    _check_known(state_dict, r"(in_proj|short_filter|out_proj|out_norm|qk_norm\.\d+)\.\w+|filter_fn\..+")
    return weights


def _filter_layers(state_dict: Mapping[str, Tensor], prefix: str) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """Hidden layers (weight, bias, omega) and the last weight of an original's filter network, a Sequential."""
    hidden: list[tuple[Tensor, Tensor, Tensor]] = []
    while f"{prefix}{2 * len(hidden)}.bias" in state_dict:
        index = 2 * len(hidden)
        weight, bias = state_dict[f"{prefix}{index}.weight"], state_dict[f"{prefix}{index}.bias"]
        hidden.append((weight.flatten(1), bias, state_dict[f"{prefix}{index + 1}.freq"].flatten()))
    return hidden, state_dict[f"{prefix}{2 * len(hidden)}.weight"].flatten(1)


def _filter_weights(hidden: list[tuple[Tensor, Tensor, Tensor]], out: Tensor) -> dict[str, Tensor]:
    weights = {"filter.out.weight": out}
    for index, (weight, bias, omega) in enumerate(hidden):
        weights[f"filter.hidden.{index}.weight"] = weight
        weights[f"filter.hidden.{index}.bias"] = bias
        weights[f"filter.sine.{index}.omega"] = omega
    return weights
