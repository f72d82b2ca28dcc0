"""Hyena in attention's place: prefix tokens read the image, the image reads them, and both are of use."""

import pickle
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import nn

from hyena_vision.layers import Hyena1d, Hyena2d, HyenaAttention1d, HyenaAttention2d, attn_layer
from hyena_vision.layers.from_attention import hyena_from_attention, why_not_hyena

GRID, PREFIX, DIM = (3, 5), 2, 8
SMALL = dict(num_heads=2, grid_size=GRID, num_prefix_tokens=PREFIX, filter_dim=8)


@pytest.fixture(params=[HyenaAttention1d, HyenaAttention2d])
def layer(request):
    return request.param(DIM, **SMALL, dtype=torch.float64)


def tokens(count=PREFIX + 15, batch=2):
    return torch.randn(batch, count, DIM, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "plain"), [(HyenaAttention1d, Hyena1d), (HyenaAttention2d, Hyena2d)])
def test_without_prefix_tokens_it_is_the_mixer(kind, plain):
    layer = kind(DIM, grid_size=GRID, filter_dim=8, base_grid=4, dtype=torch.float64)
    mixer = plain(DIM, filter_dim=8, base_grid=4, softcap=0.0, dtype=torch.float64)
    mixer.load_state_dict(layer.state_dict())
    x = tokens(15)
    assert torch.equal(layer(x), mixer(x.unflatten(1, GRID)).flatten(1, 2))


def test_each_prefix_token_reads_the_whole_image_and_the_image_reads_each(layer):
    x = tokens(batch=1).requires_grad_()
    y = layer(x)
    for index in range(PREFIX):
        (grad,) = torch.autograd.grad(y[0, index].sum(), x, retain_graph=True)
        assert (grad[0].abs().amax(-1) > 0).all()
    for index in range(PREFIX, y.shape[1]):
        (grad,) = torch.autograd.grad(y[0, index].sum(), x, retain_graph=True)
        assert (grad[0].abs().amax(-1) > 0).all()


def test_the_formula(layer):
    """What the image reads of prefix tokens is added to what it has without them, under each token's own gate."""
    x = tokens()
    y = layer(x)
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    told = sum(layer.prefix_kernel[p] * k[:, p] * v[:, p] for p in range(PREFIX))
    mixed = layer.mix(layer.qkv(x[:, PREFIX:].unflatten(1, GRID))).flatten(1, 2)
    torch.testing.assert_close(y[:, PREFIX:], layer.proj(mixed + q[:, PREFIX:] * told[:, None]))
    heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q[:, :PREFIX], k, v)]
    read = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(y[:, :PREFIX], layer.proj(read))


def test_another_grid_with_the_same_weights(layer):
    layer.set_grid_size((5, 3))
    x = tokens()
    turned = layer(x)
    layer.set_grid_size(GRID)
    assert torch.allclose(layer(x), turned) == (layer.rank == 1)  # a sequence is the same at any width
    layer.set_grid_size(4)
    assert layer(tokens(PREFIX + 16)).shape == (2, PREFIX + 16, DIM)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2 \+ 4 \* 4, 8\), got \(2, 17, 8\)"):
        layer(x)


@pytest.mark.parametrize("mask", [dict(attn_mask=torch.ones(17, 17)), dict(is_causal=True)])
def test_masks_are_refused(layer, mask):
    with pytest.raises(ValueError, match="Hyena takes no mask"):
        layer(tokens(), **mask)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_heads=3), "num_heads must divide dim=8, got 3"),
        (dict(num_prefix_tokens=-1), "num_prefix_tokens must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HyenaAttention2d(DIM, **{**SMALL, **kwargs})


def test_dropout_of_what_prefix_tokens_read():
    layer = HyenaAttention2d(DIM, **SMALL, attn_drop=0.5, dtype=torch.float64)
    x = tokens()
    first, second = layer(x), layer(x)
    assert not torch.equal(first[:, :PREFIX], second[:, :PREFIX])
    torch.testing.assert_close(first[:, PREFIX:], second[:, PREFIX:])
    assert torch.equal(layer.eval()(x), layer(x))


def test_half_precision_and_autocast():
    layer = HyenaAttention2d(DIM, **SMALL)
    x = tokens().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_more_gates_than_attention_has():
    """With three gates the outer ones take attention's weights, and prefix tokens still begin with its output."""
    attention = Attention(DIM, num_heads=2, qkv_bias=True, dtype=torch.float64)
    nn.init.normal_(attention.qkv.bias)
    layer = hyena_from_attention(attention, HyenaAttention1d, GRID, PREFIX, order=3, filter_dim=8)
    x = tokens()
    torch.testing.assert_close(layer(x)[:, :PREFIX], attention(x)[:, :PREFIX])
    assert layer.qkv.weight.shape == (4 * DIM, DIM)


def test_frozen_weights_stay_frozen():
    attention = Attention(DIM, num_heads=2).requires_grad_(False).eval()
    layer = hyena_from_attention(attention, HyenaAttention2d, GRID, PREFIX)
    assert not layer.training
    trained = {name.split(".")[0] for name, p in layer.named_parameters() if p.requires_grad}
    assert trained == {"short_filter", "filter", "skip", "prefix_kernel"}


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("gate", nn.Linear(8, 8), "got gated attention"),
        ("proj", nn.Linear(16, 8), "must have 8 channels together, got 16"),
        ("num_kv_groups", 2, "as many keys as queries, got 2 queries for each"),
    ],
)
def test_attention_that_cannot_be_replaced(part, value, message):
    attention = Attention(8, num_heads=2)
    assert why_not_hyena(attention) is None
    setattr(attention, part, value)
    assert message in why_not_hyena(attention)
    assert "got torch.nn.modules.activation.MultiheadAttention" in why_not_hyena(nn.MultiheadAttention(8, 2))


def test_adapters_must_be_merged_first():
    attention = Attention(8, num_heads=2)
    torch.nn.utils.parametrizations.weight_norm(attention.qkv)
    assert "its qkv must be an untouched nn.Linear" in why_not_hyena(attention)


def test_through_the_argument_of_timm():
    """Instances are of the mixer's class, so they pickle; weights begin as a mixer's."""
    given = attn_layer("hyena2d", grid_size=4, num_prefix_tokens=1, filter_dim=8)
    settings = dict(img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=2, num_classes=3)
    model = timm.create_model("vit_tiny_patch16_224", attn_layer=given, qk_norm=True, scale_attn_norm=True, **settings)
    layer = model.blocks[1].attn
    assert type(layer) is HyenaAttention2d and type(layer.q_norm) is type(layer.out_norm) is type(model.norm)
    torch.testing.assert_close(layer.qkv.weight.std(), torch.tensor(32**-0.5), rtol=0.1, atol=0)
    x = torch.randn(2, 3, 32, 32)
    logits = model(x)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), logits)
    with pytest.raises(ValueError, match="mixer must be one of .* got 'attention'"):
        attn_layer("attention", grid_size=4, num_prefix_tokens=1)


class _Pair(nn.Module):
    """Two layers; one head reads the prefix token, one each token of the image."""

    def __init__(self):
        super().__init__()
        make = partial(HyenaAttention2d, 16, 2, grid_size=4, num_prefix_tokens=1, filter_dim=8)
        self.embed = nn.Embedding(4, 16)
        self.norms, self.mixers = nn.ModuleList(nn.LayerNorm(16) for _ in "12"), nn.ModuleList(make() for _ in "12")
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in "12")
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        x = self.embed(x)
        for norm, mixer, mlp in zip(self.norms, self.mixers, self.mlps, strict=True):
            x = x + mixer(norm(x))
            x = x + mlp(x)
        return self.head(x).squeeze(-1)


def test_both_directions_are_of_use_after_training(monkeypatch):
    """The prefix token says which of two colours most tokens have, each token whether it has the prefix token's bit."""

    def draw(count):
        share = torch.rand(count, 1)
        bits = (torch.rand(count, 16) < share).long()
        bits = bits[bits.sum(1) != 8]
        own = torch.randint(2, (len(bits), 1))
        majority, same = (bits.sum(1, keepdim=True) > 8).float(), (bits == own).float()
        return torch.cat([own + 2, bits], 1), torch.cat([majority, same], 1)

    def accuracy():
        with torch.no_grad():
            right = ((model(x) > 0) == (y > 0.5)).float()
        return right[:, 0].mean().item(), right[:, 1:].mean().item()

    model = _Pair()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        x, y = draw(64)
        logits = model(x)
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], y[:, 0])
        loss = loss + F.binary_cross_entropy_with_logits(logits[:, 1:], y[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    x, y = draw(512)
    prefix, image = accuracy()
    assert prefix > 0.9 and image > 0.95
    with monkeypatch.context() as context:
        read = HyenaAttention2d._read
        context.setattr(HyenaAttention2d, "_read", lambda *args: 0 * read(*args))
        deaf, _ = accuracy()
    assert deaf < prefix - 0.2
    for mixer in model.mixers:
        nn.init.zeros_(mixer.prefix_kernel)
    _, deaf = accuracy()
    assert deaf < image - 0.2
