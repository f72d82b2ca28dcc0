"""Peak memory of a contender, weights and inputs included.

On CUDA the caching allocator counts it. On a CPU it is the resident memory of a fresh process in which nothing else has
run: `python -m hyena_vision.benchmark.memory` is that process, and is not meant to be called by hand.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from hyena_vision.benchmark.timing import FAILED, OK, OUT_OF_MEMORY, attempt, release_memory


def peak_memory(make: Callable[[], Callable[[], object]], device: str = "cpu", calls: int = 1) -> float | None:
    """Measure the peak memory of making a contender and calling it.

    Args:
        make: Makes the contender; for the CPU it can be pickled.
        device: Where the contender runs.
        calls: How often it is called. Only the second training step has the optimizer's state from its beginning.

    Returns:
        MB (10^6 bytes) above what was in use before; None where the system does not tell.

    Raises:
        torch.OutOfMemoryError: Memory ran out, or the kernel killed the process for it.
        RuntimeError: The contender failed for another reason.
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
    child = subprocess.run(
        [sys.executable, "-m", "hyena_vision.benchmark.memory"],
        input=pickle.dumps((torch.get_num_threads(), make, calls)),
        capture_output=True,
        # What can be imported here can be imported there, installed or not
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    if child.returncode == -signal.SIGKILL:
        raise torch.OutOfMemoryError("the process was killed, as the kernel does when memory runs out")
    if child.returncode:
        raise RuntimeError(f"measuring memory failed:\n{child.stderr.decode(errors='replace')[-2000:]}")
    megabytes, status = json.loads(child.stdout.splitlines()[-1])
    if status == OUT_OF_MEMORY:
        raise torch.OutOfMemoryError("out of memory in the process that measures it")
    if status != OK:
        raise RuntimeError(status.removeprefix(f"{FAILED}: ").removeprefix("RuntimeError: "))
    return megabytes


def main() -> None:
    """Measure what standard input asks for, in this process, and print megabytes and status as JSON."""
    threads, make, calls = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    _load_libraries()
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak becomes what is in use now: importing may have needed more for a moment
    before = _resident_bytes("VmRSS")
    _, status = attempt(partial(_use, make, calls))
    peak = _resident_bytes("VmHWM")
    print(json.dumps((None if before is None or peak is None else (peak - before) / 1e6, status)))


def _load_libraries() -> None:
    """Use what a model uses, once and tiny: code that is loaded on its first use is not the contender's memory."""
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
    x = layers(torch.randn(1, 4, 8, 8))
    x = F.scaled_dot_product_attention(x, x, x) + torch.fft.irfft2(torch.fft.rfft2(x))
    x.square().sum().backward()
    torch.optim.AdamW(layers.parameters()).step()


def _resident_bytes(field: str) -> int | None:
    """A field of the process's status, None on systems without it."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        values = dict(line.split(":", 1) for line in file)
        if field == "VmHWM" and field not in values:
            import resource  # not on Windows, which has no /proc either

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return int(values[field].split()[0]) * 1024
    return None


if __name__ == "__main__":
    main()
