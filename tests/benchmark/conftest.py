import pytest


@pytest.fixture(autouse=True)
def _short_readings(monkeypatch):
    """One call each: that more of them fill a reading is a matter of test_timing.py, which sets how long it is."""
    from hyena_vision.benchmark import timing  # not before tests/conftest.py has set up the process

    monkeypatch.setattr(timing, "LEAST_SECONDS", 0)
