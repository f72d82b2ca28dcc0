"""Hyena ViTs with maps at four strides, as libraries for segmentation and detection want them.

Paper: Exploring Plain Vision Transformer Backbones for Object Detection (ViTDet, arXiv:2203.16527). Its simple feature
pyramid makes all maps from the tokens of the last block, so the trunk is a plain `HyenaViT` and takes its weights.

The pyramid is there where its maps are asked for, with `features_only=True`. Without, an entry point gives a `HyenaViT`
as it is: a classifier has no use for a pyramid, and weights that get no gradient stop distributed training.
"""

from typing import Any

from timm.layers import LayerNorm2d, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from hyena_vision.models._input import refuse_output_stride
from hyena_vision.models.hyena_vit import _2D, _BASE, _SMALL, _TINY, HyenaViT, _cfg, checkpoint_filter_fn

_SCALES = (4, 2, 1, 0.5)  # of the maps, relative to the grid of tokens


class HyenaViTFPN(HyenaViT):
    """`HyenaViT` with the simple feature pyramid of ViTDet.

    Its `forward_intermediates` gives the maps of the pyramid. The pyramid has no part in features and logits.

    Args:
        fpn_dim: Channels of each map.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **kwargs: As for `HyenaViT`.

    Raises:
        ValueError: As `HyenaViT`, and for patches whose side is no multiple of 4.

    Example:
        >>> model = HyenaViTFPN(img_size=64, embed_dim=16, depth=1, fpn_dim=8)
        >>> [tuple(y.shape) for y in model.forward_intermediates(torch.ones(1, 3, 64, 96), intermediates_only=True)]
        [(1, 8, 16, 24), (1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)]
    """

    def __init__(self, fpn_dim: int = 256, device=None, dtype=None, **kwargs) -> None:
        super().__init__(device=device, dtype=dtype, **kwargs)
        dd = {"device": device, "dtype": dtype}
        self.fpn = nn.ModuleList([_level(self.embed_dim, fpn_dim, scale, dd) for scale in _SCALES])
        reductions = _reductions(self.patch_embed.patch_size)
        self.feature_info = [dict(module=f"fpn.{i}", num_chs=fpn_dim, reduction=r) for i, r in enumerate(reductions)]

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the nominal image size, or resample the patch embedding to another patch size.

        Args:
            img_size: New height and width in pixels, None to keep them.
            patch_size: New side of a patch in pixels, None to keep it.
        """
        if patch_size is not None:
            _reductions(patch_size)
        super().set_input_size(img_size, patch_size)
        for info, reduction in zip(self.feature_info, _reductions(self.patch_embed.patch_size), strict=True):
            info["reduction"] = reduction

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Chosen maps of the pyramid, and the final features of the trunk.

        Args:
            x: (B, in_chans, H, W).
            indices: Maps to take, of strides 4, 8, 16 and 32 for patches of 16: the last n if an int, all if None.
            norm: Whether the trunk's final norm comes before the pyramid; it does not in ViTDet.
            stop_early: Without effect: each map needs all blocks.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Whether only the list is returned.

        Returns:
            The final features (B, H', W', C) and the list, or the list alone.
        """
        take_indices, _ = feature_take_indices(len(self.fpn), indices)
        final, [tokens] = super().forward_intermediates(x, indices=1, norm=norm, output_fmt="NCHW")
        maps = [self.fpn[index](tokens) for index in take_indices]
        if output_fmt == "NHWC":
            maps = [y.permute(0, 2, 3, 1).contiguous() for y in maps]
        return maps if intermediates_only else (final, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what chosen maps do not need.

        Args:
            indices: Maps to keep, as in `forward_intermediates`.
            prune_norm: Whether the final norm goes.
            prune_head: Whether pooling, the norm after it, and head go.

        Returns:
            The indices of the maps taken.
        """
        take_indices, _ = feature_take_indices(len(self.fpn), indices)
        for index in set(range(len(self.fpn))) - set(take_indices):
            self.fpn[index] = nn.Identity()
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take_indices


def _level(dim: int, out_dim: int, scale: float, dd: dict[str, Any]) -> nn.Sequential:
    """From tokens (B, dim, H, W) to the map (B, out_dim, scale H, scale W), rounded up."""
    layers: list[nn.Module] = []
    if scale > 1:
        layers, dim = [nn.ConvTranspose2d(dim, dim // 2, 2, 2, **dd)], dim // 2
    elif scale < 1:
        layers = [nn.MaxPool2d(2, ceil_mode=True)]
    if scale == 4:
        layers += [LayerNorm2d(dim, **dd), nn.GELU(), nn.ConvTranspose2d(dim, dim // 2, 2, 2, **dd)]
        dim = dim // 2
    layers += [nn.Conv2d(dim, out_dim, 1, bias=False, **dd), LayerNorm2d(out_dim, **dd)]
    layers += [nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False, **dd), LayerNorm2d(out_dim, **dd)]
    return nn.Sequential(*layers)


def _reductions(patch_size: int | tuple[int, int]) -> list[int]:
    """Strides of the maps in pixels, the larger one where height and width differ."""
    if any(side % 4 for side in to_2tuple(patch_size)):
        raise ValueError(f"patch_size of a model with a pyramid must be a multiple of 4, got {patch_size}")
    return [int(max(to_2tuple(patch_size)) / scale) for scale in _SCALES]


def _create_hyena_vit_fpn(variant: str, pretrained: bool = False, fpn_dim: int = 256, **kwargs) -> HyenaViT:
    refuse_output_stride(variant, kwargs)
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    model_cls: type[HyenaViT] = HyenaViT
    if kwargs.get("features_only"):
        model_cls, kwargs["fpn_dim"] = HyenaViTFPN, fpn_dim
    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "hyena2d_vit_tiny_fpn": _cfg(),
        "hyena2d_vit_small_fpn": _cfg(),
        "hyena2d_vit_base_fpn": _cfg(),
    }
)


@register_model
def hyena2d_vit_tiny_fpn(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Tiny with 2D Hyena, patch 16, and maps at strides 4, 8, 16 and 32 with `features_only=True`."""
    return _create_hyena_vit_fpn("hyena2d_vit_tiny_fpn", pretrained, **{**_TINY, **_2D, **kwargs})


@register_model
def hyena2d_vit_small_fpn(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Small with 2D Hyena, patch 16, and maps at strides 4, 8, 16 and 32 with `features_only=True`."""
    return _create_hyena_vit_fpn("hyena2d_vit_small_fpn", pretrained, **{**_SMALL, **_2D, **kwargs})


@register_model
def hyena2d_vit_base_fpn(pretrained: bool = False, **kwargs) -> HyenaViT:
    """ViT-Base with 2D Hyena, patch 16, and maps at strides 4, 8, 16 and 32 with `features_only=True`."""
    return _create_hyena_vit_fpn("hyena2d_vit_base_fpn", pretrained, **{**_BASE, **_2D, **kwargs})
