"""Metrics of each epoch: summary.csv always, TensorBoard and Weights & Biases when asked for."""

import csv
import io
import os

from hyena_vision.training.arguments import Arguments
from hyena_vision.training.checkpoint_files import replace_file
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
        row = {f"train_{name}": value for name, value in train.items()}
        row |= {f"eval_{name}": value for name, value in validation.items()}
        row["lr"] = lr
        try:
            write_row(self.path, {"epoch": epoch, **row})
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {one_line(error)}") from error
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


def write_row(path: str, row: dict[str, float]) -> None:
    """Append a row to a CSV file, in timm's format; new columns come before its last and are empty in older rows.

    Args:
        path: The file; need not exist.
        row: Values by column; columns of the file that it lacks stay empty.
    """
    header: list[str] = []
    if os.path.exists(path):
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    new = [name for name in row if name not in header]
    columns = [*header[:-1], *new, *header[-1:]]
    if header and new:
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, columns)
        writer.writeheader()
        writer.writerows(dict(zip(header, values, strict=False)) for values in rows)
        replace_file(path, lines.getvalue().encode())
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if not header:
            writer.writeheader()
        writer.writerow(row)
