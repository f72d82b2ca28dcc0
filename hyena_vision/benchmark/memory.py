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
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hyena_vision.benchmark.timing import is_out_of_memory, release_memory


def peak_memory(
    make: Callable[..., Callable[[], object]], *args: Any, device: str = "cpu", calls: int = 1
) -> float | None:
    """Measure the peak memory of making a contender and calling it.

    Args:
        make: Makes the contender; for the CPU a function of a module, which a fresh process can import.
        *args: Its arguments, for the CPU those that can be pickled.
        device: Where the contender runs.
        calls: How often it is called. A training step needs two: only the second has the optimizer's state from its
            beginning.

    Returns:
        MB (10^6 bytes) above what was in use before; None where the system does not tell.

    Raises:
        torch.OutOfMemoryError: Memory ran out, or the kernel killed the process for it.
        RuntimeError: The contender failed for another reason.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return _cuda_peak(make, args, device, calls)
    return _process_peak(make, args, calls) if kind == "cpu" else None


def _cuda_peak(make: Callable[..., Callable[[], object]], args: tuple, device: str, calls: int) -> float:
    release_memory()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        contender = make(*args)
        for _ in range(calls):
            contender()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    finally:
        contender = None
        release_memory()


def _process_peak(make: Callable[..., Callable[[], object]], args: tuple, calls: int) -> float | None:
    child = subprocess.run(
        [sys.executable, "-m", "hyena_vision.benchmark.memory"],
        input=pickle.dumps((torch.get_num_threads(), calls, make, args)),
        capture_output=True,
        # What can be imported here can be imported there, installed or not
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    if child.returncode == -signal.SIGKILL:
        raise torch.OutOfMemoryError("the process was killed, as the kernel does when memory runs out")
    if child.returncode:
        raise RuntimeError(f"measuring memory failed:\n{child.stderr.decode(errors='replace')[-2000:]}")
    answer = json.loads(child.stdout.splitlines()[-1])
    if answer["out_of_memory"]:
        raise torch.OutOfMemoryError("out of memory in the process that measures it")
    return answer["peak_mb"]


def main() -> None:
    """Measure what standard input asks for, in this process, and print the answer as one line of JSON."""
    threads, calls, make, args = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    _load_libraries()
    _forget_peak()
    before = _resident_bytes("VmRSS")
    try:
        contender = make(*args)
        for _ in range(calls):
            contender()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(json.dumps({"out_of_memory": True}))
        return
    peak = _resident_bytes("VmHWM")
    known = before is not None and peak is not None
    print(json.dumps({"out_of_memory": False, "peak_mb": (peak - before) / 1e6 if known else None}))


def _load_libraries() -> None:
    """Use what a model uses, once and tiny: code that is loaded on its first use is not the contender's memory."""
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
    x = layers(torch.randn(1, 4, 8, 8))
    x = F.scaled_dot_product_attention(x, x, x) + torch.fft.irfft2(torch.fft.rfft2(x))
    x.square().sum().backward()
    torch.optim.AdamW(layers.parameters()).step()


def _forget_peak() -> None:
    """Set the peak to what is in use now: importing may have needed more for a moment. Linux alone can."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def _resident_bytes(field: str) -> int | None:
    """A field of the process's status, None on systems without it."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            values = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    if field == "VmHWM" and field not in values:
        import resource  # not on Windows, which has no /proc either

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(values[field].split()[0]) * 1024 if field in values else None


if __name__ == "__main__":
    main()
