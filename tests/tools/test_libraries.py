"""Real peft and accelerate, DistributedDataParallel and FSDP2, on each family."""

import copy

import accelerate
import peft
import pytest
import torch
import torch.distributed as dist
from families import FAMILIES, blocks_of, gradients, images, small
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hyena_vision.layers.implicit_filter import FilterLinear

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def relative(given, expected):
    return ((given - expected).norm() / expected.norm()).item()


def infer(model, x=None):
    with torch.no_grad():
        return model.eval()(images() if x is None else x)


def test_lora_on_all_linears(family):
    model = peft.get_peft_model(
        small(family), peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    infer(model)
    found = gradients(model.train(), images())
    adapters = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = [name for name, layer in small(family).named_modules() if type(layer) is FilterLinear]
    assert sum(".filter." in name for name in adapters) == 2 * len(layers) > 0
    assert all(found[name].abs().sum() > 0 for name in adapters)
    expected = infer(model)
    assert relative(infer(small(family)), expected) > 0.1
    # Each adapter of a filter has a part in the result
    for name, parameter in model.named_parameters():
        if ".filter." in name and "lora_B" in name:
            kept = parameter.detach().clone()
            parameter.data.zero_()
            assert not torch.equal(infer(model), expected), name
            parameter.data.copy_(kept)
    assert relative(infer(model), expected) < 1e-6
    merged = copy.deepcopy(model).merge_and_unload()
    assert relative(infer(merged), expected) < 1e-4
    # The same by hand, as weights of a plain model
    plain = small(family)
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            plain.get_submodule(name).weight.data += layer.get_delta_weight("default")
    assert relative(infer(plain), expected) < 1e-4


def test_weights_on_the_meta_device_first(family):
    with accelerate.init_empty_weights():
        model = small(family)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(torch.equal(buffer, small(family).get_buffer(name)) for name, buffer in model.named_buffers())
    model.load_state_dict(small(family).state_dict(), assign=True)
    assert torch.equal(infer(model), infer(small(family)))


@pytest.mark.parametrize("buffers", [False, True])
def test_weights_that_come_when_they_are_needed(family, buffers):
    model = accelerate.cpu_offload(small(family), execution_device=torch.device("cpu"), offload_buffers=buffers)
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert relative(infer(model), infer(small(family))) < 1e-5


@pytest.fixture(scope="module")
def one_process():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("static_graph", [False, True])
def test_distributed_data_parallel(family, static_graph, one_process):
    expected = gradients(small(family).train(), images())
    model = DistributedDataParallel(small(family).train(), static_graph=static_graph)
    for _ in range(2):
        found = {name.removeprefix("module."): value for name, value in gradients(model, images()).items()}
        assert found.keys() == expected.keys()
        assert all(relative(found[name], value) < 1e-5 for name, value in expected.items())


@pytest.mark.parametrize("mixers_alone", [False, True])
def test_fully_sharded(family, mixers_alone, one_process):
    expected, expected_logits = gradients(small(family).train(), images()), infer(small(family))
    model, mesh = small(family).train(), dist.init_device_mesh("cpu", (1,))
    for block in blocks_of(model):
        if mixers_alone:
            fully_shard(block.mixer if hasattr(block, "mixer") else block.token_mixer, mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for _ in range(2):
        model.zero_grad()
        model.train()(images()).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert relative(parameter.grad.full_tensor(), expected[name]) < 1e-5, name
    for _ in range(2):
        assert relative(infer(model), expected_logits) < 1e-5
