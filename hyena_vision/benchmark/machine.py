"""What a measurement was made on."""

import platform
import re

import timm
import torch


def describe_machine() -> str:
    """Return processor or GPU, threads, driver and versions in one line."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        pass
    parts = [f"{name}, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
        driver = _driver_version()
        if driver:
            parts.append(f"driver {driver}")
        parts.append(f"CUDA {torch.version.cuda}")
    return f"{', '.join(parts)}, torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"


def _driver_version() -> str | None:
    """Version of NVIDIA's kernel module, which torch does not tell; None where the system does not either."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            version = re.search(r"Kernel Module.*?(\d+\.\d[\d.]*)", file.read())
    except OSError:
        return None
    return version and version[1]
