"""The settings of every job: one frozen dataclass each, with a docstring under each field.

The sections of these dataclasses are in `configs/common.py`, `configs/reward.py`,
`configs/learner.py` and `configs/serving.py`. Defaults live in these files and nowhere else.
Building an object checks nothing: `configs.load.load` asks `problems()`, and refuses wrong values
and impossible combinations together with all other problems of the settings, at once.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from configs.bounds import lendable, not_negative, positive, share
from configs.common import (
    BENCHMARK_SETS,
    COMMON_CHECKS,
    MISSING,
    BenchmarkConfig,
    DataConfig,
    DataSetConfig,
    EngineConfig,
    EvalConfig,
    MediaConfig,
    PoolConfig,
    RolloutConfig,
    RunConfig,
    StopConfig,
    gpu_problems,
)
from configs.learner import (
    LEARNER_CHECKS,
    TEMPERATURES,
    GRPOConfig,
    LearnerConfig,
    ParityConfig,
    WeightsConfig,
)
from configs.reward import MAX_SCORED, REWARD_CHECKS, JudgeConfig, Pooling, RewardConfig
from configs.serving import SERVING_CHECKS, LimitsConfig

MIN_VOCABULARY = 400
"""Bytes, special tokens and the trace grammar take about 290 of a tokenizer's entries."""

BF16_GAP = 0.01
"""Mean gap of log-probabilities that rounding to bf16 alone causes in small models."""
RENAMED = {"logprob_tolerance": "parity.mean and parity.p999"}
"""Settings of earlier versions, and what takes their place."""


@dataclass(frozen=True)
class DemoDataConfig:
    """Job `demo_data`: draw the small world, its teacher traces, and the tiny random model."""

    run: RunConfig = field(default_factory=RunConfig)
    train_scenes: int = 6000
    """Size of the training split: its captions of sight; the other files are in proportion."""
    heldout_scenes: int = 500
    """Size of the held-out split, in the same way."""
    on_target: float = 0.35
    """Share of the teacher's traces that point at what helps retrieval."""


@dataclass(frozen=True)
class CheckDataConfig:
    """Job `check_data`: read every row and decode every picture; say what is bad or there twice."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    """The sets to check. The job reports what training and held-out sets share."""


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
    store: str = ""
    """Folder in which `evaluate` or `encode` has kept traces, see `store` there: the pairs have the
    greedy traces of `reasoner` that it holds, and the traces of their rows do not count. Empty: the
    traces of the rows."""
    reasoner: str = ""
    """Folder of the Reasoner that wrote the traces in the store."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Settings that the Reasoner wrote with: `sampling.max_tokens`, `engine.dtype` and
    `engine.max_model_len` say which traces of the store are meant."""
    max_missing_traces: float = 0.05
    """Largest share of a set's queries and targets that may have no trace in the store."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    steps: int = 1000
    """Training steps at most."""
    batch: int = 32
    """Sequences per step over all ranks."""
    checkpoint_every: int = 200
    """Write a checkpoint each so many steps."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    stop: StopConfig = field(default_factory=StopConfig)


@dataclass(frozen=True)
class EmbedderConfig:
    """Job `embedder`: contrastive training of the Embedder on item + trace + evidence."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: str = MISSING
    """Folder of the model to start from."""
    store: str = ""
    """Folder in which `evaluate` or `encode` has kept traces, see `store` there: the pairs have the
    greedy traces of `reasoner` that it holds, and the traces of their rows do not count. Empty: the
    traces of the rows."""
    reasoner: str = ""
    """Folder of the Reasoner that wrote the traces in the store."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Settings that the Reasoner wrote with: `sampling.max_tokens`, `engine.dtype` and
    `engine.max_model_len` say which traces of the store are meant."""
    max_missing_traces: float = 0.05
    """Largest share of a set's queries and targets that may have no trace in the store."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    steps: int = 1000
    """Training steps at most."""
    batch: int = 64
    """Pairs per step over all ranks; each is a negative for all others."""
    sub_batches: int = 2
    """Draws a batch is made of, each from a single data set, and at most one from a set with video,
    as published: a further draw of video is drawn again among the other sets, if there are any."""
    temperature: float = 0.02
    """Temperature of the contrastive loss."""
    learn_temperature: bool = False
    """Train the temperature as well, from there and within (0.01, 1)."""
    dimensions: list[int] = field(default_factory=list)
    """Leading parts of the vector that shall retrieve by themselves (Matryoshka): the loss is the
    mean over them and the whole vector, each measured as `eval/hit_at_1_dim_<size>`."""
    hard_negatives: int = 1
    """Of a row's own hard negatives, so many at most; 0 = none (published). One is shown with the
    trace that another row of the training sets has for it. A negative without any trace is
    used only if the target is embedded without trace; otherwise the missing trace would reveal the
    negative."""
    trace_dropout: float = 0.3
    """Share of items embedded without their trace, so that no-trace input stays in distribution."""
    evidence_dropout: float = 0.1
    """Share of the remaining items embedded with the trace's text only."""
    checkpoint_every: int = 200
    """Write a checkpoint each so many steps."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    stop: StopConfig = field(default_factory=StopConfig)


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
    """Training steps."""
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
    parity: ParityConfig = field(default_factory=ParityConfig)


@dataclass(frozen=True)
class LeaderboardConfig:
    """What MMEB-V2's leaderboard says of a model."""

    model_name: str = ""
    """Name of the model and of its file; empty: no file is written."""
    model_backbone: str = ""
    """The model that it was trained from."""
    model_size: float = 0.0
    """Parameters, in billions."""
    model_release_date: str = ""
    """YYYY-MM-DD"""
    url: str = ""
    """Of a paper, repository or model page."""


CONTROLS = ("other_trace", "samples")
"""What `EvaluateConfig.controls` may name; `evaluation/variants.py` makes variants of them."""


@dataclass(frozen=True)
class AdaptiveConfig:
    """A gate that decides from the vector of a query without a trace whether a trace is worth its
    tokens."""

    train: list[DataSetConfig] = field(default_factory=list)
    """Data sets whose queries the gate learns from, apart from those that are measured; their
    items are reasoned about and embedded, too. Sets with about as many candidates as those that
    are measured are best, as more candidates make a query harder. Empty: no gate is measured."""


SIDES_WITH_PROMPTS = ("query", "document")
"""sentence-transformers' names of the two sides."""


@dataclass(frozen=True)
class RivalConfig:
    """Another Embedder that `evaluate` measures beside ours, on the same items without traces."""

    name: str = MISSING
    """Name in tables and files: letters, digits, `_`, `.` or `-`."""
    model: str = MISSING
    """Its folder."""
    library: Literal["sentence_transformers", "vllm"] = "sentence_transformers"
    """What loads it. `sentence_transformers` (extra `rivals`) reads from the folder how it pools,
    which prompts it has and how large pictures may be. `vllm` is told by `pooling` and
    `instruction`, and sees pictures as our Embedder does."""
    pooling: Pooling = "emb_token"
    """As `reward.pooling`; for `vllm` only."""
    instruction: str = ""
    """As `reward.instruction`; for `vllm` only."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Texts under `query` and `document` in place of those of the folder, for
    `sentence_transformers` only. An item's own instruction is the prompt of a model with a chat
    template, and begins the text of others."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    """For `sentence_transformers` only `dtype`, `max_num_seqs` (items of a batch) and
    `max_model_len` count; longer inputs lose their end."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Job `evaluate`: hit@1, hit@5 and nDCG@5 without trace, with text, with text and evidence; on
    benchmarks all of their metrics. Also which of these differ, and what the traces cost."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    benchmarks: list[BenchmarkConfig] = field(default_factory=list)
    """Published benchmarks, beside or instead of data.eval."""
    leaderboard: LeaderboardConfig = field(default_factory=LeaderboardConfig)
    """For the leaderboard's file of the last variant, if all sets of `mmeb_v2` are measured."""
    warm_start: str = ""
    """Folder of the warm-started Reasoner; empty: nothing is measured with its traces."""
    eg_rl: str = ""
    """Folder of the Reasoner after EG-RL; empty: as above."""
    published_traces: list[str] = field(default_factory=list)
    """Traces of `mmeb_v2` in files as Embed-RL's code writes them, `Video/K700_query_cot.json` and
    `Video/K700_corpus_cot.json` for example, or folders of such files. They are measured beside
    those of the Reasoners, or instead of them, as `published`. A file belongs to the set that its
    name begins with. What the files do not name has no trace. Empty: none."""
    controls: list[str] = field(default_factory=list)
    """Further variants of each Reasoner, which show where its score comes from. `other_trace`: each
    item gets the trace of another item of its set, side and kind; what is left of the score is not
    due to the words about the item. `samples`: the mean of the vectors of several sampled traces.
    Each embeds all items again; `samples` also samples that many traces."""
    samples: int = 4
    """Traces that the control `samples` takes of an item, with the seeds 0, 1, ... at
    rollout.sampling.temperature."""
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    """hit@1 against tokens if only some queries get a trace, of the last Reasoner. Every candidate
    has its trace."""
    rivals: list[RivalConfig] = field(default_factory=list)
    """Other Embedders, each with a name of its own, whose scores stand beside ours."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    block: int = 1024
    """Items that are reasoned about, or embedded, together: decoded pictures of two blocks are held
    at a time. More keep many engines busier, fewer need less memory and lose less in a kill."""
    store: str = ""
    """Folder where traces and vectors are kept by content, model and settings: what is there is not
    made again. Runs that name the same folder share them. Empty: `store` in the run folder."""
    vector_bytes: int = 4 << 30
    """Vectors of more bytes are mapped from a file instead of being held in memory."""
    max_missing_traces: float = 0.05
    """Largest share of traces of one Reasoner, or of the published ones, that may be missing; with
    more there is no result."""
    bootstrap: int = 1000
    """Resamples for the 95 % intervals."""


@dataclass(frozen=True)
class EncodeConfig:
    """Job `encode`: a folder of pictures, videos and PDFs, or a file of rows, to vectors."""

    run: RunConfig = field(default_factory=RunConfig)
    input: str = MISSING
    """A folder whose pictures, videos and PDFs are encoded, with its sub-folders; or JSON, CSV or
    parquet rows with `text`, `image`, `page` or `video`, and an `id` or none. A PDF that is named
    without a page becomes all of its pages."""
    root: str = ""
    """Folder that paths in rows are relative to; empty: the folder of the rows. A folder of media
    is its own root."""
    side: Literal["target", "query"] = "target"
    """What the items are: `target`, which is searched, or `query`; it chooses the prompt of the
    Reasoner."""
    data: DataConfig = field(default_factory=DataConfig)
    """Its `media`, `templates` and `item_tokens` count; `train` and `eval` stay empty."""
    reasoner: str = ""
    """Folder of the Reasoner; empty: the items are embedded without traces."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The Embedder; of the trace it reads what `evidence` says."""
    block: int = 1024
    """Items that are reasoned about, or embedded, together, and rows of a file of vectors; see the
    same setting of `evaluate`."""
    store: str = ""
    """Folder where traces and vectors are kept by content, model and settings: what is there is not
    made again. Runs that name the same folder share them. Empty: `store` in the run folder."""
    vector_bytes: int = 4 << 30
    """Vectors of one block with more bytes are mapped from a file."""
    max_missing_traces: float = 0.05
    """Largest share of the items whose pictures can be read that may have no trace; with more there
    is no result."""


def _shared_gpu() -> EngineConfig:
    return EngineConfig(gpu_memory_utilization=0.45)


@dataclass(frozen=True)
class EncoderConfig:
    """`encoder.Encoder`: a Reasoner and an Embedder for calls from Python, side by side."""

    data: DataConfig = field(default_factory=DataConfig)
    """As for `encode`."""
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(engine=_shared_gpu()))
    """The Reasoner's engine, which has the Embedder's beside it on the same GPU: each takes its
    `gpu_memory_utilization`. On Ray each actor has GPUs of its own (`pool`)."""
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(engine=_shared_gpu()))
    """The Embedder; `model` is what `from_pretrained` is given. Of the trace it reads what
    `evidence` says."""
    block: int = 1024
    """Inputs of a long list that are encoded together: decoded pictures of two blocks are in memory
    at a time."""


@dataclass(frozen=True)
class SearchConfig:
    """Job `search`: the encoded items that are nearest to one query, as a table and as a page."""

    run: RunConfig = field(default_factory=RunConfig)
    encoded: str = MISSING
    """Run folder of `encode`."""
    text: str = ""
    """Text of the query; with one of the three below, beside it. The command line is read as YAML:
    a text with `: ` or ` #` in it, or with a quote at its start, needs quotes of its own, as in
    `text='"cotton: blue"'`."""
    image: str = ""
    """Path of a picture."""
    video: str = ""
    """Path of a video file, or of a folder of frames."""
    page: str = ""
    """Path of a page, as `a.pdf#page=3` or a picture of it."""
    instruction: str = ""
    """The task in words, where the models were trained with one."""
    k: int = 10
    """Items shown; fewer, where fewer are encoded."""
    index: Literal["exact", "flat", "ivf", "hnsw", "binary"] = "exact"
    """`exact` compares the query with every vector, file by file. The others are FAISS indexes,
    built by the first search and kept beside the vectors (`data/stores/vector_index.py`): `flat`
    compares with every vector too, `ivf` and `hnsw` with few of them, `binary` with one bit of each
    number. All but `exact` and `flat` may miss near items; how many is printed when they are built.
    """
    probes: int = 0
    """Lists that `ivf` looks through: more find more and take longer. 0: a sixteenth of its lists,
    at least 8."""
    rescore: int = 4
    """Of `binary`: of the k times so many that are best by their bits, the vectors decide."""
    data: DataConfig = field(default_factory=DataConfig)
    """As for `encode`."""
    reasoner: str = ""
    """Folder of the Reasoner; empty: the query is embedded without a trace."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The Embedder, which must be the one that encoded the items, with the same settings."""


def _served_data() -> DataConfig:
    return DataConfig(media=MediaConfig(max_step_bytes=1 << 30))


@dataclass(frozen=True)
class ServeConfig:
    """Job `serve`: vectors over HTTP, as OpenAI's `/v1/embeddings`, until it is stopped."""

    run: RunConfig = field(default_factory=RunConfig)
    name: str = "embed-rl"
    """Name of the model in requests and answers."""
    host: str = "127.0.0.1"
    """Address to listen at. The default is reached from this machine only; with another one set
    `token_env` too, and put a proxy with TLS in front."""
    port: int = 8000
    """0: a free one, which the job prints."""
    token_env: str = ""
    """Environment variable with the token that requests of `/v1/` must show as `Authorization:
    Bearer TOKEN`; empty: none. The token itself is in no setting, log or file."""
    media_root: str = ""
    """Folder whose files requests may name by `file:` URLs or relative paths; on all nodes. Empty:
    they may not."""
    remote: bool = False
    """Let requests name media by http and https URLs, which the job fetches, of public addresses
    only."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    replicas: int = 1
    """Copies of the models that share the requests; one that dies is replaced."""
    cpus: float = 1.0
    """CPUs that each replica asks Ray for."""
    gpus: float = 0.0
    """GPUs that each replica asks Ray for; its two engines share them."""
    data: DataConfig = field(default_factory=_served_data)
    """As for `encode`; `media.max_step_bytes` is for one request, and 1 GiB unless set."""
    reasoner: str = ""
    """Folder of the Reasoner; empty: items are embedded without traces that the server writes."""
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(engine=_shared_gpu()))
    """The Reasoner's engine, without `pool`: see `replicas`."""
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(engine=_shared_gpu()))
    """The Embedder, without `pool`; of a trace it reads what `evidence` says."""


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


def _replica_problems(n: ServeConfig) -> list[str]:
    """Return what is wrong with engines that share a replica's GPUs, and keys that it ignores."""
    memory = n.rollout.engine.gpu_memory_utilization + n.reward.engine.gpu_memory_utilization
    default = RewardConfig()
    problems = [
        f"reward.{key}: `serve` has no use for it; remove the key"
        for key in ("judge", "second_model")  # pool: one_gpu.yaml is for all jobs
        if getattr(n.reward, key) != getattr(default, key)
    ]
    if n.reasoner and n.gpus and memory > 1 + 1e-9:
        problems.append(
            "gpu_memory_utilization: expected rollout.engine and reward.engine to take at most 1 "
            f"of a GPU together, as they share it, found {memory:g}"
        )
    return problems


JOB_CONFIGS = (
    *(DemoDataConfig, CheckDataConfig, RuleTracesConfig, WarmStartConfig, EmbedderConfig),
    *(RLConfig, EvaluateConfig, EncodeConfig, SearchConfig, ServeConfig, ReportConfig),
)
"""The settings of every job."""


EngineSection = RolloutConfig | RewardConfig | JudgeConfig | RivalConfig


def engines_of(config: object) -> dict[str, EngineSection]:
    """Return the sections whose `pool` and `engine` on vLLM a job starts, by their keys."""
    sections: dict[str, EngineSection] = {}
    if not isinstance(config, RLConfig | EvaluateConfig | EncodeConfig | SearchConfig):
        return sections
    reasoners = ("reasoner", "warm_start", "eg_rl")
    if any(getattr(config, name, "") for name in reasoners):
        sections["rollout"] = config.rollout
    sections["reward"] = config.reward
    if isinstance(config, RLConfig) and config.reward.judge.model:
        sections["reward.judge"] = config.reward.judge
    if isinstance(config, EvaluateConfig):
        sections |= {
            f"rivals[{place}]": rival
            for place, rival in enumerate(config.rivals)
            if rival.library == "vllm"
        }
    return sections


def name_in_metric(name: str) -> str:
    """Return a data set's name as metrics have it, without what a tracker may refuse."""
    return re.sub(r"[^\w -]", "_", name)


def _rival_problems(node: RivalConfig) -> list[str]:
    problems = []
    if not re.fullmatch(r"\w[\w.-]*", node.name, re.ASCII):
        problems.append(
            "name: expected letters, digits, '_', '-' or '.', as it names a folder, found "
            f"'{node.name}'"
        )
    if node.library == "vllm":
        if node.prompts:
            problems.append("prompts: vllm reads none; set `instruction`, or another library")
        if node.instruction and node.pooling == "emb_token":
            problems.append("instruction: pooling=emb_token reads none; empty it or set pooling")
        return problems
    default = RivalConfig()
    problems += [
        f"{key}: sentence_transformers reads it from the folder; remove it, or set library=vllm"
        for key in ("pooling", "instruction")
        if getattr(node, key) != getattr(default, key)
    ]
    problems += [
        f"prompts.{side}: expected one of {', '.join(SIDES_WITH_PROMPTS)}; rename it"
        for side in node.prompts
        if side not in SIDES_WITH_PROMPTS
    ]
    return problems


def problems(config: object) -> list[str]:
    """Return what is impossible in a job's settings, each with the key to change."""
    messages: list[str] = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            messages.append(message)

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
            messages.extend(f"{prefix}.{text}" if prefix else text for text in check(node))

    walk("", config)
    if isinstance(config, RuleTracesConfig | EmbedderConfig | WarmStartConfig | RLConfig):
        need(bool(config.data.train), "data.train: expected at least one data set, found none")
    if isinstance(config, EvaluateConfig):
        need(
            bool(config.data.eval or config.benchmarks),
            "data.eval: expected at least one data set, or one of `benchmarks`, found none",
        )
        names = [data_set.name for data_set in config.data.eval]
        for benchmark in config.benchmarks:
            names += benchmark.sets or BENCHMARK_SETS[benchmark.suite]
        twice = sorted({name for name in names if names.count(name) > 1})
        need(
            not twice,
            f"benchmarks: {', '.join(twice[:3])} would be measured twice; rename sets of "
            "data.eval, or evaluate benchmarks with sets of one name in two runs",
        )
        rivals = [rival.name for rival in config.rivals]
        need(
            len(set(rivals)) == len(rivals),
            f"rivals: expected a name of its own for each, found {', '.join(rivals)}; rename them",
        )
        whole = any(b.suite == "mmeb_v2" and not b.sets for b in config.benchmarks)
        name = config.leaderboard.model_name
        need(
            not name or bool(re.fullmatch(r"\w[\w.-]*", name, re.ASCII)),
            "leaderboard.model_name: expected letters, digits, '_', '-' or '.', as it names a "
            f"file, found '{name}'",
        )
        need(
            whole or not name,
            "leaderboard.model_name: the leaderboard takes all 78 sets; add the benchmark mmeb_v2 "
            "without `sets`, or leave the name empty",
        )
        need(
            not config.published_traces
            or (not config.data.eval and {b.suite for b in config.benchmarks} == {"mmeb_v2"}),
            "published_traces: these are of the benchmark mmeb_v2 alone; evaluate other sets in a "
            "run of their own",
        )
        need(
            not config.published_traces or "samples" not in config.controls,
            "controls: files hold one trace of an item, so the mean of several cannot be measured; "
            "remove 'samples', or leave published_traces empty",
        )
        need(
            not config.adaptive.train or bool(config.eg_rl or config.warm_start),
            "adaptive.train: the gate decides about the traces of a Reasoner; set eg_rl or "
            "warm_start, or leave the key empty",
        )
    if isinstance(config, WarmStartConfig | EmbedderConfig):
        need(
            bool(config.store) == bool(config.reasoner),
            f"store: traces in it are told by their Reasoner, found store='{config.store}' and "
            f"reasoner='{config.reasoner}'; set both, or none",
        )
    if isinstance(config, EncodeConfig | EncoderConfig | SearchConfig | ServeConfig):
        need(
            not (config.data.train or config.data.eval),
            "data: expected no data sets under train and eval, as none are read here; remove them",
        )
    if isinstance(config, EmbedderConfig | RLConfig | EvaluateConfig):
        sets = [*config.data.train, *config.data.eval]
        if isinstance(config, EvaluateConfig):
            sets += config.adaptive.train
        need(
            not any(data_set.format == "caption" for data_set in sets),
            "data: captions have no target; only the job warm_start can use format 'caption'",
        )
    if isinstance(config, EmbedderConfig | RLConfig):
        named: dict[str, str] = {}
        for index, data_set in enumerate(config.data.eval):
            metric = name_in_metric(data_set.name)
            first = named.setdefault(metric, data_set.name)
            need(
                data_set.name == first,
                f"data.eval[{index}].name: '{data_set.name}' and '{first}' would share the metric "
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
        for name, whole in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
            value = getattr(rollout.sampling, name)
            need(
                value == whole,
                f"rollout.sampling.{name}: the learner's log-probabilities are over all tokens, so "
                f"engines must sample from all: expected {whole:g}, found {value:g}; explore less "
                "by a lower temperature",
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
            not config.learner.bf16 or config.parity.mean >= BF16_GAP,
            f"parity.mean: a bf16 learner may differ from the engine by {BF16_GAP:g} by rounding "
            f"alone, found {config.parity.mean:g}; raise it or set learner.bf16=false",
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
    return messages


_CHECKS = {
    **COMMON_CHECKS,
    **REWARD_CHECKS,
    **LEARNER_CHECKS,
    **SERVING_CHECKS,
    DemoDataConfig: lambda n: [
        *positive(n, "train_scenes", "heldout_scenes"),
        *share(n, "on_target"),
    ],
    CheckDataConfig: lambda n: (
        []
        if n.data.train or n.data.eval
        else ["data: expected a data set under train or eval, found none; name the sets to check"]
    ),
    RuleTracesConfig: lambda n: [
        *share(n, "on_target", "heldout"),
        *(
            []
            if n.vocabulary == 0 or n.vocabulary >= MIN_VOCABULARY
            else [f"vocabulary: expected 0 or at least {MIN_VOCABULARY}, found {n.vocabulary}"]
        ),
        *(
            f"data.train[{index}].format: only mmeb, llavahound and colpali rows can hold traces "
            f"on both sides, found {data_set.format}"
            for index, data_set in enumerate(n.data.train)
            if data_set.format not in ("mmeb", "llavahound", "colpali")
        ),
        *(
            f"data.train[{index}].name: names a file, so expected letters, digits, '.', '_' and "
            f"'-', found '{data_set.name}'"
            for index, data_set in enumerate(n.data.train)
            if not re.fullmatch(r"[\w.-]+", data_set.name)
        ),
    ],
    WarmStartConfig: lambda n: [
        *positive(n, "steps", "batch", "checkpoint_every"),
        *share(n, "max_missing_traces"),
    ],
    EmbedderConfig: lambda n: [
        *positive(n, "steps", "batch", "sub_batches", "temperature", "checkpoint_every"),
        *not_negative(n, "hard_negatives"),
        *share(n, "trace_dropout", "evidence_dropout", "max_missing_traces"),
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
        *positive(n, "steps", "pairs", "checkpoint_every"),
        *not_negative(n, "max_staleness"),
        *(
            ["stale: expected wait where max_staleness is 0: a step begun ahead is always too old"]
            if n.stale == "drop" and not n.max_staleness
            else []
        ),
    ],
    EvaluateConfig: lambda n: [
        *positive(n, "samples", "block", "vector_bytes", "bootstrap"),
        *share(n, "max_missing_traces"),
        *(
            f"controls[{index}]: expected {' or '.join(CONTROLS)}, each once, found '{name}'"
            for index, name in enumerate(n.controls)
            if name not in CONTROLS or name in n.controls[:index]
        ),
    ],
    EncodeConfig: lambda n: [
        *positive(n, "block", "vector_bytes"),
        *share(n, "max_missing_traces"),
    ],
    RivalConfig: lambda n: [
        *_rival_problems(n),
        *(gpu_problems(n.pool, n.engine) if n.library == "vllm" else []),
    ],
    EncoderConfig: lambda n: positive(n, "block"),
    SearchConfig: lambda n: [
        *positive(n, "k", "rescore"),
        *not_negative(n, "probes"),
        *(
            [f"probes: only index=ivf has lists, found index={n.index}; set ivf, or remove the key"]
            if n.probes and n.index != "ivf"
            else []
        ),
        *(
            []
            if n.text or n.image or n.video or n.page
            else ["text: expected a query in text, image, video or page, found none; name one"]
        ),
        *(
            [f"{named[1]}: expected one of image, video and page, found {' and '.join(named)}"]
            if len(named := [name for name in ("image", "video", "page") if getattr(n, name)]) > 1
            else []
        ),
    ],
    ServeConfig: lambda n: [
        *positive(n, "replicas"),
        *not_negative(n, "cpus", "gpus"),
        *lendable(n, "gpus"),
        *_replica_problems(n),
        *([] if n.name.strip() else ["name: expected the model's name, found none"]),
        *([] if 0 <= n.port < 1 << 16 else [f"port: expected 0 to 65535, found {n.port}"]),
        *(
            f"gpus: expected {key}.engine.tensor_parallel={ranks} or more, found {n.gpus:g}"
            for key, ranks in (
                ("rollout", n.rollout.engine.tensor_parallel),
                ("reward", n.reward.engine.tensor_parallel),
            )
            if 0 < n.gpus < ranks
        ),
    ],
    ReportConfig: lambda n: not_negative(n, "gallery"),
}
