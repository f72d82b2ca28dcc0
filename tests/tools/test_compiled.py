"""Compiled models, and models in several threads: what one thread alone gives, eagerly."""

import random
import sys
import threading

import pytest
import torch
from families import FAMILIES, ONE_BLOCK, blocks_of, gradients, images, small
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from hyena_vision.layers import Hyena1d, Hyena2d

SIZES = [(32, 32), (48, 32), (32, 48), (64, 32)]
BOTH_RANKS = ("hyena2d_vit", "hb_former")


@pytest.fixture(autouse=True)
def _many_switches():
    """Between threads: more chances to go wrong, and less waiting for the interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def close(given, expected, tolerance=1e-4):
    assert (given - expected).norm() <= tolerance * expected.norm()


# Compiling takes seconds: one family of each rank, between them both ways
HOWS = [*((family, "eager") for family in FAMILIES), *((family, "reparameterized") for family in BOTH_RANKS)]
HOWS += [("hyena2d_vit", "compiled"), ("hyena_vit", "compiled and reparameterized")]


@pytest.mark.parametrize(("family", "how"), HOWS)
def test_eight_threads(family, how):
    """Each call is exactly what the same call gives alone, whatever sizes come in between."""
    torch._dynamo.reset()
    model = small(family, **ONE_BLOCK[family])
    for module in model.modules():
        if "reparameterized" in how and hasattr(module, "reparameterize"):
            module.reparameterize()
    # One graph for all sizes: among several that fit, the compiler takes the one that it used last
    run = torch.compile(model, backend="eager", dynamic=True) if "compiled" in how else model
    sizes = SIZES[1:3] if "compiled" in how else SIZES
    inputs = {size: images(1, 3, *size) for size in sizes}
    with torch.no_grad():
        for _ in range(2):
            truth = {size: run(x) for size, x in inputs.items()}
        # While a thread looks for its graph, the compiler lets a call of another through as it is now and then
        eager = {size: model(x) for size, x in inputs.items()}
    for size in sizes:
        close(truth[size], eager[size])
    wrong, start = [], threading.Barrier(8)

    def work(seed):
        order = random.Random(seed)
        torch.set_num_threads(1)  # counts for the thread that says it
        try:
            start.wait()
            with torch.no_grad():
                for _ in range(10 if "compiled" in how else 50):
                    size = order.choice(sizes)
                    y = run(inputs[size])
                    if not torch.equal(y, truth[size]) and not torch.equal(y, eager[size]):
                        wrong.append((size, y, truth[size]))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_eager_threads_while_another_compiles():
    """torch's flag of a compilation is up in all threads: it must not reach what they compute."""
    model, x = small("hyena2d_vit", backend="fft"), images()
    with torch.no_grad():
        truth, wrong, done = model(x), [], threading.Event()

    def work():
        try:
            while not done.is_set():
                with torch.no_grad():
                    if not torch.equal(model(x), truth):
                        wrong.append("numbers")
                first = torch.autograd.grad(mixer(tokens).square().sum(), tokens, create_graph=True)[0]
                torch.autograd.grad(first.sum(), tokens)
        except BaseException as error:
            wrong.append(error)

    mixer, tokens = Hyena2d(4, filter_dim=4), torch.randn(1, 3, 3, 4, requires_grad=True)
    thread = threading.Thread(target=work)
    thread.start()
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(small("hyena2d_vit", depth=1), backend="eager")(x)
    done.set()
    thread.join()
    assert not wrong


def test_compiled_training_with_checkpointing():
    """At 224 pixels, where the parts of a graph are taken apart most: as by default, but no code is made of them.

    The compiler makes 30 programs of them, at a second each; test_hyena_vit.py has one model of which it does.
    """
    torch._dynamo.reset()
    family, settings, x = "hyena2d_vit", dict(img_size=224, depth=1), images(2, 3, 224, 224)
    expected = gradients(small(family, **settings).train(), x)
    model = small(family, **settings).train()
    model.set_grad_checkpointing()
    logits = torch.compile(model, backend="aot_eager_decomp_partition")(x)
    logits.square().sum().backward()
    close(logits, expected.pop("logits"))
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name], 1e-3)


@pytest.mark.parametrize("family", BOTH_RANKS)
def test_compiled_models_follow_changes_and_settings(family):
    torch._dynamo.reset()
    model, x = small(family, **ONE_BLOCK[family]), images(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager")
    mixer = blocks_of(model)[-1]
    mixer = mixer.mixer if hasattr(mixer, "mixer") else mixer.token_mixer

    def change_base():
        mixer.filter.base_size = tuple(2 * n for n in mixer.filter.base_size)

    def change_weight():
        mixer.filter.out.weight.data.mul_(3)

    def change_coords():
        mixer.filter.coords = "absolute"

    changes = [change_weight, change_base] + ([change_coords] if "vit" in family else [])
    with torch.no_grad():
        before = compiled(x)
        close(before, model(x))
        for change in changes:
            change()
            after = compiled(x)
            assert not torch.equal(after, before), change.__name__
            close(after, model(x))
            before = after


class Doubled(nn.Module):
    def forward(self, weight):
        return 1.3 * weight


@pytest.mark.parametrize("family", BOTH_RANKS)
def test_parametrized_filters(family):
    torch._dynamo.reset()
    model, made, x = *(small(family, **ONE_BLOCK[family]) for _ in range(2)), images(1, 3, 32, 32)
    with torch.no_grad():
        model(x)
        for module, twin in list(zip(model.modules(), made.modules(), strict=True)):
            if type(module).__name__ in ("FilterLinear", "Sine"):
                name = next(name for name, _ in module.named_parameters())
                getattr(twin, name).mul_(1.3)
                register_parametrization(module, name, Doubled())
        close(torch.compile(model, backend="eager")(x), made(x))


@pytest.mark.slow
def test_ahead_of_time(tmp_path):
    """AOTInductor: needs nothing of this package where the program runs. To compile one of them takes long enough."""
    x = torch.randn(2, 4, 5, 8)
    for layer in (Hyena1d, Hyena2d):
        mixer = layer(8, filter_dim=4).eval()
        with torch.no_grad():
            program = torch.export.export(mixer, (x,))
            assert not [node for node in program.graph.nodes if "hyena_vision" in str(node.target)]
    with torch.no_grad():
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "mixer.pt2"), inductor_configs=quick
        )
        close(torch._inductor.aoti_load_package(path)(x), mixer(x))
