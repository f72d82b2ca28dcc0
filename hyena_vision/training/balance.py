"""Classes of unequal size: weights of the loss, and a sampler that draws all classes equally often."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from hyena_vision.training.errors import ConfigError
from hyena_vision.training.seeds import ORDER, mix_seed


def labels_of(dataset: Dataset, flag: str) -> list[int]:
    """Return the class index of each image, without reading images.

    Args:
        dataset: Of `create_datasets`.
        flag: What needs them, for the message.

    Raises:
        ConfigError: The data set does not tell.
    """
    source = getattr(dataset, "reader", dataset)
    samples, labels = getattr(source, "samples", None), getattr(source, "targets", None)  # tar files have both
    if labels is None and samples is not None:
        labels = [label for _, label in samples]
    if labels is None:
        kind = type(dataset).__name__
        raise ConfigError(f"argument --{flag}: needs a data set that lists its labels, such as a folder, got a {kind}")
    index = getattr(dataset, "target_transform", None) or int  # where labels are matched to other classes by name
    return [index(int(label)) for label in labels]


def balanced_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """Return a weight per class such that all classes weigh the same in sum, and an image 1 in the mean.

    Args:
        labels: Class index of each image.
        num_classes: Classes of the model; those without images weigh 0.

    Returns:
        (num_classes,) float32: images / (classes with images * images of the class).
    """
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0).float()


class WeightedCrossEntropy(nn.Module):
    """Softmax cross entropy of which an image has the weight of its class: as if images were there several times.

    torch's own `weight` also weighs what label smoothing gives to other classes.

    Args:
        weights: (classes,), of `balanced_weights`.
        smoothing: Of the labels, 0 to 1.
    """

    def __init__(self, weights: Tensor, smoothing: float = 0.0):
        """Keep the weights."""
        super().__init__()
        self.register_buffer("weights", weights)
        self.smoothing = smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weighted mean of a batch.

        Args:
            logits: (B, classes).
            target: (B,) class indices, or (B, classes) shares of the classes.
        """
        losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.smoothing)
        weights = target @ self.weights if target.is_floating_point() else self.weights[target]
        return (losses * weights).sum() / weights.sum()


class BalancedSampler(Sampler[int]):
    """Draws as many images as there are, with replacement, each class equally often in the mean.

    The draw of an epoch follows from seed and epoch; each process takes its own part of it.

    Args:
        labels: Class index of each image.
        seed: Seed of the run.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, labels: Sequence[int], seed: int, rank: int = 0, world_size: int = 1):
        """Keep a probability for each image."""
        per_class = balanced_weights(labels, max(labels) + 1)
        self.weights = per_class[torch.tensor(labels)].double()
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Return this process's images of the epoch."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch, ORDER))
        # torch.multinomial takes at most 2^24 categories
        bounds = self.weights.cumsum(0)
        drawn = torch.rand(len(self) * self.world_size, generator=generator, dtype=torch.float64) * bounds[-1]
        indices = torch.searchsorted(bounds, drawn, right=True).clamp(max=len(bounds) - 1)
        return iter(indices[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        """Return the number of images of this process in an epoch."""
        return math.ceil(len(self.weights) / self.world_size)
