"""What a model with replaced attention learns from its teacher, the model that it was.

Two stages, as in the conversions of language models (LoLCATs, arXiv 2410.10254; MOHAWK, arXiv 2408.10189):

1. `MixerTask`: each mixer learns to give what the attention in its place gave, from the teacher's own input.
2. `ModelTask`: all weights learn to give the teacher's logits, last tokens and tokens after each block.

No stage needs labels. Errors are relative, $|y - t|^2 / |t|^2$ for each image: 1 is what a model of zeros has.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn


class ConversionTask(TrainingTask, ABC):
    """What both stages share: a frozen teacher, and modules whose outputs are noted in a forward pass.

    Args:
        model: Model to train, whose attention has been replaced.
        teacher: What it learns from.
        device: Device of both.
        dtype: Dtype of both.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, device: torch.device, dtype: torch.dtype):
        super().__init__(device=device, dtype=dtype, verbose=False)
        self.trainable_module = model
        self.teacher = teacher.to(device, dtype).requires_grad_(False).eval()
        self._notes: dict[Any, Tensor] | None = None  # of the pass that runs now
        self._watched = False

    @property
    @abstractmethod
    def blocks(self) -> list[int]:
        """Blocks that have an error, in order."""

    @abstractmethod
    def block_errors(self, images: Tensor) -> Tensor:
        """Return the mean error over images (B, C, H, W) of each of the `blocks`, (blocks,), in float32."""

    def train(self, mode: bool = True) -> "ConversionTask":
        """Set the mode of the model; the teacher stays as it is."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs) -> "ConversionTask":
        """Put the model, not the teacher, into DistributedDataParallel."""
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs) -> nn.Module:
        """Compile the model."""
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.eval_model = self.trainable_module
        return self.eval_model

    @abstractmethod
    def _watch(self) -> None:
        """Register the hooks, before the first pass: a moving average is a copy of the model without them."""

    def _run(self, model: nn.Module, images: Tensor) -> tuple[Any, dict[Any, Tensor]]:
        """Return what a model gives, and what the hooks have noted."""
        if not self._watched:
            self._watch()
            self._watched = True
        self._notes = notes = {}
        try:
            return model(images), notes
        finally:
            self._notes = None


class MixerTask(ConversionTask):
    """Stage 1: each mixer learns its attention layer's output by the mean of their errors; all else stands still.

    The model runs as the teacher: next to each mixer runs the attention that it replaced, and the block goes on with
    the output of that. So mixers get the teacher's own input, one pass serves both, and no mixer waits for another.

    Args:
        model: Model of `replace_attention` that has its old layers (`originals`).
        device: Device of both.
        dtype: Dtype of both.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype):
        attention = model.originals.layers
        super().__init__(model, nn.ModuleDict({str(i): layer for i, layer in attention.items()}), device, dtype)
        mixers = [model.blocks[index].attn for index in attention]
        learning = [parameter for mixer in mixers for parameter in mixer.parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)

    @property
    def blocks(self) -> list[int]:
        """Blocks whose attention was replaced."""
        return sorted(int(name) for name in self.teacher)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the `loss` of images (B, C, H, W); targets are not read."""
        model = unwrap_model(self.trainable_module)
        model.eval()  # the teacher drops nothing
        for index in self.blocks:
            model.blocks[index].attn.train()
        _, errors = self._run(self.trainable_module, input)
        return {"loss": torch.stack([errors[index] for index in self.blocks]).mean()}

    def block_errors(self, images: Tensor) -> Tensor:
        """Return the mean error over images of each mixer, on the teacher's input."""
        _, errors = self._run(unwrap_model(self.trainable_module), images)
        return torch.stack([errors[index] for index in self.blocks])

    def _watch(self) -> None:
        for index in self.blocks:
            mixer = unwrap_model(self.trainable_module).blocks[index].attn
            mixer.register_forward_hook(partial(self._compare, index), with_kwargs=True)

    def _compare(self, index: int, mixer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        if self._notes is None:
            return None
        if isinstance(kwargs.get("attn_mask"), tuple):  # the grid, which attention takes no notice of
            kwargs = {**kwargs, "attn_mask": None}
        with torch.no_grad():
            wanted = self.teacher[str(index)](*args, **kwargs)
        self._notes[index] = relative_error(output, wanted)
        return wanted


class ModelTask(ConversionTask):
    r"""Stage 2: all weights learn what the teacher gives.

    The loss is $d T^2 KL(p_T || q_T) + w e_{last} + v \sum_i e_i$, with softmax at temperature T, the error of the
    tokens before the head and those after each block; and the loss of labels where that has a weight.

    Args:
        model: Model to train.
        teacher: The model before its attention was replaced.
        criterion: Loss of logits and targets.
        temperature: T.
        logit_weight: d.
        token_weight: w.
        layer_weight: v.
        task_weight: Weight of `criterion`.
        device: Device of both.
        dtype: Dtype of both.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        criterion: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        *,
        temperature: float,
        logit_weight: float,
        token_weight: float,
        layer_weight: float,
        task_weight: float,
    ):
        super().__init__(model, teacher, device, dtype)
        self.criterion = criterion
        self.temperature, self.logit_weight, self.task_weight = temperature, logit_weight, task_weight
        self.token_weight, self.layer_weight = token_weight, layer_weight

    @property
    def blocks(self) -> list[int]:
        """All blocks: those that kept their attention have other inputs."""
        return list(range(len(unwrap_model(self.teacher).blocks)))

    def compile(self, **options) -> nn.Module:
        """Compile model and teacher."""
        self.teacher = torch.compile(self.teacher, **options)
        return super().compile(**options)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the `loss` of images (B, C, H, W); targets are read only where they have a weight."""
        output, wanted, last, errors = self._compare(self.trainable_module, input)
        logits, wanted = (F.log_softmax(x.float() / self.temperature, -1) for x in (output, wanted))
        kl = self.temperature**2 * F.kl_div(logits, wanted, reduction="batchmean", log_target=True)
        loss = self.logit_weight * kl + self.token_weight * last + self.layer_weight * errors.sum()
        if self.task_weight:
            loss = loss + self.task_weight * self.criterion(output, target)
        return {"loss": loss, "output": output}

    def block_errors(self, images: Tensor) -> Tensor:
        """Return the mean error over images of the tokens after each block."""
        return self._compare(unwrap_model(self.trainable_module), images)[3]

    def _compare(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.no_grad():
            wanted, theirs = self._run(self.teacher, images)
        output, own = self._run(model, images)
        errors = {index: relative_error(own[index], theirs[index]) for index in own}
        return output, wanted, errors["norm"], torch.stack([errors[index] for index in self.blocks])

    def _watch(self) -> None:
        for model in map(unwrap_model, (self.trainable_module, self.teacher)):
            for index, module in [*enumerate(model.blocks), ("norm", model.norm)]:
                module.register_forward_hook(partial(self._note, index))

    def _note(self, index: int | str, module: nn.Module, args: tuple, output: Tensor) -> None:
        if self._notes is not None:
            self._notes[index] = output


def relative_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over images of $|y - t|^2 / |t|^2$, for tokens (B, N, C), as a scalar in float32."""
    output, wanted = output.float(), wanted.float()
    squares = wanted.square().mean((1, 2)).clamp_min(torch.finfo(torch.float32).tiny)
    return ((output - wanted).square().mean((1, 2)) / squares).mean()
