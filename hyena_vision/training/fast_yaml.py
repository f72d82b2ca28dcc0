"""Plain values as YAML, read and written in C where PyYAML was built with it: many times as fast."""

from typing import Any, TextIO

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(text: str | TextIO) -> Any:
    """Return what a YAML text or file holds.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return yaml.load(text, Loader=_LOADER)


def dump(value: Any) -> str:
    """Return plain values as YAML."""
    return yaml.dump(value, Dumper=_DUMPER)
