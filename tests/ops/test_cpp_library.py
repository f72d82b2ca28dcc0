"""The compiled library's folder: what is loaded from it is what was written, by this user."""

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest
import torch
from operators import needs_cpp

from hyena_vision.ops import available_backends
from hyena_vision.ops.cpp import library as cpp_library

pytestmark = needs_cpp


@pytest.fixture
def made(load, tmp_path):
    """The file of a library that was made before."""
    assert load()[1] is None
    (path,) = (path for path in (tmp_path / "cache").rglob("*.so"))
    return path


def one_bit(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


DAMAGES = {
    "truncated": lambda content: content[:-5000],
    "empty": lambda content: b"",
    "one bit": one_bit,
    # It loads, but is another
    "foreign": lambda content: (Path(torch.__file__).parent / "lib" / "libc10.so").read_bytes(),
}


def replace(path, content, mode=0o700):
    """As another process would; the memory of a library that is loaded stays."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(load, made, damage):
    replace(made, DAMAGES[damage](made.read_bytes()))
    library, missing = load()
    assert missing is None and library.hyena_lanes() > 0
    content = made.read_bytes()
    assert hashlib.sha256(content[:-32]).digest() == content[-32:]


def test_a_file_that_others_write_to_is_made_again(load, made):
    replace(made, made.read_bytes(), 0o777)
    assert load()[1] is None and mode_of(made) == 0o700


def test_a_whole_file_is_not_made_again(load, made, monkeypatch):
    monkeypatch.setattr(cpp_library.subprocess, "run", None)
    assert load()[1] is None


def test_a_file_made_where_groups_write_is_still_private(load, tmp_path):
    before = os.umask(0o002)
    try:
        assert load()[1] is None
    finally:
        os.umask(before)
    (path,) = (tmp_path / "cache").rglob("*.so")
    assert mode_of(path) == mode_of(path.parent) == 0o700


def test_a_folder_that_others_write_to_is_not_used(load, made, monkeypatch):
    """What lies there is not loaded, whoever put it there; the library is made for this process alone."""
    made.parent.chmod(0o777)
    replace(made, one_bit(made.read_bytes()))
    before = made.read_bytes()
    library, missing = load()
    assert missing is None and library.hyena_lanes() > 0 and made.read_bytes() == before


def test_a_group_that_writes_to_the_folder_around_changes_nothing(load, made, monkeypatch):
    made.parent.parent.chmod(0o775)
    monkeypatch.setattr(cpp_library.subprocess, "run", None)
    assert load()[1] is None


def test_without_the_functions_the_next_backend_runs(load, monkeypatch):
    """A compiler that makes something else is a reason, not an error in each call."""
    script = 'for last; do :; done; while [ "$1" != -o ]; do shift; done; echo "int f;" | c++ -x c++ -shared -o "$2" -'
    library, missing = load(CXX=f"sh -c '{script}' name")
    assert library is None and "hyena_lanes" in missing
    monkeypatch.setattr(cpp_library, "_load", lambda: (library, missing))
    assert "cpp" not in available_backends() and available_backends(reasons=True)["cpp"] == missing
    assert available_backends(reasons=True)["fft"] is None


def test_nothing_is_read_or_written_under_the_working_directory(tmp_path, monkeypatch):
    """Without HOME and without an entry in the list of users, ~ is a name like any other."""
    planted = tmp_path / "~" / ".cache" / "hyena_vision"
    planted.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("HOME", "XDG_CACHE_HOME", "HYENA_VISION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert cpp_library.cache_folder() is None
    assert list(planted.iterdir()) == []


def test_threads_that_load_at_once(load, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(load())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [missing for _, missing in found] == [None] * 3
    assert len(list((tmp_path / "cache").rglob("*"))) == 2  # the user's folder, and one library


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3, dtype=torch.float64),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, device="meta"),
        torch.ones(3, 2),
        torch.ones(2, 4),
        torch.ones(3, 2).T,
        torch._neg_view(torch.ones(2, 3)),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3).as_subclass(type("Named", (torch.Tensor,), {})),
    ],
    ids=lambda t: f"{type(t).__name__}-{t.dtype}-{tuple(t.shape)}-{t.device}",
)
def test_nothing_else_becomes_an_address(tensor):
    fits = torch.ones(2, 3)
    assert cpp_library.address(fits, torch.float32, (2, 3)) == fits.data_ptr()
    with pytest.raises(RuntimeError, match=r"C\+\+ expects a contiguous tensor \(2, 3\) torch.float32 on the CPU, got"):
        cpp_library.address(tensor, torch.float32, (2, 3))


def test_memory_that_was_given_back_has_no_address():
    tensor = torch.ones(2, 3)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"C\+\+ expects"):
        cpp_library.address(tensor, torch.float32, (2, 3))


def test_the_operator_itself_checks_what_c_plus_plus_would_read():
    """As a graph or a caller of torch.ops may have it, past the checks of the public function."""
    op, x, kernel = torch.ops.hyena_vision.long_conv, torch.ones(1, 16, 4, 4), torch.ones(16, 7, 7)
    assert op(x, kernel, None, None, None, [3, 3], False, "cpp").shape == x.shape
    for wrong in (dict(kernel=kernel[:9]), dict(centre=[7, 3]), dict(centre=[3, -1]), dict(skip=torch.ones(9))):
        given = {"kernel": kernel, "skip": None, "centre": [3, 3], **wrong}
        with pytest.raises(RuntimeError, match="C\\+\\+ expects|displacement 0 must be in the kernel"):
            op(x, given["kernel"], given["skip"], None, None, given["centre"], False, "cpp")


def test_one_function_alone_asks_for_addresses():
    sources = Path(cpp_library.__file__).parent.glob("*.py")
    assert [path.name for path in sources for line in path.read_text().splitlines() if "data_ptr()" in line] == [
        "library.py"
    ]
