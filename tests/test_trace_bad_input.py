"""What a user can get wrong with --engine trace: exit 2, the library's reason in one line, and no code of a
repository ever runs.
"""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from memplan.cli.main import main  # noqa: E402
from memplan.planner.run import extras  # noqa: E402

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}


def written(folder, name, document):
    path = folder / name
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def run(tmp_path, capsys):
    """run(config, *options, adapter=None) -> (exit code, standard error) of a traced plan."""

    def run(config, *options, adapter=None):
        more = ("--adapter", written(tmp_path, "adapter_config.json", adapter)) if adapter else ()
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    written(tmp_path, "config.json", config),
                    "--engine",
                    "trace",
                    "--seq",
                    "16",
                    *options,
                    *more,
                ]
            )
        return ended.value.code, capsys.readouterr().err.strip()

    return run


MISTAKES = {
    "unknown architecture": ({**LLAMA, "model_type": "lama"}, (), None, "llama"),
    "not a language model": ({"model_type": "vit", "architectures": ["ViTModel"]}, (), None, "vit"),
    "rejected by transformers": ({**LLAMA, "num_attention_heads": 5}, (), None, "5"),
    "a value of the wrong type": ({**LLAMA, "hidden_size": "wide"}, (), None, "hidden_size"),
    "a rope that does not exist": (
        {**LLAMA, "rope_parameters": {"rope_type": "no-such", "rope_theta": 1e4}},
        (),
        None,
        "KeyError 'no-such'",
    ),
    "targets that match nothing": (LLAMA, (), {**LORA, "target_modules": ["no_such_proj"]}, "no_such_proj"),
    "a target that is no module": (LLAMA, ("--targets", "no_such_proj"), None, "no_such_proj"),
    "an unknown peft_type": (LLAMA, (), {**LORA, "peft_type": "LORAA"}, "did you mean lora"),
    "a rank that peft rejects": (LLAMA, (), {**LORA, "r": 0}, "r"),
    "an adapter without a type": (LLAMA, (), {"r": 4}, "peft_type"),
    "a method for other models": (
        {
            "model_type": "mamba2",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 16,
            "vocab_size": 128,
            "n_groups": 1,
            "state_size": 8,
        },
        ("--method", "lora"),
        None,
        "Mamba",
    ),
    "attention that the GPU has not": (
        LLAMA,
        ("--attention", "sdpa-flash", "--gpu", "t4"),
        None,
        "sdpa-flash",
    ),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_ends_with_exit_2_and_one_line(mistake, run):
    config, options, adapter, word = MISTAKES[mistake]
    code, message = run(config, *options, adapter=adapter)
    assert code == 2, message
    assert (
        len(message.splitlines()) == 1
        and word in message
        and "Traceback" not in message
        and len(message) < 600
    )


@pytest.mark.parametrize("missing", ["torch", "transformers", "peft", "bitsandbytes"])
def test_a_missing_library_names_the_install_command(missing, run, monkeypatch):
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else found(name))
    code, message = run(LLAMA, "--method", "qlora")
    assert (
        code == 2
        and missing in message
        and "pip install 'memplan[trace]'" in message
        and len(message.splitlines()) == 1
    )


def test_a_repository_s_own_code_never_runs(tmp_path, run):
    """`auto_map` names code beside the config; transformers would offer to run it, memplan reads the
    architecture that it knows.
    """
    ran = tmp_path / "ran"
    (tmp_path / "modeling_mine.py").write_text(
        f"open({str(ran)!r}, 'w').write('ran')\nclass Mine: ...\nclass MineConfig: ...\n"
    )
    mapped = {
        "auto_map": {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}
    }
    code, message = run({**LLAMA, **mapped}, "--method", "lora")
    assert code == 0, message
    assert run({"model_type": "mine", "architectures": ["Mine"], **mapped})[0] == 2
    assert not ran.exists()


def test_no_source_line_trusts_remote_code():
    from pathlib import Path

    root = Path(__file__).parents[1]
    sources = [
        path
        for part in ("planner", "profiler", "validate", "memplan")
        for path in (root / part).rglob("*.py")
    ]
    assert len(sources) > 50
    assert not [path.name for path in sources if "trust_remote_code=True" in path.read_text()]
