"""Settings of the learner: its ranks, optimiser, adapters, the RL objective, and its weights."""

from dataclasses import dataclass, field
from typing import Literal

from configs.bounds import lendable, not_negative, positive, share

TEMPERATURES = (0.01, 1.0)
"""Bounds of a learned temperature; the lower one is CLIP's (Radford et al., 2021)."""


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-6
    """Learning rate after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    beta1: float = 0.9
    """Decay rate of AdamW's mean of the gradients."""
    beta2: float = 0.999
    """Decay rate of AdamW's mean of the squared gradients."""
    eps: float = 1e-8
    """What AdamW adds to the denominator."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to lr."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay to a tenth of lr over the planned steps."""
    grad_clip: float = 1.0
    """Largest global norm of the gradients; larger gradients are scaled down to it."""


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters that are trained instead of the weights; exports and engines hold them merged."""

    rank: int = 0
    """0 = off: the weights themselves are trained."""
    alpha: int = 32
    """What the adapters add is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that training drops."""
    modules: list[str] = field(default_factory=lambda: ["*_proj"])
    """Linear layers that get adapters, by shell patterns of their whole names; none of the vision
    tower's."""
    vision_modules: list[str] = field(default_factory=list)
    """The same for the vision tower's (`*visual.*`): ["*"] = all of them."""


@dataclass(frozen=True)
class LearnerConfig:
    """The DeepSpeed learner group."""

    ranks: int = 1
    """Number of data-parallel ranks, each an actor."""
    cpus: float = 1.0
    """CPUs that each rank asks Ray for."""
    gpus: float = 0.0
    """GPUs that each rank asks Ray for, and all that it sees. A part such as 0.4: the only rank
    shares its GPU with engines; nothing holds it to its part of the memory."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO stage. 1 shards the optimiser's state over the ranks, 2 also the gradients,
    3 also the parameters; 0 shards nothing."""
    bf16: bool = True
    """bf16 weights with fp32 master copies; false trains in fp32."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """`auto`: flash_attention_2 for bf16 on a GPU where flash_attn can be imported, else sdpa."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Kept in host memory: the optimiser's state and its step (ZeRO-1 and up), or also the
    parameters (ZeRO-3)."""
    freeze_vision: bool = False
    """Leave the vision tower as it is."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    micro_batch_tokens: int = 16384
    """Tokens of one forward pass at most, padding included, and those of each distinct picture
    once more for the vision tower (a dearer sequence goes alone)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    timeout_s: float = 1800.0
    """Longest time that one call to the ranks may take; after it the group is stopped."""


@dataclass(frozen=True)
class GRPOConfig:
    """The RL objective; the formulas are in learner/advantages.py and learner/rank/policy_loss.py.

    The defaults are the paper's (section 3.3; spec: hyper-parameters), but for one update a step.
    """

    preset: Literal[
        "", "embed_rl", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp"
    ] = ""
    """Published choices (configs/presets.py), which set every key of this section. Keys given
    beside it win: in the same file, or on the command line. Empty: these defaults, and on the
    command line no preset of the file's."""
    advantage: Literal["group_norm", "mean_only", "leave_one_out", "batch_norm"] = "group_norm"
    """How the rewards of a group become advantages."""
    std_floor: float = 1e-6
    """Rewards are not divided by a standard deviation below this."""
    min_spread: float = 1e-6
    """Groups whose rewards spread less teach nothing (`group/no_spread`): their advantages are 0.
    They count in the mean and have their KL, unless refilled or replayed groups replace them."""
    refill: int = 0
    """Further rounds of sampling at most, where groups that were paid alike, before any penalty,
    leave a step short; these are left out of it (DAPO's dynamic sampling). 0 = none. Simulated,
    where 6 of 16 groups had spread: success after 60 steps 0.24 instead of 0.16, for 2.4 times the
    traces; at equal traces 0.05 instead of 0.09."""
    replay_groups: int = 0
    """Recent groups kept to fill up a step that is still short, with importance weights, each in
    the place of one without spread (the idea of Skywork R1V2's selective sample buffer); 0 = none.
    In the same simulation: 0.20 instead of 0.16, at no further trace; where 14 of 16 groups had
    spread, 0.450 instead of 0.444."""
    replay_age: int = 4
    """Versions at most that a replayed group may be old."""
    overlong_penalty: float = 0.0
    """Taken off the reward of a trace at the token limit (DAPO); 0 = off."""
    overlong_share: float = 0.2
    """Last share of the token limit, over which the penalty rises from 0."""
    loss_mean: Literal["token", "sequence", "sequence_constant"] = "token"
    """Over all tokens; over traces of each trace's token mean; or over traces of each trace's sum
    of tokens, divided by the token limit."""
    ratio: Literal["token", "sequence", "clipped_weight"] = "token"
    """Clipped surrogate by token, by trace (GSPO), or likelihood with a clipped weight (CISPO)."""
    clip_low: float = 0.2
    """Ratios are clipped to [1 - clip_low, 1 + clip_high]; 1 = no lower bound."""
    clip_high: float = 0.2
    """Upper bound of the ratio, as 1 + clip_high."""
    dual_clip: float = 3.0
    """Largest ratio that a negative advantage is multiplied by (dual clip); 0 = no bound. A
    clipped_weight is bounded by clip_high alone."""
    kl: Literal["none", "k1", "k2", "k3"] = "k3"
    """Estimate of KL to the frozen initial Reasoner; `none` loads no reference. k1 belongs in the
    reward: in the loss its gradient is zero on average."""
    kl_in: Literal["loss", "reward"] = "loss"
    """In the reward, the traces are scored by the learner before they are trained on."""
    kl_coef: float = 0.01
    """Weight of the KL estimate."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    query_weight: float = 1.0
    """Factor of the loss of query-side traces."""
    target_weight: float = 1.0
    """Factor of the loss of target-side traces."""
    tis_cap: float = 0.0
    """Truncated importance sampling: largest weight of a token for the mismatch between learner
    and engine; 0 = the mismatch stays in the clipped ratio. Traces of older weights, or that may be
    replayed, are scored by the learner when they come in, which takes a forward pass."""
    sequence_band: float = 0.0
    """Traces whose mean ratio leaves [1 / band, band] are masked; 0 = off."""
    updates_per_step: int = 1
    """Optimiser updates that a step takes, each on its part of the traces, divided by that part's
    tokens or traces. All ratios are against the log-probabilities from before the first update, for
    which the learner reads all parts but the first once more. A step is one version and one step of
    the learning rate, whatever their number."""


@dataclass(frozen=True)
class WeightsConfig:
    """How new weights travel from the learner to the engines."""

    delta: bool = False
    """Send only what changed, bit for bit; learner rank 0 keeps a copy of its weights for it."""
    snapshot_every: int = 20
    """With delta: every so many versions, and whenever the deltas grow large, all is sent."""


@dataclass(frozen=True)
class ParityConfig:
    """How far the log-probabilities of engines and learner may differ; beyond it the run stops.

    The defaults are for bf16; mean=1e-4 and p999=1e-3 suit float32. A bf16 model of 135M parameters
    had 0.03 and 0.2 by rounding alone, and 0.14 to 2.3 and 0.5 to 9 with one wrong part
    (`cluster/weights/README.md`).
    """

    mean: float = 0.1
    """Largest mean of the absolute differences of a step's tokens, in nats."""
    p999: float = 1.0
    """Largest quantile 0.999 of them: what one token in a thousand may exceed (of less than 4000
    tokens, four)."""


def _lora_problems(node: LoRAConfig) -> list[str]:
    problems = [*not_negative(node, "rank"), *positive(node, "alpha")]
    if not 0 <= node.dropout < 1:
        problems.append(f"dropout: expected a share in [0, 1), found {node.dropout}")
    if node.rank and not (node.modules or node.vision_modules):
        problems.append("modules: adapters need layers; name some, or set rank=0")
    if node.vision_modules and not node.rank:
        problems.append("rank: 0 adds no adapters; raise it or set vision_modules=[]")
    return problems


def _learner_problems(node: LearnerConfig) -> list[str]:
    problems = [
        *positive(node, "ranks", "micro_batch_tokens", "timeout_s"),
        *not_negative(node, "cpus", "gpus"),
        *lendable(node, "gpus"),
    ]
    if 0 < node.gpus < 1 and node.ranks > 1:
        problems.append(
            f"gpus: NCCL takes one rank a GPU, found gpus={node.gpus:g} for {node.ranks} ranks; "
            "set gpus to 1 or more, or ranks=1"
        )
    if node.bf16 and node.zero_stage == 0:
        problems.append(
            "zero_stage: 0 loses small updates in bf16; set it to 1 or more, or bf16=false"
        )
    if node.offload == "optimizer" and node.zero_stage == 0:
        problems.append("offload: 'optimizer' needs zero_stage of at least 1, found 0")
    if node.offload == "parameters" and node.zero_stage != 3:
        problems.append(f"offload: 'parameters' needs zero_stage=3, found {node.zero_stage}")
    if node.freeze_vision and node.lora.vision_modules:
        problems.append(
            "lora.vision_modules: adapters would change the tower that freeze_vision=true keeps; "
            "empty it or set freeze_vision=false"
        )
    return problems


def _grpo_problems(node: GRPOConfig) -> list[str]:
    problems = [
        *positive(
            node,
            *("std_floor", "overlong_share", "clip_low", "clip_high", "replay_age"),
            "updates_per_step",
        ),
        *share(node, "overlong_share", "clip_low"),
        *not_negative(
            node,
            *("min_spread", "overlong_penalty", "kl_coef", "entropy_coef", "query_weight"),
            *("target_weight", "refill", "replay_groups"),
        ),
    ]
    if node.kl == "k1" and node.kl_in == "loss":
        problems.append(
            "kl: k1 in the loss pulls nowhere on average; use k2 or k3, or kl_in=reward"
        )
    if not node.query_weight + node.target_weight > 0:
        problems.append("query_weight: with target_weight=0 it must be more than 0, found 0")
    if node.dual_clip != 0 and not node.dual_clip > 1:
        problems.append(f"dual_clip: expected 0 (off) or more than 1, found {node.dual_clip}")
    if node.tis_cap != 0 and not node.tis_cap >= 1:
        problems.append(f"tis_cap: expected 0 (off) or at least 1, found {node.tis_cap}")
    if node.sequence_band != 0 and not node.sequence_band > 1:
        problems.append(
            f"sequence_band: expected 0 (off) or more than 1, found {node.sequence_band}"
        )
    return problems


LEARNER_CHECKS = {
    OptimizerConfig: lambda n: positive(n, "lr", "eps", "grad_clip"),
    LoRAConfig: _lora_problems,
    LearnerConfig: _learner_problems,
    GRPOConfig: _grpo_problems,
    WeightsConfig: lambda n: positive(n, "snapshot_every"),
    ParityConfig: lambda n: positive(n, "mean", "p999"),
}
"""What is wrong in each section by itself, by its class."""
