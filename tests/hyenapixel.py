"""Small models of HyenaPixel's family, and arbitrary weights in the authors' layout, the same on every machine."""

import timm
import torch
from hyenapixel_original import HyenaPixelFormer

SMALL = dict(depths=(1, 1, 2, 1), dims=(32, 32, 64, 64), filter_emb_dims=(4, 4, 8, 8), img_size=64, base_img_size=64)


@torch.no_grad()
def randomise(original):
    """Draw all weights of an original model, buffers included, so that each has a part in the logits."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(original.state_dict().items()):
        last = name.rsplit(".", 1)[-1]
        if last in ("distance_map", "t"):
            continue  # follow from the size
        noise = torch.randn(weight.shape, generator=generator)
        if last == "deltas":
            # Of the window: from slow to fast, over the kernel's extent or over a time from 0 to 1
            extent = original.state_dict()[name.replace(".deltas", ".z")].shape[-1] if weight.ndim == 4 else 1
            weight.copy_(torch.linspace(-3, -15, weight.numel()).view(weight.shape) / extent * (1 + 0.3 * noise))
        elif last == "shift":
            weight.copy_(0.1 * noise)
        elif last == "z":
            weight.copy_(noise)
        elif last == "bias" or last == "scale" or last == "freq" or weight.ndim == 1:
            weight.copy_((last != "bias") + 0.3 * noise)
        else:
            weight.copy_(noise / weight[0].numel() ** 0.5)
    return original.eval()


def small_model(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, "num_classes": 7, **kwargs}).eval()


def small_original(name, **kwargs):
    return randomise(HyenaPixelFormer(small_model(name, **kwargs)))


def images(*shape, seed=1):
    return torch.randn(shape or (2, 3, 64, 64), generator=torch.Generator().manual_seed(seed))


def relative_error(given, expected):
    return ((given - expected).norm() / expected.norm()).item()
