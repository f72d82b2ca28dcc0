"""Models as functions without arguments: inference or a training step on random images of one size; and their FLOPs.

A multiply-add is 2 FLOPs. Matrix products and convolutions are counted by torch's `FlopCounterMode`, which takes an FFT
for nothing; here a real transform of N values is 2.5 N log2 N and a complex one 5 N log2 N, zeros of the padding
included. Elementwise operations (gates, norms, products of spectra, sines) count as nothing, as is usual. A fused
operator hides what it does: mixers are counted with `backend="fft"`, of which torch sees all.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyena_vision.benchmark.program import DTYPES
from hyena_vision.benchmark.timing import attempt
from hyena_vision.models import HyenaFormer, HyenaViT
from hyena_vision.training.errors import UserError

TRITON = "triton:"


def create_model(name: str, img_size: int, **hyena_kwargs: Any) -> nn.Module:
    """Make a model for images of `img_size` pixels.

    Args:
        name: Of a model of timm, or `triton:` and that of a Hyena model.
        img_size: Side of the image. ViTs have position embeddings of this size, so that none are resampled.
        **hyena_kwargs: More arguments for Hyena models; others do not get them.

    Raises:
        UserError: There is no such model.
    """
    if name.startswith(TRITON):
        model = create_model(name.removeprefix(TRITON), img_size, **{"backend": "triton", **hyena_kwargs})
        if not isinstance(model, (HyenaViT, HyenaFormer)):
            raise UserError(f"{name}: not a Hyena model")
        return model
    if not timm.is_model(name):
        raise UserError(f"timm knows no model {name!r}")
    module = timm.model_entrypoint(name.split(".")[0]).__module__
    kwargs = {}
    if module.startswith("hyena_vision."):
        kwargs = dict(img_size=img_size, **hyena_kwargs)
    elif module == "timm.models.vision_transformer":
        kwargs = dict(img_size=img_size, dynamic_img_size=True)
    elif module == "timm.models.swin_transformer":
        kwargs = dict(img_size=img_size)  # windows must know it
    return timm.create_model(name, **kwargs)


def on_meta(name: str, img_size: int) -> nn.Module | None:
    """A model without memory, to count in, with mixers that torch sees through; None if none can be made of a size."""
    with torch.device("meta"):
        return attempt(lambda: create_model(name, img_size, backend="fft").eval())[0]


def make_step(
    name: str, img_size: int, batch_size: int, mode: str, dtype: str, compile: str, device: str, reparam: bool = False
) -> Callable[[], Tensor]:
    """Make a function that runs a model once on random images; arguments are columns of `measure.SpeedRow`.

    Returns:
        A function without arguments. It returns the logits; in training the loss of a step: forward, cross entropy,
        backward, AdamW, without loss scaling.
    """
    with torch.device(device):
        model = create_model(name, img_size).train(mode == "train")
        images = torch.randn(batch_size, 3, img_size, img_size)
    if reparam and mode == "infer":
        model = reparameterize_model(model, inplace=True)

    def autocast():
        return nullcontext() if dtype == "float32" else torch.autocast(torch.device(device).type, DTYPES[dtype])

    @torch.inference_mode()
    def infer() -> Tensor:
        with autocast():
            return model(images)

    if compile != "no":
        if reparam and mode == "infer":
            infer()  # makes what is kept, which a captured graph must not
        model = torch.compile(model, mode=compile, dynamic=False)
    if mode == "infer":
        return infer
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


def count_tokens(model: nn.Module | None, img_size: int) -> int | None:
    """Patches of an image, None for a model without patches."""
    patch_embed = getattr(model, "patch_embed", None)
    return None if patch_embed is None else (img_size // patch_embed.patch_size[0]) ** 2


def count_flops(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Count the FLOPs of one forward pass of a module; on the meta device nothing is computed."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FFT_FORMULAS) as counter:
        module(*inputs)
    return counter.get_total_flops()


def _formula(factor: float, of_result: bool = False) -> Callable[..., int]:
    """A factor times N log2 N for each transform of N values, as many as the input has, or the result."""

    def formula(shape: Sequence[int], dim: Sequence[int], *args, out_shape: Sequence[int], **kwargs) -> int:
        shape = out_shape if of_result else shape
        return round(factor * math.prod(shape) * math.log2(math.prod(shape[axis] for axis in dim)))

    return formula


_aten = torch.ops.aten
FFT_FORMULAS = {
    _aten._fft_r2c: _formula(2.5),
    _aten._fft_c2r: _formula(2.5, of_result=True),
    _aten._fft_c2c: _formula(5),
}
