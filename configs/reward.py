"""Settings of the reward: the Embedder, the judge, the candidate bank, and what each part pays."""

from dataclasses import dataclass, field
from typing import Literal

from configs.bounds import not_negative, positive, share
from configs.common import MISSING, EngineConfig, PoolConfig, gpu_problems

Pooling = Literal["emb_token", "last", "cls", "mean"]

MAX_SCORED = 9
"""Candidates that a judge can be asked about where its answer is one digit."""


@dataclass(frozen=True)
class BankConfig:
    """Candidates of earlier steps that every trace of a step is also ranked against.

    One per item and side. All 0: the step's own traces are the only candidates.
    """

    recent: int = 0
    """The last so many."""
    hard: int = 0
    """Of those before, the closest so many to any of the step's gold candidates."""
    capacity: int = 0
    """How many of those before are remembered to choose the hard ones from."""


@dataclass(frozen=True)
class JudgeConfig:
    """A frozen language model that must find a trace's other side among candidate traces."""

    model: str = ""
    """Model folder; empty = no judge."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    answer: Literal["choice", "score"] = "choice"
    """`choice`: it writes a number, right or wrong. `score`: the probability that it gives to the
    right numbers."""
    positives: Literal["one", "all"] = "one"
    """Traces of the other side shown: one of the siblings (balanced), or all."""
    negatives: int = 4
    """Other pairs shown, each by its closest trace: the closest pairs."""
    shuffle: bool = True
    """False shows the positives first: a judge that always answers 1 is then always right."""


@dataclass(frozen=True)
class RewardConfig:
    """What a trace earns (Embed-RL, equations 3, 4). With F, Acc, m: format, rank accuracy, margin,

    total = format_weight * F + outcome_weight * accuracy_weight * Acc * m
            + process_weight * R + gain_weight * gain + length_weight * length
    """

    preset: Literal["", "paper", "code"] = ""
    """The published variants, in `configs/presets.py`, which set every weight and choice of the
    formula. Keys given beside it win: in the same file, or on the command line."""
    model: str = MISSING
    """Embedder folder (Hugging Face layout)."""
    pooling: Pooling = "emb_token"
    """Where the vector is read. `emb_token`: at the `<emb>` after the user's turn, as the job
    `embedder` trains it. Other Embedders: `last` (Qwen3-VL-Embedding and other decoders), `cls`,
    `mean` (BERT family), as the model was trained."""
    instruction: str = ""
    """Told to an Embedder with another pooling than `emb_token`, on both sides: the system message
    of one that sees pictures (Qwen3-VL-Embedding: "Represent the user's input."), put as it is
    before the text for a text-only one. Texts beyond engine.max_model_len are cut for the latter.
    """
    pool: PoolConfig = field(default_factory=PoolConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    format_weight: float = 0.05
    """Weight of F, which says whether the trace keeps to the grammar."""
    outcome_weight: float = 0.8
    """Weight of the outcome: rank accuracy times margin."""
    accuracy_weight: float = 0.5
    """Factor inside the outcome: accuracy_weight x accuracy x margin (published code: 0.5)."""
    accuracy: Literal["share", "all"] = "share"
    """Acc: the share of the other side's traces in the top n, or 1 only where all of them are."""
    temperature: float = 0.5
    """Softmax temperature of the negatives in the margin."""
    process_weight: float = 0.0
    """Weight of the judge's verdict R; more than 0 needs judge.model."""
    process_pays: Literal["one", "margin"] = "one"
    """R: the judge's verdict on the trace, or that times the margin."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    gain_weight: float = 0.0
    """For the margin minus the margin of the same item embedded without a trace."""
    length_weight: float = 0.0
    """For the tokens over length_budget, as a negative share of it."""
    length_budget: int = 0
    """Tokens of a trace that cost nothing."""
    gate_by_format: bool = False
    """Pay outcome, process and gain only to strictly valid traces; where they are negative, they
    are taken from every trace."""
    second_model: str = ""
    """Another Embedder that pays nothing: how far it agrees is watched (`hack/agreement`). It runs
    in a pool of its own, with the same pool, engine, pooling and instruction. Empty = none."""
    bank: BankConfig = field(default_factory=BankConfig)
    false_negative_similarity: float = 1.0
    """Candidates whose items without trace are closer than this to the gold item are no negatives;
    1 = none is left out for that. What is right by the known pairs of the data sets (the same
    content, the same label, another gold of the query) is no negative in any case."""
    evidence: Literal["none", "text", "text+evidence"] = "text+evidence"
    """What goes to the Embedder beside the item: nothing, the trace's text, or the text and the
    crops or key frames that it points at."""


def _reward_problems(node: RewardConfig) -> list[str]:
    problems = [
        *positive(node, "temperature"),
        *not_negative(
            node,
            *("format_weight", "outcome_weight", "accuracy_weight", "process_weight"),
            *("gain_weight", "length_weight", "length_budget"),
        ),
        *share(node, "false_negative_similarity"),
    ]
    if node.instruction and node.pooling == "emb_token":
        problems.append(
            "instruction: an Embedder with pooling=emb_token reads none; empty it or set pooling"
        )
    if node.process_weight > 0 and not node.judge.model:
        problems.append(
            f"judge.model: process_weight={node.process_weight:g} needs a judge; name its model "
            "folder or set process_weight=0"
        )
    if node.judge.model and not node.process_weight > 0:
        problems.append("process_weight: a judge that pays nothing; raise it or set judge.model=''")
    if node.length_weight > 0 and not node.length_budget > 0:
        problems.append("length_budget: length_weight needs it > 0")
    return problems


REWARD_CHECKS = {
    BankConfig: lambda n: [
        *not_negative(n, "recent", "hard", "capacity"),
        *(
            []
            if n.hard <= n.capacity
            else [f"hard: expected at most capacity={n.capacity}, found {n.hard}"]
        ),
    ],
    JudgeConfig: lambda n: [*positive(n, "negatives"), *gpu_problems(n.pool, n.engine)],
    RewardConfig: lambda n: [*_reward_problems(n), *gpu_problems(n.pool, n.engine)],
}
"""What is wrong in each section by itself, by its class."""
