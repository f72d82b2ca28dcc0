"""Operators alone, by grid of tokens: attention's product, Hyena mixers, long convolutions, other projects' ones.

Mixers and attention are measured between their projections, filters and whatever is kept between calls included; long
convolutions are given their kernel, of the global extent 2n - 1.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hyena_vision.benchmark.check import check_ops
from hyena_vision.benchmark.contenders import CPU_CONTENDERS, Setting
from hyena_vision.benchmark.gpu_contenders import GPU_CONTENDERS, with_traffic
from hyena_vision.benchmark.measure import SpeedRow, measure, record
from hyena_vision.benchmark.program import DTYPES, add_measurement_arguments
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

GRIDS = (14, 24, 32, 64, 128)
CONTENDERS = CPU_CONTENDERS | GPU_CONTENDERS


def add_command(commands: Any) -> None:
    """Add the sub-command `ops`."""
    parser = commands.add_parser("ops", help="operators alone by grid of tokens", description=__doc__)
    add, names = parser.add_argument, ", ".join(CONTENDERS)
    add("--only", dest="names", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {names} (default: what runs)")
    add("--grids", type=positive_int, nargs="+", default=GRIDS, metavar="N", help="sides, in tokens")
    add("--dim", type=positive_int, default=384, metavar="N", help="channels")
    add("--heads", type=positive_int, default=6, metavar="N", help="heads of attention")
    add("-b", "--batch-size", type=positive_int, default=1, metavar="N")
    add("--backward", action="store_true", help="backward pass too")
    add("--check", action="store_true", help="compare all with float64 first; a wrong one ends it")
    add_measurement_arguments(parser)
    parser.set_defaults(run=lambda args: record(measure_ops, args, "ops"))


def measure_ops(
    names: Sequence[str] | None = None,
    grids: Sequence[int] = GRIDS,
    *,
    dim: int = 384,
    heads: int = 6,
    batch_size: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    backward: bool = False,
    check: bool = False,
    rounds: int = 5,
    memory: bool = True,
) -> Iterator[SpeedRow]:
    """Measure operators by grid, all of a grid in turn; arguments are those of the command, names `CONTENDERS`.

    Raises:
        UserError: Heads do not divide the channels, or a check found a wrong result, before anything is timed.
    """
    if dim % heads:
        raise UserError(f"--dim must be a multiple of --heads, got {dim} and {heads}")
    settings = [Setting(grid, dim, heads, batch_size, DTYPES[dtype], device, backward) for grid in grids]
    names = names or [name for name, contender in CONTENDERS.items() if contender.reason(settings[0]) is None]
    if check:
        check_ops({name: CONTENDERS[name] for name in names}, settings)
    mode = "forward+backward" if backward else "forward"
    columns = dict(batch_size=batch_size, mode=mode, dtype=dtype, device=device, base="sdpa", dim=dim, heads=heads)
    for setting in settings:
        make, reasons = partial(make_call, setting=setting), {name: CONTENDERS[name].reason(setting) for name in names}
        columns |= dict(size=setting.grid, tokens=setting.grid**2)
        yield from with_traffic(measure(make, reasons, memory, dict(rounds=rounds), **columns))


def make_call(name: str, setting: Setting) -> Callable[[], Tensor]:
    """Make a function without arguments that runs a contender once, backward pass included if the setting asks."""
    inputs, function = CONTENDERS[name].inputs(setting), CONTENDERS[name].function
    if not setting.backward:
        return torch.inference_mode()(lambda: function(*inputs))
    leaves = [value.requires_grad_() for value in inputs if isinstance(value, Tensor)]
    leaves += [weight for value in inputs if isinstance(value, nn.Module) for weight in value.parameters()]

    def call() -> Tensor:
        y = function(*inputs)
        # The gradient of the sum of squares: one of ones would be an easy case for a spectrum
        torch.autograd.grad(y, leaves, y.detach(), allow_unused=True)
        return y

    return call
