"""What a piece of Python says of models beside the trained one (trl 1.16: GRPOTrainer, RLOOTrainer,
DistillationTrainer; 1.12: PPOTrainer) and of embeddings (sentence-transformers 6.2: SentenceTransformer and its losses).
"""

from __future__ import annotations

import ast
from typing import Any

from memplan.planner.importers.rules import Facts, KeyReport
from memplan.planner.importers.snippet_rewards import KEY, reported
from memplan.planner.importers.tasks import COMPARED
from memplan.planner.importers.values import Values
from memplan.planner.tables.errors import UsageError, shown

RANKING = {
    "MultipleNegativesRankingLoss": None,
    "CachedMultipleNegativesRankingLoss": 32,
}
"""The losses that task embed has -> their mini_batch_size (cached_multiple_negatives_ranking.py)."""
LONGEST = "max_seq_length"
"""sentence-transformers 6.2 sentence_transformer/model.py max_seq_length: a setter, no argument."""
REWARDED = ("grpo", "rloo")
"""The tasks whose trainers take `reward_funcs`, second; a distillation's takes its teacher there."""
NO_LOSS = KeyReport("loss", "not_modelled", f"a loss other than {' and '.join(RANKING)}")


def _argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def companions(
    call: ast.Call, called: str, task: str | None, values: Values
) -> tuple[Facts, list[KeyReport], list[str]]:
    """The models that a trainer is given beside its own. UsageError for a teacher whose name is not there:
    it may be the model that the script loads first.
    """
    facts: Facts = {}
    keys: list[KeyReport] = []
    if task == "ppo":
        return (*_judges(call, values), [])
    warnings: list[str] = []
    second = next(iter(call.args[1:2]), None)
    rewards = _argument(call, KEY) or (second if task in REWARDED else None)
    if rewards is not None and not {KEY, "reward_model_name_or_path"} & values.given.keys():
        facts, keys, warnings = reported(rewards, values)
    reference = _argument(call, "ref_model") or second
    if task in COMPARED and reference is not None and values.of(reference) is not None:
        facts["_reference"] = True
    teacher = _argument(call, "teacher_model") or (second if task == "distill" else None)
    if teacher is not None and (name := values.of(teacher)) is not None:
        if not isinstance(name, str):
            raise UsageError(
                f"{called}(teacher_model) is {shown(ast.unparse(teacher))}, not a model's name in quotes: write "
                "the name there, or ask without the script: memplan MODEL --task distill --set teacher=TEACHER"
            )
        facts["teacher"] = name
        keys.append(KeyReport("teacher_model", "used", "the model whose distributions are learned"))
    return facts, keys, warnings


def _judges(call: ast.Call, values: Values) -> tuple[Facts, list[KeyReport]]:
    """What PPOTrainer trains, and the models that judge: one whose name is not there is of the policy's size,
    and not counted as what it is.
    """
    facts: Facts = {
        "_evaluated": values.of(_argument(call, "eval_dataset") or ast.Constant(None)) is not None
    }
    keys: list[KeyReport] = []
    for argument, fact in (
        ("model", "_policy"),
        ("reward_model", "reward_model"),
        ("value_model", "value_model"),
    ):
        given = _argument(call, argument)
        name = values.model(given)
        if isinstance(name, str):
            facts[fact] = name
            keys.append(KeyReport(argument, "used", f"PPO's {argument.replace('_', ' ')}"))
        elif given is not None and argument != "model":
            said = shown(ast.unparse(given))
            why = f"{said} is no model's name in quotes: one of the policy's size, --set {argument}=MODEL says it"
            keys.append(KeyReport(argument, "not_modelled", why))
    if values.of(_argument(call, "ref_model") or ast.Constant(None)) is not None:
        facts["_reference"] = True
    return facts, keys


def ranking(called: str, arguments: dict[str, Any]) -> Facts:
    """What a loss of sentence-transformers says: the texts of an example are embedded all at once, or a
    mini-batch of them at a time.
    """
    mini_batch = arguments.get("mini_batch_size", RANKING[called])
    return {"_ranked": True, **({} if mini_batch is None else {"mini_batch": mini_batch})}


def settle_embedding(facts: Facts, keys: list[KeyReport], warnings: list[str], values: Values) -> None:
    """Of a script of sentence-transformers: a loss that task embed lacks is not counted, and how many texts
    an example has is in the data; `model.max_seq_length = N` cuts them.
    """
    ranked, others = facts.pop("_ranked", False), facts.pop("_other_loss", False)
    if facts.get("task") != "embed":
        return
    facts.pop("loss", None)
    if not ranked or others:
        keys.append(NO_LOSS)
    longest = values.setting(LONGEST)
    if isinstance(longest, int) and longest > 0:
        facts["_length"] = longest
        keys.append(KeyReport(LONGEST, "used", "texts are taken to be as long"))
    warnings.append(
        "how many texts an example has is in the data: 2 are assumed, --set texts=N says it; how long they are, --seq"
    )
