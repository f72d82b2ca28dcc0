"""Command-line arguments, with the names, groups and defaults of timm's training script."""

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn

from timm.utils import ParseKwargs

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return ` (did you mean ...?)` with the known names closest to a misspelt one, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


class Parser(argparse.ArgumentParser):
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


class KeyValues(ParseKwargs):
    """timm's `key=value` arguments; a word without `=` is an error instead of a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Store the pairs as a dict."""
        for value in values:
            if value and "=" not in value:
                parser.error(f"argument {option_string}: expected key=value, got {value!r}")
        super().__call__(parser, namespace, values, option_string)


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def natural_int(text: str) -> int:
    """Parse an integer of at least 0."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def create_parser() -> Parser:
    """Create the parser of `train_imagenet.py`."""
    parser = Parser(prog="train_imagenet.py", description="Train an image classifier, the timm way.")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of defaults for these arguments")
    for add_arguments in (_dataset, _model, _device, _optimizer, _schedule, _augmentation, _ema, _misc):
        add_arguments(parser)
    return parser


def _dataset(parser: Parser) -> None:
    parser.add_argument("data", nargs="?", metavar="DIR", help="root folder of the data set, same as --data-dir")
    add = parser.add_argument_group("Dataset parameters").add_argument
    add("--data-dir", metavar="DIR", help="root folder of the data set")
    add("--dataset", default="", metavar="NAME", help="<type>/<name>, e.g. sklearn/digits (default: image folder)")
    add("--train-split", default="train", metavar="NAME", help="split to train on")
    add("--val-split", default="validation", metavar="NAME", help="split to validate on; '' for none")
    add("--train-num-samples", type=positive_int, metavar="N", help="samples in the train split, iterable data sets")
    add("--val-num-samples", type=positive_int, metavar="N", help="samples in the val split, iterable data sets")
    add("--dataset-download", action="store_true", help="download torch/ and tfds/ data sets that support it")
    add("--class-map", default="", metavar="FILENAME", help="file that maps class names to indices")
    add("--input-img-mode", help="PIL mode of the images (default: RGB, or L with one input channel)")
    add("--input-key", help="data set key of the images")
    add("--target-key", help="data set key of the labels")


def _model(parser: Parser) -> None:
    add = parser.add_argument_group("Model parameters").add_argument
    add("--model", default="resnet50", metavar="MODEL", help="name of a timm model")
    add("--pretrained", action="store_true", help="start from the model's pretrained weights")
    add("--pretrained-path", metavar="PATH", help="file to load as the pretrained weights, adapting head and grid")
    add("--initial-checkpoint", default="", metavar="PATH", help="weights to load as they are into the new model")
    add("--resume", default="", metavar="PATH", help="checkpoint to continue from; auto: last one of the experiment")
    add("--no-resume-opt", action="store_true", help="resume the weights only, not the optimizer and random states")
    add("--num-classes", type=positive_int, metavar="N", help="number of classes (default: the model's)")
    add("--gp", metavar="POOL", help="global pool type (default: the model's)")
    add("--img-size", type=positive_int, metavar="N", help="image side in pixels (default: the model's)")
    add("--in-chans", type=positive_int, metavar="N", help="image channels (default: 3)")
    add("--input-size", nargs=3, type=positive_int, metavar="N", help="channels, height and width of the input")
    add("--crop-pct", type=float, metavar="N", help="centre crop of validation images, as a part of the resized side")
    add("--mean", type=float, nargs="+", metavar="MEAN", help="mean pixel value per channel, 0 to 1")
    add("--std", type=float, nargs="+", metavar="STD", help="standard deviation per channel, 0 to 1")
    add("--interpolation", default="", choices=INTERPOLATIONS, metavar="NAME", help="resize interpolation")
    add("-b", "--batch-size", type=positive_int, default=128, metavar="N", help="images per step and process")
    add("-vb", "--validation-batch-size", type=positive_int, metavar="N", help="default: that of training")
    add("--channels-last", action="store_true", help="use the channels_last memory format")
    add("--grad-accum-steps", type=positive_int, default=1, metavar="N", help="steps per optimizer update")
    add("--grad-checkpointing", action="store_true", help="recompute blocks in the backward pass to save memory")
    add("--model-kwargs", nargs="*", default={}, action=KeyValues, help="key=value arguments of the model")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile with torch.compile")
    add("--torchcompile-mode", help="mode of torch.compile")


def _device(parser: Parser) -> None:
    add = parser.add_argument_group("Device parameters").add_argument
    add("--device", default="cuda", help="device (default: cuda; cpu where there is none and this is not given)")
    add("--amp", action="store_true", help="train in mixed precision")
    add("--amp-dtype", default="float16", choices=("float16", "bfloat16"), help="low precision of AMP")
    add("--model-dtype", choices=("float32", "bfloat16", "float16"), help="dtype of the model without AMP")
    add("--no-ddp-bb", action="store_true", help="do not broadcast buffers between processes")
    add("--synchronize-step", action="store_true", help="synchronize the CUDA device after each step")


def _optimizer(parser: Parser) -> None:
    add = parser.add_argument_group("Optimizer parameters").add_argument
    add("--opt", default="sgd", metavar="OPTIMIZER", help="name of a timm optimizer")
    add("--opt-eps", type=float, metavar="EPSILON", help="default: the optimizer's")
    add("--opt-betas", type=float, nargs="+", metavar="BETA", help="default: the optimizer's")
    add("--momentum", type=float, default=0.9, metavar="M", help="momentum of optimizers that have one")
    add("--weight-decay", type=float, default=2e-5, help="weight decay; none on filters, norms and biases")
    add("--clip-grad", type=float, metavar="NORM", help="clip gradients at this value (default: no clipping)")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"), help="what --clip-grad limits")
    add("--layer-decay", type=float, help="factor of the learning rate from one layer to the one below")
    add("--layer-decay-min-scale", type=float, default=0, help="least factor of --layer-decay")
    add("--layer-decay-no-opt-scale", type=float, help="freeze layers whose factor is below this")
    add("--filter-lr-scale", type=float, default=1.0, help="factor of the learning rate for implicit filters")
    add("--opt-kwargs", nargs="*", default={}, action=KeyValues, help="key=value arguments of the optimizer")


def _schedule(parser: Parser) -> None:
    add = parser.add_argument_group("Learning rate schedule parameters").add_argument
    add("--sched", default="cosine", metavar="SCHEDULER", help="name of a timm scheduler")
    add("--sched-on-updates", action="store_true", help="step the schedule after each update, not each epoch")
    add("--lr", type=float, metavar="LR", help="learning rate, overrides --lr-base")
    add("--lr-base", type=float, default=0.1, metavar="LR", help="lr = lr_base * global batch size / lr_base_size")
    add("--lr-base-size", type=positive_int, default=256, metavar="DIV", help="batch size that --lr-base is for")
    add("--lr-base-scale", default="", choices=("linear", "sqrt"), metavar="SCALE", help="default: by the optimizer")
    add("--lr-noise", type=float, nargs="+", metavar="pct", help="parts of the schedule where noise goes on and off")
    add("--lr-noise-pct", type=float, default=0.67, metavar="PERCENT", help="noise limit as a part of the lr")
    add("--lr-noise-std", type=float, default=1.0, metavar="STDDEV", help="standard deviation of the noise")
    add("--lr-cycle-mul", type=float, default=1.0, metavar="MULT", help="factor of the cycle length")
    add("--lr-cycle-decay", type=float, default=0.5, metavar="MULT", help="factor of the lr from cycle to cycle")
    add("--lr-cycle-limit", type=positive_int, default=1, metavar="N", help="number of cycles")
    add("--lr-k-decay", type=float, default=1.0, help="k-decay of cosine and poly")
    add("--warmup-lr", type=float, default=1e-5, metavar="LR", help="learning rate at the start of the warm-up")
    add("--min-lr", type=float, default=0, metavar="LR", help="least learning rate")
    add("--epochs", type=positive_int, default=300, metavar="N", help="epochs to train")
    add("--epoch-repeats", type=float, default=0.0, metavar="N", help="passes per epoch, iterable data sets")
    add("--start-epoch", type=natural_int, metavar="N", help="number of the first epoch, overrides the resumed one")
    add("--decay-milestones", type=int, nargs="+", default=[90, 180, 270], metavar="EPOCH", help="for multistep")
    add("--decay-epochs", type=float, default=90, metavar="N", help="epochs between decays, for step")
    add("--warmup-epochs", type=natural_int, default=5, metavar="N", help="epochs of warm-up")
    add("--warmup-prefix", action="store_true", help="add the warm-up to the epochs")
    add("--cooldown-epochs", type=natural_int, default=0, metavar="N", help="epochs at --min-lr after the schedule")
    add("--patience-epochs", type=natural_int, default=10, metavar="N", help="for plateau")
    add("--decay-rate", "--dr", type=float, default=0.1, metavar="RATE", help="factor of a decay; power of poly")


def _augmentation(parser: Parser) -> None:
    add = parser.add_argument_group("Augmentation and regularization parameters").add_argument
    add("--no-aug", action="store_true", help="no augmentation at all in training")
    add("--train-crop-mode", choices=("rrc", "rkrc", "rkrr"), help="random crop of training (default: rrc)")
    add("--scale", type=float, nargs="+", default=[0.08, 1.0], metavar="PCT", help="area of the random crop")
    add("--ratio", type=float, nargs="+", default=[3 / 4, 4 / 3], metavar="RATIO", help="aspect of the random crop")
    add("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    add("--vflip", type=float, default=0.0, help="probability of a vertical flip")
    add("--color-jitter", type=float, default=0.4, metavar="PCT", help="strength of colour jitter")
    add("--color-jitter-prob", type=float, metavar="PCT", help="probability of colour jitter")
    add("--grayscale-prob", type=float, metavar="PCT", help="probability of a gray image")
    add("--gaussian-blur-prob", type=float, metavar="PCT", help="probability of a blur")
    add("--aa", metavar="NAME", help="AutoAugment policy, e.g. rand-m9-mstd0.5-inc1 or 3a")
    add("--aug-repeats", type=float, default=0, help="augmentations per image and epoch, distributed training only")
    add("--bce-loss", action="store_true", help="binary cross entropy in place of softmax")
    add("--bce-sum", action="store_true", help="sum the binary cross entropy over classes")
    add("--bce-target-thresh", type=float, help="threshold that makes soft targets hard")
    add("--bce-pos-weight", type=float, help="weight of positive targets")
    add("--reprob", type=float, default=0.0, metavar="PCT", help="probability of random erasing")
    add("--remode", default="pixel", choices=("const", "rand", "pixel"), help="what random erasing fills in")
    add("--recount", type=positive_int, default=1, help="number of erased regions")
    add("--mixup", type=float, default=0.0, help="mixup alpha, 0 for none")
    add("--cutmix", type=float, default=0.0, help="cutmix alpha, 0 for none")
    add("--cutmix-minmax", type=float, nargs="+", help="least and largest cutmix side, overrides its alpha")
    add("--mixup-prob", type=float, default=1.0, help="probability of mixup or cutmix")
    add("--mixup-switch-prob", type=float, default=0.5, help="probability of cutmix where both are on")
    add("--mixup-mode", default="batch", choices=("batch", "pair", "elem"), help="what shares one mixing weight")
    add("--mixup-off-epoch", type=natural_int, default=0, metavar="N", help="epoch that ends mixup, 0 for never")
    add("--smoothing", type=float, default=0.1, help="label smoothing")
    add("--train-interpolation", default="random", choices=INTERPOLATIONS, help="interpolation in training")
    add("--drop", type=float, default=0.0, metavar="PCT", help="dropout rate")
    add("--drop-path", type=float, metavar="PCT", help="drop path rate")


def _ema(parser: Parser) -> None:
    add = parser.add_argument_group("Model exponential moving average parameters").add_argument
    add("--model-ema", action="store_true", help="keep a moving average of the weights, validate and save it")
    add("--model-ema-force-cpu", action="store_true", help="keep it on the CPU, without validating it")
    add("--model-ema-decay", type=float, default=0.9998, help="decay of the average per update")
    add("--model-ema-warmup", action="store_true", help="start with a faster decay")


def _misc(parser: Parser) -> None:
    add = parser.add_argument_group("Miscellaneous parameters").add_argument
    add("--seed", type=int, default=42, metavar="S", help="random seed")
    add("--worker-seeding", default="all", choices=("all", "part"), help="random generators a worker seeds")
    add("--log-interval", type=positive_int, default=50, metavar="N", help="updates between log lines")
    add("--val-interval", type=positive_int, default=1, metavar="N", help="epochs between validations and checkpoints")
    add("--checkpoint-hist", type=positive_int, default=10, metavar="N", help="best checkpoints to keep")
    add("-j", "--workers", type=natural_int, default=4, metavar="N", help="loader processes")
    add("--pin-mem", action="store_true", help="pin memory in the loader")
    add("--no-prefetcher", action="store_true", help="load without timm's prefetcher")
    add("--output", default="", metavar="PATH", help="folder of all experiments (default: ./output/train)")
    add("--experiment", default="", metavar="NAME", help="folder of this run in it (default: time, model and size)")
    add("--eval-metric", default="top1", choices=("top1", "top5", "loss"), help="metric of the best checkpoint")
