"""HyenaPixel's image models: four stages of MetaFormer blocks with 2D or bidirectional 1D Hyena, in all or in some.

Papers:
* HyenaPixel: Global Image Context with Convolutions (arXiv:2402.19305)
* MetaFormer Baselines for Vision (arXiv:2210.13452): all around the mixers

Tokens keep the shape of the image, (B, H, W, C). Names of the parts are those of timm's `MetaFormer`; the files of
HyenaPixel's authors load in their own layout of keys.

A filter is a table of learnt position features, a small network and a window. All of it is a function of position
relative to the image, so every size and rectangle runs with the same weights, and at `base_img_size` the kernels are
those of the original. `table_img_size` is the size of the images whose kernels the table covers.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d, calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices
from timm.models.metaformer import (
    Attention,
    Downsampling,
    LayerNormNoBias,
    MetaFormerBlock,
    MlpHead,
    SepConv,
    StarReLU,
    Stem,
)
from torch import Tensor, _assert, nn

from hyena_vision.layers.hyena import MIXERS, Hyena1d
from hyena_vision.layers.mlp import LeanStarReLU, PartMlp
from hyena_vision.models._input import refuse_output_stride, update_model_input_size
from hyena_vision.models.hyena_former_weights import before_load, checkpoint_filter_fn, find_on_hub, grid_side


class StemNHWC(Stem):
    """timm's `Stem`, (B, in_chans, H, W) -> (B, H', W', C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        return self.norm(self.conv(x).permute(0, 2, 3, 1).contiguous())


class DownsamplingNHWC(Downsampling):
    """timm's `Downsampling`, (B, H, W, C) -> (B, H', W', C')."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width."""
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class SepConvNHWC(SepConv):
    """timm's `SepConv`, the mixer of ConvFormer, for (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens with a 7 x 7 depthwise convolution."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AttentionNHWC(Attention):
    """timm's `Attention` of CAFormer, heads of 32 channels, for (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens with attention."""
        return super().forward(x.flatten(1, 2)).view(x.shape)


class Block(MetaFormerBlock):
    """timm's `MetaFormerBlock` for (B, H, W, C), with an MLP that passes over memory less often.

    Args:
        dim: Channels.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **kwargs: As for timm's.
    """

    def __init__(self, dim: int, device=None, dtype=None, **kwargs) -> None:
        dd = {"device": device, "dtype": dtype}
        act: Any = partial(LeanStarReLU, **dd)
        super().__init__(dim, mlp_act=act, norm_layer=LayerNormNoBias, use_nchw=False, **kwargs, **dd)
        self.mlp = PartMlp(dim, 4 * dim, act_layer=act, bias=False, drop=kwargs.get("proj_drop", 0.0), **dd)


class Stage(nn.Module):
    """Downsampling, if any, and blocks at one resolution.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        mixer: Constructor of the mixers, called as `mixer(dim=..., proj_drop=..., device=..., dtype=...)`.
        proj_drop: Dropout rate of the projections.
        drop_path: Rate of stochastic depth of each block.
        downsample: Whether the stage begins with a convolution of stride 2.
        res_scale_init_value: Initial scale of the residual paths, None for no scale.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        (B, H, W, in_dim) -> (B, H', W', dim)
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        mixer: Callable[..., nn.Module],
        proj_drop: float,
        drop_path: Sequence[float],
        downsample: bool,
        res_scale_init_value: float | None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.downsample = (
            DownsamplingNHWC(in_dim, dim, kernel_size=3, stride=2, padding=1, norm_layer=LayerNormNoBias, **dd)
            if downsample
            else nn.Identity()
        )
        self.blocks = nn.Sequential(
            *[
                Block(
                    dim,
                    token_mixer=mixer,
                    proj_drop=proj_drop,
                    drop_path=rate,
                    res_scale_init_value=res_scale_init_value,
                    **dd,
                )
                for rate in drop_path
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Downsample and mix (B, H, W, in_dim)."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class HyenaFormer(nn.Module):
    """MetaFormer with Hyena mixers.

    Args:
        img_size: Nominal height and width of the input in pixels, one number or two.
        in_chans: Channels of the input.
        num_classes: Classes of the head, 0 for no head.
        global_pool: "avg", "max" or "" for none.
        depths: Blocks of each stage.
        dims: Channels of each stage.
        token_mixers: Of each stage: "hyena2d" (HPX), "hyena1d" (HB), "sep_conv" or "attention".
        mixer_norm: Whether Hyena mixers normalise what goes into their convolution and into their output projection.
        base_img_size: Side of the image, in pixels, for which the filters' tables are kernels as they stand: that of
            the training images. At other sizes kernels are resampled; their sums stay.
        table_img_size: Side of the image whose whole kernel the tables cover, None for `base_img_size`. If smaller,
            kernels end before the image does.
        filter_emb_dims: Position features of the filters of each stage, a multiple of 4; in 1D one more. Their
            networks have twice as many hidden units.
        drop_rate: Dropout rate in the head, before its last layer.
        proj_drop_rate: Dropout rate of the projections in the blocks.
        drop_path_rate: Rate of stochastic depth at the last block; it rises linearly from 0.
        res_scale_init_values: Initial scale of the residual paths in each stage, None for no scale.
        dynamic_img_size: Whether any size is accepted, or only `img_size`.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **mixer_kwargs: For the Hyena mixers, `hyena_vision.layers.Hyena1d` and `Hyena2d`, and their filters.

    Raises:
        ValueError: Unknown mixer or pooling, or lists of different lengths.
        TypeError: An argument that neither the model nor its mixers know.

    Example:
        >>> model = HyenaFormer(img_size=32, base_img_size=32, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=10)
        >>> model(torch.ones(1, 3, 32, 64)).shape
        torch.Size([1, 10])
    """

    base_img_size: Tensor
    head: Any  # of global_pool, norm and fc

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (64, 128, 320, 512),
        token_mixers: Sequence[str] = ("hyena2d",) * 4,
        mixer_norm: bool = False,
        base_img_size: int = 224,
        table_img_size: int | None = None,
        filter_emb_dims: Sequence[int] = (32, 32, 48, 64),
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        res_scale_init_values: Sequence[float | None] = (None, None, 1.0, 1.0),
        dynamic_img_size: bool = True,
        device=None,
        dtype=None,
        **mixer_kwargs,
    ) -> None:
        super().__init__()
        for name, values in (
            ("dims", dims),
            ("token_mixers", token_mixers),
            ("filter_emb_dims", filter_emb_dims),
            ("res_scale_init_values", res_scale_init_values),
        ):
            if len(values) != len(depths):
                raise ValueError(f"{name} must have one value for each of {len(depths)} stages, got {values}")
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.in_chans = in_chans
        self.img_size = to_2tuple(img_size)
        self.dynamic_img_size = dynamic_img_size
        self.table_img_size = table_img_size or base_img_size
        self.drop_rate = drop_rate
        self.output_fmt = "NHWC"

        self.stem = StemNHWC(in_chans, dims[0], norm_layer=LayerNormNoBias, **dd)
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for index, (kind, emb_dim) in enumerate(zip(token_mixers, filter_emb_dims, strict=True)):
            base, table = (grid_side(size, index) for size in (base_img_size, self.table_img_size))
            stages.append(
                Stage(
                    dims[max(index - 1, 0)],
                    dims[index],
                    _mixer(kind, base, table, emb_dim, mixer_norm, mixer_kwargs),
                    proj_drop_rate,
                    rates[index],
                    downsample=index > 0,
                    res_scale_init_value=res_scale_init_values[index],
                    **dd,
                )
            )
        if mixer_kwargs and not set(token_mixers) & set(MIXERS):
            raise TypeError(f"no mixer of this model takes {', '.join(mixer_kwargs)}")
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            dict(module=f"stages.{index}", num_chs=dim, reduction=4 * 2**index) for index, dim in enumerate(dims)
        ]
        self.head = nn.Sequential(
            OrderedDict(global_pool=nn.Identity(), norm=nn.LayerNorm(dims[-1], eps=1e-6, **dd), fc=nn.Identity())
        )
        self.reset_classifier(num_classes, global_pool)
        # Windows are stored per image of this size: with it in the state dict, weights can move to another
        self._base_img_size = base_img_size
        self.register_buffer("base_img_size", torch.tensor(base_img_size, device=device))
        self.register_load_state_dict_pre_hook(before_load)
        self.init_weights(needs_reset=False)

    @torch.no_grad()
    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw all weights as the original does.

        Args:
            needs_reset: Whether modules are reset first that draw their own weights when they are made; needed after
                `to_empty`.
        """
        self.base_img_size.fill_(self._base_img_size)
        if needs_reset:
            for module in reversed(list(self.modules())):
                reset = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
                if isinstance(module, StarReLU):
                    nn.init.ones_(module.scale)
                    nn.init.zeros_(module.bias)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif re.search(r"\.res_scale\d$", name) and hasattr(module, "scale"):
                nn.init.ones_(module.scale)
            elif isinstance(module, Hyena1d) and module.filter.z is not None:
                module.filter.z.copy_(_positions_1d(*module.filter.z.shape))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Patterns of the parameters that are not decayed: filters and skips (norms and biases never are)."""
        return {"*.filter.*", "*.skip"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order parameters by depth, for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return dict(stem=r"^stem", blocks=r"^stages\.(\d+)" if coarse else [*fine, (r"^head\.norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again."""
        for stage in self.stages:
            cast(Stage, stage).grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Layers after pooling and norm, `nn.Identity` if there are none."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Replace the head by a fresh one.

        Args:
            num_classes: Classes of the new head, 0 for no head.
            global_pool: New pooling, None to keep the present one.
            reset_other: Whether the norm of the head goes, too.
        """
        if global_pool not in (None, "", "avg", "max"):
            raise ValueError(f"global_pool must be '', 'avg' or 'max', got {global_pool!r}")
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
            self.head.global_pool = SelectAdaptivePool2d(
                pool_type=global_pool, flatten=global_pool != "", input_fmt="NHWC"
            )
        if reset_other:
            self.head.norm = nn.Identity()
        like = self.stem.conv.weight
        self.head.fc = (
            MlpHead(
                self.num_features,
                num_classes,
                norm_layer=nn.LayerNorm,
                drop_rate=self.drop_rate,
                device=like.device,
                dtype=like.dtype,
            )
            if num_classes > 0
            else nn.Identity()
        )
        for module in self.head.fc.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.head.train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Change the nominal image size; filters follow the images, so no weight changes.

        Args:
            img_size: New height and width in pixels.
        """
        self.img_size = to_2tuple(img_size)
        update_model_input_size(self, self.img_size)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of chosen stages, and the final ones.

        Args:
            x: (B, in_chans, H, W).
            indices: Stages to take: the last n if an int, all if None.
            norm: Without effect, as in timm's MetaFormer: the only norm comes after pooling.
            stop_early: Whether stages after the last one taken are left out.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Whether only the list is returned.

        Returns:
            The final features (B, H', W', C) and the list, or the list alone.
        """
        _assert(output_fmt in ("NCHW", "NHWC"), "Output format must be one of NCHW or NHWC.")
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        x = self._embed(x)
        for index, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if index in take_indices:
                intermediates.append(x.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features of chosen stages do not need.

        Args:
            indices: Stages to keep the features of, as in `forward_intermediates`.
            prune_norm: Without effect: the only norm belongs to the head.
            prune_head: Whether pooling, norm and head go; they do if stages go.

        Returns:
            The indices of the stages taken.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "", reset_other=True)
        return take_indices

    def _embed(self, x: Tensor) -> Tensor:
        if not self.dynamic_img_size:
            for given, expected, axis in zip(x.shape[-2:], self.img_size, ("height", "width"), strict=True):
                _assert(given == expected, f"Input {axis} ({given}) doesn't match model ({expected}).")
        return self.stem(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens of the last stage (B, H', W', C) of images (B, in_chans, H, W)."""
        return self.stages(self._embed(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of tokens (B, H', W', C); what comes before the head's layers if `pre_logits`."""
        return self.head.norm(self.head.global_pool(x)) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def _mixer(
    kind: str, base: int, table: int, emb_dim: int, norm: bool, kwargs: Mapping[str, Any]
) -> Callable[..., nn.Module]:
    """Constructor of a mixer for a grid of `base` tokens on a side."""
    if kind == "sep_conv":
        return SepConvNHWC
    if kind == "attention":
        return AttentionNHWC
    if kind not in MIXERS:
        raise ValueError(f"token_mixers must be of {[*MIXERS, 'sep_conv', 'attention']}, got {kind!r}")
    shared = dict(
        gate_norm=norm,
        out_norm=norm,
        norm_layer=partial(nn.LayerNorm, eps=1e-5, bias=False),
        softcap=0.0,
        base_grid=base,
        learn_features=True,
        filter_dim=2 * emb_dim,
    )
    # Decays are given in kernel extents in 2D, and from the middle to the end of a kernel in 1D.
    if kind == "hyena2d":
        extents = (2 * table - 1) / base
        own = dict(short_kernel_size=5, features="sinusoid", num_inner_layers=1, table_size=table)
        own |= dict(filter_emb_dim=emb_dim, slow_decay=1.5 * extents, fast_decay=0.3 * extents)
    else:
        length = table**2
        extents = max(length - 1, 1) / base**2
        own = dict(short_kernel_size=3, features="fourier", num_inner_layers=2, table_size=length)
        own |= dict(filter_emb_dim=emb_dim + 1, slow_decay=1.5 * extents, fast_decay=0.3 * extents)
    return partial(MIXERS[kind], **{**shared, **own, **kwargs})


def _positions_1d(features: int, taps: int) -> Tensor:
    """Position features (features, taps) that the original's 1D tables begin with.

    A ramp that is 1 in the middle and 0 at both ends, then cosines and negative sines of 0 to bands - 1 periods.
    """
    bands = (features - 1) // 2
    position = torch.arange(taps, dtype=torch.float64, device="cpu")
    middle = max(taps // 2, 1)
    ramp = 1 - (position - taps // 2).abs() / middle
    angle = (
        2
        * torch.pi
        / taps
        * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device="cpu")[:, None]
        * position
    )
    return torch.cat([ramp[None], angle.cos(), -angle.sin()]).float()


def _create_hyena_former(variant: str, pretrained: bool = False, **kwargs) -> HyenaFormer:
    refuse_output_stride(variant, kwargs)
    given, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg=given, pretrained_cfg_overlay=overlay)
    if pretrained and cfg.hf_hub_id and not (cfg.source or cfg.file or cfg.state_dict):
        hub_id = find_on_hub(variant, cfg.hf_hub_id, cfg.hf_hub_filename, kwargs.get("cache_dir"))
        kwargs["pretrained_cfg_overlay"] = {**(overlay or {}), "hf_hub_id": hub_id}
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs.get("depths", (0,) * 4)))))
    return build_model_with_cfg(
        HyenaFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **kwargs,
    )


def _cfg(hub_name: str, **kwargs) -> dict[str, Any]:
    return {
        "url": "",
        "hf_hub_id": f"Spravil/{hub_name}",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc.fc2",
        "fixed_input_size": False,
        "license": "apache-2.0",
        "paper_ids": "arXiv:2402.19305",
        "paper_name": "HyenaPixel: Global Image Context with Convolutions",
        "origin_url": "https://github.com/spravil/HyenaPixel",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "hpx_former_s18.westai_in1k": _cfg("hpx_former_s18.westai_in1k"),
        "hpx_former_s18_384.westai_in1k": _cfg(
            "hpx_former_s18.westai_in1k_384", input_size=(3, 384, 384), pool_size=(12, 12)
        ),
        "hb_former_s18.westai_in1k": _cfg("hb_former_s18.westai_in1k"),
        "c_hpx_former_s18.westai_in1k": _cfg("c_hpx_former_s18.westai_in1k"),
        "hpx_a_former_s18.westai_in1k": _cfg("hpx_a_former_s18.westai_in1k"),
        "hb_a_former_s18.westai_in1k": _cfg("hb_a_former_s18.westai_in1k"),
        "hpx_former_b36.westai_in1k": _cfg("hpx_former_b36.westai_in1k"),
        "hb_former_b36.westai_in1k": _cfg("hb_former_b36.westai_in1k"),
    }
)

_S18 = dict(depths=(3, 3, 9, 3), dims=(64, 128, 320, 512))
_B36 = dict(depths=(3, 12, 18, 3), dims=(128, 256, 512, 768))
_HPX = dict(token_mixers=("hyena2d",) * 4)
_HB = dict(token_mixers=("hyena1d",) * 4)


@register_model
def hpx_former_s18(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """HyenaPixel-Former S18: 2D Hyena with norms in all stages."""
    return _create_hyena_former("hpx_former_s18", pretrained, **{**_S18, **_HPX, "mixer_norm": True, **kwargs})


@register_model
def hpx_former_s18_384(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """The same, fine-tuned on 384 pixels; its kernels reach as far in tokens as those for 224."""
    sizes = dict(img_size=384, base_img_size=384, table_img_size=224)
    args = {**_S18, **_HPX, **sizes, "mixer_norm": True, **kwargs}
    return _create_hyena_former("hpx_former_s18_384", pretrained, **args)


@register_model
def hb_former_s18(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """Hyena-Bidirectional-Former S18: 1D Hyena in all stages."""
    return _create_hyena_former("hb_former_s18", pretrained, **{**_S18, **_HB, **kwargs})


@register_model
def c_hpx_former_s18(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """Separable convolutions in the first two stages, 2D Hyena in the last two."""
    mixers = dict(token_mixers=("sep_conv", "sep_conv", "hyena2d", "hyena2d"))
    return _create_hyena_former("c_hpx_former_s18", pretrained, **{**_S18, **mixers, **kwargs})


@register_model
def hpx_a_former_s18(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """2D Hyena in the first two stages, attention in the last two."""
    mixers = dict(token_mixers=("hyena2d", "hyena2d", "attention", "attention"))
    return _create_hyena_former("hpx_a_former_s18", pretrained, **{**_S18, **mixers, **kwargs})


@register_model
def hb_a_former_s18(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """1D Hyena in the first two stages, attention in the last two."""
    mixers = dict(token_mixers=("hyena1d", "hyena1d", "attention", "attention"))
    return _create_hyena_former("hb_a_former_s18", pretrained, **{**_S18, **mixers, **kwargs})


@register_model
def hpx_former_b36(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """HyenaPixel-Former B36: 2D Hyena with norms in all stages."""
    return _create_hyena_former("hpx_former_b36", pretrained, **{**_B36, **_HPX, "mixer_norm": True, **kwargs})


@register_model
def hb_former_b36(pretrained: bool = False, **kwargs) -> HyenaFormer:
    """Hyena-Bidirectional-Former B36: 1D Hyena with norms in all stages."""
    return _create_hyena_former("hb_former_b36", pretrained, **{**_B36, **_HB, "mixer_norm": True, **kwargs})
