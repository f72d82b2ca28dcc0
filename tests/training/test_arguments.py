import json
import pickle
import re
from pathlib import Path

import pytest

from hyena_vision.training.arguments import LEFT_OUT, RENAMED, RETIRED, Arguments, create_parser

TIMM = json.loads((Path(__file__).parent / "data" / "timm_flags.json").read_text())["flags"]
DOCS = (Path(__file__).parents[2] / "docs" / "training_flags.md").read_text()
# Flags of a newer timm than the facts are from
NEWER = {"stop_epoch", "save_epochs", "pretrained_cfg_overlay", "lr_decay_fn", "lr_stable_timescale"}


@pytest.fixture(scope="module")
def actions():
    return {action.dest: action for action in create_parser()._actions if action.dest != "help"}


@pytest.fixture(scope="module")
def documented(actions):
    """Flags of the page by section, each with its note: what differs from timm."""
    sections, seen = {}, set()
    for section in DOCS.split("## Retired keys")[0].split("\n## ")[1:]:
        rows = sections[section.splitlines()[0]] = {}
        for flags, note in re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.M):
            flags = re.findall("`(.*?)`", flags)
            dest = next((flag for flag in flags if flag.startswith("--")), flags[0]).lstrip("-").replace("-", "_")
            assert dest not in seen and flags == (list(actions[dest].option_strings) or [dest])
            seen.add(dest)
            rows[dest] = note
    return sections


def test_every_flag_of_timm_is_here_with_its_names_and_default(actions):
    assert len(TIMM) > 170
    for flag in TIMM:
        action = actions[flag["dest"]]
        ours = {"flags": list(action.option_strings), "nargs": action.nargs, "default": action.default}
        assert ours == {name: flag[name] for name in ours}, flag["dest"]


def test_every_flag_of_timm_has_a_type_that_takes_timms_values(actions):
    for flag in TIMM:
        kind = actions[flag["dest"]].type or str
        kind = getattr(kind, "__annotations__", {}).get("return", kind)  # of those with a range
        assert kind.__name__ == (flag["type"] or "str"), flag["dest"]


def test_the_facts_about_timm_are_about_all_our_other_flags(actions):
    parser = create_parser()
    titles = ("Beyond timm's trainer", "Conversion of attention into Hyena")
    groups = [group for group in parser._action_groups if group.title in titles]
    ours = {action.dest for group in groups for action in group._group_actions}
    assert set(actions) == {flag["dest"] for flag in TIMM} | ours | NEWER
    assert not ours & {flag["dest"] for flag in TIMM}


def test_documented_differences_are_those_of_the_parser(actions, documented):
    timm = {flag["dest"] for flag in TIMM}
    left_out, no_effect, different, added, newer = documented.values()
    assert list(documented) == ["Left out", "No effect", "Different", "Added", "Newer than timm 1.0.29"]
    assert left_out.keys() == set(LEFT_OUT) | {dest for dest in timm if dest.startswith("naflex_")}
    assert no_effect.keys() == {dest for dest, action in actions.items() if "no effect" in (action.help or "")}
    assert added.keys() == actions.keys() - timm - NEWER and newer.keys() == NEWER
    assert different.keys() <= timm
    for rows in documented.values():
        for flag in re.findall("`--(.*?)`", " ".join(rows.values())):
            assert flag.replace("-", "_") in actions, flag


def test_every_flag_of_timm_is_accepted_with_its_default():
    parser, given = create_parser(), 0
    for flag in TIMM:
        if flag["default"] in (None, [], {}) or flag["default"] is False:  # by not giving it
            continue
        values = flag["default"] if isinstance(flag["default"], list) else [flag["default"]]
        for name in flag["flags"]:
            assert getattr(parser.parse_args([name, *map(str, values)]), flag["dest"]) == flag["default"], name
            given += 1
    assert given > 80


def test_documented_retired_keys_are_those_that_are_read(actions):
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", DOCS.split("## Retired keys")[1], re.M)
    keys = [re.findall(r"`(\w+)`", cell) for cell in (cell for row in rows for cell in row)]
    renamed = {
        old: new
        for olds, news in zip(keys[::2], keys[1::2], strict=True)
        if news
        for old, new in zip(olds, news * len(olds) if len(news) == 1 else news, strict=True)
    }
    assert renamed == RENAMED
    assert {key for olds, news in zip(keys[::2], keys[1::2], strict=True) if not news for key in olds} == set(RETIRED)
    assert not (RENAMED.keys() | RETIRED.keys()) & actions.keys()
    assert set(RENAMED.values()) <= actions.keys()


def test_every_flag_has_a_help_text(actions):
    without = {dest for dest, action in actions.items() if not action.help}
    assert without <= {dest for dest in actions if dest.startswith("naflex_")}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--head-init-bias", "-6.9"], {"head_init_bias": -6.9}),
        (["--save-epochs", "100", "200", "--stop-epoch", "50"], {"save_epochs": [100, 200], "stop_epoch": 50}),
        (
            ["--pretrained-cfg-overlay", "num_classes=10", "url="],
            {"pretrained_cfg_overlay": {"num_classes": 10, "url": ""}},
        ),
        (["--train-steps-per-epoch", "7"], {"train_batches_per_epoch": 7}),
        (["--local_rank", "3", "-vb", "8", "-j", "0", "--dr", "0.5"], {"local_rank": 3, "validation_batch_size": 8}),
        (["--torchcompile", "--torchcompile-mode", "default"], {"torchcompile": "inductor"}),
        (["--dist-bn", "", "--lr-base-scale", "", "--train-interpolation", ""], {"dist_bn": "", "lr_base_scale": ""}),
        (["--eval", "a.pth", "--eval-metric", "loss"], {"eval": "a.pth", "eval_metric": "loss"}),
        (["DIR", "--wandb-tags", "a", "b", "--fsdp"], {"data": "DIR", "wandb_tags": ["a", "b"], "fsdp": True}),
    ],
)
def test_values_on_the_command_line(argv, expected):
    args = vars(create_parser().parse_args(argv))
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--bacth-size", "4"], ["--bacth-size", "did you mean --batch-size?"]),
        (["--model-kwargs", "depth"], ["--model-kwargs", "key=value", "'depth'"]),
        (["--epochs", "0"], ["--epochs", "at least 1", "0"]),
        (["--save-epochs", "3", "0"], ["--save-epochs", "at least 1", "0"]),
        (["--aug-splits", "-1"], ["--aug-splits", "at least 0", "-1"]),
        (["--nonfinite-limit", "0"], ["--nonfinite-limit", "at least 1", "0"]),
        (["--on-nonfinite", "ignore"], ["--on-nonfinite", "'ignore'", "stop", "skip"]),
        (["--on-bad-image", "ignore"], ["--on-bad-image", "'ignore'", "stop", "skip"]),
        (["--dist-bn", "sum"], ["--dist-bn", "'sum'", "reduce", "broadcast"]),
        (["--kd-loss-type", "mse"], ["--kd-loss-type", "'mse'", "kl"]),
        (["--variable-batch-loss-scale", "cubic"], ["--variable-batch-loss-scale", "'cubic'", "sqrt"]),
        (["--eval"], ["--eval", "expected one argument"]),
        (["-c"], ["--config", "expected one argument"]),
    ],
)
def test_wrong_argument_is_one_line(capsys, argv, fragments):
    with pytest.raises(SystemExit) as stopped:
        create_parser().parse_args(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1
    for fragment in fragments:
        assert fragment in lines[0], lines[0]


def test_help_prints_all_groups(capsys):
    with pytest.raises(SystemExit) as stopped:
        create_parser().parse_args(["--help"])
    assert stopped.value.code == 0
    assert "Beyond timm's trainer" in capsys.readouterr().out


@pytest.mark.parametrize("prog", ["train_imagenet.py", "hyena_vision.train"])
def test_first_screen_of_help_is_what_a_beginner_needs(prog):
    parser = create_parser(prog)
    text = parser.format_help()
    screen = text.splitlines()[:45]
    assert not any(line.startswith("usage") for line in text.splitlines())
    first = " ".join(screen[: screen.index("all flags, by the groups of timm:")])
    for flag in ("--data-dir", "--model", "--pretrained", "--epochs", "--batch-size", "--resume", "--eval"):
        assert flag in first
    assert "finetune.yaml" in first


def test_can_be_pickled_as_other_processes_need_it():
    args = Arguments(model_kwargs={"depth": 2}, seed=1)
    again = pickle.loads(pickle.dumps(args))
    assert vars(again) == vars(args) and again.model_kwargs == {"depth": 2}
    with pytest.raises(AttributeError):
        again.seed = 2
