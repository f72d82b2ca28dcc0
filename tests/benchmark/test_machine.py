import io

import pytest
import torch

from hyena_vision.benchmark import machine


def test_line_has_threads_and_versions():
    line = machine.describe_machine()
    assert "1 threads" in line and f"torch {torch.__version__}" in line and "\n" not in line


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.3",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (root@a)  2023\n",
    ],
)
def test_driver_version_is_that_of_the_kernel_module(monkeypatch, text):
    monkeypatch.setattr(machine, "open", lambda *args, **kwargs: io.StringIO(text), raising=False)
    assert machine._driver_version() == "535.104.05"


def test_no_driver_is_none(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(machine, "open", missing, raising=False)
    assert machine._driver_version() is None
