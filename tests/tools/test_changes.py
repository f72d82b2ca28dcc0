"""Every change of a weight is in the next result, whichever weight and however it was changed."""

import copy

import pytest
import timm
import torch
from families import FAMILIES, images, small
from torch import nn

TWO_STAGES = dict(depths=(1, 1), dims=(8, 16), filter_emb_dims=(4, 4), res_scale_init_values=(None, 1.0))
SETTINGS = {
    "hyena_vit": dict(depth=1, num_inner_layers=1),
    "hyena2d_vit": dict(depth=1, num_inner_layers=1),
    "hpx_former": dict(token_mixers=("sep_conv", "hyena2d"), **TWO_STAGES),
    "hb_former": dict(token_mixers=("sep_conv", "hyena1d"), **TWO_STAGES),
}


def element(weight):
    """One that has a part in the result at any size: of the last channel, the middle."""
    return weight.view(-1)[weight.numel() - 1 - weight[0].numel() // 2 :][:1]


def in_place(model, module, name):
    with torch.no_grad():
        element(getattr(module, name)).sub_(3)


def through_data(model, module, name):
    element(getattr(module, name).data).sub_(3)


def by_average(model, module, name):
    """As torch_ema's `copy_to` and hand-written averages do."""
    weight = getattr(module, name)
    average = weight.detach().clone()
    element(average).sub_(3)
    weight.data.copy_(average.data)


def by_other_memory(model, module, name):
    weight = getattr(module, name)
    changed = weight.detach().clone()
    element(changed).sub_(3)
    weight.data = changed


def by_other_tensor(model, module, name):
    weight = getattr(module, name)
    changed = weight.detach().clone()
    element(changed).sub_(3)
    setattr(module, name, nn.Parameter(changed) if isinstance(weight, nn.Parameter) else changed)


def by_loading(model, module, name):
    state = copy.deepcopy(module.state_dict())
    element(state[name]).sub_(3)
    module.load_state_dict(state)


def by_optimizer(model, module, name):
    weight = getattr(module, name)
    weight.grad = torch.zeros_like(weight)
    element(weight.grad).fill_(3)
    torch.optim.SGD([weight], lr=1.0).step()
    weight.grad = None


EVERY_WAY = [in_place, through_data, by_average, by_other_memory, by_other_tensor, by_loading, by_optimizer]
# Of a reparameterized model, whose weights are not compared by value
COUNTED = [in_place, by_other_memory, by_other_tensor, by_loading, by_optimizer]


@pytest.mark.parametrize("reparameterized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_element_of_each_weight_and_buffer(family, reparameterized):
    model, fresh, x = small(family, **SETTINGS[family]), small(family, **SETTINGS[family]), images(1, 3, 64, 64)
    if reparameterized:
        for module in model.modules():
            if hasattr(module, "reparameterize"):
                module.reparameterize()
    places = [
        (path, name)
        for path, module in model.named_modules()
        for name, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if weight.is_floating_point()
    ]
    with torch.no_grad():
        before = model(x)
    for index, (path, name) in enumerate(places):
        # All ways for the weights behind kernels, else one after the other
        ways = COUNTED if reparameterized else EVERY_WAY
        ways = ways if ".filter" in path or name == "skip" else [ways[index % len(ways)]]
        for way in ways:
            module = model.get_submodule(path)
            if way is by_optimizer and not isinstance(getattr(module, name), nn.Parameter):
                continue
            way(model, module, name)
            fresh.load_state_dict(model.state_dict())
            with torch.no_grad():
                after = model(x)
                assert torch.equal(after, fresh(x)), (path, name, way.__name__)
            # Other layers may have units that are off
            assert "mixer" not in path or not torch.equal(after, before), (path, name, way.__name__)
            before = after


@pytest.mark.parametrize("name", ["hyena_vit_tiny", "hyena2d_vit_tiny", "hpx_former_s18", "hb_former_s18"])
def test_checkpoints_of_before_give_their_numbers(name, request):
    """Frequencies of filters were a list of parameters, `omega.0`, before they were modules; tokens had no bound."""
    saved = torch.load(request.path.with_name("data") / f"{name}.pt")
    kwargs = {**saved["kwargs"], "softcap": 0.0}
    state = {key: t.float() if t.is_floating_point() else t for key, t in saved["state_dict"].items()}
    assert any("filter.omega.0" in key for key in state)
    given = dict(state)
    loaded = timm.create_model(name, **kwargs)
    loaded.load_state_dict(given)
    assert given.keys() == state.keys()
    path = request.getfixturevalue("tmp_path") / "checkpoint.pth"
    torch.save({"state_dict": state}, path)
    overlay = dict(file=str(path), num_classes=5)
    pretrained = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    for model in (loaded.eval(), pretrained.eval()):
        generator = torch.Generator().manual_seed(1)
        for size, expected in saved["logits"].items():
            x = torch.randn(2, 3, *map(int, size.split("x")), generator=generator)
            with torch.no_grad():
                torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
