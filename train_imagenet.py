"""Train an image classifier on ImageNet or any data set that timm reads.

Built from timm's own parts, with timm's arguments:

    python train_imagenet.py -c configs/hyena2d_vit_small_in1k.yaml --data-dir DIR
    torchrun --nproc-per-node 8 train_imagenet.py -c configs/hyena2d_vit_small_in1k.yaml --data-dir DIR
    python train_imagenet.py -c configs/digits.yaml

A run writes args.yaml, summary.csv, results.json, curves.png, last.pth.tar, model_best.pth.tar and the best
checkpoint-N.pth.tar into OUTPUT/EXPERIMENT, and prints its results after `--result`.
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
from timm.task import ClassificationTask
from timm.utils import NativeScaler, init_distributed_device, is_primary, random_seed, setup_default_logging
from timm.utils import update_summary as append_summary

from hyena_vision.data import DataError
from hyena_vision.training import checkpoint, report
from hyena_vision.training.config import parse_args
from hyena_vision.training.data import create_datasets, create_loaders, create_loss
from hyena_vision.training.errors import UserError, one_line
from hyena_vision.training.folder import choose_folder, default_folder, open_folder
from hyena_vision.training.loop import train_one_epoch, validate
from hyena_vision.training.model import create_model, data_config
from hyena_vision.training.optim import base_lr, create_optimizer, create_scheduler

_logger = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the program.

    Args:
        argv: Arguments without the program's name; None takes `sys.argv`.

    Returns:
        What `train` returns.

    Raises:
        SystemExit: Code 2 for wrong arguments, 1 for a run that failed, 130 for one that was interrupted, each after
            one line on stderr. Anything else that is raised is a bug of the program.
    """
    if not logging.root.handlers:
        setup_default_logging()
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        return train(parse_args(argv))
    except (UserError, DataError) as error:
        print(f"train_imagenet.py: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    except KeyboardInterrupt:
        print("train_imagenet.py: interrupted; --resume auto goes on after the last whole epoch", file=sys.stderr)
        raise SystemExit(130) from None
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
    """
    folder, resume_from = choose_folder(args)
    device = init_distributed_device(args)
    _logger.setLevel(logging.INFO if is_primary(args) else logging.WARNING)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    # Seeded again after the model, so that runs of different models see the same images in the same order
    random_seed(args.seed, args.rank)
    model = create_model(args)
    random_seed(args.seed, args.rank)
    config = data_config(args, model)
    datasets = create_datasets(args, config, model.num_classes)
    args.num_classes = model.num_classes
    loaders = create_loaders(args, config, datasets, device)
    model.to(device=device, dtype=getattr(torch, args.model_dtype or "float32"))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)

    autocast, loss_scaler = nullcontext, None
    if args.amp:
        autocast = partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
        if args.amp_dtype == "float16":
            loss_scaler = NativeScaler(device=device.type)

    task = ClassificationTask(model, create_loss(args).to(device), device=device, verbose=False)
    args.lr = base_lr(args)
    optimizer = create_optimizer(args, model)
    eval_metric = args.eval_metric if loaders.eval is not None else "loss"
    updates_per_epoch = math.ceil(len(loaders.train) / args.grad_accum_steps)
    scheduler, num_epochs = create_scheduler(args, optimizer, updates_per_epoch, eval_metric == "loss")
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device="cpu" if args.model_ema_force_cpu else None,
        )

    start_epoch, resumed = 0, None
    if resume_from:
        restored = (None, None) if args.no_resume_opt else (optimizer, loss_scaler)
        resumed = checkpoint.resume(resume_from, task, *restored)
        start_epoch = resumed["epoch"] + (1 if resumed.get("version", 1) > 1 else 0)
    if args.start_epoch is not None:
        start_epoch = args.start_epoch
    if scheduler is not None and start_epoch > 0:
        if args.sched_on_updates:
            scheduler.step_update(start_epoch * updates_per_epoch)
        else:
            scheduler.step(start_epoch)

    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    eval_model = task.get_eval_model()  # before it is wrapped: validation does not synchronize
    if args.distributed:
        device_ids = None if device.type == "cpu" else [device]
        task.prepare_distributed(device_ids=device_ids, broadcast_buffers=not args.no_ddp_bb)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    _logger.info(
        f"Training {args.model} ({parameters:,} parameters) at {config['input_size']} for {num_epochs} epochs of "
        f"{updates_per_epoch} updates on {args.world_size} x {device}."
    )
    saver = None
    if is_primary(args):
        folder = folder or default_folder(args, config)
        open_folder(folder, args, start_epoch)
        saver = checkpoint.CheckpointSaver(
            task,
            optimizer,
            args,
            amp_scaler=loss_scaler,
            checkpoint_dir=folder,
            recovery_dir=folder,
            decreasing=eval_metric == "loss",
            max_history=args.checkpoint_hist,
        )
        if resumed:
            saver.load(resume_from, resumed)
    if resumed and not args.no_resume_opt:
        checkpoint.restore_rng(resumed, args.rank, args.world_size)

    common = dict(device=device, autocast=autocast)
    results, speeds = [], []
    for epoch in range(start_epoch, num_epochs):
        set_epoch(loaders.train, epoch)
        train_metrics, speed = train_one_epoch(
            epoch,
            task,
            loaders.train,
            optimizer,
            args,
            loss_scaler=loss_scaler,
            scheduler=scheduler,
            mixup=loaders.mixup,
            num_epochs=num_epochs,
            **common,
        )
        speeds.append(speed)
        metric = None
        if (epoch + 1) % args.val_interval == 0 or epoch + 1 == num_epochs:
            eval_metrics = {}
            if loaders.eval is not None:
                eval_metrics = validate(eval_model, loaders.eval, args, **common)
                if args.model_ema and not args.model_ema_force_cpu:
                    ema_model = task.get_eval_model(ema=True)
                    eval_metrics = validate(ema_model, loaders.eval, args, suffix=" (EMA)", **common)
            metric = (eval_metrics or train_metrics)[eval_metric]
            if not all(map(math.isfinite, [*train_metrics.values(), *eval_metrics.values()])):
                raise UserError(f"a metric of epoch {epoch} is not finite: {eval_metrics}; nothing of it was saved")
            results.append({"epoch": epoch, "train": train_metrics, "validation": eval_metrics})
            rng_states = checkpoint.gather_rng_states(args.distributed, args.world_size)
            if saver is not None:
                summary = os.path.join(folder, "summary.csv")
                lrs = [group["lr"] for group in optimizer.param_groups]
                header = not os.path.exists(summary)
                append_summary(epoch, train_metrics, eval_metrics, summary, sum(lrs) / len(lrs), write_header=header)
                saver.rng_states = rng_states
                saver.save_checkpoint(epoch, metric=metric)
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

    outcome = {"folder": None, "results": results, "best_metric": None, "best_epoch": None}
    if saver is not None:
        outcome |= {"folder": folder, "best_metric": saver.best_metric, "best_epoch": saver.best_epoch}
        if results:
            report.plot_curves({args.model: report.read_summary(folder)}, os.path.join(folder, "curves.png"))
        else:
            _logger.warning(f"Nothing to do: the run in {folder} has finished its {num_epochs} epochs.")
        _logger.info(f"Best {eval_metric}: {saver.best_metric} (epoch {saver.best_epoch}). Run folder: {folder}")
        best_last = sorted(results, key=lambda r: (r["validation"] or r["train"])[eval_metric])
        if eval_metric == "loss":
            best_last.reverse()
        print(f"--result\n{json.dumps(best_last[-10:], indent=4)}")
    if args.distributed:
        torch.distributed.barrier()  # torch 2.6 can deadlock where a process group ends right after a gather
    return outcome


def set_epoch(loader: torch.utils.data.DataLoader, epoch: int) -> None:
    """Tell the parts of a loader that shuffle by epoch which one it is."""
    for part in (loader.dataset, loader.sampler):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


if __name__ == "__main__":
    main()
