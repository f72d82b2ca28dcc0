"""Train an image classifier on ImageNet or any data set that timm reads.

Built from timm's own parts, with timm's arguments (docs/training_flags.md lists them):

    python train_imagenet.py -c configs/hyena2d_vit_small_in1k.yaml --data-dir DIR
    torchrun --nproc-per-node 8 train_imagenet.py -c configs/hyena2d_vit_small_in1k.yaml --data-dir DIR
    python train_imagenet.py --eval output/train/NAME/model_best.pth.tar --data-dir DIR --img-size 384

A run writes args.yaml, summary.csv, results.json, curves.png, last.pth.tar and the one before as previous.pth.tar,
model_best.pth.tar, the best checkpoint-N.pth.tar, and at the end model.safetensors with config.json into
OUTPUT/EXPERIMENT, and prints its results after `--result`. `--resume auto` goes on where it was stopped.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from timm.utils import (
    NativeScaler,
    distribute_bn,
    init_distributed_device,
    is_primary,
    random_seed,
    setup_default_logging,
    unwrap_model,
)

from hyena_vision.data import DataError
from hyena_vision.ops import backend_table
from hyena_vision.training import checkpoint, report, state
from hyena_vision.training.config import parse_args
from hyena_vision.training.data import create_datasets, create_eval_loader, create_loaders
from hyena_vision.training.distributed import distribute, gather_objects, lost_peer
from hyena_vision.training.errors import UserError, one_line
from hyena_vision.training.folder import choose_folder, default_folder, open_folder
from hyena_vision.training.interrupt import EXIT_INTERRUPTED, Interrupt, Interrupted
from hyena_vision.training.loader import BadImages
from hyena_vision.training.log import MetricsLog
from hyena_vision.training.loop import Run, train_one_epoch, validate
from hyena_vision.training.model import create_model, data_config, place_model
from hyena_vision.training.optim import base_lr, create_optimizer, create_scheduler, start_schedule
from hyena_vision.training.task import create_task

_logger = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the program.

    Args:
        argv: Arguments without the program's name; None takes `sys.argv`.

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
        args = parse_args(argv)
        return evaluate(args) if args.eval else train(args)
    except (UserError, DataError) as error:
        print(f"train_imagenet.py: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    except Interrupted as stopped:
        print(f"train_imagenet.py: stopped by {stopped}; --resume auto goes on from here", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        print("train_imagenet.py: interrupted; --resume auto goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        print(f"train_imagenet.py: error: another process has ended: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train(args: argparse.Namespace) -> dict:
    """Train and validate as the arguments say.

    Args:
        args: Parsed arguments.

    Returns:
        `folder` of the run (None on processes other than the first), `results` of each epoch, `best_metric` and
        `best_epoch`.

    Raises:
        UserError: The run cannot start or go on. Until everything is ready nothing is written.
        Interrupted: A signal asked to stop, and a checkpoint of this moment was written.
    """
    settings = {name: value for name, value in vars(args).items() if name != "trained_img_size"}
    device = start_device(args)
    args.backends = settings["backends"] = chosen_backends(device)
    folder, resume_from, resumed = choose_folder(args)
    if resumed:
        state.check_settings(resume_from, resumed, settings, args.resume_force)

    # The same model on all processes. Its random numbers are spent: those of the epochs have seeds of their own
    random_seed(args.seed)
    model = create_model(args)
    config = data_config(args, model)
    datasets = create_datasets(args, config, model.num_classes)
    args.num_classes = model.num_classes
    bad_images = BadImages()
    loaders = create_loaders(args, config, datasets, device, bad_images)
    args.lr = base_lr(args, loaders.batch_size)

    task = create_task(args, place_model(args, model, device), device)
    if args.model_ema:
        ema_device = "cpu" if args.model_ema_force_cpu else None
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=ema_device)
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    eval_model = task.get_eval_model()  # before it is wrapped: validation does not synchronize
    distribute(task, args, device, fsdp=args.fsdp)

    autocast, loss_scaler = create_autocast(args, device)
    optimizer = create_optimizer(args, unwrap_model(task.get_trainable_module()))
    eval_metric = args.eval_metric if loaders.eval is not None else "loss"
    updates_per_epoch = math.ceil(len(loaders.train) / args.grad_accum_steps)
    scheduler, num_epochs = create_scheduler(args, optimizer, updates_per_epoch, eval_metric == "loss")
    last_epoch = min(num_epochs, args.stop_epoch or num_epochs)
    parts = state.Parts(task, optimizer, loss_scaler, scheduler)

    epoch, progress = 0, state.Progress()
    if resumed:
        fresh = (None, None, None) if args.no_resume_opt else (optimizer, loss_scaler, scheduler)
        state.restore(resume_from, resumed, state.Parts(task, *fresh), args.resume_force)
        epoch, progress = state.resume_point(resume_from, resumed, args.rank, args.world_size, args.grad_accum_steps)
        _logger.info(f"Going on in epoch {epoch} at batch {progress.step} from {resume_from}.")
    if args.start_epoch is not None:
        epoch, progress = args.start_epoch, state.Progress()
    start_schedule(args, scheduler, epoch, updates_per_epoch, progress.step, resumed)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    _logger.info(
        f"Training {args.model} ({parameters:,} parameters) at {config['input_size']} for {num_epochs} epochs of "
        f"{updates_per_epoch} updates on {args.world_size} x {device}."
    )
    saver = log = None
    if is_primary(args):
        folder = folder or default_folder(args, config)
        open_folder(folder, args, epoch, bool(resumed))
        log = MetricsLog(folder, args, settings, epoch)
        saver = checkpoint.CheckpointSaver(
            model, optimizer, folder, args=args, decreasing=eval_metric == "loss", max_history=args.checkpoint_hist
        )
        if resumed:
            saver.load(resume_from, resumed)
            if epoch in args.save_epochs and progress.step == 0:
                saver.save_milestone(epoch, resume_from)  # it may have been killed just before
            checkpoint.set_aside(folder, checkpoint.place_of(resumed) if args.start_epoch is None else (epoch, 0))
    del resumed  # a second copy of all weights

    results, speeds, saved = [], [], None

    def save_recovery(update: int) -> None:
        nonlocal saved
        if saved == (epoch, progress.step):
            return
        captured = state.capture(parts, settings, epoch - 1, progress)
        if saver is not None:
            saver.state = captured
            saver.save_recovery(epoch, update)
        saved = epoch, progress.step

    with Interrupt() as interrupt:
        common = dict(args=args, device=device, parts=parts, autocast=autocast, mixup=loaders.mixup)
        run = Run(**common, num_epochs=num_epochs, batch_size=loaders.batch_size, folder=folder, interrupt=interrupt)
        run.bad_images = bad_images
        while epoch < last_epoch:
            bad_images.paths = set(progress.bad_images)
            try:
                train_metrics, speed = train_one_epoch(run, epoch, loaders.train, progress, save_recovery)
                share_batch_norms(args, task.get_trainable_module())
                metric, ends = None, epoch + 1 in (last_epoch, *args.save_epochs)
                if ends or (epoch + 1) % args.val_interval == 0:
                    eval_metrics = {}
                    if loaders.eval is not None:
                        eval_metrics = validate(run, eval_model, loaders.eval)
                        if args.model_ema and not args.model_ema_force_cpu:
                            share_batch_norms(args, task.get_trainable_module(ema=True))
                            eval_metrics = validate(run, task.get_eval_model(ema=True), loaders.eval, " (EMA)")
                    metric = (eval_metrics or train_metrics)[eval_metric]
            except Interrupted:
                save_recovery(max(progress.step - 1, 0) // args.grad_accum_steps)
                raise
            speeds += [speed] if math.isfinite(speed) else []  # nothing was left of an epoch that was resumed
            unreadable = {message for messages in gather_objects(bad_images.paths) for message in messages}
            report_epoch(args, epoch, progress.skipped, len(unreadable))
            if metric is not None:
                if not all(map(math.isfinite, [*train_metrics.values(), *eval_metrics.values()])):
                    raise UserError(f"a metric of epoch {epoch} is not finite: {eval_metrics}; nothing of it was saved")
                results.append({"epoch": epoch, "train": train_metrics, "validation": eval_metrics})
                captured = state.capture(parts, settings, epoch)
                if saver is not None:
                    lrs = [group["lr"] for group in optimizer.param_groups]
                    log.write(epoch, train_metrics, eval_metrics, sum(lrs) / len(lrs))
                    saver.state = captured
                    saver.save_checkpoint(epoch, metric=metric)
                    if epoch + 1 in args.save_epochs:
                        saver.save_milestone(epoch + 1)
                    saver.state = captured = {}  # under FSDP a copy of everything
                    report.write_results(
                        folder,
                        model=args.model,
                        parameters=parameters,
                        images_per_second=report.images_per_second(speeds),
                        best_metric=saver.best_metric,
                        best_epoch=saver.best_epoch,
                        seed=args.seed,
                        device=args.device,
                    )
            if scheduler is not None:
                scheduler.step(epoch + 1, metric)
            epoch, progress = epoch + 1, state.Progress()

    outcome = {"folder": None, "results": results, "best_metric": None, "best_epoch": None}
    if saver is not None:
        log.close()
        outcome |= {"folder": folder, "best_metric": saver.best_metric, "best_epoch": saver.best_epoch}
        if not results:
            _logger.warning(f"Nothing to do: the run in {folder} has finished its {last_epoch} epochs.")
        best, exported = (os.path.join(folder, name) for name in ("model_best.pth.tar", "model.safetensors"))
        if not os.path.exists(exported) or os.path.getmtime(exported) < os.path.getmtime(best):
            report.plot_curves({args.model: report.read_summary(folder)}, os.path.join(folder, "curves.png"))
            weights = checkpoint.weights_of(checkpoint.read_checkpoint(best))
            checkpoint.export_model(model, weights, folder, args.model_kwargs, **config)
        _logger.info(f"Best {eval_metric}: {saver.best_metric} (epoch {saver.best_epoch}). Run folder: {folder}")
        best_last = sorted(results, key=lambda r: (r["validation"] or r["train"])[eval_metric])
        if eval_metric == "loss":
            best_last.reverse()
        print(f"--result\n{json.dumps(best_last[-10:], indent=4)}")
    if args.distributed:
        torch.distributed.barrier()  # torch 2.6 can deadlock where a process group ends right after a gather
    return outcome


def evaluate(args: argparse.Namespace) -> dict:
    """Validate a checkpoint, at any image size, and print the result.

    Args:
        args: Parsed arguments; what they leave open is as in the run that wrote the checkpoint.

    Returns:
        `model`, `checkpoint`, `img_size` (height, width) and the metrics of `validate`.

    Raises:
        UserError: The checkpoint does not fit, or there is nothing to validate on.
    """
    device = start_device(args)
    model = create_model(args)
    config = data_config(args, model)
    dataset = create_datasets(args, config, model.num_classes, train=False)[1]
    bad_images = BadImages()
    loader = create_eval_loader(args, config, dataset, device, bad_images)
    model = place_model(args, model, device)
    run = Run(args, device, state.Parts(None), create_autocast(args, device)[0], bad_images=bad_images)
    size = list(config["input_size"][1:])
    result = {"model": args.model, "checkpoint": args.eval, "img_size": size, **validate(run, model, loader)}
    if is_primary(args):
        print(f"--result\n{json.dumps(result, indent=4)}")
    return result


def start_device(args: argparse.Namespace) -> torch.device:
    """Join the other processes of torchrun, if there are any, and return the device of this one."""
    device = init_distributed_device(args)
    _logger.setLevel(logging.INFO if is_primary(args) else logging.WARNING)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device


def chosen_backends(device: torch.device) -> str | None:
    """Return what `backend=None` takes on a GPU, in a word that is equal for equal choices; None elsewhere."""
    return backend_table(device).choices if device.type == "cuda" else None


def create_autocast(args: argparse.Namespace, device: torch.device) -> tuple:
    """Return what makes the context of a forward pass, and the loss scaler, None where no one is needed."""
    if not args.amp:
        return nullcontext, None
    loss_scaler = NativeScaler(device=device.type) if args.amp_dtype == "float16" else None
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype)), loss_scaler


def share_batch_norms(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Make the running averages of batch norms the same on all processes."""
    if args.distributed and args.dist_bn and not args.sync_bn:
        distribute_bn(model, args.world_size, args.dist_bn == "reduce")


def report_epoch(args: argparse.Namespace, epoch: int, skipped: int, unreadable: int) -> None:
    """Say once what was left out of an epoch, if anything was."""
    if skipped and is_primary(args):
        _logger.warning(f"Epoch {epoch}: {skipped} updates were not finite and skipped.")
    if unreadable and is_primary(args):
        _logger.warning(f"Epoch {epoch}: {unreadable} images could not be read and were skipped.")


if __name__ == "__main__":
    main()
