"""HyenaPixel's models with the arithmetic and keys of its authors' code: what `hyena_former` is compared with.

Every call runs the filter networks and transforms kernel and signal to twice the size of the image (or to the size of
the kernel if that is larger), with plain torch.fft. Nothing is kept between calls.

Source:
    HyenaPixel (arXiv:2402.19305); written anew from its description, all around the mixers from timm's MetaFormer.
"""

from collections.abc import Callable
from functools import partial

import torch
from timm.models.metaformer import LayerNormNoBias, MetaFormerBlock, MlpHead, StarReLU
from torch import Tensor, nn

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.models import HyenaFormer


class _Sine(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq * x)


class _LongConv2d(nn.Module):
    """Kernel of K x K taps, smaller or larger than the image, around its middle tap."""

    def __init__(self, dim: int, extent: int, features: int, width: int) -> None:
        super().__init__()
        axis = torch.arange(extent).float() - extent // 2
        self.z = nn.Parameter(torch.randn(1, features, extent, extent))
        self.distance_map = nn.Parameter(torch.hypot(axis[:, None], axis)[None, None], requires_grad=False)
        self.deltas = nn.Parameter(torch.linspace(-3, -15, dim)[None, :, None, None] / extent)
        self.shift = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.bias = nn.Parameter(torch.randn(1, dim, 1, 1))
        self.implicit_filter = nn.Sequential(
            nn.Conv2d(features, width, 1),
            _Sine(1, width, 1, 1),
            nn.Conv2d(width, width, 1),
            _Sine(1, width, 1, 1),
            nn.Conv2d(width, dim, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.implicit_filter(self.z) * (torch.exp(-self.distance_map * self.deltas.abs()) + self.shift)
        height, width = x.shape[-2:]
        extent = kernel.shape[-1]
        size = (max(2 * height, extent), max(2 * width, extent))
        y = torch.fft.irfft2(torch.fft.rfft2(x, s=size) * torch.fft.rfft2(kernel, s=size), s=size)
        first = extent // 2
        return y[..., first : first + height, first : first + width] + x * self.bias


class _Mixer2d(nn.Module):
    def __init__(self, dim: int, extent: int, features: int, width: int, norm: bool, **_) -> None:
        super().__init__()
        self.pointwise_conv = nn.Conv2d(dim, 3 * dim, 1)
        self.depthwise_conv = nn.Conv2d(3 * dim, 3 * dim, 5, padding=2, groups=3 * dim)
        self.long_conv = _LongConv2d(dim, extent, features, width)
        if norm:
            self.qk_norm = LayerNormNoBias(dim, eps=1e-5)
            self.out_norm = LayerNormNoBias(dim, eps=1e-5)
        self.out_proj = nn.Linear(dim, dim) if norm else nn.Conv2d(dim, dim, 1)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2).contiguous()
        first, second, third = self.depthwise_conv(self.pointwise_conv(x)).chunk(3, dim=1)
        x = first * second
        if not self.norm:
            return self.out_proj(third * self.long_conv(x)).permute(0, 2, 3, 1).contiguous()
        x = self.qk_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = third * self.long_conv(x)
        return self.out_proj(self.out_norm(x.permute(0, 2, 3, 1).contiguous()))


class _PositionFeatures(nn.Module):
    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.randn(1, 2 * length - 1, features))
        self.register_buffer("t", torch.linspace(-1, 1, 2 * length - 1).abs()[None, :, None])


class _Window(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("deltas", torch.linspace(-3, -15, dim)[None, None])


class _Filter1d(nn.Module):
    def __init__(self, dim: int, length: int, features: int, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(dim))
        self.pos_emb = _PositionFeatures(length, features)
        layers = [nn.Linear(features, width), _Sine(1, width)]
        for _ in range(2):
            layers += [nn.Linear(width, width), _Sine(1, width)]
        self.implicit_filter = nn.Sequential(*layers, nn.Linear(width, dim, bias=False))
        self.modulation = _Window(dim)

    def forward(self) -> Tensor:
        kernel = self.implicit_filter(self.pos_emb.z) * torch.exp(-self.pos_emb.t * self.modulation.deltas.abs())
        return kernel[0].T


class _Mixer1d(nn.Module):
    def __init__(self, dim: int, extent: int, features: int, width: int, norm: bool, **_) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.short_filter = nn.Conv1d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)
        self.filter_fn = _Filter1d(dim, (extent + 1) // 2, features, width)
        if norm:
            self.qk_norm = nn.ModuleList([LayerNormNoBias(dim, eps=1e-5)])
            self.out_norm = LayerNormNoBias(dim, eps=1e-5)
        self.out_proj = nn.Linear(dim, dim)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:3]
        last, second, value = self.short_filter(self.in_proj(x.flatten(1, 2)).mT).chunk(3, dim=1)
        value = value * second
        if self.norm:
            value = self.qk_norm[0](value.mT).mT
        kernel = self.filter_fn()
        length, middle = value.shape[-1], kernel.shape[-1] // 2
        size = max(2 * length, kernel.shape[-1])
        y = torch.fft.irfft(torch.fft.rfft(value, n=size) * torch.fft.rfft(kernel, n=size), n=size)
        y = (y[..., middle : middle + length] + value * self.filter_fn.bias[:, None]) * last
        y = self.out_norm(y.mT) if self.norm else y.mT
        return self.out_proj(y).unflatten(1, grid)


class _SepConv(nn.Module):
    def __init__(self, dim: int, **_) -> None:
        super().__init__()
        self.pwconv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 7, padding=3, groups=2 * dim, bias=False)
        self.pwconv2 = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(self.act1(self.pwconv1(x)).permute(0, 3, 1, 2))
        return self.pwconv2(x.permute(0, 2, 3, 1))


class _Attention(nn.Module):
    def __init__(self, dim: int, **_) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, -1, 32)).permute(2, 0, 3, 1, 4)
        y = (q * 32**-0.5 @ k.mT).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3]))


class _Downsample(nn.Module):
    def __init__(self, in_dim: int, dim: int, first: bool) -> None:
        super().__init__()
        self.pre_norm = nn.Identity() if first else LayerNormNoBias(in_dim)
        self.conv = nn.Conv2d(in_dim, dim, 7, 4, 2) if first else nn.Conv2d(in_dim, dim, 3, 2, 1)
        self.post_norm = LayerNormNoBias(dim) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.post_norm(self.conv(self.pre_norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class HyenaPixelFormer(nn.Module):
    """The original of a `HyenaFormer`, with the same shapes and the key layout of the authors' files.

    Args:
        like: The model that it is the original of; of Hyena's options only those of the variants are understood.
    """

    def __init__(self, like: HyenaFormer) -> None:
        super().__init__()
        self.num_classes = like.num_classes
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        channels = like.in_chans
        for stage in like.stages:
            dim = stage.blocks[0].norm1.weight.numel()
            unscaled = isinstance(stage.blocks[0].res_scale1, nn.Identity)
            self.downsample_layers.append(_Downsample(channels, dim, first=not self.stages))
            block = partial(
                MetaFormerBlock,
                dim,
                token_mixer=_original_of(stage.blocks[0].token_mixer),
                norm_layer=LayerNormNoBias,
                use_nchw=False,
                res_scale_init_value=None if unscaled else 1.0,
            )
            self.stages.append(nn.Sequential(*[block() for _ in stage.blocks]))
            channels = dim
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = MlpHead(channels, self.num_classes, norm_layer=nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W)."""
        x = x.permute(0, 2, 3, 1)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((1, 2))))


def _original_of(mixer: nn.Module) -> Callable[..., nn.Module]:
    if not isinstance(mixer, (Hyena1d, Hyena2d)):
        return _Attention if hasattr(mixer, "qkv") else _SepConv
    norm = not isinstance(mixer.out_norm, nn.Identity)
    features, extent = mixer.filter.z.shape[0], mixer.filter.z.shape[-1]
    width = mixer.filter.out.in_features
    original = _Mixer1d if isinstance(mixer, Hyena1d) else _Mixer2d
    return partial(original, extent=extent, features=features, width=width, norm=norm)
