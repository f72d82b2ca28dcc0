"""Faults that a person could make, by the part of the package; `tests/faults.py` plants them."""
