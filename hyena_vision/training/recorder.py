"""What a run leaves in its folder: settings, metrics, checkpoints, and at the end the exported model."""

import json
import logging
import math
import os

import torch
from timm.utils import is_primary

from hyena_vision.data import class_names
from hyena_vision.training import checkpoint_files, report, run_state
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.errors import UserError
from hyena_vision.training.log import MetricsLog
from hyena_vision.training.run_folder import default_folder, open_folder
from hyena_vision.training.run_state import Parts, Progress

_logger = logging.getLogger("train")


class Recorder:
    """Records a run. All processes call each method together; the first one alone writes.

    Args:
        args: Arguments of the run.
        parts: What checkpoints hold.
        model: Model that is trained, without wrappers.
        data_config: timm's data configuration of it.
        folder: Folder of the run; None for one named by time, model and size.
        eval_metric: Metric of the best checkpoint.
    """

    def __init__(
        self,
        args: Arguments,
        parts: Parts,
        model: torch.nn.Module,
        data_config: dict,
        folder: str | None,
        eval_metric: str,
    ):
        self.args, self.parts, self.model, self.data_config = args, parts, model, data_config
        self.eval_metric = eval_metric
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.folder = (folder or default_folder(args, data_config)) if is_primary(args) else None
        self.log: MetricsLog | None = None
        self.saver: checkpoint_files.CheckpointSaver | None = None
        self.results: list[dict] = []
        self.speeds: list[float] = []
        self._saved: tuple[int, int] | None = None

    def open(self, settings: str, epoch: int, step: int, resume_from: str, resumed: dict | None) -> None:
        """Open the folder for a run that begins or goes on.

        Args:
            settings: Content of args.yaml.
            epoch: First epoch to train.
            step: Batches of it that are done.
            resume_from: Path of the checkpoint that the run goes on from.
            resumed: Its content, or None.

        Raises:
            UserError: It cannot be written to, or the checkpoint's history cannot be read.
        """
        if self.folder is None:
            return
        args, folder = self.args, self.folder
        open_folder(folder, settings, epoch, resumed is not None)
        self.log = MetricsLog(folder, args, epoch)
        options = dict(decreasing=self.eval_metric == "loss", max_history=args.checkpoint_hist)
        self.saver = checkpoint_files.CheckpointSaver(self.model, self.parts.optimizer, folder, **options)
        if resumed is not None:
            self.saver.load(resume_from, resumed)
            if epoch in args.save_epochs and step == 0:
                self.saver.save_milestone(epoch, resume_from)  # it may have been killed just before
            place = checkpoint_files.place_of(resumed) if args.start_epoch is None else (epoch, 0)
            checkpoint_files.set_aside(folder, place)

    def save_recovery(self, epoch: int, progress: Progress, update: int) -> None:
        """Save where the run is in the middle of an epoch, unless the last call was at the same place."""
        if self._saved == (epoch, progress.step):
            return
        captured = run_state.capture(self.parts, self.args.given, epoch - 1, progress)
        if self.saver is not None:
            self.saver.state = captured
            self.saver.save_recovery(epoch, update)
        self._saved = epoch, progress.step

    def save_epoch(self, epoch: int, train: dict[str, float], validation: dict[str, float]) -> float:
        """Write the metrics of an epoch and its checkpoint.

        Args:
            epoch: Its number.
            train: Metrics of training.
            validation: Metrics of validation; may be empty.

        Returns:
            The metric by which checkpoints are compared.

        Raises:
            UserError: A metric is not finite, or a file cannot be written.
        """
        metric = (validation or train)[self.eval_metric]
        if not all(map(math.isfinite, [*train.values(), *validation.values()])):
            raise UserError(f"a metric of epoch {epoch} is not finite: {validation}; nothing of it was saved")
        self.results.append({"epoch": epoch, "train": train, "validation": validation})
        captured = run_state.capture(self.parts, self.args.given, epoch)
        if self.saver is None:
            return metric
        lrs = [group["lr"] for group in self.parts.optimizer.param_groups]
        self.log.write(epoch, train, validation, sum(lrs) / len(lrs))
        self.saver.state = captured
        self.saver.save_checkpoint(epoch, metric=metric)
        if epoch + 1 in self.args.save_epochs:
            self.saver.save_milestone(epoch + 1)
        self.saver.state = captured = {}  # under FSDP a copy of everything
        report.write_results(
            self.folder,
            model=self.args.model,
            parameters=self.parameters,
            images_per_second=report.images_per_second(self.speeds),
            best_metric=self.saver.best_metric,
            best_epoch=self.saver.best_epoch,
            seed=self.args.seed,
            device=self.args.device,
        )
        return metric

    def finish(self, epochs: int) -> dict:
        """Export the best model, draw the curves and print the best epochs.

        Args:
            epochs: Epochs that are done, those before a resume included.

        Returns:
            `folder` (None on processes other than the first), `results` of each epoch, `best_metric`, `best_epoch`.
        """
        if self.saver is None:
            return {"folder": None, "results": self.results, "best_metric": None, "best_epoch": None}
        self.log.close()
        folder, metric, epoch = self.folder, self.saver.best_metric, self.saver.best_epoch
        if not self.results:
            _logger.warning(f"Nothing to do: the run in {folder} has finished its {epochs} epochs.")
        best, exported = (os.path.join(folder, name) for name in ("model_best.pth.tar", "model.safetensors"))
        if not os.path.exists(exported) or os.path.getmtime(exported) < os.path.getmtime(best):
            report.plot_curves({self.args.model: report.read_summary(folder)}, os.path.join(folder, "curves.png"))
            weights = checkpoint_files.weights_of(checkpoint_files.read_checkpoint(best))
            labels = class_names(self.parts.class_to_idx) if self.parts.class_to_idx else None
            config = self.data_config
            checkpoint_files.export_model(self.model, weights, folder, self.args.model_kwargs, labels, **config)
        _logger.info(f"Best {self.eval_metric}: {metric} (epoch {epoch}). Run folder: {folder}")
        best_last = sorted(self.results, key=lambda r: (r["validation"] or r["train"])[self.eval_metric])
        if self.eval_metric == "loss":
            best_last.reverse()
        print(f"--result\n{json.dumps(best_last[-10:], indent=4)}")
        return {"folder": folder, "results": self.results, "best_metric": metric, "best_epoch": epoch}
