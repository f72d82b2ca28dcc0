"""Metrics of each epoch: summary.csv always, TensorBoard and Weights & Biases when asked for."""

import os

from timm.utils import update_summary

from hyena_vision.training.arguments import Arguments
from hyena_vision.training.errors import UserError, one_line


class MetricsLog:
    """Writes one row for each epoch.

    Args:
        folder: Folder of the run.
        args: Arguments of the run.
        start_epoch: First epoch that is written; TensorBoard drops what it has of later ones.
    """

    def __init__(self, folder: str, args: Arguments, start_epoch: int):
        """Open what was asked for."""
        self.path = os.path.join(folder, "summary.csv")
        self.tensorboard = self.wandb = None
        if args.log_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(folder, purge_step=start_epoch)
        if args.log_wandb:
            import wandb

            self.wandb = wandb.init(
                project=args.wandb_project,
                name=os.path.basename(folder),
                config=args.given,
                tags=args.wandb_tags,
                resume="must" if args.wandb_resume_id else None,
                id=args.wandb_resume_id or None,
            )

    def write(self, epoch: int, train: dict[str, float], validation: dict[str, float], lr: float) -> None:
        """Write the row of an epoch.

        Args:
            epoch: Its number.
            train: Metrics of training.
            validation: Metrics of validation, may be empty.
            lr: Mean learning rate of the parameter groups.

        Raises:
            UserError: summary.csv cannot be written.
        """
        try:
            update_summary(epoch, train, validation, self.path, lr, write_header=not os.path.exists(self.path))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {one_line(error)}") from error
        row = {f"train_{name}": value for name, value in train.items()}
        row |= {f"eval_{name}": value for name, value in validation.items()}
        row["lr"] = lr
        if self.tensorboard is not None:
            for name, value in row.items():
                self.tensorboard.add_scalar(name, value, epoch)
            self.tensorboard.flush()
        if self.wandb is not None:
            self.wandb.log({"epoch": epoch, **row})

    def close(self) -> None:
        """Finish what is open."""
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
