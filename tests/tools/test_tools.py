"""What people put on a model, for each family: it gives what an untouched one gives, or one with the weights made."""

import copy
import pickle
from contextlib import contextmanager
from functools import partial

import pytest
import timm
import torch
from families import FAMILIES, ONE_BLOCK, blocks_of, gradients, images, small, touch
from timm.layers import GluMlp, SwiGLU
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from hyena_vision.layers import ImplicitFilter, mlp
from hyena_vision.ops import hyena, implicit_filter

pytestmark = [
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated", "ignore:torch.ao.quantization"),
]
LARGE = (3, 3, 512, 512)  # more than 2048 tokens of 16 pixels


def close(given, expected, tolerance=2e-5):
    """Within a tolerance of the norm, each tensor of two dictionaries or two tensors."""
    if isinstance(given, torch.Tensor):
        given, expected = {"result": given}, {"result": expected}
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        error = (given[name].detach() - value.detach()).norm() / value.detach().norm().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


@torch.no_grad()
def infer(model, x=None):
    """What it gives without gradients, twice: the second time from kernels that it keeps."""
    x = images() if x is None else x
    first, second = model.eval()(x), model(x)
    close(second, first)
    return first


@torch.no_grad()
def as_it_is(model, family, **kwargs):
    """A fresh model with the weights that the modules of another have now, whatever makes them."""
    fresh = small(family, **kwargs)
    for path, module in fresh.named_modules():
        for name, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            weight.copy_(getattr(model.get_submodule(path), name))
    return fresh


# ---- fast paths


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 16, 16), (2, 3, 80, 48)], ids=str)
def test_fast_paths_equal_calls_of_all_modules(family, shape):
    x, fast, plain = images(*shape), small(family), touch(small(family))
    close(infer(fast, x), infer(plain, x))
    close(gradients(fast.train(), x), gradients(plain.train(), x), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_fast_paths_in_other_dtypes(family, dtype):
    x, fast, plain = images().to(dtype), small(family).to(dtype), touch(small(family).to(dtype))
    tolerance = 1e-10 if dtype == torch.float64 else 0.1
    close(infer(fast, x).double(), infer(plain, x).double(), tolerance)
    given, expected = (gradients(model.train(), x) for model in (fast, plain))
    if dtype == torch.float64:
        close(given, expected, tolerance)
    else:
        angle = [torch.cosine_similarity(given[k].flatten().float(), expected[k].flatten().float(), 0) for k in given]
        assert min(angle) > 0.8


def test_autocast(family):
    x, fast, plain = images(), small(family), touch(small(family))
    with torch.autocast("cpu", torch.bfloat16):
        close(infer(fast, x), infer(plain, x), 0.1)
    with torch.autocast("cpu", torch.bfloat16):  # anew: older versions keep what they cast without gradients
        given, expected = (gradients(model.train(), x) for model in (fast, plain))
    assert all(t.dtype == expected[k].dtype for k, t in given.items())
    assert all(torch.cosine_similarity(t.flatten(), expected[k].flatten(), 0) > 0.8 for k, t in given.items())


# ---- global settings


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "setting",
    [
        *(partial(default_dtype, t) for t in (torch.bfloat16, torch.float16, torch.float64)),
        partial(torch.device, "meta"),
    ],
)
def test_defaults_change_nothing(family, setting):
    model, x = small(family, **ONE_BLOCK[family]), images()
    expected, expected_gradients = infer(copy.deepcopy(model)), gradients(copy.deepcopy(model).train(), x)
    with setting():
        for backend in (None, "fft"):
            given = small_on(model, backend)
            close(infer(given, x), expected)
            close(gradients(given.train(), x), expected_gradients, 1e-3)


def small_on(model, backend):
    model = copy.deepcopy(model)
    for block in blocks_of(model):
        block.get_submodule("mixer" if hasattr(block, "mixer") else "token_mixer").backend = backend
    return model


# ---- hooks


@pytest.mark.parametrize("training", [False, True])
def test_hooks_on_every_module_fire_once_and_see_all(family, training):
    model, seen = small(family).train(training), {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            module.register_forward_hook(lambda _, args, y, name=name: seen.setdefault(name, []).append((args, y)))
            seen[name] = []
    with torch.set_grad_enabled(training):
        model(images(*LARGE))
    assert {name: len(calls) for name, calls in seen.items()} == dict.fromkeys(seen, 1)
    for name, [(_, y)] in seen.items():
        if ".filter" not in name and y.ndim > 2:
            assert y.shape[0] == LARGE[0]
        if name.endswith("mlp.fc1"):
            assert y.shape == (*seen[name.removesuffix(".fc1")][0][1].shape[:-1], y.shape[-1])


def test_hooks_that_change_results_are_heard(family):
    """On each module that holds weights, and on each part of a filter."""
    model, x = small(family, **ONE_BLOCK[family]), images()
    expected = infer(model, x)
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        handle = module.register_forward_hook(lambda _, args, y: 1.5 * y)
        assert not torch.equal(infer(model, x), expected), name
        handle.remove()
        assert torch.equal(infer(model, x), expected), name


def test_global_hooks_see_every_module(family):
    model, called = small(family, **ONE_BLOCK[family]), []
    infer(model)
    handle = register_module_forward_hook(lambda module, args, y: called.append(module))
    with torch.no_grad():
        model(images())
    handle.remove()
    assert {*called} == {module for module in model.modules() if not isinstance(module, nn.ModuleList)}


def test_full_backward_hooks_on_every_module(family):
    expected, calls = gradients(small(family).train(), images()), []
    model = small(family).train()
    for name, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: calls.append(name))
    close(gradients(model, images()), expected, 1e-4)
    called = {name for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
    assert len(calls) == len(set(calls)) and set(calls) == called


def test_forward_of_a_subclass_and_of_an_instance(family):
    model, x = small(family, **ONE_BLOCK[family]), images()
    expected = infer(model, x)
    for name, _ in model.named_modules():
        if name.endswith(("filter", "short_filter", "mlp.fc1", "filter.out")):
            for put in (subclass, on_instance):
                twin = copy.deepcopy(model)
                put(twin.get_submodule(name))
                assert not torch.equal(infer(twin, x), expected), name


def subclass(module):
    module.__class__ = type(
        "Twice", (type(module),), {"forward": lambda self, *a, **k: 2 * super(type(self), self).forward(*a, **k)}
    )


def on_instance(module):
    module.forward = lambda *a, forward=module.forward, **k: 2 * forward(*a, **k)


# ---- tools that make weights, or layers


MAKERS = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
    "weight_norm (hook)": weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm (hook)": spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("tool", MAKERS)
def test_made_weights(family, tool):
    model, x = small(family, **ONE_BLOCK[family]), images()
    infer(model, x)
    for layer in [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]:
        MAKERS[tool](layer)
    for _ in range(2):
        found = gradients(model.train(), x)
        assert all(found[name].isfinite().all() for name, _ in model.named_parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.01 * parameter.grad / (parameter.grad.norm() + 1e-6))
        close(infer(model, x), infer(as_it_is(model, family, **ONE_BLOCK[family]), x))
    before = infer(model, x)
    model.load_state_dict({k: 1.1 * v if v.is_floating_point() else v for k, v in model.state_dict().items()})
    after = infer(model, x)
    assert not torch.equal(after, before)
    close(after, infer(as_it_is(model, family, **ONE_BLOCK[family]), x))


def test_quantized_linears(family):
    model = small(family)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert any("quantized" in type(m).__module__ for m in quantized.modules())
    close(infer(quantized), infer(model), 0.4)


@pytest.mark.parametrize("kind", [SwiGLU, GluMlp])
def test_other_mlps_on_many_tokens(family, kind, monkeypatch):
    monkeypatch.setattr(mlp, "PART_TOKENS", 3)
    model, x = small(family), images()
    for block in blocks_of(model):
        dim = block.mlp.fc1.in_features
        block.mlp = kind(dim, 2 * dim)
    plain = touch(copy.deepcopy(model))
    close(infer(model, x), infer(plain, x))
    close(gradients(model.train(), x), gradients(plain.train(), x), 1e-3)


# ---- torch.func, tracing, copies


def test_function_transforms(family):
    model, x = small(family), images()
    expected = gradients(model, x)
    logits, (parameters, buffers) = (
        expected.pop("logits"),
        (dict(model.named_parameters()), dict(model.named_buffers())),
    )

    def loss(parameters, x):
        return torch.func.functional_call(model, (parameters, buffers), (x,)).square().sum()

    close(torch.func.grad(loss)(parameters, x), expected, 1e-3)
    of_samples = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    close({k: v.sum(0) for k, v in of_samples.items()}, expected, 1e-3)
    value, pull = torch.func.vjp(lambda p: torch.func.functional_call(model, (p, buffers), (x,)), parameters)
    close(value, logits)
    close(pull(2 * logits)[0], expected, 1e-3)


def test_functional_call_uses_the_weights_that_it_is_given(family):
    model, other, x = small(family), small(family), images()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        before = model(x)
        given = torch.func.functional_call(model, other.state_dict(), (x,))
        close(given, other(x), 1e-5)  # torch 2.11 differs in the last bit
        assert torch.equal(model(x), before)


def test_make_fx(family):
    model, x = small(family, **ONE_BLOCK[family]), images()
    with torch.no_grad():
        model(x)
        graph = make_fx(model)(x)
    other = images(seed=5)
    close(graph(other), infer(model, other))


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_dispatch_modes_see_the_convolutions(family):
    model, x = small(family), images()
    expected = infer(model, x)
    with torch.no_grad(), Seen() as seen:
        close(model(x), expected)
    convolutions = [name for name in seen.names if "hyena_vision" in name or "fft" in name]
    assert len(convolutions) >= len(blocks_of(model))


def test_jit_trace_and_the_old_onnx_exporter_are_one_line(family):
    model, x = small(family), images()
    with pytest.raises(RuntimeError, match=r"^torch.jit.trace, .* use torch.export.export, or torch.onnx.export with"):
        torch.jit.trace(model, x)
    with pytest.raises(RuntimeError, match=r"^torch.jit.trace, .* use torch.export.export, or torch.onnx.export with"):
        torch.onnx.export(model, (x,), "never-written.onnx", dynamo=False)


def test_export(family):
    model, x = small(family, **ONE_BLOCK[family]), images()
    program = torch.export.export(model, (x,))
    assert not [node for node in program.graph.nodes if "hyena_vision" in str(node.target)]
    close(program.module()(x), infer(model, x))


def test_empty_batches(family):
    model, x = small(family), images(0, 3, 64, 64)
    assert infer(model, x).shape == (0, 5)
    found = gradients(model.train(), x)
    assert set(found) == {"logits", *(name for name, _ in model.named_parameters())}
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy])
def test_copies(family, copied):
    model, x = small(family), images()
    expected, size = infer(model, x), len(pickle.dumps(small(family)))
    assert len(pickle.dumps(model)) == size
    twin = copied(model)
    assert torch.equal(infer(twin, x), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.data = 1.1 * parameter.data
    after = infer(twin, x)
    assert not torch.equal(after, expected)
    if copied is not copy.copy:  # which shares the modules
        assert torch.equal(infer(model, x), expected)


def test_averages_of_weights_and_buffers(family):
    model, x = small(family), images()
    average = AveragedModel(model, use_buffers=True)
    infer(average, x)
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            weight.mul_(1.2) if weight.is_floating_point() else weight
    average.update_parameters(model)
    expected = as_it_is(average.module, family)
    assert torch.equal(infer(average, x), infer(expected, x))


# ---- checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_filters_run_twice(family, reentrant, monkeypatch):
    """Forward and once more in the backward pass, not a third time for an operator of their own."""
    expected = gradients(small(family).train(), images())
    model, runs = small(family).train(), []
    for module, name in ((implicit_filter, "_in_blocks"), (implicit_filter, "_add_gradients"), (hyena, "_signals")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, n=name: runs.append(n) or f(*a))
    plain = ImplicitFilter._plain
    monkeypatch.setattr(ImplicitFilter, "_plain", lambda *a: runs.append("_plain") or plain(*a))
    gradients(model, images())
    filters = len(blocks_of(model))
    assert sorted(runs).count("_in_blocks") == runs.count("_add_gradients") == filters and "_plain" not in runs
    runs.clear()
    model.set_grad_checkpointing()
    before = timm.layers.config._USE_REENTRANT_CKPT
    timm.layers.set_reentrant_ckpt(reentrant)
    try:
        close(gradients(model, images()), expected, 1e-4)
    finally:
        timm.layers.set_reentrant_ckpt(before)
    assert len([run for run in runs if run in ("_in_blocks", "_plain")]) == 2 * filters
    assert "_add_gradients" not in runs and "_signals" not in runs
