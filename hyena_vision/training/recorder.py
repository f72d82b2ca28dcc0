"""What a run leaves in its folder: settings, metrics, checkpoints, and at the end the exported model."""

import json
import logging
import math
import os
from collections.abc import Sequence

import torch
from timm.utils import is_primary

from hyena_vision.data import class_names
from hyena_vision.training import checkpoint_files, report, run_state
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.distributed import gather_objects
from hyena_vision.training.errors import UserError
from hyena_vision.training.freeze import count_parameters
from hyena_vision.training.html_report import describe_result, write_html_report
from hyena_vision.training.log import MetricsLog
from hyena_vision.training.model import model_arguments
from hyena_vision.training.predictions import (
    Described,
    Prediction,
    accuracy_of,
    read_predictions,
    write_predictions,
)
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
        updates: Of an epoch.
    """

    def __init__(
        self,
        args: Arguments,
        parts: Parts,
        model: torch.nn.Module,
        data_config: dict,
        folder: str | None,
        eval_metric: str,
        updates: int,
    ):
        self.args, self.parts, self.model, self.data_config = args, parts, model, data_config
        self.eval_metric, self.updates = eval_metric, updates
        self.parameters = count_parameters(model)
        self.folder = (folder or default_folder(args, data_config)) if is_primary(args) else None
        self.log: MetricsLog | None = None
        self.saver: checkpoint_files.CheckpointSaver | None = None
        self.results: list[dict] = []
        self.speeds: list[float] = []
        self._saved: tuple[int, int] | None = None  # epoch and batch of what was saved last

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
        if resumed is None:
            self._saved = 0, 0  # nothing to save yet
        if self.folder is None:
            return
        args, folder = self.args, self.folder
        open_folder(folder, settings, epoch, resumed is not None)
        self.log = MetricsLog(folder, args, epoch)
        options = dict(eval_metric=self.eval_metric, max_history=args.checkpoint_hist)
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

    def save_before(self, error: BaseException, epoch: int, progress: Progress) -> None:
        """Save where the run is, as an error or a signal is about to end it, so that `--resume auto` goes on there."""
        place = f"epoch {epoch}, {progress.step} batches done"
        try:
            self.save_recovery(epoch, progress, max(progress.step - 1, 0) // self.args.grad_accum_steps)
        except UserError as failed:
            _logger.warning(f"What was trained ({place}) could not be saved: {failed}.")
        else:
            if self._saved != (0, 0):
                _logger.info(f"Saved what was trained ({place}): --resume auto goes on from there.")

    def check_finite(self, epoch: int, train: dict[str, float], validation: dict[str, float]) -> None:
        """Stop at a metric that is not finite.

        Raises:
            UserError: There is one.
        """
        if not all(map(math.isfinite, [*train.values(), *validation.values()])):
            metrics = {f"train_{name}": value for name, value in train.items()} | validation
            raise UserError(
                f"a metric of epoch {epoch} is not finite: {metrics}; a recovery checkpoint holds the epoch"
            )

    def save_epoch(
        self, epoch: int, train: dict[str, float], validation: dict[str, float], predictions: Sequence[Prediction] = ()
    ) -> float:
        """Write the metrics of an epoch, its checkpoint and, where it is the best so far, its predictions.

        Args:
            epoch: Its number.
            train: Metrics of training.
            validation: Metrics of validation; may be empty.
            predictions: Of validation.

        Returns:
            The metric by which checkpoints are compared.

        Raises:
            UserError: A file cannot be written.
        """
        metric = self._metric(train, validation)
        self.results.append({"epoch": epoch, "train": train, "validation": validation})
        captured = run_state.capture(self.parts, self.args.given, epoch)
        self._saved = epoch + 1, 0
        if self.saver is None:
            return float(metric)
        lrs = [group["lr"] for group in self.parts.optimizer.param_groups]
        self.log.write(epoch, train, validation, sum(lrs) / len(lrs))
        self.saver.state = captured
        self.saver.save_checkpoint(epoch, metric=metric)
        if predictions and self.saver.best_epoch == epoch:
            write_predictions(os.path.join(self.folder, "predictions.csv"), predictions)
        if epoch + 1 in self.args.save_epochs:
            self.saver.save_milestone(epoch + 1)
        self.saver.state = captured = {}  # under FSDP a copy of everything
        report.write_results(
            self.folder,
            model=self.args.model,
            parameters=self.parameters,
            updates_per_epoch=self.updates,
            images_per_second=report.images_per_second(self.speeds),
            best_metric=self.saver.best_metric,
            best_epoch=self.saver.best_epoch,
            seed=self.args.seed,
            device=self.args.device,
        )
        return float(metric)

    def _metric(self, train: dict[str, float], validation: dict[str, float]) -> checkpoint_files.Metric:
        metrics = validation or train
        return checkpoint_files.Metric(metrics[self.eval_metric], metrics["loss"])

    def out_of_patience(self, epochs: int) -> bool:
        """Return whether `--patience` ends the run after so many epochs, the same on all processes."""
        if not self.args.patience:
            return False
        best = gather_objects(self.saver.best_epoch if self.saver is not None else None)[0]
        without = 0 if best is None else (epochs - 1 - best) // self.args.val_interval
        if without >= self.args.patience and is_primary(self.args):
            _logger.info(f"Stopped after {epochs} epochs: {without} validations without a better {self.eval_metric}.")
        return without >= self.args.patience

    def finish(self, epochs: int, described: Described | None = None) -> dict:
        """Export the best model, draw the curves, write the report and print the best epochs.

        Args:
            epochs: Epochs that are done, those before a resume included.
            described: Of the data set that was validated on, or None.

        Returns:
            `folder` (None on processes other than the first), `results` of each epoch, `best_metric`, `best_epoch`.
        """
        if self.saver is None:
            return {"folder": None, "results": self.results, "best_metric": None, "best_epoch": None}
        self.log.close()
        folder, metric, epoch = self.folder, self.saver.best_metric, self.saver.best_epoch
        changed = bool(self.results)
        if not changed:
            _logger.warning(f"Nothing to do: the run in {folder} has finished its {epochs} epochs.")
        best, exported = (os.path.join(folder, name) for name in ("model_best.pth.tar", "model.safetensors"))
        if not os.path.exists(exported) or os.path.getmtime(exported) < os.path.getmtime(best):
            weights = checkpoint_files.weights_of(checkpoint_files.read_checkpoint(best))
            labels = class_names(self.parts.class_to_idx) if self.parts.class_to_idx else None
            config = self.data_config
            names = ("input_img_mode", "no_exif")
            reading = {name: getattr(self.args, name) for name in names if getattr(self.args, name)}
            arguments = model_arguments(self.args, self.model)
            checkpoint_files.export_model(self.model, weights, folder, arguments, labels, reading, **config)
            changed = True
        if changed:
            rows = report.read_summary(folder)
            report.plot_curves({os.path.basename(self.args.model): rows}, os.path.join(folder, "curves.png"))
            report.plot_errors(rows, os.path.join(folder, "errors.png"))
            if described is not None:
                self._write_report(rows, described)
        _logger.info(f"Best {self.eval_metric}: {metric} (epoch {epoch}). Run folder: {folder}")
        best_last = sorted(self.results, key=lambda result: self._metric(result["train"], result["validation"]))
        if self.eval_metric == "loss":
            best_last.reverse()
        print(f"--result\n{json.dumps(best_last[-10:], indent=4)}")
        return {"folder": folder, "results": self.results, "best_metric": metric, "best_epoch": epoch}

    def _write_report(self, rows: list[dict[str, float]], described: Described) -> None:
        path = os.path.join(self.folder, "predictions.csv")
        try:
            predictions = read_predictions(path)
        except UserError:
            predictions = []
        best = next(row for row in rows if row["epoch"] == self.saver.best_epoch)
        # Of an earlier version or another program, or killed between writing a checkpoint and its predictions
        if not predictions or abs(accuracy_of(predictions) - best["eval_top1"]) > 1e-3:
            _logger.warning(f"{path} is not of the best epoch, so there is no report: make one with --eval --output.")
            return
        picture, files = described.picture, described.files
        if files is not None and any(row.file not in files[row.index : row.index + 1] for row in predictions):
            _logger.warning("The images to validate on have changed since the best epoch: the report has no pictures.")
            picture = None
        with open(os.path.join(self.folder, "args.yaml"), encoding="utf-8") as file:
            settings = file.read()
        facts = {
            "model": self.args.model,
            "parameters": f"{self.parameters:,}",
            "best epoch, from 1": f"{best['epoch'] + 1:.0f} of {rows[-1]['epoch'] + 1:.0f}",
        }
        write_html_report(
            os.path.join(self.folder, "report.html"),
            f"{os.path.basename(self.folder)}: {self.args.model}",
            {**describe_result(best["eval_loss"], predictions), **facts},
            predictions,
            rows,
            settings,
            picture,
        )
