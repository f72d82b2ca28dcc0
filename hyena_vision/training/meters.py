"""What validation measures: loss and accuracy of classes, or the squared error of pictures, over all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_vision.training.errors import UserError


class ClassMeter:
    """Counts images, cross entropy and right classes.

    Args:
        device: Of the logits.
    """

    def __init__(self, device: torch.device):
        """Begin with nothing."""
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, right at first, right among five
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Take in a batch.

        Args:
            logits: (B, classes).
            target: (B,) class indices; those below 0 are not counted.
        """
        valid = target >= 0
        logits, target = logits[valid].float(), target[valid]
        self.loss_sum += F.cross_entropy(logits, target, reduction="sum").double()
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        self.counts += torch.stack([valid.sum(), right[:, 0].sum(), right.sum()])

    def reduce(self) -> None:
        """Add up the processes."""
        torch.distributed.all_reduce(self.counts)
        torch.distributed.all_reduce(self.loss_sum)

    @property
    def images(self) -> int:
        """Images so far."""
        return int(self.counts[0])

    def metrics(self) -> dict[str, float]:
        """Mean `loss`, and `top1` and `top5` in per cent."""
        total, top1, top5 = self.counts.tolist()
        return {"loss": self.loss_sum.item() / total, "top1": 100 * top1 / total, "top5": 100 * top5 / total}


class PixelMeter:
    """Counts images and their mean squared errors, as `CornerMSELoss`.

    Args:
        device: Of the pictures.
    """

    def __init__(self, device: torch.device):
        """Begin with nothing."""
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of images, and of their errors

    def add(self, output: Tensor, target: Tensor) -> None:
        """Take in a batch.

        Args:
            output: (B, C, H, W).
            target: (B, C, H', W') of the lower right corner.
        """
        error = (corner(output, target) - target).double().square().mean((1, 2, 3))
        self.sums += torch.stack([torch.full_like(error, 1).sum(), error.sum()])

    def reduce(self) -> None:
        """Add up the processes."""
        torch.distributed.all_reduce(self.sums)

    @property
    def images(self) -> int:
        """Images so far."""
        return int(self.sums[0])

    def metrics(self) -> dict[str, float]:
        """The mean squared error as `loss`."""
        return {"loss": (self.sums[1] / self.sums[0]).item()}


class CornerMSELoss(nn.Module):
    """Mean squared error of pictures in the lower right corner, as large as their targets are."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean, of pictures (B, C, H, W) and targets (B, C, H', W')."""
        return F.mse_loss(corner(output, target).float(), target.float())


def corner(output: Tensor, target: Tensor) -> Tensor:
    """Return the lower right corner of pictures (B, C, H, W) that targets (B, C, H', W') are of.

    Raises:
        UserError: Pictures of other channels, or smaller than the targets.
    """
    height, width = target.shape[-2:]
    cut = output[..., -height:, -width:]
    if cut.shape != target.shape:
        raise UserError(f"expected pictures that hold {tuple(target.shape)}, got {tuple(output.shape)}")
    return cut
