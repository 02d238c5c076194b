"""Fails where pytest skipped a test for a reason that continuous integration must not have.

`python .ci/skips.py LOG`, LOG being what `pytest -rs` printed. A library that is missing
there would otherwise turn a whole file of tests into one green 's'.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ALLOWED = (
    r"(node|browser|chromium|chromedriver)",  # where the distribution has none
    r"(CUDA|GPU)",  # the tests of a real card
    r"not (here|beside this checkout)",  # documents beside the repository
    r"this (transformers|bitsandbytes|peft|trl) has no",  # an architecture, a kernel of another version
    r"Linux's prctl",
)
SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] (\S+?): (.*)$", re.MULTILINE)


def allowed(reason: str) -> bool:
    return "could not import" not in reason and any(re.search(pattern, reason) for pattern in ALLOWED)


def wrong(log: str) -> list[str]:
    """The lines of skipped tests whose reason is not among ALLOWED; one of its own where the log has no
    summary to read.
    """
    found = [match.group(0) for match in SKIPPED.finditer(log) if not allowed(match.group(3))]
    counted = re.search(r"(\d+) skipped", log)
    listed = sum(int(match.group(1)) for match in SKIPPED.finditer(log))
    if not re.search(r"\d+ passed", log) or (counted is not None and int(counted.group(1)) != listed):
        found.append(
            f"the log lists {listed} skipped tests, pytest counts "
            f"{counted.group(1) if counted else 'none'}: run it with -rs"
        )
    return found


if __name__ == "__main__":
    lines = wrong(Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace"))
    print("\n".join(lines) or "no test was skipped without a reason that is allowed")
    sys.exit(bool(lines))
