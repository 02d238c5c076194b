"""Continuous integration does not pass for want of a library: skips are counted, and only some reasons are
taken.
"""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("skips", Path(__file__).parent.parent / ".ci" / "skips.py")
skips = importlib.util.module_from_spec(spec)
spec.loader.exec_module(skips)

GOOD = (
    "SKIPPED [2] tests/test_report_browser.py:21: chromium and chromium-driver are not installed\n10 "
    "passed, 2 skipped in 3.0s\n"
)


def test_a_missing_browser_may_skip():
    assert skips.wrong(GOOD) == []


def test_a_missing_library_may_not():
    line = (
        "SKIPPED [1] tests/test_trace.py:9: could not import 'transformers': No module named 'transformers'"
    )
    assert skips.wrong(line + "\n" + GOOD.replace("2 skipped", "3 skipped")) == [line]


def test_skips_that_the_log_does_not_list_are_wrong():
    assert skips.wrong("10 passed, 4 skipped in 3.0s") and skips.wrong("pytest did not get so far")
