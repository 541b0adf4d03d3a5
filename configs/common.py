"""Settings that several jobs share: run, data, benchmarks, pools, engines, rollout, stop."""

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from configs.bounds import lendable, not_negative, positive, share

MISSING = "???"
"""Default of a setting that the user must give."""


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
    """Fewest pixels that a picture is shown with; a smaller one is enlarged."""
    image_max_pixels: int = 768 * 32 * 32
    """Most pixels that a picture is shown with; a larger one is shrunk."""
    page_min_pixels: int = 128 * 32 * 32
    """The same for a page."""
    page_max_pixels: int = 768 * 32 * 32
    """The same for a page."""
    frame_min_pixels: int = 128 * 32 * 32
    """The same for a frame of a video."""
    frame_max_pixels: int = 300 * 32 * 32
    """The same for a frame of a video."""
    crop_min_pixels: int = 128 * 32 * 32
    """The same for a crop that a trace points at."""
    crop_max_pixels: int = 768 * 32 * 32
    """The same for a crop that a trace points at."""
    video: Literal["video", "frames"] = "video"
    """How a video is shown. `video`: as one, its frames two by two with their times, as Qwen3-VL
    was trained; half the picture tokens. `frames`: as separate pictures, for models that
    do not read videos as Qwen3-VL does."""
    max_frames: int = 8
    """Frames shown of a video; longer ones are sampled uniformly. Published evaluations take 8 or
    64. With `video: video` an odd number becomes the even one below it, and a video of one frame
    shows it twice."""
    video_total_pixels: int = 7_864_320
    """With `video: video`, most pixels that all frames of a video have together: where frames are
    many they get fewer pixels each, below frame_min_pixels too."""
    max_file_bytes: int = 64 << 20
    """Larger files are refused before decoding."""
    max_decode_pixels: int = 64 << 20
    """Pictures with more pixels are refused before decoding; pages of PDFs are drawn smaller."""
    max_step_bytes: int = 16 << 30
    """Bytes of decoded pictures, 3 a pixel, that one step, or one block of `evaluate` or `encode`,
    may hold. A step that needs more is refused, with the largest files; a block is halved, and a
    single item that needs more is left out. It may change when a run is resumed."""


@dataclass(frozen=True)
class DataSetConfig:
    name: str = MISSING
    """Name of the set in logs, metrics and tables."""
    path: str = MISSING
    """JSON array, JSON-lines, CSV, parquet or Arrow file, or a folder of parquet files; of a `beir`
    set the folder with its three parts. On disk, `hf://datasets/<org>/<name>@<revision>/<file or
    folder>`, or another URL that fsspec opens."""
    root: str = MISSING
    """Folder that all picture paths are relative to; a path that leaves it is refused. On disk, or
    `hf://datasets/<org>/<name>@<revision>[/<folder>]`."""
    unpack: list[str] = field(default_factory=list)
    """Archives under the root that are unpacked once, as patterns: `images_zip/*.zip` is unpacked
    into the root, `images_zip/*.zip -> images` into that folder of it."""
    follow_links: bool = False
    """Accept links inside the root that lead out of it, as the caches of hubs have them."""
    format: Literal["mmeb", "llavahound", "mmeb_eval", "colpali", "beir", "caption"] = "mmeb"
    """What the rows look like; data/README.md shows each format."""
    traces: list[str] = field(default_factory=list)
    """Files of traces that belong to `beir` or `mmeb_eval` rows, as Embed-RL's code writes them:
    `<set>_query.json`, `<set>_corpus.json` or `<set>_corpus_cot.json`. Paths on disk."""
    kind: Literal["image", "page"] = "image"
    """What single pictures are; pages have prompts and pixel limits of their own. In `colpali` and
    `beir` all are pages."""
    extra_fields: Literal["refuse", "ignore"] = "refuse"
    """Fields that the format does not know: more rows with one than data.max_bad_rows allows are
    refused, as a misspelt field leaves its rows without what it holds; `ignore` where the set has
    more columns on purpose."""
    raw_text: bool = False
    """Leave the white space of item texts as the rows have it, as some benchmarks were measured.
    Texts are then equal only if their white space is, too."""
    weight: float = 1.0
    """Batches are drawn from this set with probability proportional to weight x size."""
    limit: int = 0
    """Use only the first rows; 0 = all."""
    sample: int = 0
    """Use only so many rows, evenly spread over the file (paper, Sup. C.3): of n rows, from 0, the
    rows i x n / sample, rounded down. 0 = all. A file with fewer rows is used whole."""
    hardest_by: str = ""
    """Column of numbers, small for hard rows, such as the share of right answers: `sample` then
    takes the rows with the smallest numbers, of rows with equal numbers the earlier ones. With a
    `/` in it: folder of an `evaluate` or `rl` run; the pairs that were hardest there."""
    leave_out: str = ""
    """Parquet file of rows that the set does not use: `near_duplicates.parquet`, which check_data
    writes. Rows of other sets in the file are ignored. No other rows take the place of rows left
    out."""


@dataclass(frozen=True)
class DataConfig:
    train: list[DataSetConfig] = field(default_factory=list)
    """Data sets to train on."""
    eval: list[DataSetConfig] = field(default_factory=list)
    """Held-out data sets."""
    templates: Literal["full", "brief"] = "full"
    """Prompt set: `full` explains the grammar with examples, `brief` is for warm-started models."""
    media: MediaConfig = field(default_factory=MediaConfig)
    item_tokens: int = 480
    """Tokens of an item's text that Reasoner and Embedder read, counted by the tokenizer of each;
    the rest of the text is cut. Instructions and traces are never cut. 0: no text is cut."""
    max_bad_rows: float = 0.05
    """Share of a set's rows that may be set aside before the job refuses to start."""
    offline: bool = True
    """Sets that are not on disk must be in a cache already; false: they are fetched into it."""


@dataclass(frozen=True)
class PoolConfig:
    """Actors of one role and what each of them asks Ray for."""

    actors: int = 1
    """Number of actors, each with an engine of its own."""
    cpus: float = 1.0
    """CPUs that each actor asks Ray for; a share such as 0.5 is allowed."""
    gpus: float = 0.0
    """GPUs that each actor asks Ray for, and all that it sees. A part such as 0.3: the actor shares
    its GPU with others, and its engine.gpu_memory_utilization may not exceed that part."""
    timeout_s: float = 600.0
    """An actor that has work and answers nothing for longer is replaced; of the engines that sample
    traces, only one whose steps have not advanced for as long."""
    start_timeout_s: float = 1800.0
    """Longest time that an actor with its place may take until it serves: its process starts, loads
    the model and compiles it. One that takes longer, or fails, is started again once."""
    min_actors: int = 1
    """Fewest actors that a pool whose size follows from its load has."""
    max_actors: int = 0
    """Most actors of a pool whose size follows from its load (`rl` only); 0: it keeps `actors`."""


@dataclass(frozen=True)
class EngineConfig:
    """A vLLM engine."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the weights and of what is computed."""
    max_model_len: int = 16384
    """Tokens of one sequence at most, prompt and pictures included."""
    max_num_seqs: int = 64
    """Sequences that the engine works on at the same time at most."""
    tensor_parallel: int = 1
    """GPUs over which the engine spreads its weights."""
    enforce_eager: bool = False
    """Run without torch.compile and CUDA graphs: starts sooner, runs slower."""
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory that the engine takes."""
    cpu_kv_cache_gb: int = 1
    """Key-value cache on a CPU; unused on GPUs."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's `AsyncEngineArgs`, by vLLM's names, as `{kv_cache_dtype: fp8}`.
    Refused: names that vLLM does not have, and what this project sets itself."""


@dataclass(frozen=True)
class SamplingConfig:
    """How traces are sampled. Engines return the log-probabilities of what they sample from, after
    temperature, top_p, top_k and min_p. The learner computes its own over all tokens that are not
    banned, at the same temperature. So `rl` refuses to leave tokens out: a ratio of the two would
    not be that of two policies."""

    temperature: float = 1.0
    """Sampling temperature; 1 samples what the model predicts."""
    top_p: float = 1.0
    """Sample from the fewest likeliest tokens whose probabilities reach this sum; 1 = all."""
    top_k: int = 0
    """Sample from so many likeliest tokens; 0 = all."""
    min_p: float = 0.0
    """Sample from tokens at least this share as likely as the likeliest; 0 = all."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a trace, beside the end of the turn; the trace keeps the text."""
    max_tokens: int = 2048
    """Tokens of one trace at most."""


@dataclass(frozen=True)
class RolloutConfig:
    pool: PoolConfig = field(default_factory=PoolConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True)
class StopConfig:
    """A stage ends on what it must reach, not on a clock."""

    metric: str = ""
    """Evaluation metric to watch; empty = run all steps."""
    at_least: float = 1.0
    """The stage ends where the metric is this or more."""
    min_steps: int = 0
    """Fewest steps, whatever the metric says."""


@dataclass(frozen=True)
class EvalConfig:
    every: int = 0
    """Measure on held-out data each so many steps; 0 = never."""
    samples: int = 256
    """Held-out pairs used: each set gives its share, spread over its rows, and at least one. (The
    job `warm_start` draws that many written traces from all sets together.)"""


BENCHMARK_SETS: dict[str, tuple[str, ...]] = {
    "mmeb_v2": (
        *("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365"),
        *("ImageNet-A", "ImageNet-R", "ObjectNet", "Country211", "OK-VQA", "A-OKVQA", "DocVQA"),
        *("InfographicsVQA", "ChartQA", "Visual7W", "ScienceQA", "VizWiz", "GQA", "TextVQA"),
        *("VisualNews_i2t", "MSCOCO_i2t", "VisDial", "VisualNews_t2i", "MSCOCO_t2i", "WebQA"),
        *("Wiki-SS-NQ", "EDIS", "CIRR", "NIGHTS", "FashionIQ", "OVEN", "MSCOCO", "RefCOCO"),
        *("RefCOCO-Matching", "Visual7W-Pointing", "K700", "UCF101", "HMDB51", "Breakfast"),
        *("SmthSmthV2", "MSR-VTT", "MSVD", "DiDeMo", "VATEX", "YouCook2", "QVHighlight"),
        *("Charades-STA", "MomentSeeker", "MVBench", "Video-MME", "NExTQA", "EgoSchema"),
        *("ActivityNetQA", "ViDoRe_arxivqa", "ViDoRe_docvqa", "ViDoRe_infovqa"),
        *("ViDoRe_tabfquad", "ViDoRe_tatdqa", "ViDoRe_shiftproject"),
        *("ViDoRe_syntheticDocQA_artificial_intelligence", "ViDoRe_syntheticDocQA_energy"),
        *("ViDoRe_syntheticDocQA_government_reports",),
        *("ViDoRe_syntheticDocQA_healthcare_industry", "ViDoRe_esg_reports_human_labeled_v2"),
        *("ViDoRe_biomedical_lectures_v2_multilingual",),
        *("ViDoRe_economics_reports_v2_multilingual", "ViDoRe_esg_reports_v2_multilingual"),
        *("VisRAG_ArxivQA", "VisRAG_ChartQA", "VisRAG_MP-DocVQA", "VisRAG_SlideVQA"),
        *("VisRAG_InfoVQA", "VisRAG_PlotQA", "ViDoSeek-page-fixed", "ViDoSeek-doc"),
        *("MMLongBench-page-fixed", "MMLongBench-doc"),
    ),
    "uvrb": (
        *("MSRVTT", "DiDeMo", "CRB-G", "CRB-S", "VDC-O", "CRB-T", "CMRB", "DREAM-E", "LoVR-TH"),
        *("PEV-K", "LoVR-V", "VDC-D", "MS-TI", "MS-TV", "MSRVTT-I2V", "LoVR-C2V"),
    ),
}
"""The sets of each benchmark, as its authors call them; `evaluation/benchmarks/` describes them."""
BENCHMARK_PROMPTS = {"mmeb_v2": ("vlm2vec", "qwen3_vl_embedding"), "uvrb": ("released", "all")}
"""The published forms of each benchmark's texts; first the one in which Embed-RL was measured."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """A published benchmark on disk."""

    suite: Literal["mmeb_v2", "uvrb"] = "mmeb_v2"
    """MMEB-V2 (78 sets of images, videos and documents) or UVRB (16 sets of videos)."""
    root: str = MISSING
    """Folder of the media, unpacked: of `mmeb_v2` that with `image-tasks/`, `video-tasks/` and
    `visdoc-tasks/`, of `uvrb` that with `UVRB_extracted/` or the sets' own folders."""
    rows: str = ""
    """Where the rows of `mmeb_v2` are: a folder with the tree of `VLM2Vec/MMEB-V3` or with one file
    or folder a set, `<set>.jsonl`, `<set>.parquet` or `<set>/`; or such a tree in the hub's cache,
    `hf://datasets/<org>/<name>@<revision>`. Empty: each set's own repository in the hub's cache, at
    the revision that is `main` there. Nothing is fetched. `uvrb` has its rows beside its media."""
    follow_links: bool = False
    """Accept links inside the root that lead out of it."""
    sets: list[str] = field(default_factory=list)
    """Names of the sets to measure, in this order; empty: all."""
    prompts: Literal["", "vlm2vec", "qwen3_vl_embedding", "released", "all"] = ""
    """The form of the texts. `mmeb_v2`: `vlm2vec` writes the instruction before the text and gives
    targets a text of their own; `qwen3_vl_embedding` keeps the instruction apart and gives targets
    none. `uvrb`: `released` has the prompts that the released settings led to, for CMRB and DiDeMo
    only; `all` has every set's. Empty: the form in which Embed-RL was measured, `vlm2vec` and
    `released`."""


def is_address(path: str) -> bool:
    """Return whether a set's `path` or `root` is an address, such as `s3://bucket/rows.json`."""
    return re.match(r"[A-Za-z][\w+.-]*(::[\w+.-]+)*://", path) is not None


def may_hold_secret(path: str) -> bool:
    """Return whether an address has a place for a password or key; settings are logged."""
    if not is_address(path) or path.startswith("hf://"):
        return False
    return "?" in path or re.search(r"://[^/]*@", path) is not None


def _media_problems(node: MediaConfig) -> list[str]:
    problems = positive(
        node,
        *("max_frames", "video_total_pixels"),
        *("max_file_bytes", "max_decode_pixels", "max_step_bytes"),
    )
    for name in ("image", "page", "frame", "crop"):
        least, most = getattr(node, f"{name}_min_pixels"), getattr(node, f"{name}_max_pixels")
        if not 0 < least <= most:
            problems.append(f"{name}_min_pixels: expected 0 < {least} <= {name}_max_pixels={most}")
    return problems


def _benchmark_problems(node: BenchmarkConfig) -> list[str]:
    known, forms = BENCHMARK_SETS[node.suite], BENCHMARK_PROMPTS[node.suite]
    problems = []
    for index, name in enumerate(node.sets):
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)
            problems.append(
                f"sets[{index}]: {node.suite} has no set '{name}'; the nearest name is '{near[0]}'"
            )
        elif name in node.sets[:index]:
            problems.append(f"sets[{index}]: '{name}' is there twice; remove one")
    if node.prompts and node.prompts not in forms:
        problems.append(
            f"prompts: {node.suite} has {' and '.join(forms)}, found '{node.prompts}'; use one of "
            "these, or leave it empty"
        )
    if node.suite == "uvrb" and node.rows:
        problems.append(
            f"rows: uvrb has its rows under `root`, found '{node.rows}'; leave the key out"
        )
    return problems


def gpu_problems(pool: PoolConfig, engine: EngineConfig) -> list[str]:
    """Return what is wrong with the GPUs of an engine and of the actor that holds it.

    Ray lends no more than the whole of a GPU. So if no engine takes more of its memory than was
    lent, all engines on a GPU together take at most the whole.
    """
    gpus, ranks, memory = pool.gpus, engine.tensor_parallel, engine.gpu_memory_utilization
    if ranks > 1 and 0 < gpus < ranks:
        return [f"pool.gpus: expected engine.tensor_parallel={ranks} or more, found {gpus:g}"]
    if 0 < gpus < 1 and memory > gpus:
        return [
            f"engine.gpu_memory_utilization: the engine shares its GPU, of which pool.gpus={gpus:g}"
            f" is lent to it, so expected at most {gpus:g}, found {memory:g}"
        ]
    return []


COMMON_CHECKS = {
    RunConfig: lambda n: not_negative(n, "seed", "nodes_timeout_s"),
    MediaConfig: _media_problems,
    DataSetConfig: lambda n: [
        *not_negative(n, "weight", "limit", "sample"),
        *(
            f"{key}: set '{n.name}' has an address with a password, a key or '?'; settings are "
            "logged: put these into the environment variables of its client (for s3:// "
            "AWS_ACCESS_KEY_ID), or download the file yourself"
            for key in ("path", "root")
            if may_hold_secret(getattr(n, key))
        ),
        *(
            [
                f"sample: set '{n.name}' has limit={n.limit}, which takes the first rows; set one "
                "of the two to 0"
            ]
            if n.sample and n.limit
            else []
        ),
        *(
            [
                f"hardest_by: set '{n.name}' has sample=0, so no rows are chosen by column "
                f"'{n.hardest_by}'; set sample to the number of rows, or remove hardest_by"
            ]
            if n.hardest_by and not n.sample
            else []
        ),
        *(
            [
                f"traces: set '{n.name}' has format={n.format}, whose rows hold their traces "
                "themselves; leave the key out"
            ]
            if n.traces and n.format not in ("beir", "mmeb_eval")
            else []
        ),
    ],
    DataConfig: lambda n: [
        *share(n, "max_bad_rows"),
        *not_negative(n, "item_tokens"),
        *(
            ["train: every weight is 0, so no set can be drawn"]
            if n.train and not any(data_set.weight > 0 for data_set in n.train)
            else []
        ),
    ],
    PoolConfig: lambda n: [
        *positive(n, "actors", "timeout_s", "start_timeout_s", "min_actors"),
        *not_negative(n, "cpus", "gpus", "max_actors"),
        *lendable(n, "gpus"),
        *(
            [f"max_actors: expected 0 or min_actors={n.min_actors} or more, found {n.max_actors}"]
            if n.max_actors and n.max_actors < n.min_actors
            else []
        ),
    ],
    EngineConfig: lambda n: [
        *positive(n, "max_model_len", "max_num_seqs", "tensor_parallel"),
        *share(n, "gpu_memory_utilization"),
    ],
    SamplingConfig: lambda n: [
        *positive(n, "temperature", "top_p", "max_tokens"),
        *share(n, "top_p", "min_p"),
        *not_negative(n, "top_k"),
        *(["stop: an empty text ends every trace; remove it"] if "" in n.stop else []),
    ],
    RolloutConfig: lambda n: gpu_problems(n.pool, n.engine),
    EvalConfig: lambda n: [*positive(n, "samples"), *not_negative(n, "every")],
    BenchmarkConfig: _benchmark_problems,
}
"""What is wrong in each section by itself, by its class."""
