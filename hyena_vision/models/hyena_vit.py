"""Vision transformers with Hyena in place of attention.

Papers:
* Hyena Hierarchy: Towards Larger Convolutional Language Models (arXiv:2302.10866), section 4.5: ViT with 1D Hyena
* HyenaPixel: Global Image Context with Convolutions (arXiv:2402.19305): the 2D and the bidirectional operator

As in the first, there is no class token and no position embedding, and features are averaged over tokens. Tokens keep
the shape of the image, (B, H, W, C), so the grid need not be remembered and every size and rectangle runs with the same
weights. Names and shapes of the parts that ViT has too are those of timm's `VisionTransformer`.
"""

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    LayerScale,
    SelectAdaptivePool2d,
    calculate_drop_path_rates,
    get_act_layer,
    get_norm_layer,
    resample_patch_embed,
    trunc_normal_,
)
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, _assert, nn

from hyena_vision.layers.grid_attention import GridAttention
from hyena_vision.layers.hyena import MIXERS, named_layer
from hyena_vision.layers.implicit_filter import rename_omega
from hyena_vision.layers.mlp import PartMlp
from hyena_vision.layers.patch_embed import DynamicPatchEmbed
from hyena_vision.models._blocks import chosen_blocks
from hyena_vision.models._input import refuse_output_stride, update_model_input_size

_logger = logging.getLogger(__name__)


class Block(nn.Module):
    """Pre-norm residual block: mixer, then MLP.

    Args:
        dim: Channels.
        mixer: Constructor of the mixer, called as `mixer(dim, proj_drop=..., device=..., dtype=...)`.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        proj_drop: Dropout rate of the mixer's and the MLP's projections.
        init_values: Initial value of LayerScale, None for no LayerScale.
        drop_path: Rate of stochastic depth.
        act_layer: Activation of the MLP.
        norm_layer: Norm before mixer and MLP.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(
        self,
        dim: int,
        mixer: Callable[..., nn.Module],
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.mixer = mixer(dim, proj_drop=proj_drop, **dd)
        self.ls1 = LayerScale(dim, init_values=init_values, **dd) if init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = PartMlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, **dd)
        self.ls2 = LayerScale(dim, init_values=init_values, **dd) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, H, W, C), then channels."""
        x = x + self.drop_path1(self.ls1(self.mixer(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class HyenaViT(nn.Module):
    """Vision transformer with Hyena mixers.

    Args:
        img_size: Height and width of the input in pixels, one number or two.
        patch_size: Side of a patch in pixels, one number or two.
        in_chans: Channels of the input.
        num_classes: Classes of the head, 0 for no head.
        global_pool: "avg", "max", "avgmax", or "" for none.
        embed_dim: Channels of a token.
        depth: Number of blocks.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        mixer_layer: "hyena1d", "hyena2d", or a class that takes `(dim, proj_drop, device, dtype, **mixer_kwargs)` and
            maps (B, H, W, C) to itself.
        attn_blocks: Blocks with attention in place of Hyena: "all", "every n", "first f", "last f" (f is a share of the
            depth), or indices; None for none. They know of no positions but those that Hyena blocks put into tokens.
        num_heads: Heads of that attention; None for one per 64 channels.
        init_values: Initial value of LayerScale, None for no LayerScale.
        drop_rate: Dropout rate before the head.
        proj_drop_rate: Dropout rate of the projections in the blocks.
        drop_path_rate: Rate of stochastic depth at the last block; it rises linearly from 0.
        dynamic_img_size: Whether any size that the patch size divides is accepted, or only `img_size`.
        dynamic_img_pad: Whether other sizes are padded at the right and bottom.
        act_layer: Activation of the MLPs, a timm name or a class.
        norm_layer: Norm, a timm name or a class; LayerNorm with eps 1e-6 by default.
        fc_norm: Whether the final norm comes after pooling, as timm's ViT has it by default where it pools.
            `forward_features` then gives tokens without a norm.
        mixer_norm_layer: Norm inside the mixers, where `value_norm`, `gate_norm` or `out_norm` ask for one.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **mixer_kwargs: For the mixer (`hyena_vision.layers.Hyena1d`, `Hyena2d`) and its filter: `order`,
            `short_kernel_size`, `gate_act`, `filter_dim`, `window`, `coords`, ... `base_grid` does not follow from
            `img_size` and `patch_size`, so that weights keep their meaning at other sizes: give it when a model is
            trained from scratch on a grid far from 14 x 14 tokens (28 x 28 for the `_patch8` models).

    Raises:
        ValueError: Unknown mixer or pooling, or an argument out of range.
        TypeError: An argument that neither the model nor its mixer nor its filter knows.

    Example:
        >>> HyenaViT(img_size=32, embed_dim=16, depth=1, num_classes=10)(torch.ones(1, 3, 32, 48)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        mixer_layer: str | type[nn.Module] = "hyena2d",
        attn_blocks: str | int | Sequence[int] | None = None,
        num_heads: int | None = None,
        init_values: float | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = False,
        act_layer: str | type[nn.Module] | None = None,
        norm_layer: str | type[nn.Module] | None = None,
        fc_norm: bool = False,
        mixer_norm_layer: str | type[nn.Module] | None = None,
        device=None,
        dtype=None,
        **mixer_kwargs,
    ) -> None:
        super().__init__()
        if isinstance(mixer_layer, str) and mixer_layer not in MIXERS:
            raise ValueError(f"mixer_layer must be one of {list(MIXERS)}, got {mixer_layer!r}")
        for name, value in (("embed_dim", embed_dim), ("depth", depth), ("in_chans", in_chans)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        dd = {"device": device, "dtype": dtype}
        norm = named_layer(get_norm_layer, "norm_layer", norm_layer) or partial(nn.LayerNorm, eps=1e-6)
        act = named_layer(get_act_layer, "act_layer", act_layer) or nn.GELU
        if mixer_norm_layer is not None:
            mixer_kwargs["norm_layer"] = mixer_norm_layer
        mixer = partial(MIXERS[mixer_layer] if isinstance(mixer_layer, str) else mixer_layer, **mixer_kwargs)
        mixers: list[Callable[..., nn.Module]] = [mixer] * depth
        if attn_blocks is None and num_heads is not None:
            raise ValueError(f"num_heads is for attn_blocks, which is None, got num_heads={num_heads}")
        for index in [] if attn_blocks is None else chosen_blocks(attn_blocks, depth, "attn_blocks"):
            heads = max(embed_dim // 64, 1) if num_heads is None else num_heads
            if heads < 1 or embed_dim % heads:
                raise ValueError(f"num_heads must divide embed_dim={embed_dim}, got {heads}")
            mixers[index] = partial(GridAttention, num_heads=heads, qkv_bias=True)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.in_chans = in_chans
        self.dynamic_img_size = dynamic_img_size
        self.output_fmt = "NHWC"
        self.grad_checkpointing = False

        self.patch_embed = DynamicPatchEmbed(
            img_size=img_size,
            patch_size=patch_size,  # type: ignore[arg-type]  # timm writes int, and takes two numbers as well
            in_chans=in_chans,
            embed_dim=embed_dim,
            output_fmt="NHWC",
            strict_img_size=not (dynamic_img_size or dynamic_img_pad),
            dynamic_img_pad=dynamic_img_pad,
            **dd,
        )
        rates: Any = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(
            *[
                Block(
                    embed_dim,
                    mixer,
                    mlp_ratio=mlp_ratio,
                    proj_drop=proj_drop_rate,
                    init_values=init_values,
                    drop_path=rate,
                    act_layer=act,
                    norm_layer=norm,
                    **dd,
                )
                for mixer, rate in zip(mixers, rates, strict=True)
            ]
        )
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [dict(module=f"blocks.{i}", num_chs=embed_dim, reduction=reduction) for i in range(depth)]
        self.norm = nn.Identity() if fc_norm else norm(embed_dim, **dd)
        self.fc_norm = norm(embed_dim, **dd) if fc_norm else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_weights(needs_reset=False)

    @torch.no_grad()
    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw all weights: patch embedding, MLPs and head as timm's ViT does, mixers and filters as they ask.

        Args:
            needs_reset: Whether modules are reset first that draw their own weights when they are made; needed after
                `to_empty`.
        """
        if needs_reset:
            # Children first, so that a mixer has the last word on its projections.
            for module in reversed(list(self.modules())):
                reset = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
        mlps = [m for block in self.blocks for m in block.get_submodule("mlp").modules()]
        for linear in [*mlps, self.head]:
            if isinstance(linear, nn.Linear):
                trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        projection = self.patch_embed.proj
        trunc_normal_(projection.weight, std=projection.weight[0].numel() ** -0.5)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Patterns of the parameters that are not decayed: filters and skips (norms and biases never are)."""
        return {"*.filter.*", "*.skip"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order parameters by depth, for layer-wise learning rates."""
        return dict(stem=r"^patch_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Last layer, `nn.Identity` if there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one.

        Args:
            num_classes: Classes of the new head, 0 for no head.
            global_pool: New pooling, None to keep the present one.
        """
        if global_pool not in (None, "", "avg", "max", "avgmax"):
            raise ValueError(f"global_pool must be '', 'avg', 'max' or 'avgmax', got {global_pool!r}")
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
            self.pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=global_pool != "", input_fmt="NHWC")
        like = self.patch_embed.proj.weight
        self.head = (
            nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            if num_classes > 0
            else nn.Identity()
        )
        self.pool.train(self.training)
        self.head.train(self.training)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the nominal image size, or resample the patch embedding to another patch size.

        Args:
            img_size: New height and width in pixels, None to keep them.
            patch_size: New side of a patch in pixels, None to keep it.
        """
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.feat_ratio()
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of chosen blocks, and the final ones.

        Args:
            x: (B, in_chans, H, W).
            indices: Blocks to take: the last n if an int, all if None.
            norm: Whether the final norm is applied to them.
            stop_early: Whether blocks after the last one taken are left out.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Whether only the list is returned.

        Returns:
            The final features (B, H', W', C) and the list, or the list alone.
        """
        _assert(output_fmt in ("NCHW", "NHWC"), "Output format must be one of NCHW or NHWC.")
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        x = self.patch_embed(x)
        blocks = self.blocks[: max_index + 1] if stop_early else self.blocks
        for index, block in enumerate(blocks):
            x = checkpoint(block, x) if self.grad_checkpointing and not torch.jit.is_scripting() else block(x)
            if index in take_indices:
                intermediates.append(self.norm(x) if norm else x)
        if output_fmt == "NCHW":
            intermediates = [y.permute(0, 3, 1, 2).contiguous() for y in intermediates]
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features of chosen blocks do not need.

        Args:
            indices: Blocks to keep the features of, as in `forward_intermediates`.
            prune_norm: Whether the final norm goes.
            prune_head: Whether pooling, the norm after it, and head go.

        Returns:
            The indices of the blocks taken.
        """
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, H', W', C) of images (B, in_chans, H, W); with `fc_norm` they are not yet."""
        x = self.patch_embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of tokens (B, H', W', C); what comes before the last layer if `pre_logits`."""
        x = self.head_drop(self.fc_norm(self.pool(x)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


# Of a ViT: class and position embeddings and their like have no place here.
_UNUSED_OF_VIT = r"^(cls_token|dist_token|reg_token|mask_token|pos_embed|head_dist\.|pre_logits\.)"
# Of ours: a ViT has nothing that plays their part.
_FRESH_OF_MIXER = r"\.mixer\.(short_filter|filter|skip|value_norm|gate_norms|out_norm)\b"

# What a pyramid adds, and what may be gone where its maps are all that is used.
_ABOVE_TRUNK = ("fpn.", "norm.", "fc_norm.")


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: HyenaViT) -> dict[str, Tensor]:
    """Fit a checkpoint of this family, or of timm's ViT of the same size, to a model.

    From a ViT everything is taken that has the same part here: patch embedding, norms, MLPs, head, and the projections
    of attention as those of the mixer. The rest keeps its initial values and is reported.

    Args:
        state_dict: Weights by name.
        model: The model that they are for.

    Returns:
        A complete state dict of `model`.

    Raises:
        ValueError: The checkpoint belongs to another architecture or size; the message names the first weight that
            does not fit.
    """
    state_dict = cast(dict[str, Tensor], state_dict.get("model", state_dict))
    own = model.state_dict()
    is_vit = not any(".mixer." in key for key in state_dict)
    final_norm = "fc_norm." if "fc_norm.weight" in own else "norm."
    renamed = {}
    for key, value in state_dict.items():
        if is_vit:
            key = re.sub(r"^(blocks\.\d+)\.attn\.", r"\1.mixer.", re.sub(r"^(fc_)?norm\.", final_norm, key))
        key = rename_omega(key)
        if key == "patch_embed.proj.weight" and value.ndim == 4 and value.shape[-2:] != own[key].shape[-2:]:
            value = resample_patch_embed(value, list(own[key].shape[-2:]), verbose=True)
        renamed[key] = value

    fitted, fresh = {}, []
    for key, value in own.items():
        given = renamed.get(key)
        fits = given is not None and given.shape == value.shape
        if given is not None and key == "patch_embed.proj.weight" and given.ndim == 4:
            # timm adapts the input channels after this function.
            fits = given[:, 0].shape == value[:, 0].shape
        if given is not None and fits:
            fitted[key] = given
        elif (
            key.startswith("head.")
            or (given is None and hasattr(model, "fpn") and key.startswith(_ABOVE_TRUNK))
            or (is_vit and (re.search(_FRESH_OF_MIXER, key) or _is_optional(key, model, given)))
        ):
            fitted[key] = value
            fresh.append(key)
        else:
            raise ValueError(_misfit(key, value, given))
    unused = [key for key in renamed if key not in own]
    strangers = [key for key in unused if not key.startswith(("head", "fpn."))]
    if is_vit:
        strangers = [key for key in strangers if not re.search(_UNUSED_OF_VIT, key)]
    if strangers:
        raise ValueError(
            f"the checkpoint has weights that {type(model).__name__} with {len(model.blocks)} blocks has no place for, "
            f"such as {strangers[0]!r}"
        )
    if is_vit or fresh:
        _logger.warning(
            f"Warm start{' from a ViT' if is_vit else ''}: took {len(fitted) - len(fresh)} of {len(own)} tensors. "
            f"Initialised afresh: {_summarise(fresh)}. Not used: {_summarise(unused)}."
        )
    return fitted


def _is_optional(key: str, model: HyenaViT, given: Tensor | None) -> bool:
    """Whether a ViT may lack it: biases of projections, or the projections of an order that attention does not have."""
    mixer = model.get_submodule(key.split(".mixer.")[0]).mixer if ".mixer." in key else None
    if mixer is None:
        return False
    return (given is None and key.endswith(".bias")) or (".mixer.qkv." in key and getattr(mixer, "order", 2) > 2)


def _misfit(key: str, expected: Tensor, given: Tensor | None) -> str:
    has = "nothing of that name" if given is None else f"shape {tuple(given.shape)}"
    return f"the checkpoint does not fit the model: {key} has shape {tuple(expected.shape)}, the checkpoint has {has}"


def _summarise(keys: list[str]) -> str:
    """Names with block numbers, or all of a pyramid, replaced by a star, each once."""
    short = (re.sub(r"^fpn\..*", "fpn.*", re.sub(r"^blocks\.\d+\.", "blocks.*.", key)) for key in keys)
    return ", ".join(dict.fromkeys(short)) or "nothing"


def _create_hyena_vit(variant: str, pretrained: bool = False, **kwargs) -> HyenaViT:
    refuse_output_stride(variant, kwargs)
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        HyenaViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **kwargs,
    )


def _cfg(url: str = "", **kwargs) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (14, 14),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "fixed_input_size": False,
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "hyena_vit_tiny": _cfg(),
        "hyena_vit_small": _cfg(),
        "hyena_vit_base": _cfg(),
        "hyena_vit_large": _cfg(),
        "hyena_vit_tiny_patch8": _cfg(pool_size=(28, 28)),
        "hyena_vit_small_patch8": _cfg(pool_size=(28, 28)),
        "hyena_vit_base_patch8": _cfg(pool_size=(28, 28)),
        "hyena2d_vit_tiny": _cfg(),
        "hyena2d_vit_small": _cfg(),
        "hyena2d_vit_base": _cfg(),
        "hyena2d_vit_large": _cfg(),
        "hyena2d_vit_tiny_patch8": _cfg(pool_size=(28, 28)),
        "hyena2d_vit_small_patch8": _cfg(pool_size=(28, 28)),
        "hyena2d_vit_base_patch8": _cfg(pool_size=(28, 28)),
        "hyena2d_vit_small_hybrid": _cfg(),
        "hyena2d_vit_base_hybrid": _cfg(),
        "hyena2d_vit_small_late_attn": _cfg(),
        "hyena2d_vit_base_late_attn": _cfg(),
        "hyena2d_iso_tiny": _cfg(num_classes=10, input_size=(3, 32, 32), pool_size=(16, 16), crop_pct=1.0),
    }
)

# The filter grows with the model, so that it never holds more than 3 % of the parameters.
_TINY = dict(embed_dim=192, depth=12, filter_dim=32)
_SMALL = dict(embed_dim=384, depth=12, filter_dim=64)
_BASE = dict(embed_dim=768, depth=12, filter_dim=128)
_LARGE = dict(embed_dim=1024, depth=24, filter_dim=128)
_PATCH8 = dict(patch_size=8, base_grid=28)
_1D = dict(mixer_layer="hyena1d")
_2D = dict(mixer_layer="hyena2d")
_HYBRID = dict(attn_blocks="every 2")
_LATE_ATTN = dict(attn_blocks="last 0.25")


@register_model
def hyena_vit_tiny(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Tiny with 1D Hyena, patch 16."""
    return _create_hyena_vit("hyena_vit_tiny", pretrained, **{**_TINY, **_1D, **kwargs})


@register_model
def hyena_vit_small(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Small with 1D Hyena, patch 16."""
    return _create_hyena_vit("hyena_vit_small", pretrained, **{**_SMALL, **_1D, **kwargs})


@register_model
def hyena_vit_base(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Base with 1D Hyena, patch 16."""
    return _create_hyena_vit("hyena_vit_base", pretrained, **{**_BASE, **_1D, **kwargs})


@register_model
def hyena_vit_large(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Large with 1D Hyena, patch 16."""
    return _create_hyena_vit("hyena_vit_large", pretrained, **{**_LARGE, **_1D, **kwargs})


@register_model
def hyena_vit_tiny_patch8(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Tiny with 1D Hyena, patch 8."""
    return _create_hyena_vit("hyena_vit_tiny_patch8", pretrained, **{**_TINY, **_PATCH8, **_1D, **kwargs})


@register_model
def hyena_vit_small_patch8(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Small with 1D Hyena, patch 8."""
    return _create_hyena_vit("hyena_vit_small_patch8", pretrained, **{**_SMALL, **_PATCH8, **_1D, **kwargs})


@register_model
def hyena_vit_base_patch8(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Base with 1D Hyena, patch 8."""
    return _create_hyena_vit("hyena_vit_base_patch8", pretrained, **{**_BASE, **_PATCH8, **_1D, **kwargs})


@register_model
def hyena2d_vit_tiny(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Tiny with 2D Hyena, patch 16."""
    return _create_hyena_vit("hyena2d_vit_tiny", pretrained, **{**_TINY, **_2D, **kwargs})


@register_model
def hyena2d_vit_small(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Small with 2D Hyena, patch 16."""
    return _create_hyena_vit("hyena2d_vit_small", pretrained, **{**_SMALL, **_2D, **kwargs})


@register_model
def hyena2d_vit_base(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Base with 2D Hyena, patch 16."""
    return _create_hyena_vit("hyena2d_vit_base", pretrained, **{**_BASE, **_2D, **kwargs})


@register_model
def hyena2d_vit_large(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Large with 2D Hyena, patch 16."""
    return _create_hyena_vit("hyena2d_vit_large", pretrained, **{**_LARGE, **_2D, **kwargs})


@register_model
def hyena2d_vit_tiny_patch8(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Tiny with 2D Hyena, patch 8."""
    return _create_hyena_vit("hyena2d_vit_tiny_patch8", pretrained, **{**_TINY, **_PATCH8, **_2D, **kwargs})


@register_model
def hyena2d_vit_small_patch8(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Small with 2D Hyena, patch 8."""
    return _create_hyena_vit("hyena2d_vit_small_patch8", pretrained, **{**_SMALL, **_PATCH8, **_2D, **kwargs})


@register_model
def hyena2d_vit_base_patch8(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Base with 2D Hyena, patch 8."""
    return _create_hyena_vit("hyena2d_vit_base_patch8", pretrained, **{**_BASE, **_PATCH8, **_2D, **kwargs})


@register_model
def hyena2d_vit_small_hybrid(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Small with 2D Hyena and attention in turn, patch 16."""
    return _create_hyena_vit("hyena2d_vit_small_hybrid", pretrained, **{**_SMALL, **_2D, **_HYBRID, **kwargs})


@register_model
def hyena2d_vit_base_hybrid(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Base with 2D Hyena and attention in turn, patch 16."""
    return _create_hyena_vit("hyena2d_vit_base_hybrid", pretrained, **{**_BASE, **_2D, **_HYBRID, **kwargs})


@register_model
def hyena2d_vit_small_late_attn(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Small with 2D Hyena, and attention in the last quarter of its blocks, patch 16."""
    return _create_hyena_vit("hyena2d_vit_small_late_attn", pretrained, **{**_SMALL, **_2D, **_LATE_ATTN, **kwargs})


@register_model
def hyena2d_vit_base_late_attn(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Base with 2D Hyena, and attention in the last quarter of its blocks, patch 16."""
    return _create_hyena_vit("hyena2d_vit_base_late_attn", pretrained, **{**_BASE, **_2D, **_LATE_ATTN, **kwargs})


@register_model
def hyena2d_iso_tiny(pretrained: bool = False, **kwargs) -> HyenaViT:
    """Isotropic 2D Hyena for 32-pixel images, of the shape of the Hyena paper's CIFAR model: 0.2 M parameters."""
    iso = dict(img_size=32, patch_size=2, base_grid=16, embed_dim=64, depth=4, filter_dim=32)
    return _create_hyena_vit("hyena2d_iso_tiny", pretrained, **{**iso, **_2D, **kwargs})
