"""The long convolutions by name, for several test files."""

import pytest

from hyena_vision.ops import cpp_library, long_conv1d, long_conv2d

# Without a compiler the next backend is tested; one that cannot compile the sources is a fault of theirs
_missing = cpp_library.why_not()
needs_cpp = pytest.mark.skipif(_missing is not None and "failed" not in _missing, reason=str(_missing))

OPERATORS = {
    "causal": (long_conv1d, dict(causal=True)),
    "centred": (long_conv1d, dict(causal=False)),
    "linear": (long_conv2d, dict(padding="linear")),
    "circular": (long_conv2d, dict(padding="circular")),
}
