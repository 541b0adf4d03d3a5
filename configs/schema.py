"""Every setting of every job: frozen dataclasses, one docstring under each field.

A wrong value is refused when the object is built; `problems()` of a job's config lists what is
impossible in combination. Defaults live here and nowhere else.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

MISSING = "???"
Pooling = Literal["emb_token", "last", "cls", "mean"]
MIN_VOCABULARY = 400
"""Bytes, special tokens and the trace grammar take about 290 of a tokenizer's entries."""

TEMPERATURES = (0.01, 1.0)
"""Bounds of a learned temperature; the lower one is CLIP's (Radford et al., 2021)."""

MAX_SCORED = 9
"""Candidates that a judge can be asked about where its answer is one digit."""


@dataclass(frozen=True)
class RunConfig:
    dir: str = MISSING
    """Run folder; holds everything the job writes."""
    seed: int = 0
    """Decides data order, sampling and initial weights."""
    experiment: str = "embed-rl"
    """MLflow experiment. The tracking store is MLFLOW_TRACKING_URI, else SQLite under runs/."""
    nodes_timeout_s: float = 60.0
    """Longest wait for a cluster that is still growing to hold what the job asks for; on an
    autoscaler's, the minutes that a node takes to come up."""


@dataclass(frozen=True)
class MediaConfig:
    """Pixel and frame limits; factor-aligned sizes are chosen within them."""

    image_min_pixels: int = 128 * 32 * 32
    image_max_pixels: int = 768 * 32 * 32
    page_min_pixels: int = 128 * 32 * 32
    page_max_pixels: int = 768 * 32 * 32
    frame_min_pixels: int = 128 * 32 * 32
    frame_max_pixels: int = 300 * 32 * 32
    crop_min_pixels: int = 128 * 32 * 32
    crop_max_pixels: int = 768 * 32 * 32
    max_frames: int = 8
    """Frames shown of a video; longer ones are sampled uniformly."""
    max_file_bytes: int = 64 << 20
    """Larger files are refused before decoding."""
    max_decode_pixels: int = 64 << 20
    """Pictures with more pixels are refused before decoding."""
    max_step_bytes: int = 16 << 30
    """Bytes of decoded pictures, 3 a pixel, that one step or one evaluation may hold. A job that
    needs more is refused, with the largest files. It may change when a run is resumed."""


@dataclass(frozen=True)
class DataSetConfig:
    name: str = MISSING
    path: str = MISSING
    """JSON array or JSON-lines file."""
    root: str = MISSING
    """Folder that all picture paths are relative to; a path that leaves it is refused."""
    follow_links: bool = False
    """Accept links inside the root that lead out of it, as the caches of hubs have them."""
    format: Literal["mmeb", "llavahound", "mmeb_eval", "caption"] = "mmeb"
    kind: Literal["image", "page"] = "image"
    """What single pictures are; pages have prompts and pixel limits of their own."""
    extra_fields: Literal["refuse", "ignore"] = "refuse"
    """Fields that the format does not know: more rows with one than data.max_bad_rows allows are
    refused, as a misspelt field leaves its rows without what it holds; `ignore` where the set has
    more columns on purpose."""
    weight: float = 1.0
    """Batches are drawn from this set with probability proportional to weight x size."""
    limit: int = 0
    """Use only the first rows; 0 = all."""


@dataclass(frozen=True)
class DataConfig:
    train: list[DataSetConfig] = field(default_factory=list)
    eval: list[DataSetConfig] = field(default_factory=list)
    templates: Literal["full", "brief"] = "full"
    """Prompt set: `full` explains the grammar with examples, `brief` is for warm-started models."""
    media: MediaConfig = field(default_factory=MediaConfig)
    max_bad_rows: float = 0.05
    """Share of a set's rows that may be set aside before the job refuses to start."""


@dataclass(frozen=True)
class PoolConfig:
    """Actors of one role and what each of them asks Ray for."""

    actors: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    timeout_s: float = 600.0
    """An actor that has work and answers nothing for longer is replaced; of the engines that sample
    traces, only one whose steps have not advanced for as long."""
    min_actors: int = 1
    """Fewest actors that a pool whose size follows from its load has."""
    max_actors: int = 0
    """Most actors of a pool whose size follows from its load (`rl` only); 0: it keeps `actors`."""


@dataclass(frozen=True)
class EngineConfig:
    """A vLLM engine."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = 16384
    max_num_seqs: int = 64
    tensor_parallel: int = 1
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.85
    cpu_kv_cache_gb: int = 1
    """Key-value cache on a CPU; unused on GPUs."""


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float = 1.0
    max_tokens: int = 2048
    """Tokens of one trace at most."""


@dataclass(frozen=True)
class RolloutConfig:
    pool: PoolConfig = field(default_factory=PoolConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


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
    """What a trace earns (spec, section 1.3). With F, Acc, m: format, rank accuracy, margin,

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
    outcome_weight: float = 0.8
    accuracy_weight: float = 0.5
    """Factor inside the outcome: accuracy_weight x accuracy x margin (published code: 0.5)."""
    accuracy: Literal["share", "all"] = "share"
    """Acc: the share of the other side's traces in the top n, or 1 only where all of them are."""
    temperature: float = 0.5
    """Softmax temperature of the negatives in the margin."""
    process_weight: float = 0.0
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


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-6
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay to a tenth of lr over the planned steps."""
    grad_clip: float = 1.0


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters that are trained instead of the weights; all that leaves the learner is merged."""

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
    cpus: float = 1.0
    gpus: float = 0.0
    zero_stage: Literal[0, 1, 2, 3] = 2
    bf16: bool = True
    """bf16 weights with fp32 master copies; false trains in fp32."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """`auto`: flash_attention_2 for bf16 on a GPU where flash_attn can be imported, else sdpa."""
    gradient_checkpointing: bool = False
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Kept in host memory: the optimiser's state and its step (ZeRO-1 and up), or also the
    parameters (ZeRO-3)."""
    freeze_vision: bool = False
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    micro_batch_tokens: int = 16384
    """Tokens of one forward pass at most, padding included, and those of each distinct picture
    once more for the vision tower (a dearer sequence goes alone)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    timeout_s: float = 1800.0


@dataclass(frozen=True)
class GRPOConfig:
    """The RL objective; the formulas are in learner/advantages.py and learner/rank/losses.py.

    The defaults are the paper's (section 3.3; spec: hyper-parameters), but for one update a step.
    """

    preset: Literal[
        "", "embed_rl", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp"
    ] = ""
    """Published choices (configs/presets.py), which set every key of this section. Keys given
    beside it win: in the same file, or on the command line. Empty: these defaults, and on the
    command line no preset of the file's."""
    advantage: Literal["group_norm", "mean_only", "leave_one_out", "batch_norm"] = "group_norm"
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
    dual_clip: float = 3.0
    """Largest ratio that a negative advantage is multiplied by (dual clip); 0 = no bound. A
    clipped_weight is bounded by clip_high alone."""
    kl: Literal["none", "k1", "k2", "k3"] = "k3"
    """Estimate of KL to the frozen initial Reasoner; `none` loads no reference. k1 belongs in the
    reward: in the loss its gradient is zero on average."""
    kl_in: Literal["loss", "reward"] = "loss"
    """In the reward, the traces are scored by the learner before they are trained on."""
    kl_coef: float = 0.01
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    query_weight: float = 1.0
    """Factor of the loss of query-side traces."""
    target_weight: float = 1.0
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
class StopConfig:
    """A stage ends on what it must reach, not on a clock."""

    metric: str = ""
    """Evaluation metric to watch; empty = run all steps."""
    at_least: float = 1.0
    min_steps: int = 0


@dataclass(frozen=True)
class EvalConfig:
    every: int = 0
    """Measure on held-out data each so many steps; 0 = never."""
    samples: int = 256
    """Held-out pairs used: each set gives its share, spread over its rows, and at least one. (The
    job `warm_start` draws that many written traces from all sets together.)"""


@dataclass(frozen=True)
class DemoDataConfig:
    """Job `demo_data`: draw the small world, its teacher traces, and the tiny random model."""

    run: RunConfig = field(default_factory=RunConfig)
    train_scenes: int = 6000
    heldout_scenes: int = 500
    on_target: float = 0.35
    """Share of the teacher's traces that point at what helps retrieval."""


@dataclass(frozen=True)
class RuleTracesConfig:
    """Job `rule_traces`: traces by rule for one's own data, where no teacher model is at hand."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    """`train` lists the sets; those whose texts name the pictures come first."""
    on_target: float = 1.0
    """Share of the teacher's traces that point at what helps; 1 = no bias."""
    heldout: float = 0.1
    """Share of pictures (of queries, where there are none) kept from training in every set."""
    vocabulary: int = 0
    """Tokens of a tiny random model to start from, trained on the sets' texts; 0 = no model."""


@dataclass(frozen=True)
class WarmStartConfig:
    """Job `warm_start`: supervised training of a Reasoner on written traces or captions."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: str = MISSING
    """Folder of the model to start from."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    steps: int = 1000
    batch: int = 32
    """Sequences per step over all ranks."""
    checkpoint_every: int = 200
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    stop: StopConfig = field(default_factory=StopConfig)


@dataclass(frozen=True)
class EmbedderConfig:
    """Job `embedder`: contrastive training of the Embedder on item + trace + evidence."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: str = MISSING
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    steps: int = 1000
    batch: int = 64
    """Pairs per step over all ranks; each is a negative for all others."""
    sub_batches: int = 2
    """Draws a batch is made of, each from a single data set (spec, section 1.2)."""
    temperature: float = 0.02
    learn_temperature: bool = False
    """Train the temperature as well, from there and within (0.01, 1)."""
    dimensions: list[int] = field(default_factory=list)
    """Leading parts of the vector that shall retrieve by themselves (Matryoshka): the loss is the
    mean over them and the whole vector, each measured as `eval/hit_at_1_dim_<size>`."""
    hard_negatives: int = 1
    """Of a row's own hard negatives, so many at most; 0 = none (published). One is shown with the
    trace that another row of the training sets has for it. One without any stands only against
    queries whose target is embedded without trace: else its lack of one would give it away."""
    trace_dropout: float = 0.3
    """Share of items embedded without their trace, so that no-trace input stays in distribution."""
    evidence_dropout: float = 0.1
    """Share of the remaining items embedded with the trace's text only."""
    checkpoint_every: int = 200
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    stop: StopConfig = field(default_factory=StopConfig)


@dataclass(frozen=True)
class WeightsConfig:
    """How new weights travel from the learner to the engines."""

    delta: bool = False
    """Send only what changed, bit for bit; learner rank 0 keeps a copy of its weights for it."""
    snapshot_every: int = 20
    """With delta: every so many versions, and whenever the deltas grow large, all is sent."""


@dataclass(frozen=True)
class RLConfig:
    """Job `rl`: Embedder-guided RL of the Reasoner."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reasoner: str = MISSING
    """Folder of the warm-started Reasoner, also the KL reference: of the Qwen-VL family or, where
    the data sets hold no pictures, a causal language model with a chat template."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    steps: int = 300
    pairs: int = 32
    """Pairs of one data set per step; both sides are reasoned about."""
    siblings: int = 8
    """Traces sampled per prompt: the group size n."""
    max_staleness: int = 0
    """Versions by which the weights that sampled a token may lag behind those it trains: steps are
    collected that far ahead, while the learner trains. 0: one after the other."""
    stale: Literal["wait", "drop"] = "wait"
    """What keeps the bound. `wait`: no step is begun before the engines hold weights that are new
    enough for all of it. `drop`: one more step is begun, so that engines never wait, and what of it
    began under weights that are too old is dropped before it trains: whole steps, where the learner
    is the slower one."""
    checkpoint_every: int = 50
    """The newest two checkpoints are kept, and the best by held-out hit@1 (`evaluation.every`)."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    logprob_tolerance: float = 1e-3
    """Largest allowed difference between engine and learner log-probabilities; beyond it the run
    stops. 1e-3 suits float32; bfloat16 engines need about 0.3."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Job `evaluate`: hit@1, hit@5 and nDCG@5 without trace, with text, with text and evidence."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    warm_start: str = MISSING
    """Folder of the warm-started Reasoner."""
    eg_rl: str = MISSING
    """Folder of the Reasoner after EG-RL."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    bootstrap: int = 1000
    """Resamples for the 95 % intervals."""


@dataclass(frozen=True)
class ReportConfig:
    """Job `report`: report.html and summary.json from the runs of one experiment."""

    run: RunConfig = field(default_factory=RunConfig)
    evaluate: str = MISSING
    """Run folder of `evaluate`."""
    rl: str = MISSING
    """Run folder of `rl`."""
    stages: list[str] = field(default_factory=list)
    """Run folders whose seconds are summed up, in order."""
    gallery: int = 24
    """Traces shown, before and after."""


def name_in_metric(name: str) -> str:
    """Return a data set's name as metrics have it, without what a tracker may refuse."""
    return re.sub(r"[^\w -]", "_", name)


def problems(config: object) -> list[str]:
    """Return what is impossible in a job's settings, each with the key to change."""
    found: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            found.append(message)

    def walk(prefix: str, node: object) -> None:
        for name in getattr(node, "__dataclass_fields__", {}):
            value = getattr(node, name)
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(value, list):
                for index, entry in enumerate(value):
                    walk(f"{path}[{index}]", entry)
            elif hasattr(value, "__dataclass_fields__"):
                walk(path, value)
        check = _CHECKS.get(type(node))
        if check is not None:
            found.extend(f"{prefix}.{text}" if prefix else text for text in check(node))

    walk("", config)
    if isinstance(config, RuleTracesConfig | EmbedderConfig | WarmStartConfig | RLConfig):
        need(bool(config.data.train), "data.train: expected at least one data set, found none")
    if isinstance(config, EvaluateConfig):
        need(bool(config.data.eval), "data.eval: expected at least one data set, found none")
    if isinstance(config, EmbedderConfig | RLConfig | EvaluateConfig):
        need(
            not any(one.format == "caption" for one in (*config.data.train, *config.data.eval)),
            "data: captions have no target; only the job warm_start can use format 'caption'",
        )
    if isinstance(config, EmbedderConfig | RLConfig):
        named: dict[str, str] = {}
        for index, one in enumerate(config.data.eval):
            metric = name_in_metric(one.name)
            first = named.setdefault(metric, one.name)
            need(
                one.name == first,
                f"data.eval[{index}].name: '{one.name}' and '{first}' would share the metric "
                f"eval/hit_at_1_by_set/{metric}; rename one of the two sets",
            )
    evaluation = getattr(config, "evaluation", None)
    if evaluation is not None and evaluation.every:
        need(bool(config.data.eval), "data.eval: evaluation.every is set, so it needs a data set")
    stop = getattr(config, "stop", None)
    if stop is not None and stop.metric:
        need(bool(evaluation and evaluation.every), "evaluation.every: stop.metric needs it > 0")
    if isinstance(config, RLConfig):
        rollout = config.rollout
        need(
            rollout.sampling.max_tokens < rollout.engine.max_model_len,
            f"rollout.sampling.max_tokens: {rollout.sampling.max_tokens} leaves no room for a "
            f"prompt in rollout.engine.max_model_len={rollout.engine.max_model_len}",
        )
        need(
            config.reward.evidence != "none",
            "reward.evidence: 'none' embeds no trace, so siblings earn the same; use 'text' or "
            "'text+evidence'",
        )
        judge = config.reward.judge
        shown = judge.negatives + (config.siblings if judge.positives == "all" else 1)
        need(
            judge.answer == "choice" or shown <= MAX_SCORED,
            f"reward.judge.answer: a score is read from one digit, so at most {MAX_SCORED} "
            f"candidates can be shown, found {shown}; set positives=one or fewer negatives",
        )
        need(
            rollout.engine.dtype == ("bfloat16" if config.learner.bf16 else "float32"),
            f"rollout.engine.dtype: engines hold the learner's own bits, so learner.bf16="
            f"{str(config.learner.bf16).lower()} needs "
            f"{'bfloat16' if config.learner.bf16 else 'float32'}, found {rollout.engine.dtype}",
        )
        need(
            config.learner.lora.dropout == 0,
            "learner.lora.dropout: log-probabilities must be those of the engine, which drops "
            f"nothing, found {config.learner.lora.dropout:g}; set it to 0",
        )
        need(config.siblings >= 2, f"siblings: a group needs at least 2, found {config.siblings}")
        need(config.pairs >= 2, f"pairs: a rank needs at least 2 pairs, found {config.pairs}")
        need(
            not config.learner.bf16 or config.logprob_tolerance > 1e-2,
            "logprob_tolerance: bf16 learners differ from the engine by more than 0.01; raise it "
            "or set learner.bf16=false",
        )
    if isinstance(config, EmbedderConfig):
        need(
            config.batch % config.learner.ranks == 0,
            f"batch: {config.batch} does not divide among learner.ranks={config.learner.ranks}",
        )
        need(
            config.batch % config.sub_batches == 0,
            f"batch: {config.batch} does not divide into sub_batches={config.sub_batches}",
        )
    return found


def _positive(node: object, *names: str) -> list[str]:
    return [
        f"{name}: expected more than 0, found {getattr(node, name)}"
        for name in names
        if not getattr(node, name) > 0
    ]


def _gpu_problems(node: RolloutConfig | RewardConfig | JudgeConfig) -> list[str]:
    """Return what is wrong with the GPUs of an engine and of the actor that holds it."""
    gpus, ranks = node.pool.gpus, node.engine.tensor_parallel
    if not 0 < gpus < ranks:
        return []
    return [f"pool.gpus: expected engine.tensor_parallel={ranks} or more, found {gpus:g}"]


def _not_negative(node: object, *names: str) -> list[str]:
    return [
        f"{name}: expected at least 0, found {getattr(node, name)}"
        for name in names
        if not getattr(node, name) >= 0
    ]


def _share(node: object, *names: str) -> list[str]:
    return [
        f"{name}: expected a share in [0, 1], found {getattr(node, name)}"
        for name in names
        if not 0 <= getattr(node, name) <= 1
    ]


def _media_problems(node: MediaConfig) -> list[str]:
    found = _positive(node, "max_frames", "max_file_bytes", "max_decode_pixels", "max_step_bytes")
    for name in ("image", "page", "frame", "crop"):
        least, most = getattr(node, f"{name}_min_pixels"), getattr(node, f"{name}_max_pixels")
        if not 0 < least <= most:
            found.append(f"{name}_min_pixels: expected 0 < {least} <= {name}_max_pixels={most}")
    return found


def _lora_problems(node: LoRAConfig) -> list[str]:
    found = [*_not_negative(node, "rank"), *_positive(node, "alpha")]
    if not 0 <= node.dropout < 1:
        found.append(f"dropout: expected a share in [0, 1), found {node.dropout}")
    if node.rank and not (node.modules or node.vision_modules):
        found.append("modules: adapters need layers; name some, or set rank=0")
    if node.vision_modules and not node.rank:
        found.append("rank: 0 adds no adapters; raise it or set vision_modules=[]")
    return found


def _learner_problems(node: LearnerConfig) -> list[str]:
    found = [
        *_positive(node, "ranks", "micro_batch_tokens", "timeout_s"),
        *_not_negative(node, "cpus", "gpus"),
    ]
    if node.bf16 and node.zero_stage == 0:
        found.append(
            "zero_stage: 0 loses small updates in bf16; set it to 1 or more, or bf16=false"
        )
    if node.offload == "optimizer" and node.zero_stage == 0:
        found.append("offload: 'optimizer' needs zero_stage of at least 1, found 0")
    if node.offload == "parameters" and node.zero_stage != 3:
        found.append(f"offload: 'parameters' needs zero_stage=3, found {node.zero_stage}")
    if node.freeze_vision and node.lora.vision_modules:
        found.append(
            "lora.vision_modules: adapters would change the tower that freeze_vision=true keeps; "
            "empty it or set freeze_vision=false"
        )
    return found


def _grpo_problems(node: GRPOConfig) -> list[str]:
    found = [
        *_positive(
            node,
            *("std_floor", "overlong_share", "clip_low", "clip_high", "replay_age"),
            "updates_per_step",
        ),
        *_share(node, "overlong_share", "clip_low"),
        *_not_negative(
            node,
            *("min_spread", "overlong_penalty", "kl_coef", "entropy_coef", "query_weight"),
            *("target_weight", "refill", "replay_groups"),
        ),
    ]
    if node.kl == "k1" and node.kl_in == "loss":
        found.append("kl: k1 in the loss pulls nowhere on average; use k2 or k3, or kl_in=reward")
    if not node.query_weight + node.target_weight > 0:
        found.append("query_weight: with target_weight=0 it must be more than 0, found 0")
    if node.dual_clip != 0 and not node.dual_clip > 1:
        found.append(f"dual_clip: expected 0 (off) or more than 1, found {node.dual_clip}")
    if node.tis_cap != 0 and not node.tis_cap >= 1:
        found.append(f"tis_cap: expected 0 (off) or at least 1, found {node.tis_cap}")
    if node.sequence_band != 0 and not node.sequence_band > 1:
        found.append(f"sequence_band: expected 0 (off) or more than 1, found {node.sequence_band}")
    return found


def _reward_problems(node: RewardConfig) -> list[str]:
    found = [
        *_positive(node, "temperature"),
        *_not_negative(
            node,
            *("format_weight", "outcome_weight", "accuracy_weight", "process_weight"),
            *("gain_weight", "length_weight", "length_budget"),
        ),
        *_share(node, "false_negative_similarity"),
    ]
    if node.instruction and node.pooling == "emb_token":
        found.append(
            "instruction: an Embedder with pooling=emb_token reads none; empty it or set pooling"
        )
    if node.process_weight > 0 and not node.judge.model:
        found.append(
            f"judge.model: process_weight={node.process_weight:g} needs a judge; name its model "
            "folder or set process_weight=0"
        )
    if node.judge.model and not node.process_weight > 0:
        found.append("process_weight: a judge that pays nothing; raise it or set judge.model=''")
    if node.length_weight > 0 and not node.length_budget > 0:
        found.append("length_budget: length_weight needs it > 0")
    return found


_CHECKS = {
    MediaConfig: _media_problems,
    DataSetConfig: lambda n: _not_negative(n, "weight", "limit"),
    DataConfig: lambda n: [
        *_share(n, "max_bad_rows"),
        *(
            ["train: every weight is 0, so no set can be drawn"]
            if n.train and not any(one.weight > 0 for one in n.train)
            else []
        ),
    ],
    RunConfig: lambda n: _not_negative(n, "seed", "nodes_timeout_s"),
    PoolConfig: lambda n: [
        *_positive(n, "actors", "timeout_s", "min_actors"),
        *_not_negative(n, "cpus", "gpus", "max_actors"),
        *(
            [f"max_actors: expected 0 or min_actors={n.min_actors} or more, found {n.max_actors}"]
            if n.max_actors and n.max_actors < n.min_actors
            else []
        ),
    ],
    EngineConfig: lambda n: [
        *_positive(n, "max_model_len", "max_num_seqs", "tensor_parallel"),
        *_share(n, "gpu_memory_utilization"),
    ],
    EvalConfig: lambda n: [*_positive(n, "samples"), *_not_negative(n, "every")],
    SamplingConfig: lambda n: _positive(n, "temperature", "max_tokens"),
    BankConfig: lambda n: [
        *_not_negative(n, "recent", "hard", "capacity"),
        *(
            []
            if n.hard <= n.capacity
            else [f"hard: expected at most capacity={n.capacity}, found {n.hard}"]
        ),
    ],
    RolloutConfig: _gpu_problems,
    JudgeConfig: lambda n: [*_positive(n, "negatives"), *_gpu_problems(n)],
    RewardConfig: lambda n: [*_reward_problems(n), *_gpu_problems(n)],
    OptimizerConfig: lambda n: _positive(n, "lr", "eps", "grad_clip"),
    LoRAConfig: _lora_problems,
    LearnerConfig: _learner_problems,
    GRPOConfig: _grpo_problems,
    WeightsConfig: lambda n: _positive(n, "snapshot_every"),
    RuleTracesConfig: lambda n: [
        *_share(n, "on_target", "heldout"),
        *(
            []
            if n.vocabulary == 0 or n.vocabulary >= MIN_VOCABULARY
            else [f"vocabulary: expected 0 or at least {MIN_VOCABULARY}, found {n.vocabulary}"]
        ),
        *(
            f"data.train[{index}].format: only mmeb and llavahound rows can hold traces on both "
            f"sides, found {one.format}"
            for index, one in enumerate(n.data.train)
            if one.format not in ("mmeb", "llavahound")
        ),
        *(
            f"data.train[{index}].name: names a file, so expected letters, digits, '.', '_' and "
            f"'-', found '{one.name}'"
            for index, one in enumerate(n.data.train)
            if not re.fullmatch(r"[\w.-]+", one.name)
        ),
    ],
    WarmStartConfig: lambda n: _positive(n, "steps", "batch", "checkpoint_every"),
    EmbedderConfig: lambda n: [
        *_positive(n, "steps", "batch", "sub_batches", "temperature", "checkpoint_every"),
        *_not_negative(n, "hard_negatives"),
        *_share(n, "trace_dropout", "evidence_dropout"),
        *(
            f"dimensions: expected sizes of more than 0, found {size}"
            for size in n.dimensions
            if size <= 0
        ),
        *(
            [f"temperature: learned, it must be within {TEMPERATURES}, found {n.temperature}"]
            if n.learn_temperature and not TEMPERATURES[0] < n.temperature < TEMPERATURES[1]
            else []
        ),
    ],
    RLConfig: lambda n: [
        *_positive(n, "steps", "pairs", "checkpoint_every", "logprob_tolerance"),
        *_not_negative(n, "max_staleness"),
        *(
            ["stale: expected wait where max_staleness is 0: a step begun ahead is always too old"]
            if n.stale == "drop" and not n.max_staleness
            else []
        ),
    ],
    EvaluateConfig: lambda n: _positive(n, "bootstrap"),
    ReportConfig: lambda n: _not_negative(n, "gallery"),
    DemoDataConfig: lambda n: [
        *_positive(n, "train_scenes", "heldout_scenes"),
        *_share(n, "on_target"),
    ],
}
