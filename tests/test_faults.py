"""The list of planted faults is true of the code as it is; `faults.py` runs it."""

import faults


def test_each_fault_has_one_place():
    names = [fault.name for fault in faults.FAULTS]
    assert len(set(names)) == len(names)
    wrong = [f.name for f in faults.FAULTS if (faults.ROOT / f.path).read_text().count(f.find) != 1]
    assert not wrong


def test_each_fault_names_tests_that_are_there():
    for fault in faults.FAULTS:
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert f"def {name}" in (faults.ROOT / "tests" / file).read_text(), test
