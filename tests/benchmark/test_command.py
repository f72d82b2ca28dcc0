import io

import pytest
import torch

from hyena_vision.benchmark import command


def test_line_has_threads_and_versions():
    line = command.describe_machine()
    assert "1 threads" in line and f"torch {torch.__version__}" in line and "\n" not in line


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.3",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (root@a)  2023\n",
    ],
)
def test_driver_version_is_that_of_the_kernel_module(monkeypatch, text):
    def files(path, **kwargs):
        if "nvidia" in path:
            return io.StringIO(text)
        raise FileNotFoundError

    monkeypatch.setattr(command, "open", files, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
    assert ", A card, driver 535.104.05, CUDA" in command.describe_machine()
    monkeypatch.setattr(command, "open", lambda path, **kwargs: io.StringIO(""), raising=False)
    assert ", A card, CUDA" in command.describe_machine()
