"""Models as functions without arguments: inference or a training step on random images of one size."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.utils import reparameterize_model
from torch import Tensor, nn

from hyena_vision.benchmark.command import DTYPES
from hyena_vision.models import HyenaFormer, HyenaViT
from hyena_vision.training.errors import UserError

CEILING = "ceiling:"
TRITON = "triton:"
MAX_BATCH = 64


class ValueOnly(nn.Module):
    """timm's attention less its product: the whole projection, of which the value goes straight to the output's."""

    def __init__(self, attention: Attention) -> None:
        """Take over the layers of `attention`."""
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Project tokens (B, N, C) twice; masks have nothing to mask."""
        value = self.qkv(x).chunk(3, dim=-1)[2]
        return self.proj_drop(self.proj(value))


def create_model(name: str, img_size: int, **hyena_kwargs: Any) -> nn.Module:
    """Make a model for images of `img_size` pixels.

    Args:
        name: Of a model of timm; `ceiling:` and that of a ViT; or `triton:` and that of a Hyena model, which then runs
            the fused kernels.
        img_size: Side of the image. ViTs have position embeddings of this size, so that none are resampled.
        **hyena_kwargs: More arguments for Hyena models; others do not get them.

    Raises:
        UserError: timm knows no model of that name, the model of a ceiling has no plain attention, or that of `triton:`
            is none of ours.
    """
    if name.startswith(CEILING):
        model = create_model(name.removeprefix(CEILING), img_size)
        attentions = [(key, module) for key, module in model.named_modules() if isinstance(module, Attention)]
        if not attentions:
            raise UserError(f"{name}: the model has no timm.layers.Attention")
        for key, attention in attentions:
            model.set_submodule(key, ValueOnly(attention))
        return model
    if name.startswith(TRITON):
        model = create_model(name.removeprefix(TRITON), img_size, **{"backend": "triton", **hyena_kwargs})
        if not isinstance(model, (HyenaViT, HyenaFormer)):
            raise UserError(f"{name}: not a Hyena model")
        return model
    if not timm.is_model(name):
        raise UserError(f"timm knows no model {name!r}")
    architecture = name.split(".")[0]
    kwargs = {}
    if architecture in timm.list_models(module="hyena_vit") + timm.list_models(module="hyena_former"):
        kwargs = dict(img_size=img_size, **hyena_kwargs)
    elif architecture in timm.list_models(module="vision_transformer"):
        kwargs = dict(img_size=img_size, dynamic_img_size=True)
    elif architecture in timm.list_models(module="swin_transformer"):
        kwargs = dict(img_size=img_size)  # windows must know it
    return timm.create_model(name, **kwargs)


def make_step(
    name: str, img_size: int, batch_size: int, mode: str, dtype: str, compile: str, device: str, reparam: bool = False
) -> Callable[[], Tensor]:
    """Make a function that runs a model once on random images.

    Args:
        name: As for `create_model`.
        img_size: Side of the images.
        batch_size: Number of images.
        mode: "infer", or "train" for a step: forward, cross entropy, backward, AdamW; without loss scaling.
        dtype: Name of autocast's dtype, "float32" for no autocast.
        compile: Mode of torch.compile, "no" for eager.
        device: Where it runs.
        reparam: Whether inference is that of `timm.utils.reparameterize_model`.

    Returns:
        A function without arguments that returns the logits, or the loss of the step.
    """
    with torch.device(device):
        model = create_model(name, img_size).train(mode == "train")
        images = torch.randn(batch_size, 3, img_size, img_size)
    if reparam and mode == "infer":
        model = reparameterize_model(model, inplace=True)
    half = dtype != "float32"

    def autocast():
        return torch.autocast(torch.device(device).type, DTYPES[dtype]) if half else nullcontext()

    @torch.inference_mode()
    def infer() -> Tensor:
        with autocast():
            return model(images)

    if mode == "infer":
        if reparam and compile != "no":
            infer()  # makes what is kept, which a captured graph must not
        model = model if compile == "no" else torch.compile(model, mode=compile, dynamic=False)
        return infer
    model = model if compile == "no" else torch.compile(model, mode=compile, dynamic=False)
    targets = torch.arange(batch_size, device=device) % model.num_classes
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train() -> Tensor:
        with autocast():
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return train


def choose_batch_size(models: Sequence[str], img_size: int, mode: str, batch_memory: float) -> int:
    """Largest power of two up to 64 whose activations fit a budget, by estimate and not by trial.

    A block keeps about 24 float32 numbers per token and channel (signals, their spectra, the hidden MLP); inference has
    one block's at a time, training those of all blocks. Attention is taken to be fused, so no N x N matrix counts.

    Args:
        models: Names of the contenders; the widest and deepest decides, so that all get the same batch.
        img_size: Side of the image.
        mode: "infer" or "train".
        batch_memory: Budget in GB (10^9 bytes).

    Returns:
        At least 1, whether or not that fits.

    Raises:
        UserError: No model has the tokens, width and depth of a vision transformer.
    """
    need = 0
    for name in models:
        with torch.device("meta"):
            model = create_model(name, img_size)
        tokens, blocks = count_tokens(model, img_size), getattr(model, "blocks", None)
        if tokens is not None and blocks is not None:
            need = max(need, 4 * 24 * tokens * model.num_features * (len(blocks) if mode == "train" else 1))
    if not need:
        raise UserError("the batch size can only be chosen for vision transformers: give one")
    batch_size = MAX_BATCH
    while batch_size > 1 and batch_size * need > batch_memory * 1e9:
        batch_size //= 2
    return batch_size


def count_tokens(model: nn.Module, img_size: int) -> int | None:
    """Patches of an image, None for a model without patches."""
    patch_embed = getattr(model, "patch_embed", None)
    return None if patch_embed is None else (img_size // patch_embed.patch_size[0]) ** 2
