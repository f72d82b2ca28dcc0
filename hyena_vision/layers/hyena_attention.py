r"""Hyena where timm's blocks have attention: on a sequence of prefix tokens and an image's tokens, (B, P + H W, C).

The projections are attention's. The image's tokens are mixed by Hyena, on their grid. A prefix token (class, register
or distillation token) has no place on the grid, so it takes part in two other ways:

* It reads all tokens by softmax attention, in O(P N) for all P of them. With the weights of an attention layer it
  begins with that layer's own output.
* The image reads it as a signal that is the same everywhere: a learnt weight per channel stands for the kernel, and
  each token has its gate, $y_n \leftarrow y_n + q_n \odot \sum_p w_p \odot k_p \odot v_p$.

Both work at any image size, cost next to nothing, and share their projections with the mixer.
"""

import copyreg
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat, get_norm_layer, to_2tuple
from timm.models import register_notrace_module
from torch import Tensor, nn

from hyena_vision.layers.hyena import MIXERS, Hyena1d, Hyena2d, _Hyena, named_layer, refuse_jit_tracing


class HyenaAttention(_Hyena):
    """What `HyenaAttention1d` and `HyenaAttention2d` share."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        grid_size: int | Sequence[int] | None,
        num_prefix_tokens: int = 0,
        qk_norm: bool = False,
        scale_norm: bool = False,
        class_bias: bool = False,
        rotate_half: bool = False,
        attn_drop: float = 0.0,
        norm_layer: str | Callable[..., nn.Module] | None = None,
        softcap: float = 0.0,
        base_grid: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mixer_kwargs: Any,
    ) -> None:
        """Make a layer.

        Args:
            dim: Channels, C.
            num_heads: Heads of the prefix tokens' attention.
            grid_size: Tokens (H, W) of the image, or one number for both; None if each call brings its own.
            num_prefix_tokens: Tokens P that come before those of the image.
            qk_norm: Whether queries and keys of the prefix tokens' attention are normalised per head.
            scale_norm: Whether the input of the output projection is normalised, as with `out_norm`.
            class_bias: Whether the prefix tokens' attention to the first token has a learnt bias per head; it is what a
                class token sees of BEiT's position biases.
            rotate_half: Layout of rotary positions, as in timm.
            attn_drop: Dropout rate of the prefix tokens' attention.
            norm_layer: Those norms, a timm name or a class; None for RMSNorm.
            softcap: As for `Hyena2d`, but none by default: attention has no bound, and a layer is taught to do as it.
            base_grid: As for `Hyena2d`; None for `grid_size`.
            device: Device of the parameters.
            dtype: Dtype of the parameters.
            **mixer_kwargs: As for `Hyena1d` and `Hyena2d`.

        Raises:
            ValueError: An argument is out of its range.
        """
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim={dim}, got {num_heads}")
        if num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens must be at least 0, got {num_prefix_tokens}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        norm_layer = "rmsnorm" if norm_layer is None else norm_layer
        mixer_kwargs["out_norm"] = scale_norm or mixer_kwargs.get("out_norm", False)
        base = grid_size if base_grid is None else base_grid
        if base is None:
            raise ValueError("base_grid must be given where grid_size is None, got None")
        super().__init__(dim, norm_layer=norm_layer, softcap=softcap, base_grid=to_2tuple(base), **mixer_kwargs, **dd)
        self.num_heads = num_heads
        self.num_prefix_tokens = num_prefix_tokens
        self.set_grid_size(grid_size)
        self.rotate_half = rotate_half
        qk_norm = qk_norm and num_prefix_tokens > 0
        head_norm = named_layer(get_norm_layer, "norm_layer", norm_layer) if qk_norm else nn.Identity
        self.q_norm = head_norm(dim // num_heads, **dd)
        self.k_norm = head_norm(dim // num_heads, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.prefix_kernel = nn.Parameter(torch.empty(num_prefix_tokens, dim, **dd)) if num_prefix_tokens else None
        self.class_bias = nn.Parameter(torch.empty(num_heads, **dd)) if num_prefix_tokens and class_bias else None
        self._reset_prefix_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights of the layer itself; those of its parts are theirs."""
        super().reset_parameters()
        if hasattr(self, "prefix_kernel"):  # not yet when the constructor of the mixer draws its own
            self._reset_prefix_parameters()

    # timm's ViT draws every nn.Linear anew, and leaves the last word to a layer that has this
    init_weights = reset_parameters

    def _reset_prefix_parameters(self) -> None:
        if self.prefix_kernel is not None:
            nn.init.normal_(self.prefix_kernel, std=self.num_prefix_tokens**-0.5)
        if self.class_bias is not None:
            nn.init.zeros_(self.class_bias)

    def set_grid_size(self, grid_size: int | Sequence[int] | None) -> None:
        """Take images of another number of tokens (H, W) from now on; no weight changes."""
        self.grid_size: tuple[int, int] | None = None if grid_size is None else to_2tuple(grid_size)

    # What timm's BEiT calls when its input size changes
    set_window_size = set_grid_size

    def extra_repr(self) -> str:
        """Settings that the sub-modules do not show."""
        own = f"grid_size={self.grid_size}, num_prefix_tokens={self.num_prefix_tokens}, num_heads={self.num_heads}"
        return f"{super().extra_repr()}, {own}"

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: tuple[int, int] | None = None,
        is_causal: bool = False,
        shared_rel_pos_bias: Tensor | None = None,
    ) -> Tensor:
        """Mix tokens (B, P + H W, C).

        Args:
            x: Prefix tokens, then the image's in raster order.
            rope: Rotary embedding of the image's tokens, for the keys that prefix tokens read.
            attn_mask: None, or the grid (H, W) of these images: of what timm's blocks hand on to attention, this is
                what Hyena needs instead of a mask.
            is_causal: False.
            shared_rel_pos_bias: (heads, P + H W, P + H W), for the prefix tokens' attention.

        Returns:
            Tokens of the same shape.

        Raises:
            ValueError: There is a mask, no grid, or another number of tokens.
        """
        refuse_jit_tracing()
        grid, count = self.grid_size if attn_mask is None else attn_mask, self.num_prefix_tokens
        if is_causal or not (grid is None or isinstance(grid, tuple)):
            raise ValueError("Hyena takes no mask: attn_mask must be None and is_causal False, got a mask")
        if grid is None:
            raise ValueError("the grid must be known, got tokens without one: call the model, which hands it to blocks")
        height, width = grid
        if x.ndim != 3 or x.shape[1] != count + height * width or x.shape[2] != self.dim:
            expected = f"(B, {count} + {height} * {width}, {self.dim})"
            raise ValueError(f"x must have shape {expected}, got {tuple(x.shape)}")
        cond = x[:, count:].mean(1) if self.filter.cond_dim else None
        signals = self.qkv(x)
        y = self.mix(signals[:, count:].unflatten(1, (height, width)), cond).flatten(1, 2)
        if self.prefix_kernel is not None:
            query, *_, key, value = signals.chunk(self.order + 1, dim=-1)
            told = (self.prefix_kernel * key[:, :count] * value[:, :count]).sum(1, keepdim=True).to(query.dtype)
            y = y + query[:, count:] * told
            y = torch.cat([self._read(query[:, :count], key, value, rope, shared_rel_pos_bias).to(y.dtype), y], dim=1)
        return self.proj_drop(self.proj(self.out_norm(y)))

    def _read(
        self, query: Tensor, key: Tensor, value: Tensor, rope: Tensor | None, shared_bias: Tensor | None
    ) -> Tensor:
        """What the prefix tokens read of all tokens: softmax attention of P queries, (B, P, C)."""
        count = self.num_prefix_tokens
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            k = torch.cat([k[:, :, :count], apply_rot_embed_cat(k[:, :, count:], rope, half=self.rotate_half)], dim=2)
        bias = None if shared_bias is None else shared_bias[..., :count, :].to(v.dtype)
        if self.class_bias is not None:
            own = F.pad(self.class_bias.view(1, -1, 1, 1), (0, k.shape[2] - 1)).to(v.dtype)
            bias = own if bias is None else own + bias
        drop = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias, dropout_p=drop)
        return y.transpose(1, 2).flatten(2)


class HyenaAttention1d(HyenaAttention, Hyena1d):
    """`Hyena1d` with prefix tokens, in attention's place in timm's blocks.

    Its arguments are listed under `__init__`.

    Shape:
        (B, P + H W, C) -> (B, P + H W, C), P prefix tokens and a grid of H x W that is set.

    Cost:
        O(B C H W (C + log(H W) + P)) time.

    Example:
        >>> HyenaAttention1d(16, grid_size=(4, 6), num_prefix_tokens=1)(torch.ones(1, 25, 16)).shape
        torch.Size([1, 25, 16])
    """


class HyenaAttention2d(HyenaAttention, Hyena2d):
    """`Hyena2d` with prefix tokens, in attention's place in timm's blocks.

    Its arguments are listed under `__init__`.

    Shape:
        (B, P + H W, C) -> (B, P + H W, C), P prefix tokens and a grid of H x W that is set.

    Cost:
        O(B C H W (C + log(H W) + P)) time.

    Example:
        >>> HyenaAttention2d(16, grid_size=(4, 6), num_prefix_tokens=1)(torch.ones(1, 25, 16)).shape
        torch.Size([1, 25, 16])
    """


# As for MIXERS: fx takes each as one node
HYENA_ATTENTION: dict[str, type[HyenaAttention]] = {
    "hyena1d": register_notrace_module(HyenaAttention1d),
    "hyena2d": register_notrace_module(HyenaAttention2d),
}


def hyena_attention_class(mixer: str | type[nn.Module]) -> type[HyenaAttention]:
    """The class that a name or a class stands for.

    Args:
        mixer: "hyena1d", "hyena2d", or a subclass of `HyenaAttention1d` or `HyenaAttention2d`.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(mixer, str) and mixer in HYENA_ATTENTION:
        return HYENA_ATTENTION[mixer]
    if isinstance(mixer, type) and issubclass(mixer, (HyenaAttention1d, HyenaAttention2d)):
        return mixer
    raise ValueError(f"mixer must be one of {list(MIXERS)} or a subclass of HyenaAttention1d or 2d, got {mixer!r}")


def attn_layer(
    mixer: str | type[nn.Module] = "hyena2d", *, grid_size: int | Sequence[int], num_prefix_tokens: int, **mixer_kwargs
) -> type[nn.Module]:
    """Make a class for the argument `attn_layer` of timm's ViT, for images of one size.

    timm tells an attention layer neither the grid nor the prefix tokens, so they are given here. A model that changes
    its input size later does not tell its layers: `hyena_vision.replace_attention` makes models that do.

    Args:
        mixer: "hyena1d", "hyena2d", or a subclass of `HyenaAttention1d` or `HyenaAttention2d`.
        grid_size: Tokens (H, W) of the image, or one number for both.
        num_prefix_tokens: Class, register and distillation tokens of the model.
        **mixer_kwargs: As for `HyenaAttention2d`.

    Returns:
        A class whose instances are those of the mixer's class.

    Example:
        >>> layer = attn_layer("hyena2d", grid_size=4, num_prefix_tokens=1)
        >>> settings = dict(img_size=64, depth=1, num_classes=3)
        >>> timm.create_model("vit_tiny_patch16_224", attn_layer=layer, **settings)(torch.ones(1, 3, 64, 64)).shape
        torch.Size([1, 3])
    """
    made = hyena_attention_class(mixer)
    settings = dict(grid_size=grid_size, num_prefix_tokens=num_prefix_tokens, **mixer_kwargs)

    def new(cls, dim: int, num_heads: int = 8, **given) -> HyenaAttention:
        return made(dim, num_heads, **{**given, **settings})

    made_by = partial(attn_layer, made, **settings)
    return cast(type[nn.Module], _LayerType(made.__name__, (nn.Module,), {"__new__": new, "made_by": made_by}))


class _LayerType(type):
    """Of the classes that `attn_layer` makes: timm keeps them in the model, with which they are pickled."""

    made_by: Callable[[], Any]


copyreg.pickle(_LayerType, lambda cls: (cls.made_by, ()))
