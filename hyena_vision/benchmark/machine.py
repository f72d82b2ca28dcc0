"""What a measurement was made on."""

import platform
import re
from contextlib import suppress
from pathlib import Path

import timm
import torch


def describe_machine() -> str:
    """Return processor or GPU, threads, driver and versions in one line."""
    processor = find_in_file("/proc/cpuinfo", r"model name\s*: (.+)") or platform.processor() or platform.machine()
    parts = [processor.strip(), f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        driver = find_in_file("/proc/driver/nvidia/version", r"Kernel Module.*?(\d+\.\d[\d.]*)")  # torch does not tell
        parts += [torch.cuda.get_device_name(), *([f"driver {driver}"] if driver else []), f"CUDA {torch.version.cuda}"]
    parts += [f"torch {torch.__version__}", f"timm {timm.__version__}", f"Python {platform.python_version()}"]
    return ", ".join(parts)


def find_in_file(path: str, pattern: str) -> str | None:
    """Return the group of a pattern in a file of the system; None where there is no such file or it does not say."""
    with suppress(OSError):
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
        return found and found[1]
    return None
