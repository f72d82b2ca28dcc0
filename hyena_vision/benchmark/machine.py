"""What a measurement was made on."""

import platform

import timm
import torch


def describe_machine() -> str:
    """Return processor or GPU, threads and versions in one line."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        pass
    parts = [f"{name}, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return f"{', '.join(parts)}, torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"
