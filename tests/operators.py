"""The long convolutions by name, for several test files."""

import pytest

from hyena_vision.ops import cpp_library, long_conv1d, long_conv2d

needs_cpp = pytest.mark.skipif(cpp_library.why_not() is not None, reason=str(cpp_library.why_not()))

OPERATORS = {
    "causal": (long_conv1d, dict(causal=True)),
    "centred": (long_conv1d, dict(causal=False)),
    "linear": (long_conv2d, dict(padding="linear")),
    "circular": (long_conv2d, dict(padding="circular")),
}
