"""What a measurement was made on."""

import platform
import re

import timm
import torch


def describe_machine() -> str:
    """Return processor or GPU, threads, driver and versions in one line."""
    processor = _find("/proc/cpuinfo", r"model name\s*: (.+)") or platform.processor() or platform.machine()
    parts = [processor.strip(), f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        driver = _find("/proc/driver/nvidia/version", r"Kernel Module.*?(\d+\.\d[\d.]*)")  # which torch does not tell
        parts += [torch.cuda.get_device_name(), *([f"driver {driver}"] if driver else []), f"CUDA {torch.version.cuda}"]
    parts += [f"torch {torch.__version__}", f"timm {timm.__version__}", f"Python {platform.python_version()}"]
    return ", ".join(parts)


def _find(path: str, pattern: str) -> str | None:
    """What a file of the system says; None where there is no such file or it does not say."""
    try:
        with open(path, encoding="utf-8") as file:
            found = re.search(pattern, file.read())
    except OSError:
        return None
    return found and found[1]
