"""Nothing of torch is imported before `pytest_configure` of the folder above has said how."""

import shlex

import pytest


def load_anew(monkeypatch, **environment):
    """Make and load the library as in a new process with an environment; gives it, or why there is none."""
    from hyena_vision.ops.cpp import library as cpp_library

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return cpp_library.load.__wrapped__()


@pytest.fixture(scope="session")
def compiler(tmp_path_factory) -> str:
    """A command that takes no time: it gives what the machine's compiler made once, as quickly as it can."""
    from hyena_vision.ops.cpp import library as cpp_library

    folder = tmp_path_factory.mktemp("compiler")
    with pytest.MonkeyPatch.context() as patch:
        quick = ["-O0" if flag == "-O3" else flag for flag in cpp_library._FLAGS]
        patch.setattr(cpp_library, "_FLAGS", quick)
        library, missing = load_anew(patch, HYENA_VISION_CACHE=str(folder))
    assert missing is None and library.hyena_lanes() > 0
    (made,) = folder.rglob("*.so")
    script = f'while [ "$1" != -o ]; do shift; done; cp {made} "$2"'
    return f"sh -c {shlex.quote(script)} compiler"


@pytest.fixture
def load(monkeypatch, tmp_path, compiler):
    """Return a function that loads as in a new process, from a folder of this test."""

    def load(**environment):
        return load_anew(monkeypatch, **{"HYENA_VISION_CACHE": str(tmp_path / "cache"), "CXX": compiler, **environment})

    return load
