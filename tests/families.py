"""One small model of each family, for tests that ask the same of all of them."""

import timm
import torch
from torch import nn

import hyena_vision  # noqa: F401  registers the models

_VIT = dict(img_size=64, embed_dim=24, depth=2, num_classes=5, base_grid=4, filter_dim=8)
_FORMER = dict(
    depths=(1, 1, 1, 1),
    dims=(8, 16, 16, 16),
    filter_emb_dims=(4, 4, 4, 4),
    img_size=64,
    base_img_size=64,
    num_classes=5,
)
FAMILIES = {
    "hyena_vit": ("hyena_vit_tiny", _VIT),
    "hyena2d_vit": ("hyena2d_vit_tiny", _VIT),
    "hpx_former": ("hpx_former_s18", _FORMER),
    "hb_former": ("hb_former_s18", _FORMER),
}


# What makes them smaller still, where each module is looked at or the model is compiled
_ONE_STAGE = dict(depths=(1,), dims=(8,), filter_emb_dims=(4,), res_scale_init_values=(1.0,))
ONE_BLOCK = {
    "hyena_vit": dict(depth=1),
    "hyena2d_vit": dict(depth=1),
    "hpx_former": dict(token_mixers=("hyena2d",), **_ONE_STAGE),
    "hb_former": dict(token_mixers=("hyena1d",), **_ONE_STAGE),
}


@torch.no_grad()
def small(family: str, **kwargs) -> nn.Module:
    """A model of a family in eval mode, the same each time, whose mixers have a large part in its logits."""
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**settings, **kwargs}).eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1 and ".filter." not in key:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif key.endswith("filter.out.weight"):
            parameter.mul_(3)
        elif key.endswith("skip"):
            parameter.mul_(0.3)
    return model


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random images, by default two of 64 x 64 pixels."""
    return torch.randn(shape or (2, 3, 64, 64), generator=torch.Generator().manual_seed(seed))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Its blocks, of all stages."""
    return [block for stage in getattr(model, "stages", [model]) for block in stage.blocks]


def touch(model: nn.Module) -> nn.Module:
    """Put a hook that does nothing on every module, so that no fast path runs."""
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the sum of squares of the logits, by parameter; the logits as "logits"."""
    model.zero_grad()
    logits = model(x)
    logits.float().square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **found}
