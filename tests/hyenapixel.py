"""Arbitrary weights for models in the key layout of HyenaPixel's authors, the same on every machine."""

import torch


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
