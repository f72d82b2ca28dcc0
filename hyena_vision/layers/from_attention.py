"""Hyena with the weights of timm's attention."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from hyena_vision.layers.hyena_attention import HyenaAttention

# Exact types: a subclass may do something else with the same weights
ATTENTION_TYPES = (Attention, AttentionRope, BeitAttention, EvaAttention)


def why_not_hyena(attention: Any) -> str | None:
    """Say why a layer's weights cannot begin a Hyena layer's, None if they can."""
    if type(attention) not in ATTENTION_TYPES:
        return f"its attention must be timm's Attention, AttentionRope, EvaAttention or BEiT's, got {_name(attention)}"
    for name in ("qkv", "q_proj", "k_proj", "v_proj", "proj"):
        layer = getattr(attention, name, None)
        if layer is not None and type(layer) is not nn.Linear:
            return f"its {name} must be an untouched nn.Linear, got {_name(layer)}; merge adapters first"
    if getattr(attention, "gate", None) is not None:
        return "its attention must have no gate of its own, got gated attention"
    dim, inner = attention.proj.out_features, attention.proj.in_features
    if inner != dim:
        return f"its heads must have {dim} channels together, got {inner}"
    groups = getattr(attention, "num_kv_groups", 1)
    if groups != 1:
        return f"its attention must have as many keys as queries, got {groups} queries for each"
    return None


@torch.no_grad()
def hyena_from_attention(
    attention: Any,
    layer: type[HyenaAttention],
    grid_size: Sequence[int] | None,
    num_prefix_tokens: int,
    **mixer_kwargs: Any,
) -> HyenaAttention:
    """Make a Hyena layer that begins with an attention layer's projections, norms, biases and dropout rates.

    The query's projection becomes that of the last gate, the key's of the first gate, the value's of the value. The
    short filter, the implicit filter, skips and prefix kernels have no counterpart, and are drawn.

    Args:
        attention: That `why_not_hyena` has nothing against.
        layer: `HyenaAttention1d`, `HyenaAttention2d` or a subclass.
        grid_size: Tokens (H, W) of the image; None if each call brings its own.
        num_prefix_tokens: Tokens that come before those of the image.
        **mixer_kwargs: As for the layer.

    Returns:
        A layer on the same device, of the same dtype and mode. The attention is not changed and shares no memory with
        it. Weights that are taken need gradients if they did before.
    """
    proj, dim = attention.proj, attention.proj.out_features
    weights, biases = _projections(attention)
    table: Any = getattr(attention, "relative_position_bias_table", None)
    mixer = layer(
        dim,
        attention.num_heads,
        grid_size=grid_size,
        num_prefix_tokens=num_prefix_tokens,
        class_bias=table is not None,
        rotate_half=getattr(attention, "rotate_half", False),
        attn_drop=attention.attn_drop.p,
        qkv_bias=biases is not None,
        proj_bias=proj.bias is not None,
        proj_drop=attention.proj_drop.p,
        device=proj.weight.device,
        dtype=proj.weight.dtype,
        **mixer_kwargs,
    )
    first, last = slice(0, dim), slice(-2 * dim, None)
    mixer.qkv.weight[first], mixer.qkv.weight[last] = weights[:dim], weights[dim:]
    if biases is not None:
        mixer.qkv.bias[first], mixer.qkv.bias[last] = biases[:dim], biases[dim:]
    mixer.proj.load_state_dict(proj.state_dict())
    source = attention.qkv if attention.qkv is not None else attention.q_proj
    mixer.qkv.requires_grad_(source.weight.requires_grad)
    mixer.proj.requires_grad_(proj.weight.requires_grad)
    if num_prefix_tokens:
        for name in ("q_norm", "k_norm"):
            setattr(mixer, name, copy.deepcopy(getattr(attention, name, nn.Identity())))
    if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
        mixer.out_norm = copy.deepcopy(attention.norm)
    if mixer.class_bias is not None:
        # The last three entries: class token to image, image to class token, class token to itself
        mixer.class_bias.copy_(table[-1] - table[-3])
    mixer.train(attention.training)
    return mixer


def _projections(attention: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (3 C, C) and bias (3 C) of queries, keys and values."""
    if attention.qkv is not None:
        if attention.qkv.bias is not None:
            return attention.qkv.weight, attention.qkv.bias
        parts: list[Any] = [getattr(attention, name, None) for name in ("q_bias", "k_bias", "v_bias")]
        return attention.qkv.weight, None if parts[0] is None else torch.cat(parts)
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    weight = torch.cat([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    zeros = weight.new_zeros(len(layers[0].weight))
    return weight, torch.cat([zeros if layer.bias is None else layer.bias for layer in layers])


def _name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"
