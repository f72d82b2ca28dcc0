"""Peak memory of a contender, weights and inputs included.

On CUDA the caching allocator counts it; on a CPU it is the resident memory of a fresh process that runs nothing else.
"""

import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from hyena_vision.benchmark.machine import find_in_file
from hyena_vision.benchmark.timing import release_memory


def peak_memory(make: Callable[[], Callable[[], object]], device: str = "cpu", calls: int = 1) -> float | None:
    """Measure the peak memory of making a contender and calling it.

    Args:
        make: Makes the contender. For the CPU it can be pickled, and a script has `if __name__ == "__main__"`.
        device: Where the contender runs.
        calls: How often it is called. Only the second training step has the optimizer's state from its beginning.

    Returns:
        MB (10^6 bytes) above what was in use before; None where the system does not tell.

    Raises:
        torch.OutOfMemoryError: The kernel killed the process, as it does when memory runs out.
        Exception: Of the contender, also if its memory ran out otherwise.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return _of_process(make, calls)
    if kind != "cuda":
        return None
    release_memory()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        _use(make, calls)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    finally:
        release_memory()


def _use(make: Callable[[], Callable[[], object]], calls: int) -> None:
    contender = make()
    for _ in range(calls):
        contender()


def _of_process(make: Callable[[], Callable[[], object]], calls: int) -> float | None:
    fresh = get_context("spawn")
    receiver, sender = fresh.Pipe(duplex=False)
    child = fresh.Process(target=_tell_peak, args=(sender, torch.get_num_threads(), make, calls))
    child.start()
    sender.close()  # the process alone has one now: if it ends without a word, there is no more to wait for
    answer = None
    with suppress(EOFError):
        answer = receiver.recv()
    child.join()
    if child.exitcode == -signal.SIGKILL:
        raise torch.OutOfMemoryError("the process was killed, as the kernel does when memory runs out")
    if child.exitcode:
        raise RuntimeError(f"the process that measures memory ended with {child.exitcode}, and says above why")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _tell_peak(sender: Connection, threads: int, make: Callable[[], Callable[[], object]], calls: int) -> None:
    """Send the peak in MB, None if the system does not tell, or what the contender raised."""
    torch.set_num_threads(threads)
    _load_libraries()
    with suppress(OSError):  # the peak becomes what is in use now: importing may have needed more for a moment
        Path("/proc/self/clear_refs").write_text("5")
    before = find_in_file("/proc/self/status", r"VmRSS:\s+(\d+)")
    try:
        _use(make, calls)
        peak = find_in_file("/proc/self/status", r"VmHWM:\s+(\d+)")
        sender.send((int(peak) - int(before)) * 1024 / 1e6 if peak and before else None)
    except Exception as error:
        sender.send(error)


def _load_libraries() -> None:
    """Use what a model uses, once and tiny: code that is loaded on its first use is not the contender's memory."""
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
    x = layers(torch.randn(1, 4, 8, 8))
    x = F.scaled_dot_product_attention(x, x, x) + torch.fft.irfft2(torch.fft.rfft2(x))
    x.square().sum().backward()
    torch.optim.AdamW(layers.parameters()).step()
