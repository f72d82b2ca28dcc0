"""Train an image classifier on ImageNet or any data set that timm reads.

Built from timm's own parts, with timm's arguments (docs/training_flags.md lists what differs):

    python -m hyena_vision.train -c configs/hyena2d_vit_small_in1k.yaml --data-dir DIR
    torchrun --nproc-per-node 8 -m hyena_vision.train -c configs/hyena2d_vit_small_in1k.yaml --data-dir DIR
    python -m hyena_vision.train --eval output/train/NAME/model_best.pth.tar --data-dir DIR --img-size 384

`train_imagenet.py` of the repository is the same program.

A run writes args.yaml, summary.csv, results.json, curves.png, last.pth.tar and the one before as previous.pth.tar,
model_best.pth.tar, the best checkpoint-N.pth.tar, and at the end model.safetensors with config.json into
OUTPUT/EXPERIMENT, and prints its results after `--result`. `--resume auto` goes on where it was stopped.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from timm.utils import NativeScaler, is_primary, random_seed, setup_default_logging, unwrap_model

from hyena_vision.data import DataError, target_channels
from hyena_vision.training import run_state
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.bad_images import BadImages
from hyena_vision.training.balance import balanced_weights, labels_of
from hyena_vision.training.classes import check_head, fit_head, known_classes
from hyena_vision.training.config import dump_args, parse_args
from hyena_vision.training.distributed import gather_objects, lost_peer
from hyena_vision.training.errors import UserError, one_line
from hyena_vision.training.html_report import describe_result, write_html_report
from hyena_vision.training.interrupt import EXIT_INTERRUPTED, Interrupted
from hyena_vision.training.loop import MOST_INITIAL, Run, initial_share, train_one_epoch, validate, validate_all
from hyena_vision.training.model import check_model, create_model, data_config, place_model
from hyena_vision.training.optim import base_lr, create_optimizer, create_scheduler, start_schedule
from hyena_vision.training.pipeline import create_eval_loader, create_loaders
from hyena_vision.training.predictions import describe, write_predictions
from hyena_vision.training.recorder import Recorder
from hyena_vision.training.resolve import resolve
from hyena_vision.training.run_folder import choose_folder
from hyena_vision.training.splits import create_datasets
from hyena_vision.training.task import prepare_task

_logger = logging.getLogger("train")


def main(argv: Sequence[str] | None = None, prog: str = "hyena_vision.train") -> dict:
    """Run the program.

    Args:
        argv: Arguments without the program's name; None takes `sys.argv`.
        prog: Name of the program in its messages.

    Returns:
        What `train` returns, or `evaluate` under `--eval`.

    Raises:
        SystemExit: Code 2 for wrong arguments, 1 for a run that failed, 75 for one that SIGTERM or SIGUSR1 stopped and
            that waits to be resumed, 130 for Ctrl-C, each after one line on stderr. Anything else that is raised is a
            bug of the program.
    """
    if not logging.root.handlers:
        setup_default_logging()
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        args = resolve(parse_args(argv, prog))
        set_up_process(args)
        check_model(args)
        return evaluate(args) if args.eval else train(args)
    except (UserError, DataError) as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    except Interrupted as stopped:
        print(f"{prog}: stopped by {stopped}; --resume auto goes on from here", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; --resume auto goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        print(f"{prog}: error: another process has ended: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train(args: Arguments) -> dict:
    """Train and validate as the arguments say.

    Args:
        args: Arguments of the run.

    Returns:
        `folder` of the run (None on processes other than the first), `results` of each epoch, `best_metric` and
        `best_epoch`.

    Raises:
        UserError: The run cannot start or go on. Until everything is ready nothing is written.
        Interrupted: A signal asked to stop, and a checkpoint of this moment was written.
    """
    device = torch.device(args.device)
    folder, resume_from, resumed = choose_folder(args)
    if resumed:
        run_state.check_settings(resume_from, resumed, args.given, args.resume_force)
    known = known_classes(args, resume_from, resumed)
    datasets = create_datasets(args, known)
    own_head = resumed is not None and not known.classes  # runs of before took the model's own number of classes
    random_seed(args.seed)  # the same model on all processes; the random numbers of the epochs have seeds of their own
    model = create_model(args if own_head else fit_head(args, known, datasets.class_to_idx))
    classes = check_head(args, datasets.class_to_idx, model.num_classes)
    config = data_config(args, model)
    bad_images = BadImages()
    loaders = create_loaders(args, config, datasets, model.num_classes, device, bad_images)
    lr = base_lr(args, loaders.batch_size)
    class_weights = None
    if args.class_weights:
        class_weights = balanced_weights(labels_of(datasets.train, "class-weights"), model.num_classes)
    task, eval_model = prepare_task(args, model, device, class_weights)
    autocast, loss_scaler = create_autocast(args, device)
    optimizer = create_optimizer(args, unwrap_model(task.get_trainable_module()), lr)
    eval_metric = args.eval_metric
    if loaders.eval is None or args.unlabelled or args.convert_stage == "mixers":
        eval_metric = "loss"
    updates = math.ceil(len(loaders.train) / args.grad_accum_steps)
    scheduler, num_epochs = create_scheduler(args, optimizer, updates, eval_metric == "loss")
    last_epoch = min(num_epochs, args.stop_epoch or num_epochs)
    parts = run_state.Parts(task, optimizer, loss_scaler, scheduler, class_to_idx=classes)
    epoch, progress = run_state.begin(args, parts, resume_from, resumed)
    start_schedule(args, scheduler, epoch, updates, progress.step, resumed)
    without_labels = args.unlabelled or target_channels(args.dataset)
    described = None if datasets.eval is None or without_labels else describe(datasets.eval, classes)
    recorder = Recorder(args, parts, model, config, folder, eval_metric, updates)
    _logger.info(
        f"Training {args.model} ({recorder.parameters:,} parameters) at {config['input_size']} for "
        f"{last_epoch} of {num_epochs} epochs of {updates} updates on {args.world_size} x {device}."
    )
    warn_of_young_average(args, last_epoch * updates)
    recorder.open(dump_args(args, class_to_idx=classes or {}), epoch, progress.step, resume_from, resumed)
    del resumed  # a second copy of all weights

    run = Run(args, device, parts, autocast, loaders.mixup, last_epoch, loaders.batch_size, recorder.folder)
    run.bad_images = bad_images
    with run.interrupt:
        while epoch < last_epoch and not recorder.out_of_patience(epoch):
            bad_images.paths = set(progress.bad_images)
            parts.ema_counts = initial_share(args, epoch * updates) <= MOST_INITIAL
            save_recovery = partial(recorder.save_recovery, epoch, progress)
            is_saved = epoch + 1 in (last_epoch, *args.save_epochs) or (epoch + 1) % args.val_interval == 0
            metric, validation = None, {}
            try:
                training, speed = train_one_epoch(run, epoch, loaders.train, progress, save_recovery)
                if is_saved:
                    validation = validate_all(run, eval_model, loaders.eval, (epoch + 1) * updates)
                    recorder.check_finite(epoch, training, validation)
            except (Interrupted, UserError) as stopped:
                recorder.save_before(stopped, epoch, progress)
                raise
            except Exception as error:
                if progress.step == len(loaders.train) and not args.distributed:  # the epoch is whole, whatever it is
                    recorder.save_before(error, epoch, progress)
                raise
            recorder.speeds += [speed] if math.isfinite(speed) else []  # nothing was left of an epoch that was resumed
            report_left_out(args, epoch, progress.skipped, bad_images)
            if is_saved:
                named = validation and described is not None
                predictions = run.predictions.predictions(described.names, described.files) if named else []
                metric = recorder.save_epoch(epoch, training, validation, predictions)
            if scheduler is not None:
                scheduler.step(epoch + 1, metric)
            epoch, progress = epoch + 1, run_state.Progress()

    outcome = recorder.finish(epoch, described)
    if args.distributed:
        torch.distributed.barrier()  # torch 2.6 can deadlock where a process group ends right after a gather
    return outcome


def evaluate(args: Arguments) -> dict:
    """Validate a checkpoint, at any image size, and print the result.

    Args:
        args: Arguments of the run; what they leave open is as in the run that wrote the checkpoint.

    Returns:
        `model`, `checkpoint`, `img_size` (height, width) and the metrics of `validate`. `--output` is a folder for
        predictions.csv and report.html.

    Raises:
        UserError: The checkpoint does not fit, or there is nothing to validate on.
    """
    device = torch.device(args.device)
    known = known_classes(args)
    datasets = create_datasets(args, known, train=False)
    model = create_model(fit_head(args, known, known.classes))
    check_head(args, datasets.class_to_idx, model.num_classes)
    config = data_config(args, model)
    bad_images = BadImages()
    loader = create_eval_loader(args, config, datasets.eval, device, bad_images)
    model = place_model(args, model, device)
    run = Run(args, device, run_state.Parts(None), create_autocast(args, device)[0], bad_images=bad_images)
    size = list(config["input_size"][1:])
    result = {"model": args.model, "checkpoint": args.eval, "img_size": size, **validate(run, model, loader)}
    if args.output:
        described = describe(datasets.eval, datasets.class_to_idx)
        predictions = run.predictions.predictions(described.names, described.files)
        if is_primary(args):
            os.makedirs(args.output, exist_ok=True)
            write_predictions(os.path.join(args.output, "predictions.csv"), predictions)
            facts = {
                **describe_result(result["loss"], predictions),
                "model": args.model,
                "size": f"{size[0]} x {size[1]}",
            }
            path = os.path.join(args.output, "report.html")
            write_html_report(path, args.eval, facts, predictions, picture=described.picture)
    if is_primary(args):
        print(f"--result\n{json.dumps(result, indent=4)}")
    return result


def set_up_process(args: Arguments) -> None:
    """Let the first process alone log more than warnings, and a GPU use its fast formats."""
    _logger.setLevel(logging.INFO if is_primary(args) else logging.WARNING)
    if torch.device(args.device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def create_autocast(args: Arguments, device: torch.device) -> tuple:
    """Return what makes the context of a forward pass, and the loss scaler, None where no one is needed."""
    if not args.amp:
        return nullcontext, None
    loss_scaler = NativeScaler(device=device.type) if args.amp_dtype == "float16" else None
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype)), loss_scaler


def warn_of_young_average(args: Arguments, updates: int) -> None:
    """Say where a moving average will have averaged almost nothing after all updates."""
    share = initial_share(args, updates)
    if share > MOST_INITIAL:
        _logger.warning(
            f"--model-ema-decay {args.model_ema_decay}: after all {updates} updates the average will hold {share:.0%} "
            f"of the initial weights, so the model itself counts where it is better; {0.01 ** (1 / updates):.4g} or "
            "--model-ema-warmup fits the length of this run."
        )


def report_left_out(args: Arguments, epoch: int, skipped: int, bad_images: BadImages) -> None:
    """Say once for all processes what was left out of an epoch, if anything was."""
    unreadable = len({message for messages in gather_objects(bad_images.paths) for message in messages})
    if skipped and is_primary(args):
        _logger.warning(f"Epoch {epoch}: {skipped} updates were not finite and skipped.")
    if unreadable and is_primary(args):
        _logger.warning(f"Epoch {epoch}: {unreadable} images could not be read and were skipped.")


if __name__ == "__main__":
    main()
