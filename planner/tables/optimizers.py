"""OPTIMIZERS: what each optimizer keeps per trainable tensor, what its step makes, and the class that it is.

Names are transformers' (training_args.py OptimizerNames); `muon`, which has none there, is torch's class.
Adding an optimizer is adding a row here: the formula, the trace and the profiler read it. Tests compare a
row's states with `optimizer.state` after traced steps, and its temporaries with the trace's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memplan.planner.tables.optimizer_row import Optimizer, Rule
from memplan.planner.tables.optimizer_steps import (
    ADAFACTOR,
    ADALOMO,
    ADAMW,
    ANY_PRECISION,
    APOLLO,
    GALORE_8BIT,
    GALORE_ADAFACTOR,
    GALORE_ADAMW,
    GROK,
    IN_PLACE,
    LOMO,
    MUON,
    TORCHAO_4,
    TORCHAO_8,
    Drop,
    Make,
    Step,
)


def _bnb(name: str, cls: str, states: tuple[tuple[str, Rule], ...], source: str, bits: int) -> Optimizer:
    """bitsandbytes' kernels work in place; arguments as transformers 5.24 trainer_optimizer.py gives them."""
    paged = name.startswith("paged_")
    return Optimizer(
        name=name,
        cls=f"bitsandbytes.optim.{cls}",
        arguments={"optim_bits": bits, **({"is_paged": True} if paged else {})},
        states=states,
        step={"loop": IN_PLACE},
        source=f"bitsandbytes 0.50 optim/{source}",
        paged=paged,
    )


_ADAM_LIKE: tuple[tuple[str, Rule], ...] = (("exp_avg", "like"), ("exp_avg_sq", "like"))
_ADAM_32: tuple[tuple[str, Rule], ...] = (("state1", "float32"), ("state2", "float32"))
_ADAM_8: tuple[tuple[str, Rule], ...] = (("state1", "blockwise8"), ("state2", "blockwise8"))
_ONE_32: tuple[tuple[str, Rule], ...] = (("state1", "float32"),)
_ONE_8: tuple[tuple[str, Rule], ...] = (("state1", "blockwise8"),)
_MIX_32: tuple[tuple[str, Rule], ...] = (("state1", "pair32"), ("state2", "float32"))
_MIX_8: tuple[tuple[str, Rule], ...] = (("state1", "pair8"), ("state2", "blockwise8"))
_TWO = "optimizer.py Optimizer2State.init_state"
_SINGLE = "optimizer.py Optimizer1State.init_state"
_MIX = "ademamix.py AdEMAMix.init_state"
_RMS = "rmsprop.py RMSprop, optim/optimizer.py Optimizer1State.init_state"


def _torchao(name: str, cls: str, rule: Rule, step: Step) -> Optimizer:
    """torchao's compiled step, steady state: tuning its kernels in the first step takes more. Arguments as
    transformers 5.24 trainer_optimizer.py _get_torchao_optimizer gives them.
    """
    return Optimizer(
        name=name,
        cls=f"torchao.optim.{cls}",
        arguments={"block_size": 256},
        states=(("exp_avg", rule), ("exp_avg_sq", rule)),
        step={"loop": step},
        source="torchao 0.18 optim/adam.py, as torch 2.12's Inductor compiles single_param_adam for CUDA",
    )


_KAHAN: tuple[tuple[str, Rule], ...] = (*_ADAM_LIKE, ("kahan_comp", "kahan"))


def _optimi(name: str, cls: str, states: tuple[tuple[str, Rule], ...], source: str) -> Optimizer:
    """torch-optimi's step in Triton kernels, its choice on CUDA (utils.py _default_to_triton): in place; and
    Kahan's compensation for weights of 16 bits, which transformers 5.24 trainer_optimizer.py
    _get_stable_adamw and axolotl leave at its default, on.
    """
    return Optimizer(
        name=name,
        cls=f"optimi.{cls}",
        arguments={"triton": True},
        states=states,
        step={"loop": IN_PLACE},
        source=f"torch-optimi 0.3.3 {source} _init_state, _triton_{cls.lower()}",
    )


def _low_rank(name: str, cls: str, source: str, layerwise: bool, **fields: Any) -> Iterator[Optimizer]:
    """An optimizer that projects gradients, and its form that steps one parameter at a time in the backward
    (transformers 5.24 trainer_optimizer.py _setup_low_rank_optimizer).
    """
    for end in ("", "_layerwise") if layerwise else ("",):
        yield Optimizer(
            name=name + end, cls=cls, source=source, in_backward=bool(end), **{"arguments": {}, **fields}
        )


def _lomo(name: str, cls: str, step: Step, states: tuple[tuple[str, Rule], ...] = ()) -> Optimizer:
    """It steps in hooks of its own, with the whole model's parameters, frozen ones included."""
    return Optimizer(
        name=name,
        cls=f"lomo_optim.{cls}",
        states=states,
        step={"loop": step},
        source=f"lomo-optim 0.1.1 {name}.py fuse_update",
        at_once=True,
        in_backward=True,
        behind=True,
        of_frozen=bool(states),
    )


_ROWS = (
    Optimizer(
        name="adamw_torch",
        cls="torch.optim.AdamW",
        states=_ADAM_LIKE,
        step={
            "foreach": (Make("root", "square root of exp_avg_sq"),),  # _multi_tensor_adam: exp_avg_sq_sqrt
            "loop": (  # _single_tensor_adam: denom
                Make("root", "square root of exp_avg_sq"),
                Make("denominator", "square root of exp_avg_sq, bias corrected"),
                Drop(("root",)),
            ),
        },
        source="torch 2.13 optim/adam.py _init_group",
    ),
    Optimizer(
        name="adamw_torch_fused",
        cls="torch.optim.AdamW",
        states=(*_ADAM_LIKE, ("step", "step")),
        step={"fused": IN_PLACE},
        source="torch 2.13 optim/adam.py _init_group",
    ),
    Optimizer(
        name="sgd",
        cls="torch.optim.SGD",
        states=(),
        step={"foreach": IN_PLACE, "loop": IN_PLACE},
        source="torch 2.13 optim/sgd.py (momentum 0, the Trainer's default)",
    ),
    Optimizer(
        name="rmsprop",
        cls="torch.optim.RMSprop",
        states=(("square_avg", "like"),),
        step=dict.fromkeys(("foreach", "loop"), (Make("average", "square root of square_avg"),)),
        source="torch 2.13 optim/rmsprop.py",
    ),
    Optimizer(
        name="adagrad",
        cls="torch.optim.Adagrad",
        states=(("sum", "like"),),
        step={  # _multi_tensor_adagrad: std, numerator; _single_tensor_adagrad: std
            "foreach": (Make("root", "square root of sum"), Make("numerator", "scaled gradient")),
            "loop": (Make("root", "square root of sum"),),
        },
        source="torch 2.13 optim/adagrad.py",
        at_once=True,
    ),
    Optimizer(
        name="adafactor",
        cls="transformers.optimization.Adafactor",
        arguments={"scale_parameter": False, "relative_step": False},
        states=(("factors", "factored"),),
        step={"loop": ADAFACTOR},
        source="transformers 5.23 optimization.py Adafactor",
    ),
    Optimizer(
        # embeddings, the output projection, norms and biases belong to AdamW: the class refuses all but 2-D
        # tensors, and its documentation gives embeddings to AdamW too
        name="muon",
        cls="torch.optim.Muon",
        states=(("momentum_buffer", "like"),),
        step={"loop": MUON},
        source="torch 2.13 optim/_muon.py",
        others="adamw_torch",
    ),
    Optimizer(
        name="schedule_free_adamw",
        cls="schedulefree.AdamWScheduleFree",
        states=(("z", "like"), ("exp_avg_sq", "like")),
        step=dict.fromkeys(("foreach", "loop"), (Make("denominator", "square root of exp_avg_sq"),)),
        source="schedulefree 1.4 adamw_schedulefree.py step",
        trains=True,
    ),
    Optimizer(
        name="adamw_anyprecision",
        cls="torchdistx.optimizers.AnyPrecisionAdamW",
        # transformers 5.24 trainer_optimizer.py _get_adamw_anyprecision, without optim_args
        arguments={"momentum_dtype": "float32", "variance_dtype": "float32"},
        states=(("exp_avg", "float32"), ("exp_avg_sq", "float32")),
        step={"loop": ANY_PRECISION},
        source="torchdistx at 9c1b9f5 optimizers/anyprecision_optimizer.py step",
    ),
    Optimizer(
        name="grokadamw",
        cls="grokadamw.GrokAdamW",
        states=(*_ADAM_LIKE, ("grok_ema", "like")),
        step={"loop": GROK},
        source="grokadamw 0.1.2 grokadamw.py _update_group",
        on_host=True,
    ),
    Optimizer(
        name="schedule_free_sgd",
        cls="schedulefree.SGDScheduleFree",
        states=(("z", "like"),),
        step=dict.fromkeys(("foreach", "loop"), IN_PLACE),
        source="schedulefree 1.4 sgd_schedulefree.py step",
        trains=True,
    ),
    Optimizer(
        # without its variance's correction the first four steps update nothing (rho_t <= 4): the fifth and all
        # later ones make the denominator, so counting begins there
        name="schedule_free_radam",
        cls="schedulefree.RAdamScheduleFree",
        states=(("z", "like"), ("exp_avg_sq", "like")),
        step=dict.fromkeys(("foreach", "loop"), (Make("denominator", "square root of exp_avg_sq"),)),
        source="schedulefree 1.4 radam_schedulefree.py step, from the fifth on",
        trains=True,
        group={"k": 4},
    ),
    _optimi(
        "stable_adamw",
        "StableAdamW",
        (*_KAHAN, ("eps_sq", "one"), ("mean_square", "one32")),
        "stableadamw.py",
    ),
    _optimi("optimi_adamw", "AdamW", _KAHAN, "adam.py"),
    _torchao("adamw_torch_8bit", "AdamW8bit", "ao8", TORCHAO_8),
    _torchao("adamw_torch_4bit", "AdamW4bit", "ao4", TORCHAO_4),
    *_low_rank(
        "galore_adamw",
        "galore_torch.GaLoreAdamW",
        "galore-torch 1.0 adamw.py, galore_projector.py",
        True,
        arguments={"no_deprecation_warning": True},
        states=_ADAM_LIKE,
        step={"loop": ADAMW},
        projects=(("projector", "basis"),),
        projected=GALORE_ADAMW,
    ),
    *_low_rank(
        "galore_adamw_8bit",
        "galore_torch.GaLoreAdamW8bit",
        "galore-torch 1.0 adamw8bit.py, galore_projector.py; bitsandbytes 0.50 optim/optimizer.py init_state",
        True,
        states=(*_ADAM_8, ("unorm_vec", "one32")),
        step={"loop": IN_PLACE},
        projects=(("projector", "basis"),),
        projected=GALORE_8BIT,
    ),
    *_low_rank(
        "galore_adafactor",
        "galore_torch.GaLoreAdafactor",
        "galore-torch 1.0 adafactor.py, galore_projector.py",
        False,  # without the arguments below its class refuses the Trainer's learning rate
        arguments={"scale_parameter": False, "relative_step": False},
        states=(("factors", "factored"),),
        step={"loop": ADAFACTOR},
        projects=(("projector", "basis32"),),
        projected=GALORE_ADAFACTOR,
    ),
    *_low_rank(
        "apollo_adamw",
        "apollo_torch.APOLLOAdamW",
        "apollo-torch 1.0.3 apollo.py, random_projector.py",
        True,
        states=_ADAM_LIKE,
        step={"loop": ADAMW},
        projects=(("projector", "random"), ("scaled_grad", "one")),
        group={"proj": "random", "scale_type": "channel"},
        projected=APOLLO,
    ),
    _lomo("lomo", "Lomo", LOMO),
    _lomo("adalomo", "AdaLomo", ADALOMO, (("exp_avg_sq", "means"),)),
    _bnb("adamw_bnb_8bit", "AdamW", _ADAM_8, _TWO, 8),
    _bnb("adamw_8bit", "AdamW", _ADAM_8, _TWO, 8),
    _bnb("paged_adamw_8bit", "AdamW", _ADAM_8, _TWO, 8),
    _bnb("paged_adamw_32bit", "AdamW", _ADAM_32, _TWO, 32),
    _bnb("lion_32bit", "Lion", _ONE_32, _SINGLE, 32),
    _bnb("lion_8bit", "Lion", _ONE_8, _SINGLE, 8),
    _bnb("paged_lion_32bit", "Lion", _ONE_32, _SINGLE, 32),
    _bnb("paged_lion_8bit", "Lion", _ONE_8, _SINGLE, 8),
    _bnb("rmsprop_bnb", "RMSprop", _ONE_32, _RMS, 32),
    _bnb("rmsprop_bnb_32bit", "RMSprop", _ONE_32, _RMS, 32),
    _bnb("rmsprop_bnb_8bit", "RMSprop", _ONE_8, _RMS, 8),
    _bnb("ademamix", "AdEMAMix", _MIX_32, _MIX, 32),
    _bnb("ademamix_8bit", "AdEMAMix", _MIX_8, _MIX, 8),
    _bnb("paged_ademamix_32bit", "AdEMAMix", _MIX_32, _MIX, 32),
    _bnb("paged_ademamix_8bit", "AdEMAMix", _MIX_8, _MIX, 8),
)
OPTIMIZERS: dict[str, Optimizer] = {row.name: row for row in _ROWS}


def trained_by(row: Optimizer, dimensions: int, embeds: bool) -> Optimizer:
    """The optimizer that trains a parameter of so many dimensions where the setup's is `row`; `embeds`: an
    embedding or the output projection.
    """
    if row.others is None or (dimensions == 2 and not embeds):
        return row
    return OPTIMIZERS[row.others]
