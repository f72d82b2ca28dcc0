import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible():
    """Same random numbers for every test, and one thread: tests that need more set it themselves."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nan_filled_empties():
    """Memory that an operator allocates and does not write holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
