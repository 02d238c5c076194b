"""Setup: every choice that moves memory, each resolved, each with where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from memplan.planner.inputs.contradictions import contradictions
from memplan.planner.inputs.derived import derived, following
from memplan.planner.tables.defaults import BASE
from memplan.planner.tables.errors import UsageError, unknown
from memplan.planner.tables.loops import Loop
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.parallel import MEANT
from memplan.planner.tables.recipes import DEFAULT_RECIPE, RECIPES
from memplan.planner.tables.tasks import TASKS

if TYPE_CHECKING:  # the names of legal values: `checking` reads them where a person wrote something
    from memplan.planner.inputs.checking import (
        Alpha,
        Bucket,
        CheckpointQuant,
        Count,
        Dropout,
        Elements,
        FloatType,
        Gpus,
        Place,
        Rank,
        Rate,
        Share,
        Size,
    )
    from memplan.planner.tables.fused_kernels import FusedKernel
    from memplan.planner.tables.losses import Loss
    from memplan.planner.tables.mixer_kernels import MixerKernel
    from memplan.planner.tables.sdp import Attention


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a model is trained. Frozen and complete: build one with `resolve`, which fills every field and
    remembers why. The annotations are the rules that `checking.check` enforces on what a person wrote.
    """

    method: str
    recipe: str
    task: str
    num_labels: Count  # outputs of a pooled head
    reference: Literal["none", "base", "model"]  # base: the adapter switched off; model: a second copy
    micro_batch: Count
    sequence_length: Count
    padded: bool
    packed_documents: Count
    # how the loader makes rows of --lengths; a sequence length that is said is the longest row as it is
    group_by_length: bool
    pad_to_multiple_of: Count
    padding_free: bool  # the rows of a batch one behind another, none padded
    gradient_accumulation: Count
    weight_dtype: FloatType
    autocast: Literal["bfloat16", "float16", "none"]
    trainable_dtype: Literal["weight", "float32"]  # float32: the stack upcasts what it trains
    adapter_dtype: FloatType
    rank: Rank
    alpha: Alpha
    dropout: Dropout
    # module names, or all-linear, attention, peft-default (what PEFT targets for this model_type by itself)
    targets: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    target_parameters: tuple[str, ...]  # parameters that LoRA adapts as they are: an expert layer's
    trained_parameters: tuple[str, ...]  # patterns of the names that full fine-tuning trains, (): all
    checkpoint_quant: CheckpointQuant  # how the base is stored, where its config says that it is quantized
    quant_type: Literal["none", "nf4", "fp4", "int8"]
    double_quant: bool
    quant_block: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]
    quant_storage: Literal["uint8", "bfloat16", "float16", "float32"]
    compute_dtype: FloatType
    quantize_experts: bool  # 3-D expert parameters in 4 bits too, as bitsandbytes parametrizes them
    kbit_prepare: bool
    # what the stack casts to fp32 once loaded, trained or not; unquantized: all but norms and embeddings
    upcast_modules: Literal["none", "norms", "norms_and_embeddings", "routers", "unquantized"]
    checkpointing: Literal["none", "non_reentrant", "reentrant"]
    checkpoint_every: Count
    checkpoint_offload: bool
    # whose hook moves every saved tensor to the host (tables/offloaders.py)
    activation_offload: Literal[
        "none", "trl", "trl-synchronous", "axolotl", "axolotl-synchronous", "torchtune"
    ]
    load: Literal["pretrained", "random"]
    vocabulary: Size | None  # rows of embedding and head once they are resized; None: those of the model
    attention: Attention
    loss: Loss
    fused_kernels: tuple[FusedKernel, ...]  # in place of the model's own operations
    mixer_kernels: tuple[MixerKernel, ...]  # packages that linear attention and convolution run by
    optimizer: str
    optimizer_mode: Literal["foreach", "fused", "loop"]
    optimizer_in_backward: bool  # each gradient is applied and freed as soon as it is whole
    optim_rank: Size  # of the gradients that an optimizer of low rank projects (GaLore, APOLLO)
    optim_targets: tuple[str, ...]  # parts of names of the linear layers that it projects, or all-linear
    optim_projection: Literal["std", "reverse_std", "right", "left"]
    zero_grad: Literal["before_forward", "after_step"]
    retain_outputs: bool
    # pictures of an example as N@WxH, videos as N@WxHxFRAMES, ("none",): text alone, (): nobody said
    images: tuple[str, ...]
    image_min_pixels: Size | None  # the processor's bounds of a picture, None: as it is published
    image_max_pixels: Size | None
    image_tiles: Count | None  # squares that the processor cuts a picture into at most; None: as published
    image_scaled_to: Size | None  # pixels that a larger picture is scaled to before the processor sees it
    video_min_pixels: Size | None  # the video processor's bounds, of a frame or of a video as it has them
    video_max_pixels: Size | None
    video_scaled_to: Size | None  # pixels that a larger frame is scaled to before the processor sees it
    video_fps: Rate | None  # frames taken of a second, where a video's seconds are said; None: as published
    video_frames: Count | None  # frames taken of a video at most; None: as published
    text_length: Size | None  # tokens of a row beside its pictures; None: the rest of sequence_length
    vision_tower: Literal["trained", "frozen"]  # frozen: neither its weights nor adapters in it are trained
    projector: Literal["trained", "frozen"]
    target_length: Size | None  # tokens of a decoder's row, task seq2seq; None: sequence_length
    completion_length: Size | None  # sampled tokens of a row, task grpo
    top_p: Share | None  # of the sampled tokens' probability, None: all of it
    top_k: Count | None  # tokens that are sampled from, None: all
    teacher: str | None  # a model's name, task distill
    reward_model: str | None  # a model's name, of a task that samples; None: rewards are computed on the host
    value_model: str | None  # a model's name, task ppo; None: as the reward model, or else as the policy
    num_mini_batches: Count | None  # of what task ppo sampled, between which outputs are dropped; None: 1
    rollout_batch: Count | None  # rows that task ppo samples and judges at once
    texts: Count | None  # texts of an example, task embed: anchor, positive, negatives
    mini_batch: Count | None  # texts embedded at once, task embed: the cached loss; None: all, with a graph
    generations: Count | None  # completions of a prompt, of which a generation is a multiple; None: unchecked
    steps_per_generation: Count | None  # micro-batches sampled at once; None: gradient_accumulation
    vllm_share: Share | None  # of the GPU's memory, that of a vLLM beside the trainer; None: no vLLM
    vllm_sleeps: bool  # it holds its share only while it samples
    eval_batch: Size | None  # rows of an evaluation step after training; None: no evaluation is counted
    eval_kept: Size | None  # rows whose logits compute_metrics has on the GPU at once; None: none are kept
    eval_generate: Size | None  # tokens of a row that an evaluation's generate makes; None: it has none
    eval_beams: Count  # beams of that
    save: bool  # the model is written after training, as Trainer.save_model does
    save_sharded: bool  # each rank writes what it keeps; else one that gathers it, where ranks share a model
    merge: bool  # the adapter is merged into its base after training, as merge_and_unload does
    outputs_fp32: bool  # accelerate converts what the forward returns to fp32 under autocast
    allocator: Literal["native", "expandable"]
    torch: Literal["2.11", "2.12", "2.13", "2.14"]  # whose allocator is replayed
    transformers: Literal["4.43", "4.48", "5"]  # whose logits, loss and keys; 5: as since 4.49
    trl: Literal["1.13", "1.14", "1.16"]  # whose log-probabilities; 1.13: as since 1.9, 1.16: since 1.15
    gpu: str | None
    gpus: Gpus
    parallel: Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3"]
    replicas: Count  # fsdp: copies of a model cut across `gpus` ranks, on as many ranks each (HSDP)
    fsdp_version: Literal[1, 2]
    use_orig_params: bool  # fsdp 1: the optimizer has a part of each parameter, not of the flat one
    backward_prefetch: Literal["none", "pre", "post"]  # fsdp 1: when the unit before is gathered
    reshard_after_forward: bool  # fsdp: a unit's gathered parameters go after its forward
    load_on_host: bool  # fsdp: a quantized base waits on the host until it is cut
    gradient_as_bucket_view: bool  # ddp
    offload: Literal[
        "none", "optimizer", "all"
    ]  # to the host: optimizer states and masters, or parameters too
    zero_reduce_bucket: (
        Bucket  # elements, as the next five; auto: what transformers puts for DeepSpeed's 'auto'
    )
    zero_prefetch_bucket: Bucket
    zero_persistence_threshold: Bucket
    zero_live_parameters: Elements
    zero_reuse_distance: Elements
    zero_sub_group: Elements
    zero_overlap_comm: bool | None  # None: deepspeed's own, on in stage 3 only
    init_rank: Size | None
    target_rank: Size | None
    importance_buffers: bool
    virtual_tokens: Size | None
    trainable_layers: Count | None
    bottleneck: Size | None
    adapters: Size | None  # LoRA adapters beside an inference's base, unmerged, one of them active
    layers_to_transform: tuple[Place, ...]  # layers that have an adapter, from 0; (): all
    adapter: dict[str, Any] | None  # a PEFT adapter_config.json, parsed
    device: Literal["cuda", "cpu"]
    origins: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def loop(self) -> Loop:
        """The training loop of the recipe."""
        return RECIPES[self.recipe].loop

    def to_document(self) -> dict[str, Any]:
        """Every resolved field, JSON types only."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.values().items()
        }

    def values(self) -> dict[str, Any]:
        """Every field but the origins."""
        return {name: getattr(self, name) for name in FIELDS}

    def replaced(self, **changes: Any) -> Setup:
        """The same setup with some fields changed and checked again; their origins become 'user'."""
        values = {**self.values(), **changes}
        if "optimizer" in changes:
            values |= following(self.optimizer, values["optimizer"]) | changes
        return _consistent(checked(values, {**self.origins, **dict.fromkeys(changes, "user")}))

    def with_(self, **changes: Any) -> Setup:
        """The same setup with some fields changed, unchecked, origins kept: for values of our own."""
        return replace(self, **changes)

    def identity(self) -> str:
        """A hash of every field: equal setups have equal identities."""
        import hashlib  # loads OpenSSL, which a prediction does not need

        return hashlib.sha256(json.dumps(self.to_document(), sort_keys=True).encode()).hexdigest()[:16]


FIELDS: tuple[str, ...] = tuple(each.name for each in fields(Setup) if each.name != "origins")


NAMES = {"method", "recipe", "task", "gpu"}  # fields that `resolve` and `find_gpu` look up by name themselves


def resolve(
    given: Mapping[str, Any] | None = None,
    *,
    max_positions: int | None = None,
    origin: str = "user",
    imported: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    trusted: bool = False,
) -> Setup:
    """Fill every field: base < method < recipe < recipe for that method < what the method keeps of its own <
    imported file < `given` < what the `checkpoint` already is, each with its origin.

    What a person wrote is checked field by field; the defaults of our own tables are not, nor is `given`
    where it is `trusted` because it comes from a checked Setup (building pydantic's validator takes longer
    than a prediction). `max_positions` is the model's count of
    *learned* positions, None where positions are computed: it bounds the sequence length.
    Raises UsageError for an unknown field or name, a value out of bounds, or choices that contradict.
    """
    given, imported = _told(given), _told(imported)
    said = {**imported, **given, **(checkpoint or {})}
    _known_names(said)
    fields: dict[str, Any] = {}
    origins: dict[str, str] = {}
    own = (("import", imported), (origin, given), ("checkpoint", checkpoint or {}))
    for label, layer in (*_defaults(said, max_positions), *own):
        fields.update(layer)
        origins.update(dict.fromkeys(layer, label))
    for holds, changes in RECIPES[fields["recipe"]].when:
        if all(fields[key] == value for key, value in holds.items()):
            left = {name: changed for name, changed in changes.items() if name not in said}
            fields.update(left)
            key, value = next(iter(holds.items()))
            origins.update(dict.fromkeys(left, f"recipe {fields['recipe']} with {key} {value}"))
    for name, (value, why) in derived(fields, said).items():
        fields[name], origins[name] = value, why
    known = trusted or all(key in NAMES and isinstance(value, str) for key, value in said.items())
    setup = _consistent(Setup(**fields, origins=origins) if known else checked(fields, origins))
    if max_positions is not None and setup.sequence_length > max_positions:
        said_length = f"sequence_length {setup.sequence_length}"
        raise UsageError(f"{said_length} is more than this model's maximum of {max_positions} positions")
    return setup


def _told(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is not None; of a release 2.12 is "2.12", as JSON and YAML read it; fsdp1 has a version."""
    told = {key: value for key, value in (values or {}).items() if value is not None}
    told |= MEANT.get(str(told.get("parallel")), {})
    return told | {name: str(told[name]) for name in ("torch", "transformers", "trl") if name in told}


def _known_names(said: Mapping[str, Any]) -> None:
    """Raise UsageError for an unknown setting, method, recipe or task, or a method that its recipe lacks."""
    for key in said:
        if key not in FIELDS:
            raise unknown("setting", key, FIELDS)
    for kind, name, table in (
        ("method", str(said.get("method", "lora")), METHODS),
        ("recipe", str(said.get("recipe", DEFAULT_RECIPE)), RECIPES),
        ("task", str(said.get("task", "sft")), TASKS),
    ):
        if name not in table:
            raise unknown(kind, name, table)
    method, row = str(said.get("method", "lora")), RECIPES[str(said.get("recipe", DEFAULT_RECIPE))]
    if row.only and method not in row.only:
        raise UsageError(
            f"recipe '{row.name}' is defined for {', '.join(row.only)} only: use --recipe hf or raw with "
            f"--method {method}"
        )


def _defaults(said: Mapping[str, Any], max_positions: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What holds where nobody says anything, layer upon layer: (origin, fields)."""
    method, recipe = str(said.get("method", "lora")), str(said.get("recipe", DEFAULT_RECIPE))
    length = min(2048, max_positions or 2048)
    yield "default", {**BASE, "method": method, "recipe": recipe, "sequence_length": length}
    row = METHODS[method]
    yield f"method {method}", row.defaults
    quantized = row.quantized or said.get("quant_type", "none") != "none"
    yield from RECIPES[recipe].layers(method, row.trains, quantized)
    yield f"method {method}", row.over_recipe
    task = str(said.get("task", "sft"))
    yield f"task {task}", TASKS[task].defaults


def checked(values: Mapping[str, Any], origins: Mapping[str, str]) -> Setup:
    """A Setup of these values, each checked. Raises UsageError naming the first that is wrong, and what was
    expected.
    """
    from memplan.planner.inputs.checking import check

    found = check(Setup, values)
    for name, table in (("method", METHODS), ("recipe", RECIPES), ("task", TASKS)):
        if found[name] not in table:
            raise unknown(name, found[name], table)
    return Setup(**found, origins=dict(origins))


def _consistent(setup: Setup) -> Setup:
    contradiction = next((text for broken, text in contradictions(setup) if broken), None)
    if contradiction:
        raise UsageError(contradiction)
    return setup
