"""Command-line arguments, with the names, groups and defaults of timm's training script."""

import argparse
import ast
import copy
import difflib
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random", "")  # "": the model's

# Flags of timm that only their default is accepted for, by name in the namespace, and why
LEFT_OUT = {
    "torchscript": "TorchScript is retired by PyTorch; use --torchcompile",
    "fuser": "it chooses a fuser of TorchScript, which is retired by PyTorch; use --torchcompile",
    "naflex_loader": "NaFlex packs the patches of several images into masked sequences, and Hyena mixers and the "
    "loaders here work on whole grids; use --train-img-sizes for several resolutions",
}

# Keys of older timm files: those with another name today, and those without, with the value that asks for nothing
RENAMED = {
    "apex_amp": "amp",
    "aug_repeat": "aug_repeats",
    "dynamo": "torchcompile",
    "iters_to_accum": "grad_accum_steps",
    "jsd": "jsd_loss",
    "milestones": "decay_milestones",
    "native_amp": "amp",
    "use_wandb": "log_wandb",
    "wandb_project_name": "wandb_project",
}
RETIRED = {
    "alpha_kd": 5,
    "amp_impl": "native",
    "aot_autograd": False,
    "bn_tf": False,
    "dynamo_backend": None,
    "initial_batch_size": 0,
    "mixup_elem": False,
    "num_gpu": 1,
    "reduce_bn": False,
    "repp": False,
    "use_kd_only_loss": False,
    "use_ml_decoder_head": 0,
    "validation_batch_size_multiplier": 1,
}

# What `--eval` does not take over from a checkpoint: where and how its run went, and consent to run foreign code
NOT_FROM_CHECKPOINT = {
    *(
        "backends",
        "class_to_idx",
        "config",
        "convert_stage",
        "data",
        "dataset_trust_remote_code",
        "device",
        "device_modules",
        "eval",
        "experiment",
        "fsdp",
    ),
    *("initial_checkpoint", "local_rank", "log_tensorboard", "log_wandb", "output", "pretrained", "pretrained_path"),
    *(
        "resume",
        "resume_force",
        "start_epoch",
        "stop_epoch",
        "teacher_path",
        "unlabelled",
        "wandb_resume_id",
        *LEFT_OUT,
    ),
}


# What a beginner needs, shown before all flags
FIRST = """
    config data_dir val_fraction model pretrained pretrained_path img_size epochs batch_size lr amp device workers
    output experiment resume eval
""".split()
EXAMPLES = """\
fine-tune on a folder of your images, DIR/CLASS/*.jpg
  {prog} -c configs/finetune.yaml --data-dir DIR --model hpx_former_s18 --pretrained
go on with a run that was stopped
  {prog} -c RECIPE.yaml --data-dir DIR --experiment NAME --resume auto
validate a checkpoint
  {prog} --eval output/train/NAME/model_best.pth.tar --data-dir DIR
train on eight GPUs
  torchrun --nproc-per-node 8 {prog} -c RECIPE.yaml --data-dir DIR
"""


class Arguments(argparse.Namespace):
    """Arguments that cannot be changed; the lists and dicts in them are handed out as copies."""

    def __init__(self, **values: Any):
        """Take copies of the values."""
        for name, value in copy.deepcopy(values).items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple:
        return partial(type(self), **vars(self)), ()  # pickle fills the attributes in, which are copies here

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return copy.deepcopy(value) if isinstance(value, list | dict) else value

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"arguments are read-only: {name} stays {getattr(self, name, 'unset')}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"arguments are read-only: {name} stays")


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return ` (did you mean ...?)` with the known names closest to a misspelt one, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


class LineParser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line, and the nearest flag to one it does not know."""

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with code 2; the usage of a hundred flags would hide it."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args=None, namespace=None):
        """Parse all arguments; an unknown one is an error that names the nearest flag."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((text for text in unknown if text.startswith("-")), unknown[0]).split("=")[0]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest(flag, self._option_string_actions)}")
        return parsed


class Parser(LineParser):
    """The parser of the training program, whose help begins with what one needs."""

    def format_help(self) -> str:
        """Return examples and the first flags that one needs, and then all."""
        program = f"-m {self.prog}" if self.prog.startswith("hyena_vision") else self.prog
        first = self.formatter_class(self.prog)
        first.start_section("first flags")
        first.add_arguments([action for name in FIRST for action in self._actions if action.dest == name])
        first.end_section()
        examples = EXAMPLES.format(prog=f"python {program}").replace("8 python ", "8 ")
        rest = super().format_help().partition(f"{self.description}\n\n")[2]  # without usage, which lists all flags
        return f"{self.description}\n\n{examples}\n{first.format_help()}\nall flags, by the groups of timm:\n\n{rest}"


class KeyValues(argparse.Action):
    """Arguments `key=value`, stored as a dict; a value that is a Python literal becomes what it says."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Store the pairs."""
        pairs = {}
        for text in filter(None, values):
            key, equals, value = text.partition("=")
            if not (key and equals):
                parser.error(f"argument {option_string}: expected key=value, got {text!r}")
            pairs[key] = literal(value)
        setattr(namespace, self.dest, pairs)


def literal(text: str) -> Any:
    """Return the value of a Python literal, or the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    return _parse(int, text, lambda value: value >= 1, "an integer of at least 1")


def natural_int(text: str) -> int:
    """Parse an integer of at least 0."""
    return _parse(int, text, lambda value: value >= 0, "an integer of at least 0")


def random_seed(text: str) -> int:
    """Parse a seed that all generators of random numbers take, on any number of processes."""
    return _parse(int, text, lambda value: 0 <= value < 2**31, "an integer of at least 0 and below 2147483648")


def finite_float(text: str) -> float:
    """Parse a number."""
    return _parse(float, text, math.isfinite, "a finite number")


def natural_float(text: str) -> float:
    """Parse a number of at least 0."""
    return _parse(float, text, lambda value: 0 <= value < math.inf, "a number of at least 0")


def positive_float(text: str) -> float:
    """Parse a number above 0."""
    return _parse(float, text, lambda value: 0 < value < math.inf, "a number above 0")


def probability(text: str) -> float:
    """Parse a number from 0 to 1."""
    return _parse(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def positive_part(text: str) -> float:
    """Parse a number above 0, 1 at most."""
    return _parse(float, text, lambda value: 0 < value <= 1, "a number above 0, at most 1")


def part_below_one(text: str) -> float:
    """Parse a number of at least 0 and below 1."""
    return _parse(float, text, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def pixel_value(text: str) -> float:
    """Parse a pixel value."""
    return _parse(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1, where 1 is white (not 255)")


def pixel_scale(text: str) -> float:
    """Parse a standard deviation of pixel values."""
    return _parse(float, text, lambda value: 0 < value <= 1, "a number above 0, at most 1, where 1 is white (not 255)")


def auto_augment(text: str) -> str:
    """Parse a policy of timm's AutoAugment, RandAugment or AugMix."""
    kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    create = next((create for start, create in kinds.items() if text.startswith(start)), auto_augment_transform)
    try:
        for section in text.split("-")[1:]:
            if not re.search(r"\d|^t", section):  # timm leaves it out
                raise ValueError(f"unknown section {section!r}")
        if text:
            create(text, {})
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        examples = "such as rand-m9-mstd0.5-inc1, augmix-m3-w2, original or 3a"
        raise argparse.ArgumentTypeError(f"must be a policy of timm, {examples}, got {text!r} ({error})") from error
    return text


def _parse(kind: type, text: str, fits: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}") from None
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {value}")
    return value


def create_parser(prog: str = "hyena_vision.train") -> Parser:
    """Create the parser of the training program."""
    parser = Parser(prog=prog, description="Train an image classifier, the timm way.")
    parser.add_argument("-c", "--config", default="", metavar="FILE", help="YAML file of defaults for these arguments")
    timm = (_dataset, _model, _device, _optimizer, _schedule, _augmentation, _batch_norm, _ema, _misc, _sizes, _naflex)
    for add_arguments in (*timm, _distillation, _conversion, _beyond):
        add_arguments(parser)
    return parser


def _dataset(parser: Parser) -> None:
    parser.add_argument("data", nargs="?", metavar="DIR", help="root folder of the data set, same as --data-dir")
    add = parser.add_argument_group("Dataset parameters").add_argument
    add("--data-dir", metavar="DIR", help="root folder of the data set")
    add("--dataset", default="", metavar="NAME", help="<type>/<name>, e.g. hyena/pathfinder (default: image folder)")
    add("--train-split", default="train", metavar="NAME", help="split to train on: train, train[:80%%], .: all of DIR")
    add("--val-split", default="validation", metavar="NAME", help="split to validate on; '' for none")
    add("--train-num-samples", type=positive_int, metavar="N", help="samples in the train split, of streams and hyena/")
    add("--val-num-samples", type=positive_int, metavar="N", help="samples in the val split, of streams and hyena/")
    add("--dataset-download", action="store_true", help="download torch/ and tfds/ data sets that support it")
    add("--class-map", default="", metavar="FILENAME", help="file that maps class names to indices")
    add("--input-img-mode", help="PIL mode of the images (default: RGB, L or RGBA, as the channels are)")
    add("--input-key", help="data set key of the images")
    add("--target-key", help="data set key of the labels")
    add("--dataset-trust-remote-code", action="store_true", help="let an hfds/ data set run code of its repository")


def _model(parser: Parser) -> None:
    add = parser.add_argument_group("Model parameters").add_argument
    add("--model", default="resnet50", metavar="MODEL", help="name of a timm model")
    add("--pretrained", action="store_true", help="start from the model's pretrained weights")
    add("--pretrained-path", metavar="PATH", help="file to load as the pretrained weights, adapting head and grid")
    overlay = "key=value entries to change in the model's pretrained configuration"
    add("--pretrained-cfg-overlay", nargs="*", default={}, action=KeyValues, help=overlay)
    add("--initial-checkpoint", default="", metavar="PATH", help="weights to load as they are into the new model")
    add("--resume", default="", metavar="PATH", help="checkpoint to continue from; auto: last one of the experiment")
    add("--no-resume-opt", action="store_true", help="resume the weights only, not the optimizer and random states")
    add("--num-classes", type=positive_int, metavar="N", help="number of classes (default: the data's)")
    add("--gp", metavar="POOL", help="global pool type (default: the model's)")
    add("--img-size", type=positive_int, metavar="N", help="image side in pixels (default: the model's)")
    add("--in-chans", type=positive_int, metavar="N", help="image channels (default: 3)")
    add("--input-size", nargs=3, type=positive_int, metavar="N", help="channels, height and width of the input")
    add(
        "--crop-pct",
        type=positive_part,
        metavar="N",
        help="centre crop of validation images, as a part of the resized side",
    )
    add("--mean", type=pixel_value, nargs="+", metavar="MEAN", help="mean pixel value per channel, 0 to 1")
    add("--std", type=pixel_scale, nargs="+", metavar="STD", help="standard deviation per channel, 0 to 1")
    add("--interpolation", default="", choices=INTERPOLATIONS, metavar="NAME", help="resize interpolation")
    add("-b", "--batch-size", type=positive_int, default=128, metavar="N", help="images per step and process")
    add("-vb", "--validation-batch-size", type=positive_int, metavar="N", help="default: that of training")
    add("--channels-last", action="store_true", help="use the channels_last memory format")
    add("--fuser", default="", help="left out: for TorchScript")
    add("--grad-accum-steps", type=positive_int, default=1, metavar="N", help="steps per optimizer update")
    add("--grad-checkpointing", action="store_true", help="recompute blocks in the backward pass to save memory")
    add("--fast-norm", action="store_true", help="normalize in low precision where AMP would use float32")
    add("--model-kwargs", nargs="*", default={}, action=KeyValues, help="key=value arguments of the model")
    add("--head-init-scale", type=finite_float, help="factor of the initial weights and bias of the head")
    add("--head-init-bias", type=finite_float, help="initial value of the head's bias")
    add("--torchscript", action="store_true", help="left out: use --torchcompile")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile with torch.compile")
    modes = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    add("--torchcompile-mode", choices=modes, help="mode of torch.compile")


def _device(parser: Parser) -> None:
    add = parser.add_argument_group("Device parameters").add_argument
    add("--device", default="cuda", help="device (default: cuda; cpu where there is none and this is not given)")
    add("--amp", action="store_true", help="train in mixed precision")
    add("--amp-dtype", default="float16", choices=("float16", "bfloat16"), help="low precision of AMP")
    add("--model-dtype", choices=("float32", "bfloat16", "float16"), help="dtype of the model without AMP")
    add("--no-ddp-bb", action="store_true", help="do not broadcast buffers between processes")
    add("--synchronize-step", action="store_true", help="synchronize the device after each step")
    add("--local_rank", type=int, default=0, help="no effect: the environment of torchrun gives the rank")
    add("--device-modules", nargs="+", metavar="MODULE", help="Python modules to import first, of devices or models")


def _optimizer(parser: Parser) -> None:
    add = parser.add_argument_group("Optimizer parameters").add_argument
    add("--opt", default="sgd", metavar="OPTIMIZER", help="name of a timm optimizer")
    add("--opt-eps", type=natural_float, metavar="EPSILON", help="default: the optimizer's")
    add("--opt-betas", type=part_below_one, nargs="+", metavar="BETA", help="default: the optimizer's")
    add("--momentum", type=part_below_one, default=0.9, metavar="M", help="momentum of optimizers that have one")
    add("--weight-decay", type=natural_float, default=2e-5, help="weight decay; none on filters, norms and biases")
    add("--clip-grad", type=positive_float, metavar="NORM", help="clip gradients at this value (default: no clipping)")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"), help="what --clip-grad limits")
    add("--layer-decay", type=positive_part, help="factor of the learning rate from one layer to the one below")
    add("--layer-decay-min-scale", type=probability, default=0, help="least factor of --layer-decay")
    add("--layer-decay-no-opt-scale", type=probability, help="freeze layers whose factor is below this")
    add("--opt-kwargs", nargs="*", default={}, action=KeyValues, help="key=value arguments of the optimizer")


def _schedule(parser: Parser) -> None:
    add = parser.add_argument_group("Learning rate schedule parameters").add_argument
    add("--sched", default="cosine", metavar="SCHEDULER", help="name of a timm scheduler")
    add("--sched-on-updates", action="store_true", help="step the schedule after each update, not each epoch")
    add("--lr", type=natural_float, metavar="LR", help="learning rate, overrides --lr-base")
    add(
        "--lr-base",
        type=positive_float,
        default=0.1,
        metavar="LR",
        help="lr = lr_base * global batch size / lr_base_size",
    )
    add("--lr-base-size", type=positive_int, default=256, metavar="DIV", help="batch size that --lr-base is for")
    add("--lr-base-scale", default="", choices=("linear", "sqrt", ""), metavar="NAME", help="default: by the optimizer")
    add(
        "--lr-noise",
        type=probability,
        nargs="+",
        metavar="pct",
        help="parts of the schedule where noise goes on and off",
    )
    add("--lr-noise-pct", type=natural_float, default=0.67, metavar="PERCENT", help="noise limit as a part of the lr")
    add("--lr-noise-std", type=natural_float, default=1.0, metavar="STDDEV", help="standard deviation of the noise")
    add("--lr-cycle-mul", type=positive_float, default=1.0, metavar="MULT", help="factor of the cycle length")
    add(
        "--lr-cycle-decay", type=natural_float, default=0.5, metavar="MULT", help="factor of the lr from cycle to cycle"
    )
    add("--lr-cycle-limit", type=positive_int, default=1, metavar="N", help="number of cycles")
    add("--lr-k-decay", type=positive_float, default=1.0, help="k-decay of cosine and poly")
    shapes = ("linear", "1-sqrt", "cosine", "power", "exp")
    add("--lr-decay-fn", choices=shapes, metavar="NAME", help="shape of the decay at the end, for wsd and rsqrt")
    add("--lr-stable-timescale", type=positive_float, metavar="N", help="epochs, for rsqrt (default: of the warm-up)")
    add("--warmup-lr", type=natural_float, default=1e-5, metavar="LR", help="learning rate at the start of the warm-up")
    add("--min-lr", type=natural_float, default=0, metavar="LR", help="least learning rate")
    add("--epochs", type=positive_int, default=300, metavar="N", help="epochs to train")
    add("--epoch-repeats", type=natural_float, default=0.0, metavar="N", help="passes per epoch, of streams")
    add("--start-epoch", type=natural_int, metavar="N", help="number of the first epoch, overrides the resumed one")
    add(
        "--decay-milestones",
        type=positive_int,
        nargs="+",
        default=[90, 180, 270],
        metavar="EPOCH",
        help="for multistep",
    )
    add("--decay-epochs", type=positive_float, default=90, metavar="N", help="epochs between decays, for step")
    add("--warmup-epochs", type=natural_int, default=5, metavar="N", help="epochs of warm-up")
    add("--warmup-prefix", action="store_true", help="add the warm-up to the epochs")
    add("--cooldown-epochs", type=natural_int, default=0, metavar="N", help="epochs at --min-lr after the schedule")
    add("--patience-epochs", type=natural_int, default=10, metavar="N", help="for plateau")
    add(
        "--decay-rate",
        "--dr",
        type=positive_float,
        default=0.1,
        metavar="RATE",
        help="factor of a decay; power of poly",
    )


def _augmentation(parser: Parser) -> None:
    add = parser.add_argument_group("Augmentation and regularization parameters").add_argument
    add("--no-aug", action="store_true", help="no augmentation at all in training")
    add("--train-crop-mode", choices=("rrc", "rkrc", "rkrr"), help="random crop of training (default: rrc)")
    add("--scale", type=positive_float, nargs="+", default=[0.08, 1.0], metavar="PCT", help="area of the random crop")
    add(
        "--ratio",
        type=positive_float,
        nargs="+",
        default=[3 / 4, 4 / 3],
        metavar="RATIO",
        help="aspect of the random crop",
    )
    add("--hflip", type=probability, default=0.5, help="probability of a horizontal flip")
    add("--vflip", type=probability, default=0.0, help="probability of a vertical flip")
    add("--color-jitter", type=natural_float, default=0.4, metavar="PCT", help="strength of colour jitter")
    add("--color-jitter-prob", type=probability, metavar="PCT", help="probability of colour jitter")
    add("--grayscale-prob", type=probability, metavar="PCT", help="probability of a gray image")
    add("--gaussian-blur-prob", type=probability, metavar="PCT", help="probability of a blur")
    add("--aa", type=auto_augment, metavar="NAME", help="AutoAugment policy, e.g. rand-m9-mstd0.5-inc1 or 3a")
    add(
        "--aug-repeats",
        type=natural_float,
        default=0,
        help="augmentations per image and epoch, distributed training only",
    )
    add("--aug-splits", type=natural_int, default=0, metavar="N", help="copies of an image per batch, 0 or at least 2")
    add("--jsd-loss", action="store_true", help="Jensen-Shannon divergence of the --aug-splits and cross entropy")
    add("--bce-loss", action="store_true", help="binary cross entropy in place of softmax")
    add("--bce-sum", action="store_true", help="sum the binary cross entropy over classes")
    add("--bce-target-thresh", type=probability, help="threshold that makes soft targets hard")
    add("--bce-pos-weight", type=positive_float, help="weight of positive targets")
    add("--reprob", type=probability, default=0.0, metavar="PCT", help="probability of random erasing")
    add("--remode", default="pixel", choices=("const", "rand", "pixel"), help="what random erasing fills in")
    add("--recount", type=positive_int, default=1, help="number of erased regions")
    add("--resplit", action="store_true", help="no random erasing on the first split")
    add("--mixup", type=natural_float, default=0.0, help="mixup alpha, 0 for none")
    add("--cutmix", type=natural_float, default=0.0, help="cutmix alpha, 0 for none")
    add("--cutmix-minmax", type=probability, nargs="+", help="least and largest cutmix side, overrides its alpha")
    add("--mixup-prob", type=probability, default=1.0, help="probability of mixup or cutmix")
    add("--mixup-switch-prob", type=probability, default=0.5, help="probability of cutmix where both are on")
    add("--mixup-mode", default="batch", choices=("batch", "pair", "elem"), help="what shares one mixing weight")
    add("--mixup-off-epoch", type=natural_int, default=0, metavar="N", help="epoch that ends mixup, 0 for never")
    add("--smoothing", type=part_below_one, default=0.1, help="label smoothing")
    add("--train-interpolation", default="random", choices=INTERPOLATIONS, help="interpolation in training")
    add("--drop", type=part_below_one, default=0.0, metavar="PCT", help="dropout rate")
    add("--drop-connect", type=part_below_one, metavar="PCT", help="deprecated, same as --drop-path")
    add("--drop-path", type=part_below_one, metavar="PCT", help="drop path rate")
    add("--drop-block", type=part_below_one, metavar="PCT", help="drop block rate, of models that have it")


def _batch_norm(parser: Parser) -> None:
    add = parser.add_argument_group("Batch norm parameters").add_argument
    add("--bn-momentum", type=probability, help="momentum of batch norms (default: the model's)")
    add("--bn-eps", type=positive_float, help="epsilon of batch norms (default: the model's)")
    add("--sync-bn", action="store_true", help="batch norm over all processes")
    add("--dist-bn", default="reduce", choices=("reduce", "broadcast", ""), help="share batch norm averages each epoch")
    add("--split-bn", action="store_true", help="a batch norm for each augmentation split")


def _ema(parser: Parser) -> None:
    add = parser.add_argument_group("Model exponential moving average parameters").add_argument
    add("--model-ema", action="store_true", help="keep a moving average of the weights, validate and save it")
    add("--model-ema-force-cpu", action="store_true", help="keep it on the CPU; what counts is then the model")
    add("--model-ema-decay", type=probability, default=0.9998, help="decay of the average per update")
    add("--model-ema-warmup", action="store_true", help="start with a faster decay")


def _misc(parser: Parser) -> None:
    add = parser.add_argument_group("Miscellaneous parameters").add_argument
    add("--seed", type=random_seed, default=42, metavar="S", help="random seed")
    add("--worker-seeding", default="all", choices=("all", "part"), help="no effect: each sample has its own seed")
    add("--log-interval", type=positive_int, default=50, metavar="N", help="updates between log lines")
    add("--val-interval", type=positive_int, default=1, metavar="N", help="epochs between validations and checkpoints")
    add("--recovery-interval", type=natural_int, default=0, metavar="N", help="updates between recovery checkpoints")
    add(
        "--stop-epoch",
        type=positive_int,
        metavar="N",
        help="stop after N epochs; the schedule is over --epochs",
    )
    add("--save-epochs", type=positive_int, nargs="+", default=[], metavar="N", help="keep milestone-N.pth.tar too")
    add("--checkpoint-hist", type=positive_int, default=10, metavar="N", help="best checkpoints to keep")
    add("-j", "--workers", type=natural_int, default=4, metavar="N", help="loader processes")
    add("--save-images", action="store_true", help="save a batch of training images at each log line")
    add("--pin-mem", action="store_true", help="pin memory in the loader")
    add("--no-prefetcher", action="store_true", help="load without timm's prefetcher")
    add("--output", default="", metavar="PATH", help="folder of all experiments (default: ./output/train)")
    add("--experiment", default="", metavar="NAME", help="folder of this run in it (default: time, model and size)")
    add("--eval-metric", default="top1", choices=("top1", "top5", "loss"), help="metric of the best checkpoint")
    add("--tta", type=int, default=0, metavar="N", help="2: average each image and its mirror image in validation")
    add("--use-multi-epochs-loader", action="store_true", help="no effect: workers persist between epochs")
    add("--log-wandb", action="store_true", help="log to Weights & Biases")
    add("--wandb-project", metavar="NAME", help="project of the run there")
    add("--wandb-tags", nargs="+", default=[], metavar="TAG", help="tags of the run there")
    add("--wandb-resume-id", default="", metavar="ID", help="id of the run there that --resume continues")


def _sizes(parser: Parser) -> None:
    add = parser.add_argument_group("Scheduled image size parameters").add_argument
    add("--train-img-sizes", type=positive_int, nargs="+", metavar="N", help="sides of training images, one per batch")
    add("--train-batch-sizes", type=positive_int, nargs="+", metavar="N", help="batch size of each side")
    add("--train-size-probs", type=natural_float, nargs="+", metavar="P", help="weight of each side (default: equal)")
    add("--train-size-schedule", default="constant", choices=("constant", "progressive"), help="or: first to last")
    add("--train-size-schedule-spread", type=natural_float, default=0.65, help="spread of progressive, in positions")
    add("--train-size-random-mix", type=probability, default=0.1, help="part of random sides in progressive, 0 to 1")
    steps = ("--train-batches-per-epoch", "--train-steps-per-epoch")
    add(*steps, type=positive_int, metavar="N", help="batches per epoch (default: by the number of images)")
    scales = ("none", "sqrt", "linear")
    add("--variable-batch-loss-scale", default="none", choices=scales, help="scale the loss by the batch size")


def _naflex(parser: Parser) -> None:
    group = parser.add_argument_group("NaFlex loader parameters", "Left out; the others have no effect without it.")
    add = group.add_argument
    add("--naflex-loader", action="store_true", help="left out: use --train-img-sizes")
    add("--naflex-train-seq-lens", type=int, nargs="+", default=[128, 256, 576, 784, 1024], metavar="N")
    add("--naflex-max-seq-len", type=int, default=576, metavar="N")
    add("--naflex-patch-sizes", type=int, nargs="+", metavar="N")
    add("--naflex-patch-size-probs", type=float, nargs="+", metavar="P")
    add("--naflex-loss-scale", default="linear", choices=("none", "sqrt", "linear"))
    add("--naflex-patchify-channels-first", action="store_true")


def _distillation(parser: Parser) -> None:
    add = parser.add_argument_group("Knowledge distillation parameters").add_argument
    add("--kd-model-name", metavar="MODEL", help="name of the teacher, a timm model with pretrained weights")
    add("--kd-distill-type", default="logit", choices=("logit", "feature", "token"), help="what is distilled")
    add("--kd-loss-type", default="kl", choices=("kl",), help="loss of logit distillation")
    add("--distill-loss-weight", type=natural_float, metavar="W", help="weight of the distillation loss")
    add(
        "--task-loss-weight",
        type=natural_float,
        metavar="W",
        help="weight of the classification loss; alone: the rest is 1-W",
    )
    add("--kd-temperature", type=positive_float, default=4.0, metavar="T", help="temperature of the softmax")
    add("--kd-student-feature-dim", type=positive_int, metavar="N", help="default: the student's")
    add("--kd-teacher-feature-dim", type=positive_int, metavar="N", help="default: the teacher's")
    add("--kd-token-distill-type", default="soft", choices=("soft", "hard"), help="KL divergence or teacher's class")


def _conversion(parser: Parser) -> None:
    add = parser.add_argument_group("Conversion of attention into Hyena").add_argument
    add("--convert", choices=("hyena1d", "hyena2d"), help="put this mixer in place of attention in --model, a timm ViT")
    blocks = "blocks with it: all; every N; first or last F, a share of the depth; or indices"
    add("--convert-blocks", nargs="+", default=["all"], metavar="BLOCK", help=blocks)
    add("--convert-kwargs", nargs="*", default={}, action=KeyValues, help="key=value arguments of the mixer")
    stages = "learn from a teacher, --model as it was. mixers: what each attention layer gives; model: what all give"
    add("--convert-stage", choices=("mixers", "model"), help=stages)
    add("--teacher-path", metavar="PATH", help="weights of the teacher (default: with --pretrained, timm's)")
    add("--convert-token-weight", type=natural_float, default=0.5, metavar="W", help="weight of the last tokens' error")
    add("--convert-layer-weight", type=natural_float, default=0.5, metavar="W", help="weight of the blocks' errors")
    add("--unlabelled", action="store_true", help="read images without classes, of which a teacher needs none")


def _beyond(parser: Parser) -> None:
    add = parser.add_argument_group("Beyond timm's trainer").add_argument
    add("--filter-lr-scale", type=natural_float, default=1.0, help="factor of the learning rate for implicit filters")
    add("--eval", default="", metavar="CHECKPOINT", help="validate this checkpoint, train nothing")
    parts = "parts not to train: backbone (all but the classifier), or names and patterns of modules"
    add("--freeze", nargs="+", default=[], metavar="PART", help=parts)
    add("--class-weights", choices=("balanced",), help="weigh classes in the loss against their numbers of images")
    add("--balanced-sampler", action="store_true", help="draw images of all classes equally often")
    add("--patience", type=positive_int, metavar="N", help="stop after N validations without a better --eval-metric")
    add("--val-fraction", type=part_below_one, metavar="F", help="part of each class to validate on; 0: none")
    add("--no-exif", action="store_true", help="leave images as they are stored, not turned as EXIF data say")
    add("--class-to-idx", nargs="*", default={}, action=KeyValues, help="recorded, not to be given: the classes")
    add("--fsdp", action="store_true", help="shard parameters, gradients and optimizer state over the processes")
    add("--on-nonfinite", default="stop", choices=("stop", "skip"), help="at a loss or gradient that is not finite")
    add("--nonfinite-limit", type=positive_int, default=10, metavar="N", help="most updates skipped in an epoch")
    add("--on-bad-image", default="stop", choices=("stop", "skip"), help="at an image that cannot be read")
    add("--resume-force", action="store_true", help="go on although settings differ from the checkpoint's")
    add("--backends", metavar="NAME", help="recorded, not to be given: what backend=None takes on the run's GPU")
    add("--log-tensorboard", action="store_true", help="log to TensorBoard")
