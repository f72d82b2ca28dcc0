"""The Python blocks of README and docs run, page by page and in order; their tables have every model."""

import re
from pathlib import Path

import pytest
import timm
from PIL import Image

import hyena_vision  # noqa: F401  registers the models
from hyena_vision.training.checkpoint_files import export_model

ROOT = Path(__file__).parent.parent
PAGES = {
    str(p.relative_to(ROOT)): p.read_text("utf-8") for p in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}


def run_blocks(page: str) -> dict:
    """Names that the Python blocks of a page leave."""
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE):
        exec(code, names)
    return names


@pytest.fixture
def shallow(monkeypatch):
    """Return a function that gives arguments to all models that are made: a page's own are of full size."""
    create = timm.create_model

    def shallow(**depth) -> None:
        monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: create(name, **depth, **kwargs))

    return shallow


def test_readme(capsys, shallow):
    shallow(depth=3)
    names = run_blocks("README.md")
    assert names["logits"].shape == (1, 10)
    assert len(names["features"]) == 3
    assert "hyena2d_vit_small" in capsys.readouterr().out


def test_models_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not hasattr(timm.models._hub, "get_model_args"):  # timm before 1.0.31: the page says what to add
        save = timm.models.save_for_hf

        def save_with_arguments(model, folder):
            save(model, folder, model_args=dict(base=model.base, replace=model.replacements, num_classes=10))

        monkeypatch.setattr(timm.models, "save_for_hf", save_with_arguments)
    names = run_blocks("docs/models.md")
    model = names["model"]
    assert model.blocks[0].mixer.order == 3 and model.blocks[0].mixer.short_filter.kernel_size == (5, 5)
    assert [tuple(y.shape) for y in names["maps"]] == [
        (1, 256, 56, 80),
        (1, 256, 28, 40),
        (1, 256, 14, 20),
        (1, 256, 7, 10),
    ]


def test_hyenapixel_page(tmp_path, monkeypatch, shallow):
    """Its detector takes a training step."""
    shallow(depths=[1, 1, 2, 1])
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/hyenapixel.md")
    assert [tuple(y.shape[2:]) for y in names["maps"]] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert len(names["losses"]) == 4 and all(loss.isfinite() for loss in names["losses"].values())
    trained = {id(p) for p in names["body"].parameters() if p.requires_grad}
    assert {id(p) for group in names["groups"] for p in group["params"]} == trained
    assert all(p.grad is not None for p in names["detector"].parameters() if p.requires_grad)


def test_operators_page():
    names = run_blocks("docs/operators.md")
    assert names["y"].shape == names["sequence"].shape and names["tokens"].shape == (2, 14, 20, 8)


def test_training_page(tmp_path, monkeypatch, capsys):
    """Its predictions are printed."""
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("hyena2d_iso_tiny", depth=1, num_classes=3)
    (tmp_path / "output/train/NAME").mkdir(parents=True)
    export_model(model, model.state_dict(), "output/train/NAME", {"depth": 1}, input_size=(3, 24, 24))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 24), "red").save("photos/red.png")
    row = run_blocks("docs/training.md")["row"]
    assert row.file == "photos/red.png" and sum(row.probabilities) == pytest.approx(1)
    assert capsys.readouterr().out.startswith("photos/red.png")


def test_tasks_page():
    names = run_blocks("docs/tasks.md")
    assert names["image"].size == (64, 64) and names["label"] in (0, 1)
    assert names["pixels"].shape == (2, 1, 32, 32) and 0.04 < names["to_beat"] < 0.05


def test_no_page_is_left_out():
    tested = {
        "README.md",
        "docs/models.md",
        "docs/hyenapixel.md",
        "docs/operators.md",
        "docs/training.md",
        "docs/tasks.md",
    }
    tested.add("docs/libraries.md")  # by tests/tools/test_interop.py, which needs libraries
    assert {page for page, text in PAGES.items() if "```python" in text} == tested


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize(
    "page, module",
    [("docs/models.md", "hyena_vit"), ("docs/models.md", "hyena_vit_fpn"), ("docs/hyenapixel.md", "hyena_former")],
)
def test_table_has_every_model(page, module):
    for name in timm.list_models(module=module):
        count = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
        assert re.search(rf"\| `{name}` \|.*\| {count / 1e6:.2f} M \|", PAGES[page]), (name, count)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Files that are there, and headings that the page has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target
