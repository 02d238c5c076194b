"""Which architectures of transformers trace to the byte: a tiny config of each, traced and run for real on
the CPU.

    python benchmarks/architectures.py [MODEL_TYPE ...]

Compared after two steps of full fine-tuning in float32: the bytes of parameters and buffers by name, of
gradients, of optimizer states, and the sizes of every storage that the forward saves for backward. No code of
ours is for any one of them (configs: the tests').
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main(names: list[str]) -> None:
    import torch
    from conftest import real, traced
    from test_trace_architectures import ARCHITECTURES, DATA_DEPENDENT, VISION_LANGUAGE, config_of, setup_of
    from transformers import CONFIG_MAPPING

    torch.set_num_threads(1)
    equal, differing, setup = [], {}, setup_of("full")
    for name in names or ARCHITECTURES:
        if name not in CONFIG_MAPPING:
            differing[name] = "not in this transformers"
            continue
        config = config_of(name)
        found = traced(config, setup).differences(real(config, setup))
        if found:
            differing[name] = str(found)
        else:
            equal.append(name)
    seen = sum(name in VISION_LANGUAGE for name in equal)
    print(
        f"{len(equal)} architectures are equal to the byte ({seen} of them vision-language models, trained "
        "on text):"
    )
    print(textwrap.fill(" ".join(equal), 120))
    for name, why in differing.items():
        print(f"differs: {name}: {why}")
    print(f"refused, their shapes depend on values: {', '.join(sorted(DATA_DEPENDENT))}")


if __name__ == "__main__":
    main(sys.argv[1:])
