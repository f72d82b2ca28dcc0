"""Models as functions without arguments: inference or a training step on random images of one size; and their FLOPs.

A multiply-add is 2 FLOPs. Matrix products and convolutions are counted by torch's `FlopCounterMode`, FFTs as
`hyena_vision.ops.flops` says. Elementwise operations (gates, norms, products of spectra, sines) count as nothing, as is
usual.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyena_vision.benchmark.program import DTYPES
from hyena_vision.benchmark.timing import attempt
from hyena_vision.ops.flops import FFT_FORMULAS
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
    registered = name.removeprefix(TRITON)
    if not timm.is_model(registered):
        raise UserError(f"timm knows no model {registered!r}")
    module, kwargs = timm.model_entrypoint(registered.split(".")[0]).__module__, {}
    if module.startswith("hyena_vision."):
        kwargs = hyena_kwargs if name == registered else {"backend": "triton", **hyena_kwargs}
    elif name != registered:
        raise UserError(f"{name}: not a Hyena model")
    elif module not in ("timm.models.vision_transformer", "timm.models.swin_transformer"):  # whose windows must know it
        return timm.create_model(name)
    return timm.create_model(registered, img_size=img_size, **kwargs)


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
        images, targets = torch.randn(batch_size, 3, img_size, img_size), torch.arange(batch_size) % model.num_classes
    autocast = torch.autocast(images.device.type, DTYPES[dtype], enabled=dtype != "float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4) if mode == "train" else None  # it would hold weights

    @torch.inference_mode()
    def infer() -> Tensor:
        with autocast:
            return model(images)

    def train() -> Tensor:
        with autocast:
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    step = train if mode == "train" else infer
    if reparam:
        model = reparameterize_model(model, inplace=True)
        step()  # makes what is kept, which a captured graph must not
    if compile != "no":
        model = torch.compile(model, mode=compile, dynamic=False)
        step()  # compiles, which is no call to measure
    return step


def count_tokens(model: nn.Module | None, img_size: int) -> int | None:
    """Patches of an image, None for a model without patches."""
    patch_embed = getattr(model, "patch_embed", None)
    return None if patch_embed is None else (img_size // patch_embed.patch_size[0]) ** 2


def count_flops(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Count the FLOPs of one forward pass of a module; on the meta device nothing is computed."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FFT_FORMULAS) as counter:
        module(*inputs)
    return counter.get_total_flops()
