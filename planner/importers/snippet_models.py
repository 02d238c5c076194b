"""What a piece of Python says of models beside the trained one (trl 1.16: GRPOTrainer, RLOOTrainer,
DistillationTrainer; 1.12: PPOTrainer) and of embeddings (sentence-transformers 6.2: SentenceTransformer and its losses).
"""

from __future__ import annotations

import ast
from typing import Any

from memplan.planner.importers.rules import Facts, KeyReport
from memplan.planner.importers.sampling import REWARD
from memplan.planner.importers.tasks import COMPARED
from memplan.planner.importers.values import Values
from memplan.planner.tables.errors import UsageError, shown

RANKING = {
    "MultipleNegativesRankingLoss": None,
    "CachedMultipleNegativesRankingLoss": 32,
}
"""The losses that task embed has -> their mini_batch_size (cached_multiple_negatives_ranking.py)."""
NO_LOSS = KeyReport("loss", "not_modelled", f"a loss other than {' and '.join(RANKING)}")


def _argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def companions(
    call: ast.Call, called: str, task: str | None, values: Values
) -> tuple[Facts, list[KeyReport]]:
    """The models that a trainer is given beside its own. UsageError for a teacher whose name is not there:
    it may be the model that the script loads first.
    """
    facts: Facts = {}
    keys: list[KeyReport] = []
    if task == "ppo":
        return _judges(call, values)
    reference = next(iter([*filter(None, [_argument(call, "ref_model")]), *call.args[1:2]]), None)
    if task in COMPARED and reference is not None and values.of(reference) is not None:
        facts["_reference"] = True
    rewards = values.of(_argument(call, "reward_funcs"))
    models = [each for each in (rewards if isinstance(rewards, list) else [rewards]) if isinstance(each, str)]
    if len(models) == 1:
        facts["reward_model"] = models[0]
        keys.append(KeyReport("reward_funcs", "used", REWARD))
    elif models:
        keys.append(KeyReport("reward_funcs", "not_modelled", f"{len(models)} reward models"))
    if (teacher := _argument(call, "teacher_model")) is not None:
        name = values.of(teacher)
        if not isinstance(name, str):
            raise UsageError(
                f"{called}(teacher_model) is {shown(ast.unparse(teacher))}, not a model's name in quotes: write "
                "the name there, or ask without the script: memplan MODEL --task distill --set teacher=TEACHER"
            )
        facts["teacher"] = name
        keys.append(KeyReport("teacher_model", "used", "the model whose distributions are learned"))
    return facts, keys


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


def settle_embedding(facts: Facts, keys: list[KeyReport], warnings: list[str]) -> None:
    """Of a script of sentence-transformers: a loss that task embed lacks is not counted, and how many texts
    an example has is in the data.
    """
    ranked, others = facts.pop("_ranked", False), facts.pop("_other_loss", False)
    if facts.get("task") != "embed":
        return
    facts.pop("loss", None)
    if not ranked or others:
        keys.append(NO_LOSS)
    warnings.append(
        "how many texts an example has is in the data: 2 are assumed, --set texts=N says it; how long they are, --seq"
    )
