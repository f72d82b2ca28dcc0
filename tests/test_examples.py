"""Every public name has an example in its docstring, and it is true."""

import doctest
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from hyena_vision import layers, models, ops, testing

PUBLIC = {
    f"{module.__name__.removeprefix('hyena_vision.')}.{name}": getattr(module, name)
    for module in (ops, layers, models, testing)
    for name in module.__all__
}
DATA = Path(__file__).parent / "layers" / "data"
FILES = {"hyena1d_from_safari": "safari_package_order2", "hyena1d_from_hyenapixel": "hyenapixel_1d_norm1"}
FILES["hyena2d_from_hyenapixel"] = "hyenapixel_2d_norm1"


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    given = {key: value for module in (ops, layers, models, testing) for key, value in vars(module).items()}
    given |= {"torch": torch, "timm": timm}
    short = name.rsplit(".", 1)[1]
    if short in FILES:
        tensors = load_file(DATA / f"{FILES[short]}.safetensors")
        given["state_dict"] = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    found = doctest.DocTestParser().get_doctest(PUBLIC[name].__doc__, given, name, None, None)
    assert found.examples, "no example"
    said = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found, out=said.append)
    assert not failed, "".join(said)
