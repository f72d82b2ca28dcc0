"""Tables of backends: what they choose, that calls follow them, and that none that does not fit is believed."""

import json
from dataclasses import replace

import pytest
import torch
from mixers import MIXERS
from torch import nn

from hyena_vision.ops import backend_table, gated_short_filter, long_conv2d, prepare_kernel2d, table
from hyena_vision.ops.backends import BACKENDS, select
from hyena_vision.ops.table import BackendTable, Card, Row, card_of, current_versions, tile_of, write_table
from hyena_vision.ops.triton.half_frequency import make_plan
from hyena_vision.testing import Problem

_skip = pytest.mark.skipif(BACKENDS["triton"].missing() is not None, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def needs_triton(test):
    """Mark a test that runs fused kernels: on a GPU where there is one."""
    return pytest.mark.gpu(_skip(test))


HERE = Card("NVIDIA H100 80GB HBM3", (9, 0))
FAST = Row((14, 14), "float32", "training", 1.0, 2.0)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """No table of the user's, and none that another test has read."""
    monkeypatch.setenv("HYENA_VISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(table.SWITCH, raising=False)
    forget()
    yield
    forget()


def forget():
    table.forget_tables()
    torch.compiler.reset()


def made(*rows, card=HERE):
    return BackendTable(card, rows, tuple(current_versions().items()))


@pytest.fixture
def follow(monkeypatch, tmp_path):
    """Return a function that makes the calls of this process follow a table with these rows."""

    def follow(*rows):
        path = tmp_path / "followed.json"
        write_table(made(*rows, card=card_of(DEVICE)), path)
        monkeypatch.setenv(table.SWITCH, str(path))
        forget()

    return follow


def test_triton_is_taken_where_it_was_right_and_at_least_as_fast():
    assert FAST.backend == "triton" and replace(FAST, triton_ms=2.0).backend == "triton"
    assert replace(FAST, triton_ms=2.1).backend == "fft"
    assert replace(FAST, wrong="dx: relative RMS 1e-2").backend == "fft"
    assert replace(FAST, triton_ms=None).backend == "fft" and replace(FAST, fft_ms=None).backend == "fft"


def picked(rows, size, dtype="float32", use="training"):
    for ranges, taken in made(*rows).covers(len(size), dtype, use):
        if all(low < n <= high for (low, high), n in zip(ranges, size, strict=True)):
            return taken
    return None


def test_a_row_stands_for_the_sizes_of_its_tile():
    rows = [replace(FAST, size=(28, 28)), replace(FAST, size=(24, 24), triton_ms=3.0), FAST]
    assert [picked(rows, (n, n)) for n in (9, 10, 14, 16, 17, 24, 25, 28, 32, 33)] == [
        None, True, True, True, False, False, True, True, True, None,
    ]  # fmt: skip
    assert picked(rows, (24, 28)) is True and picked(rows, (14, 28)) is None
    assert picked(rows, (14,)) is picked(rows, (14, 14), "bfloat16") is picked(rows, (14, 14), use="prepared") is None
    rectangle = [replace(FAST, size=(14, 28))]
    assert picked(rectangle, (10, 30)) is True and picked(rectangle, (28, 14)) is None
    sequence = [replace(FAST, size=(196,))]
    assert [picked(sequence, (n,)) for n in (97, 98, 256, 257)] == [None, True, True, None]


def test_sizes_of_a_tile_share_a_tile_of_the_kernels():
    for n in range(1, 257):
        same = {
            tile_of(m, 2) == tile_of(n, 2)
            for m in range(1, 257)
            if make_plan((m, 5), False)[1] == make_plan((n, 5), False)[1]
        }
        assert same == {True}
    tiles = {}
    for n in [*range(1, 1100), 4096, 4097, 16384, 16385, 65536]:
        tiles.setdefault(tile_of(n, 1), set()).add(make_plan((n,), False)[1:])
    assert all(len(plans) == 1 for plans in tiles.values()) and len(tiles) == len(set(map(frozenset, tiles.values())))


def test_a_table_prints_for_people_and_comes_back(tmp_path):
    rows = FAST, replace(FAST, size=(196,), use="prepared", triton_ms=None, wrong="y: relative RMS 2e-2")
    written = write_table(made(*rows), tmp_path / "new" / "table.json")
    assert table.read_table(written.source, HERE) == written
    text = str(written)
    assert "NVIDIA H100 80GB HBM3 (sm_90)" in text and f"torch {torch.__version__}" in text
    lines = text.splitlines()
    assert lines[2].split() == ["14x14", "float32", "training", "1.0000", "2.0000", "2.00", "triton"]
    assert lines[3].split(maxsplit=6) == ["196", "float32", "prepared", "-", "2.0000", "-", "fft: y: relative RMS 2e-2"]
    assert "tune" in str(BackendTable(HERE)) and "no table" in str(BackendTable(None))


def test_equal_choices_have_equal_names():
    assert made(FAST).choices == made(replace(FAST, fft_ms=9.0)).choices != made().choices
    assert made(replace(FAST, fft_ms=0.1)).choices == made().choices == "fft"


def problem(size=(14, 14), dtype=torch.float32, **changes):
    given = Problem(size, tuple(2 * n - 1 for n in size), 2, 2, **changes)
    return [t.requires_grad_() for t in given.tensors(dtype, DEVICE)]


@needs_triton
def test_calls_follow_the_table(follow):
    ordinary = select(None, *problem()[:2]).name
    follow(FAST, replace(FAST, size=(24, 24), triton_ms=3.0), replace(FAST, size=(14, 14), use="prepared"))
    assert backend_table(DEVICE).choices.startswith("triton-")

    def backend_of(size=(14, 14), dtype=torch.float32, use="training", **settings):
        return select(None, *problem(size, dtype)[:2], use=use, **settings).name

    assert backend_of() == backend_of((10, 16)) == backend_of(use="prepared") == "triton"
    assert {backend_of((9, 16)), backend_of((10, 17))} == {ordinary}
    assert {backend_of((24, 24)), backend_of((100, 100)), backend_of((14,)), backend_of(use="inference")} == {ordinary}
    assert {backend_of(circular=True), backend_of(use=None), backend_of(dtype=torch.bfloat16)} == {ordinary}
    assert backend_of(dtype=torch.float64) != "triton"
    x, kernel, _ = problem(per_sample=True)
    assert select(None, x, kernel, use="training").name == ordinary
    x, kernel, skip = problem()
    assert long_conv2d(x, kernel, skip).grad_fn is not None
    assert torch.equal(long_conv2d(x, kernel, skip), long_conv2d(x, kernel, skip, backend="triton"))
    with torch.no_grad():
        assert torch.equal(long_conv2d(x, kernel, skip), long_conv2d(x, kernel, skip, backend=ordinary))
    assert prepare_kernel2d(x, kernel, skip).backend == "triton"
    # Gates of another dtype are of no row
    assert torch.equal(
        long_conv2d(x, kernel, skip, gate=x.bfloat16()),
        long_conv2d(x, kernel, skip, gate=x.bfloat16(), backend=ordinary),
    )


@needs_triton
def test_a_table_that_cannot_be_followed_is_not(follow, monkeypatch):
    """Kernels that this call or this machine does not have."""
    follow(FAST, replace(FAST, size=(300, 300)), replace(FAST, size=(14,)))
    x, kernel, _ = problem((300, 300))
    assert select(None, x[:1, :1], kernel[:1], use="training").name != "triton"
    exported = torch.export.export(Convolution(), (problem()[0].detach(), problem()[1].detach()))
    assert not any("hyena_vision" in str(node.target) for node in exported.graph.nodes)
    monkeypatch.setattr("hyena_vision.ops.backends._HAS_TRITON", False)
    assert select(None, *problem()[:2], use="training").name != "triton"


class Convolution(nn.Module):
    def forward(self, x, kernel):
        return long_conv2d(x, kernel)


@needs_triton
def test_short_filters_follow_the_table(follow, monkeypatch):
    from hyena_vision.ops.triton import short_filter as short_filter_triton

    launched, original = [], short_filter_triton.gated_short_filter
    monkeypatch.setattr(short_filter_triton, "gated_short_filter", lambda *args: launched.append(1) or original(*args))
    x, weight = torch.randn(1, 4, 5, 6, device=DEVICE), torch.randn(6, 1, 3, 3, device=DEVICE, requires_grad=True)
    gated_short_filter(x, weight, signals=3)
    assert not launched
    follow(replace(FAST, size=(4, 5)))
    gated_short_filter(x, weight, signals=3)
    assert launched == [1]
    with torch.no_grad():
        gated_short_filter(x, weight, signals=3)  # of training alone there is a row
    gated_short_filter(x, torch.randn(6, 1, 9, 9, device=DEVICE, requires_grad=True), signals=3)  # too many taps
    gated_short_filter(x.bfloat16(), weight, signals=3)
    assert launched == [1]


ROWS = [replace(FAST, size=size, use=use) for size in ((4, 5), (20,)) for use in table.USES]


def gradients(mixer, x):
    mixer.zero_grad()
    y = mixer(x)
    y.square().sum().backward()
    return [y, *(parameter.grad for parameter in mixer.parameters())]


@needs_triton
@pytest.mark.parametrize("name", ["1d", "2d"])
def test_mixers_follow_the_table(name, follow):
    """Training, inference, and with kept kernels: bit by bit as with the backend by name."""
    by_name, mixer = MIXERS[name](backend="triton").float().to(DEVICE), MIXERS[name]().float().to(DEVICE)
    mixer.load_state_dict(by_name.state_dict())
    x = torch.randn(1, 4, 5, 6, device=DEVICE)
    plain = mixer(x)
    follow(*ROWS)
    for given, expected in zip(gradients(mixer, x), gradients(by_name, x), strict=True):
        assert torch.equal(given, expected)
    assert not torch.equal(mixer(x), plain)
    for module in (mixer, by_name):
        module.eval()
    with torch.no_grad():
        assert torch.equal(mixer(x), by_name(x))
        for module in (mixer, by_name):
            module.reparameterize()
        assert torch.equal(mixer(x), by_name(x))
        assert [kernel.backend for entry in mixer.kept.entries.values() for kernel in entry.kernels] == ["triton"]


@needs_triton
def test_compiled_code_follows_the_table(follow):
    follow(*ROWS)
    graphs = []

    def keep(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    mixer = MIXERS["2d"]().float().to(DEVICE)
    compiled = torch.compile(mixer, backend=keep, dynamic=True, fullgraph=True)
    x = torch.randn(1, 4, 5, 6, device=DEVICE)
    torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-4, atol=1e-5)
    assert "triton" in graphs[-1] and "gated_short_filter" in graphs[-1]
    x = torch.randn(1, 4, 20, 6, device=DEVICE)
    torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-4, atol=1e-5)
    assert "triton" not in graphs[-1]


DAMAGES = {
    "not json": lambda text: text[:-20],
    "a list": lambda text: "[]",
    "no card": lambda text: text.replace('"card"', '"cart"'),
    "no versions": lambda text: text.replace('"versions"', '"version"'),
    "a size of zero": lambda text: text.replace("14,", "0,", 1),
    "a size that is text": lambda text: text.replace("14,", '"14",', 1),
    "three axes": lambda text: text.replace("14,", "14, 14,", 1),
    "no time": lambda text: text.replace(": 1.0", ": NaN"),
    "a negative time": lambda text: text.replace(": 2.0", ": -2.0"),
    "another use": lambda text: text.replace('"training"', '"evaluation"'),
    "another dtype": lambda text: text.replace('"float32"', '"float33"'),
    "a time that is text": lambda text: text.replace(": 2.0", ': "2.0"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables_are_ignored_with_a_line(damage, monkeypatch, caplog):
    monkeypatch.setattr(table, "INTERPRETED", False)
    path = table.cache_path(HERE)
    write_table(made(FAST), path)
    text = path.read_text()
    assert table.table_of(HERE).rows == (FAST,)
    assert DAMAGES[damage](text) != text
    path.write_text(DAMAGES[damage](text))
    forget()
    for _ in range(2):
        assert table.table_of(HERE).rows == ()
    (message,) = caplog.messages
    assert str(path) in message and "damaged" in message and "tune" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("card", "NVIDIA A100", ["NVIDIA A100", HERE.name]),
        ("capability", [8, 0], ["(8, 0)", "(9, 0)"]),
        ("torch", "2.6.0", ["2.6.0", torch.__version__]),
        ("triton", "3.1.0", ["triton 3.1.0"]),
        ("kernels", "0123", ["kernels 0123"]),
    ],
)
def test_foreign_and_outdated_tables_are_ignored_with_a_line(key, value, expected, caplog):
    path = table.cache_path(HERE)
    write_table(made(FAST), path)
    content = json.loads(path.read_text())
    (content if key in content else content["versions"])[key] = value
    path.write_text(json.dumps(content))
    assert table.table_of(HERE).rows == ()
    (message,) = caplog.messages
    assert all(text in message for text in expected)


def test_another_patch_release_and_version_of_ours_is_no_other_world():
    path = table.cache_path(HERE)
    write_table(made(FAST), path)
    content = json.loads(path.read_text())
    content["versions"] |= {"torch": ".".join(torch.__version__.split(".")[:2]) + ".9+cu999", "hyena_vision": "9.9.9"}
    path.write_text(json.dumps(content))
    assert table.table_of(HERE).rows == (FAST,)


@needs_triton
def test_no_table_is_one_line_that_names_the_command(monkeypatch, caplog):
    monkeypatch.setattr(table, "INTERPRETED", False)
    for _ in range(2):
        assert table.table_of(HERE).rows == ()
    (message,) = caplog.messages
    assert "python -m hyena_vision.benchmark tune" in message and HERE.name in message
    forget()
    monkeypatch.setattr(table, "find_spec", lambda name: None)  # there is nothing to tune
    assert table.table_of(HERE).rows == () and len(caplog.messages) == 1


def test_the_switch_names_a_file_or_turns_it_off(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(table, "INTERPRETED", False)
    write_table(made(FAST), table.cache_path(HERE))
    monkeypatch.setenv(table.SWITCH, "0")
    assert table.table_of(HERE).rows == () and not caplog.messages
    forget()
    monkeypatch.setenv(table.SWITCH, str(tmp_path / "none.json"))
    assert table.table_of(HERE).rows == ()
    assert len(caplog.messages) == 1 and "none.json" in caplog.messages[0]


def test_tables_of_the_package_count_where_the_user_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "_SHIPPED", tmp_path / "shipped")
    name = table.cache_path(HERE).name
    assert name == "nvidia-h100-80gb-hbm3.json"
    write_table(made(replace(FAST, size=(7, 7))), tmp_path / "shipped" / name)
    assert table.table_of(HERE).rows[0].size == (7, 7)
    forget()
    write_table(made(FAST), table.cache_path(HERE))
    assert table.table_of(HERE).rows[0].size == (14, 14)
    forget()
    table.cache_path(HERE).write_text("{}")
    assert table.table_of(HERE).rows[0].size == (7, 7)


def test_the_choice_stays_for_the_life_of_a_process(follow, monkeypatch, tmp_path):
    follow(FAST)
    before = backend_table(DEVICE)
    write_table(made(card=card_of(DEVICE)), tmp_path / "followed.json")
    assert backend_table(DEVICE) is before
