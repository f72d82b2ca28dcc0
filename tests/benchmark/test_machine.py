from pathlib import Path

import pytest
import torch

from hyena_vision.benchmark import machine


def test_line_has_threads_and_versions():
    line = machine.describe_machine()
    assert "1 threads" in line and f"torch {torch.__version__}" in line and "\n" not in line


@pytest.fixture
def pretend(monkeypatch):
    """Return a function that pretends a GPU, and files of the system that all say the same; None for no files."""

    def pretend(text):
        def read_text(*args, **kwargs):
            if text is None:
                raise FileNotFoundError
            return text

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
        monkeypatch.setattr(Path, "read_text", read_text)
        return machine.describe_machine()

    return pretend


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.3",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (root@a)  2023\n",
    ],
)
def test_driver_version_is_that_of_the_kernel_module(pretend, text):
    assert ", A GPU, driver 535.104.05, CUDA" in pretend(text)


def test_processor_is_named(pretend):
    assert pretend("vendor_id\t: X\nmodel name\t: A CPU\nmodel name\t: A CPU\n").startswith("A CPU, ")


def test_without_files_there_is_no_driver(pretend):
    line = pretend(None)
    assert ", A GPU, CUDA" in line and "driver" not in line
