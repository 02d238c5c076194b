"""Every catalog entry equals the model that transformers builds from it on meta: its total, and each tensor's
name and shape where the formula knows the family; and each new entry names its source and agrees with what is
published of it.
"""

import json
import re

import pytest

from memplan.planner.formula.resident.tensors import weight_tensors
from memplan.planner.inputs.families.table import FAMILIES, language_part
from memplan.planner.inputs.models import CATALOG, INDEX, find, index, names
from memplan.planner.tables.errors import UsageError

ENTRIES = sorted(index())
FORMULA = [entry for entry in ENTRIES if find(entry).config["model_type"] in FAMILIES]
WITH_TOWER = [  # a formula family's layers beside a vision tower, which the trace runs too
    entry
    for entry in ENTRIES
    if entry not in FORMULA and language_part(find(entry).config).get("model_type") in FAMILIES
]
TRACED = [entry for entry in ENTRIES if entry not in (*FORMULA, *WITH_TOWER)]

# Totals known outside this project: the counts that model cards and checkpoints' safetensors headers give,
# tied weights once and without multi-token prediction layers; for GPT-3, 12 L H^2 + 13 L H + (V + P + 2) H
# with the paper's sizes.
WELL_KNOWN = {
    "llama-7b": 6_738_415_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2b": 2_506_172_416,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
    "pythia-410m": 405_334_016,
    "gpt-neox-20b": 20_554_567_680,
    "falcon-7b": 6_921_720_704,
    "olmo-2-7b": 7_298_617_344,
    "olmoe-1b-7b": 6_919_161_856,
    "starcoder2-3b": 3_030_371_328,
    "smollm3-3b": 3_075_098_624,
    "gpt-j-6b": 6_050_882_784,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "command-r": 34_980_831_232,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "gpt3-175b": 174_604_259_328,
    "granite-3.3-8b": 8_170_864_640,
    "stablelm-3b": 2_795_443_200,
    "phi-3.5-moe": 41_873_153_344,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "exaone-3.0-7.8b": 7_818_448_896,
    "minimax-m2": 228_689_748_992,
    "nemotron-3-nano-30b-a3b": 31_577_937_344,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "seed-oss-36b": 36_151_104_512,
}

# Where the published total counts what the entry leaves out, as its note says: towers for pictures and sound,
# multi-token prediction.
COUNTS_MORE = {"gemma-4-e2b", "gemma-4-e4b", "llama-4-scout", "glm-4.5-air", "glm-4.5"}


def test_entries_of_every_family_and_of_others():
    assert len(ENTRIES) >= 300 and len(TRACED) >= 75
    assert {find(entry).config["model_type"] for entry in FORMULA} == set(FAMILIES)


def _memplan(entry):
    return json.loads((CATALOG / f"{entry}.json").read_text()).get("memplan", {})


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if "source" in _memplan(entry)])
def test_a_total_is_what_is_published(entry):
    """To the digits of the published number, and never more than 4 %: labels are rounded (48B is 49.1B)."""
    about = _memplan(entry)
    assert re.search(
        r"transformers 5\.24, models/\w+/|[\w-]+/[\w-]+ [0-9a-f]{9}|tests' copy|arXiv [0-9.]+|/[\w/-]+\.\w+",
        about["source"],
    )
    number, unit = re.fullmatch(r"([\d.]+)([BT])", about["published"]).groups()
    digit = 10.0 ** -len(number.partition(".")[2])
    published, half = float(number), digit / 2
    total = index()[entry]["parameters"] / {"B": 1e9, "T": 1e12}[unit]
    slack = max(half, published * 0.04)
    low = published * 0.85 if entry in COUNTS_MORE else published - slack
    assert low <= total <= published + slack


@pytest.mark.parametrize("entry", TRACED)
def test_an_entry_that_the_formula_lacks_says_what_answers_it(entry):
    with pytest.raises(UsageError, match="use --engine trace"):
        find(entry).spec()


def test_every_file_is_in_the_index_and_the_other_way_round():
    assert {path.stem for path in CATALOG.glob("*.json")} - {INDEX.removesuffix(".json")} == set(ENTRIES)


@pytest.mark.parametrize("name, total", sorted(WELL_KNOWN.items()))
def test_well_known_totals(name, total):
    assert index()[name]["parameters"] == total
    if name in FORMULA:
        assert find(name).spec().parameters == total


def test_names_are_unique_and_lower_case():
    every = [name.lower() for stem, row in index().items() for name in (stem, *row["ids"], *row["aliases"])]
    assert len(every) == len(set(every))
    assert all(name == name.lower() and " " not in name for name in names())


@pytest.mark.parametrize(
    "alias, expected",
    [
        ("llama-30b", "llama-33b"),
        ("LLaMA_7B", "llama-7b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("qwen/qwen2.5-7b-instruct", "qwen2.5-7b"),
        ("mixtral", "mixtral-8x7b"),
        ("gpt-3", "gpt3-175b"),
        ("facebook/opt-350m", "opt-350m"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
    ],
)
def test_aliases_and_hugging_face_ids_in_any_case(alias, expected):
    assert find(alias).name == expected


@pytest.mark.parametrize("entry", FORMULA)
def test_index_total_and_text(entry):
    model = find(entry)
    assert index()[entry]["parameters"] == model.spec().parameters
    assert "memplan" not in model.config
    assert model.spec().architecture == model.config["architectures"][0]
    assert json.loads((CATALOG / f"{entry}.json").read_text())  # plain JSON: no NaN, no comment


def _built(model):
    """What transformers builds from an entry on meta, without storage, with the towers that it names."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    keys = {key: value for key, value in model.config.items() if key not in ("model_type", "dtype")}
    config = transformers.AutoConfig.for_model(model.config["model_type"], **keys)
    named = getattr(transformers, model.config["architectures"][0])
    with torch.device("meta"):
        return named(config)


@pytest.mark.trace
@pytest.mark.parametrize("entry", FORMULA)
def test_every_tensor_equals_the_meta_device_model(entry):
    model = find(entry)
    real, spec = _built(model), model.spec()
    held = [*real.named_parameters(remove_duplicate=False), *real.named_buffers()]
    described = {name: shape for tensor in weight_tensors(spec) for name, shape in tensor.each()}
    assert described == {name: tuple(tensor.shape) for name, tensor in held}
    total = sum(parameter.numel() for parameter in real.parameters())
    assert spec.parameters == total
    assert total == sum(
        t.elements * t.count for t in weight_tensors(spec) if t.role != "buffer" and t.tied_to is None
    )
    assert spec.architecture == type(real).__name__


@pytest.mark.trace
@pytest.mark.parametrize("entry", [*TRACED, *WITH_TOWER])
def test_every_total_equals_the_meta_device_model(entry):
    real = _built(find(entry))
    assert sum(parameter.numel() for parameter in real.parameters()) == index()[entry]["parameters"]
    assert find(entry).config["architectures"] == [type(real).__name__]


@pytest.mark.parametrize("entry", WITH_TOWER)
def test_an_entry_with_a_tower_counts_it_or_says_so(entry):
    """The formula's tensors are the whole model, or the spec says that a part is not counted."""
    spec = find(entry).spec()
    counted = sum(
        t.elements * t.count for t in weight_tensors(spec) if t.role != "buffer" and t.tied_to is None
    )
    assert spec.uncounted
    assert counted == index()[entry]["parameters"] or "or audio part of" in spec.uncounted
