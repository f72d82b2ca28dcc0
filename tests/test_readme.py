import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_first_example_runs(capsys):
    example = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert "timm.create_model" in example
    names = {}
    exec(example, names)
    assert names["logits"].shape == (1, 10)
    assert len(names["features"]) == 3
    assert "hyena2d_vit_small" in capsys.readouterr().out


def test_detector_takes_a_training_step():
    text = README.read_text(encoding="utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "FasterRCNN" in code)
    names = {}
    exec(example, names)
    assert len(names["losses"]) == 4 and all(loss.isfinite() for loss in names["losses"].values())
    assert all(p.grad is not None for p in names["detector"].parameters() if p.requires_grad)


def test_table_has_every_model():
    import timm

    import hyena_vision  # noqa: F401  registers the models

    text = README.read_text(encoding="utf-8")
    for name in timm.list_models(module="hyena_vit") + timm.list_models(module="hyena_former"):
        count = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
        assert re.search(rf"\| `{name}` \|.*\| {count / 1e6:.2f} M \|", text), (name, count)
