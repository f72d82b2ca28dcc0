"""Parts of a model that stay as they are while the rest is trained."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from timm.layers import FrozenBatchNormAct2d, freeze_batch_norm_2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from hyena_vision.training.errors import ConfigError

BACKBONE = "backbone"


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Take parameters out of training: they get no gradient, and batch norms among them keep their averages.

    Args:
        model: Model of timm, before it is wrapped or its optimizer is made.
        patterns: `backbone` for all but the classifier, names of modules or parameters (`patch_embed`, `blocks.0`), or
            shell patterns of names (`blocks.[0-5].*`, `*.norm*`).

    Returns:
        How many parameters (numbers) are frozen.

    Raises:
        ConfigError: A pattern fits nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    heads = model.get_classifier()
    of_head = {id(p) for head in (heads if isinstance(heads, tuple) else (heads,)) for p in head.parameters()}
    for pattern in patterns:
        if pattern == BACKBONE:
            chosen = [parameter for parameter in parameters.values() if id(parameter) not in of_head]
        else:
            chosen = [p for name, p in parameters.items() if _fits(name, pattern)]
        if not chosen:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
            raise ConfigError(f"argument --freeze: {pattern!r} fits no parameter; the model has {parts}")
        for parameter in chosen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"argument --freeze: {' '.join(patterns)} leaves nothing to train")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, freeze_batch_norm_2d(module))
    return sum(parameter.numel() for parameter in parameters.values() if not parameter.requires_grad)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, with those of frozen batch norms, which are buffers."""
    frozen = (m for m in model.modules() if isinstance(m, FrozenBatchNorm2d | FrozenBatchNormAct2d))
    of_norms = sum(module.weight.numel() + module.bias.numel() for module in frozen)
    return of_norms + sum(parameter.numel() for parameter in model.parameters())


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
