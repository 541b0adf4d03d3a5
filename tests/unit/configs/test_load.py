"""Settings: everything wrong is refused at start, all of it at once, with the key to change."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from configs.errors import ConfigError
from configs.load import load, to_flat, to_yaml
from configs.reward import RewardConfig
from configs.schema import (
    CONTROLS,
    CheckDataConfig,
    DemoDataConfig,
    EmbedderConfig,
    EncodeConfig,
    EvaluateConfig,
    ReportConfig,
    RLConfig,
    RuleTracesConfig,
    SearchConfig,
    ServeConfig,
    WarmStartConfig,
    engines_of,
)
from data.types import Evidence
from evaluation.variants import CONTROL_SUFFIXES

FOLDER = Path(__file__).parents[3] / "configs"
JOBS = {
    "data": DemoDataConfig,
    "check_data": CheckDataConfig,
    "traces": RuleTracesConfig,
    "sight": WarmStartConfig,
    "grounding": WarmStartConfig,
    "warm_start": WarmStartConfig,
    "embedder": EmbedderConfig,
    "rl": RLConfig,
    "encode": EncodeConfig,
    "evaluate": EvaluateConfig,
    "mmeb_v2": EvaluateConfig,
    "uvrb": EvaluateConfig,
    "report": ReportConfig,
    "search": SearchConfig,
    "serve": ServeConfig,
}
ONE_GPU = FOLDER / "demo/one_gpu.yaml"
RL_GPUS = {FOLDER / "rl_8gpu.yaml": 8, FOLDER / "rl_64gpu.yaml": 64}
"""The GPUs of the placements of `rl.yaml`."""
FILES = sorted({*FOLDER.rglob("*.yaml")} - {ONE_GPU, *RL_GPUS})
RL = """
run: {dir: runs/x}
reasoner: models/reasoner
reward: {model: models/embedder}
rollout: {engine: {dtype: float32}}
learner: {bf16: false}
data:
  train:
  - {name: a, path: a.json, root: pictures}
  - {name: b, path: b.json, root: pictures, format: llavahound}
"""


@pytest.fixture
def refuse(tmp_path):
    """Return the problems that loading gives, one a line."""

    def check(*overrides, text=RL, cls=RLConfig):
        path = tmp_path / "rl.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(cls, path, overrides)
        return str(caught.value)

    return check


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(RL)
    return path


def test_there_are_settings_to_check():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_settings_file_loads_into_its_job(path):
    config = load(JOBS[path.stem], path)
    assert config.run.dir


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_resolved_settings_load_into_the_same_object(path, tmp_path):
    config = load(JOBS[path.stem], path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load(JOBS[path.stem], resolved) == config


def test_overrides_win_over_the_file_and_the_file_over_defaults(good):
    config = load(RLConfig, good, ["run.seed=7", "learner.optimizer.lr=1e-5", "reasoner=other"])
    assert (config.run.seed, config.learner.optimizer.lr, config.reasoner) == (7, 1e-5, "other")
    assert config.run.dir == "runs/x"
    assert config.siblings == RLConfig().siblings


@pytest.mark.parametrize("path", sorted(set(FOLDER.glob("demo/*.yaml")) - {ONE_GPU}))
def test_every_stage_of_the_demo_fits_on_one_gpu(path):
    config = load(JOBS[path.stem], path, [str(ONE_GPU)])
    asked = [part.pool.gpus for part in engines_of(config).values()]
    if hasattr(config, "learner"):
        asked.append(config.learner.ranks * config.learner.gpus)
    assert sum(asked) <= 1
    assert all(gpus > 0 for gpus in asked)


@pytest.mark.parametrize(("path", "gpus"), [*RL_GPUS.items(), (None, 32)])
def test_rl_asks_for_the_gpus_of_its_placement(path, gpus):
    config = load(RLConfig, FOLDER / "rl.yaml", [str(path)] if path else [])
    pools = [part.pool for part in engines_of(config).values()]
    ranks = config.learner
    assert sum(pool.actors * pool.gpus for pool in pools) + ranks.ranks * ranks.gpus == gpus
    assert config.pairs == load(RLConfig, FOLDER / "rl.yaml").pairs


def test_a_further_file_lies_between_the_file_and_later_overrides(good, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("{run: {seed: 3}, siblings: 4, warm_start: only other jobs have it}")
    config = load(RLConfig, good, [str(more), "run.seed=5"])
    assert (config.run.dir, config.run.seed, config.siblings) == ("runs/x", 5, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("siblingz: 4", "override 'more.yaml': siblingz"),
        ("siblings: many", "override 'more.yaml': siblings"),
        ("[a]", "override 'more.yaml': expected a mapping"),
        (None, "No such file"),
    ],
)
def test_a_further_file_is_checked_like_the_first(refuse, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("more.yaml").write_text(text)
    assert words in refuse("more.yaml")


def test_a_list_is_replaced_whole(good):
    config = load(RLConfig, good, ["data.train=[{name: c, path: c.json, root: r}]"])
    assert [one.name for one in config.data.train] == ["c"]


def test_a_key_without_a_value_is_an_empty_list_text_or_section(good):
    text = good.read_text() + "weights:\n"
    good.write_text(text)
    config = load(RLConfig, good, ["data.eval=", "reward.judge.model=", "grpo.preset="])
    assert (config.data.eval, config.reward.judge.model, config.grpo.preset) == ([], "", "")
    assert config.weights == RLConfig().weights


def test_settings_cannot_be_changed_afterwards(good):
    config = load(RLConfig, good)
    with pytest.raises(AttributeError):
        config.steps = 3


def test_flat_settings_have_dotted_keys(good):
    flat = to_flat(load(RLConfig, good))
    assert flat["learner.optimizer.lr"] == 3e-6
    assert flat["data.train"][1]["format"] == "llavahound"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("step=5", "Key 'step' not in 'RLConfig'"),
        ("learner.rank=2", "learner.rank: Key 'rank' not in 'LearnerConfig'"),
        ("steps=many", "steps: Value 'many'"),
        ("steps=1.5", "steps: Value '1.5'"),
        ("steps=true", "steps: Value 'True'"),
        ("steps=null", "steps: Incompatible value 'None'"),
        ("learner=3", "learner: "),
        ("learner.zero_stage=4", "expected one of [0, 1, 2, 3]"),
        ("data.templates=long", "expected one of ['full', 'brief']"),
        ("reward.evidence=true", "expected one of ['none', 'text', 'text+evidence']"),
        ("data.train=5", "data.train: "),
        ("data.train=[7]", "data.train: "),
        ("data.train[0].limit=5", "data.train.0.limit: a list is given whole"),
        ("steps", "override 'steps': expected section.key=value"),
        ("steps=[1,", "override 'steps=[1,'"),
        ("steps=${nowhere}", "nowhere"),
        ("steps=-1", "with the overrides: steps: expected"),
    ],
)
def test_an_override_that_is_wrong_is_named(refuse, override, words):
    assert words in refuse(override)


def test_everything_wrong_is_listed_at_once(refuse):
    text = refuse(
        "stepz=1",
        "siblings=1",
        "learner.ranks=two",
        "reward.temperature=0",
        "nonsense",
        "data.train=[{name: c, pth: c.json, rot: r}]",
        text=RL.replace("reasoner:", "reasonr:"),
    )
    for words in (
        "reasonr: Key",
        "stepz: Key",
        "learner.ranks: Value 'two'",
        "override 'nonsense'",
        "data.train: Key 'pth'",
        "data.train: Key 'rot'",
        "reasoner: no value",
        "siblings: a group needs at least 2, found 1",
        "reward.temperature: expected more than 0, found 0.0",
    ):
        assert words in text
    assert text.startswith("9 problem(s)")


def test_missing_values_are_named_with_how_to_set_them(refuse):
    text = refuse(text="data: {train: [{name: a, path: p}]}")
    for key in ("run.dir", "reasoner", "reward.model", "data.train[0].root"):
        assert f"{key}: no value; set it in the file or as {key}=..." in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: {dir: x", "not readable as YAML"),
        ("run: {dir: x}\nrun: {dir: y}", "duplicate key run"),
        ("- a\n- b", "expected a mapping of settings, found list"),
        ("\tx", "not readable as YAML"),
        ("just words", "just words: Key 'just words' not in 'RLConfig'"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(refuse, text, words):
    assert words in refuse(text=text)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"lost\.yaml: config file not found"):
        load(RLConfig, tmp_path / "lost.yaml")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("configs/demo/wram_start.yaml", "configs/demo/warm_start.yaml, "),
        ("config/rl.yaml", "configs/rl.yaml, "),
        ("configs/rl.yml", "configs/rl.yaml, "),
        ("my-rl.yaml", "my_rl.yaml, "),
    ],
)
def test_a_file_that_is_not_there_is_told_with_the_nearest_that_are(
    tmp_path, monkeypatch, name, near
):
    (tmp_path / "my_rl.yaml").touch()
    monkeypatch.chdir(FOLDER.parent if "/" in name else tmp_path)
    with pytest.raises(ConfigError, match="config file not found; near it there are ") as caught:
        load(RLConfig, name)
    assert f"there are {near}" in f"{caught.value}, "


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train=[]", "data.train: expected at least one data set"),
        ("evaluation.every=5", "data.eval: evaluation.every is set"),
        ("evaluation.every=-1", "evaluation.every: expected at least 0"),
        (
            "data.eval=[{name: a.b, path: p, root: r}, {name: 'a:b', path: p, root: r}]",
            "data.eval[1].name: 'a:b' and 'a.b' would share the metric eval/hit_at_1_by_set/a_b",
        ),
        ("rollout.sampling.max_tokens=16384", "leaves no room for a prompt"),
        ("siblings=1", "siblings: a group needs at least 2"),
        ("pairs=1", "pairs: a rank needs at least 2"),
        ("parity.p999=0", "parity.p999: expected more than 0"),
        ("logprob_tolerance=0.5", "logprob_tolerance: has been replaced by parity.mean and parity"),
        ("rollout.engine.dtype=float16", "rollout.engine.dtype: engines hold the learner's own"),
        ("learner={bf16: true, zero_stage: 0}", "learner.zero_stage: 0 loses small updates"),
        ("learner.offload=parameters", "learner.offload: 'parameters' needs zero_stage=3, found 2"),
        (
            "learner={bf16: false, zero_stage: 0, offload: optimizer}",
            "learner.offload: 'optimizer' needs zero_stage of at least 1, found 0",
        ),
        ("learner.lora.rank=-1", "learner.lora.rank: expected at least 0"),
        ("learner.lora.alpha=0", "learner.lora.alpha: expected more than 0"),
        ("learner.lora={rank: 4, dropout: 1}", "learner.lora.dropout: expected a share in [0, 1)"),
        ("learner.lora={rank: 4, dropout: 0.1}", "learner.lora.dropout: log-probabilities must be"),
        ("learner.lora={rank: 4, modules: []}", "learner.lora.modules: adapters need layers"),
        ("learner.lora.vision_modules=['*']", "learner.lora.rank: 0 adds no adapters"),
        (
            "learner={bf16: false, freeze_vision: true, lora: {rank: 4, vision_modules: ['*']}}",
            "learner.lora.vision_modules: adapters would change the tower",
        ),
        ("grpo={kl: k1, kl_in: loss}", "grpo.kl: k1 in the loss pulls nowhere"),
        ("grpo.refill=-1", "grpo.refill: expected at least 0"),
        ("grpo.replay_groups=-1", "grpo.replay_groups: expected at least 0"),
        ("grpo.replay_age=0", "grpo.replay_age: expected more than 0"),
        ("reward.outcome_weight=-1", "reward.outcome_weight: expected at least 0"),
        ("reward.evidence=none", "reward.evidence: 'none' embeds no trace"),
        ("data.max_bad_rows=1.5", "data.max_bad_rows: expected a share"),
        ("data.item_tokens=-1", "data.item_tokens: expected"),
        ("data.media.crop_min_pixels=9999999", "data.media.crop_min_pixels: expected 0 <"),
        ("data.media.max_frames=0", "data.media.max_frames: expected more than 0"),
        ("data.media.video_total_pixels=0", "video_total_pixels: expected more than 0"),
        ("data.media.video=clip", "data.media.video"),
        ("data.train=[{name: a, path: p, root: r, weight: 0}]", "data.train: every weight is 0"),
        ("data.train=[{name: a, path: p, root: r, weight: -1}]", "data.train[0].weight"),
        ("data.train=[{name: a, path: p, root: r, limit: -1}]", "data.train[0].limit"),
        ("data.train=[{name: a, path: p, root: r, sample: -1}]", "data.train[0].sample: expected"),
        (
            "data.train=[{name: a, path: p, root: r, sample: 5, limit: 9}]",
            "data.train[0].sample: set 'a' has limit=9, which takes the first rows; set one of",
        ),
        (
            "data.train=[{name: a, path: p, root: r}, {name: b, path: p, root: r, kind: video}]",
            "data.train: Invalid value 'video', expected one of ['image', 'page'] "
            "(in data.train[1].kind, 'b')",
        ),
        (
            "data.train=[{name: a, path: p, root: r, traces: [t.json]}]",
            "data.train[0].traces: set 'a' has format=mmeb, whose rows hold their traces "
            "themselves; leave the key out",
        ),
        (
            "data.train=[{name: a, path: p, root: r, sample: 0, hardest_by: rate}]",
            "data.train[0].hardest_by: set 'a' has sample=0, so no rows are chosen by column 'rate'"
            "; set sample to the number of rows",
        ),
        ("data.train=[{name: a, path: p, root: r, format: caption}]", "captions have no target"),
        ("rollout.pool.actors=0", "rollout.pool.actors: expected more than 0"),
        ("rollout.pool.cpus=-1", "rollout.pool.cpus: expected at least 0"),
        ("rollout.engine.gpu_memory_utilization=1.2", "expected a share"),
        ("reward.temperature=.nan", "reward.temperature: expected more than 0"),
        ("learner.optimizer.lr=0", "learner.optimizer.lr: expected more than 0"),
        ("learner.gpus=-1", "learner.gpus: expected at least 0"),
        ("grpo.kl_coef=-0.1", "grpo.kl_coef: expected at least 0"),
        ("grpo.clip_low=1.5", "grpo.clip_low: expected a share in [0, 1]"),
        ("grpo.dual_clip=1", "grpo.dual_clip: expected 0 (off) or more than 1, found 1.0"),
        ("grpo.updates_per_step=0", "grpo.updates_per_step: expected more than 0, found 0"),
        ("grpo.tis_cap=0.5", "grpo.tis_cap: expected 0 (off) or at least 1"),
        ("grpo.sequence_band=1", "grpo.sequence_band: expected 0 (off) or more than 1"),
        ("grpo.overlong_share=0", "grpo.overlong_share: expected more than 0"),
        ("grpo={query_weight: 0, target_weight: 0}", "grpo.query_weight: with target_weight=0"),
        (
            "reward.instruction=x",
            "reward.instruction: an Embedder with pooling=emb_token reads none",
        ),
        ("reward.pooling=max", "reward.pooling"),
        ("run.seed=-1", "run.seed: expected at least 0"),
        ("rollout.pool.start_timeout_s=0", "rollout.pool.start_timeout_s: expected more than 0"),
        ("rollout.sampling.top_p=0.9", "rollout.sampling.top_p: the learner's log-probabilities"),
        ("rollout.sampling.top_k=20", "engines must sample from all: expected 0, found 20"),
        ("rollout.sampling.min_p=0.1", "rollout.sampling.min_p: the learner's log-probabilities"),
        ("rollout.sampling.top_p=0", "rollout.sampling.top_p: expected more than 0"),
        ("rollout.sampling.top_k=-1", "rollout.sampling.top_k: expected at least 0"),
        ("rollout.sampling.stop=['']", "rollout.sampling.stop: an empty text"),
        ("run.nodes_timeout_s=-1", "run.nodes_timeout_s: expected at least 0"),
        (
            "rollout={pool: {gpus: 1}, engine: {tensor_parallel: 2}}",
            "rollout.pool.gpus: expected engine.tensor_parallel=2 or more, found 1",
        ),
        (
            "rollout={pool: {gpus: 0.5}, engine: {tensor_parallel: 2}}",
            "rollout.pool.gpus: expected engine.tensor_parallel=2 or more, found 0.5",
        ),
        ("reward.pool.gpus=1.5", "reward.pool.gpus: Ray lends a part of one GPU, or whole ones"),
        ("learner.gpus=2.5", "learner.gpus: Ray lends a part of one GPU, or whole ones, found 2.5"),
        (
            "rollout={pool: {gpus: 0.3}, engine: {gpu_memory_utilization: 0.4}}",
            "rollout.engine.gpu_memory_utilization: the engine shares its GPU, of which "
            "pool.gpus=0.3 is lent to it, so expected at most 0.3, found 0.4",
        ),
        (
            "reward.judge={pool: {gpus: 0.5}}",
            "reward.judge.engine.gpu_memory_utilization: the engine shares its GPU",
        ),
        (
            "learner={gpus: 0.5, ranks: 2}",
            "learner.gpus: NCCL takes one rank a GPU, found gpus=0.5",
        ),
    ],
)
def test_impossible_settings_are_refused_with_their_key(refuse, override, words):
    assert words in refuse(override)


def test_a_limit_that_bf16_passes_by_rounding_is_refused(refuse):
    bf16 = ("learner.bf16=true", "rollout.engine.dtype=bfloat16")
    assert "parity.mean: a bf16 learner may differ" in refuse(*bf16, "parity.mean=1e-3")
    assert "parity.mean" not in refuse(*bf16, "siblings=1")


EMBEDDER = """
run: {dir: runs/x}
model: models/m
data: {train: [{name: a, path: a.json, root: r}]}
"""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.ranks=3", "batch: 64 does not divide among learner.ranks=3"),
        ("sub_batches=3", "batch: 64 does not divide into sub_batches=3"),
        ("trace_dropout=2", "trace_dropout: expected a share"),
        ("hard_negatives=-1", "hard_negatives: expected at least 0"),
        ("dimensions=[64, 0]", "dimensions: expected sizes of more than 0, found 0"),
        ("temperature=0.01 & learn_temperature=true", "temperature: learned, it must be within"),
        ("stop.metric=eval/hit_at_1", "evaluation.every: stop.metric needs it > 0"),
    ],
)
def test_an_impossible_embedder_run_is_refused(refuse, override, words):
    assert words in refuse(*override.split(" & "), text=EMBEDDER, cls=EmbedderConfig)


def test_engines_of_evaluation_may_leave_tokens_out_and_take_vllms_own_settings(tmp_path):
    path = tmp_path / "evaluate.yaml"
    path.write_text(
        "{run: {dir: x}, eg_rl: b, reward: {model: c}, data: {eval: [{name: a, path: p, root: r}]},"
        " rollout: {sampling: {top_p: 0.9, stop: [</answer>]}, engine: {extra: {seed: 3}}}}"
    )
    config = load(EvaluateConfig, path, ["rollout.engine.extra.kv_cache_dtype=fp8"])
    assert config.rollout.sampling.top_p == 0.9
    assert config.rollout.engine.extra == {"seed": 3, "kv_cache_dtype": "fp8"}
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load(EvaluateConfig, resolved) == config
    assert to_flat(config)["rollout.engine.extra.seed"] == 3


def test_evaluation_needs_data(refuse):
    text = "{run: {dir: x}, warm_start: a, eg_rl: b, reward: {model: c}}"
    assert "data.eval: expected at least one" in refuse(text=text, cls=EvaluateConfig)


def test_only_controls_that_exist_are_measured_and_each_once(refuse):
    text = "{run: {dir: x}, data: {eval: [{name: a, path: a}]}, reward: {model: c}}"
    known = "expected other_trace or samples, each once"
    for controls, place in (("[other]", 0), ("[samples, samples]", 1)):
        message = refuse(f"controls={controls}", text=text, cls=EvaluateConfig)
        assert f"controls[{place}]: {known}" in message
    assert "samples: expected more than 0" in refuse("samples=0", text=text, cls=EvaluateConfig)


@pytest.mark.parametrize(
    ("rival", "words"),
    [
        ("name: a/b, model: m", "rivals[0].name: expected letters"),
        ("name: a, model: m, pooling: last", "rivals[0].pooling: sentence_transformers reads it"),
        ("name: a, model: m, instruction: x", "rivals[0].instruction: sentence_transformers"),
        ("name: a, model: m, prompts: {passage: x}", "rivals[0].prompts.passage: expected one of"),
        ("name: a, model: m, library: vllm, prompts: {query: x}", "rivals[0].prompts: vllm reads"),
        ("name: a, model: m, library: vllm, instruction: x", "pooling=emb_token reads none"),
        (
            "name: a, model: m, library: vllm, pool: {gpus: 1}, engine: {tensor_parallel: 2}",
            "rivals[0].pool.gpus: expected",
        ),
        ("name: a, model: m}, {name: a, model: n", "rivals: expected a name of its own for each"),
        ("name: a", "rivals[0].model: no value"),
    ],
)
def test_an_impossible_rival_is_refused(refuse, rival, words):
    text = "{run: {dir: x}, data: {eval: [{name: a, path: a, root: r}]}, reward: {model: c}}"
    assert words in refuse(f"rivals=[{{{rival}}}]", text=text, cls=EvaluateConfig)


def test_a_gate_needs_a_reasoner_and_targets(refuse):
    text = "{run: {dir: x}, data: {eval: [{name: a, path: a}]}, reward: {model: c}}"
    train = "adaptive.train=[{name: a, path: a, root: r, format: caption}]"
    assert "set eg_rl or warm_start" in refuse(train, text=text, cls=EvaluateConfig)
    message = refuse(train, "eg_rl=b", text=text, cls=EvaluateConfig)
    assert "captions have no target" in message
    assert "set eg_rl" not in message


def test_published_traces_are_of_mmeb_v2_alone_and_one_an_item(refuse):
    base = "run: {dir: r}\nreward: {model: m}\npublished_traces: [cot]\n"
    sets = "data: {eval: [{name: a, path: p, root: r}]}\n"
    for text in (base + sets, base + "benchmarks: [{suite: uvrb, root: r}]\n"):
        message = refuse(text=text, cls=EvaluateConfig)
        assert "published_traces: these are of the benchmark mmeb_v2 alone" in message
    text = base + "benchmarks: [{root: r}]\n"
    message = refuse("controls=[samples]", text=text, cls=EvaluateConfig)
    assert "controls: files hold one trace of an item" in message


@pytest.mark.parametrize("cls", [EmbedderConfig, WarmStartConfig])
def test_a_store_of_traces_needs_the_reasoner_that_wrote_them(refuse, cls):
    text = "run: {dir: r}\nmodel: m\ndata: {train: [{name: a, path: p, root: r}]}\n"
    for given in ("store=runs/e/store", "reasoner=models/r"):
        message = refuse(given, text=text, cls=cls)
        assert "store: traces in it are told by their Reasoner" in message
    share = refuse("max_missing_traces=2", text=text, cls=cls)
    assert "max_missing_traces" in share


def test_the_controls_are_those_of_the_evaluation():
    assert tuple(CONTROL_SUFFIXES) == CONTROLS


def test_the_ways_of_embedding_traces_are_those_of_the_type():
    assert list(get_args(get_type_hints(RewardConfig)["evidence"])) == [str(e) for e in Evidence]


PRESET = RL.replace(
    "reward: {model: models/embedder}",
    "reward: {preset: paper, model: models/embedder, process_weight: 0.7, judge: {model: j}}",
)


def test_a_preset_lies_under_the_keys_that_are_given(tmp_path):
    path = tmp_path / "rl.yaml"
    path.write_text(PRESET)
    reward = load(RLConfig, path).reward
    assert (reward.accuracy, reward.outcome_weight, reward.process_weight) == ("all", 0.2, 0.7)
    assert (reward.judge.positives, reward.judge.model) == ("all", "j")
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(load(RLConfig, path)))
    assert load(RLConfig, resolved).reward == reward


def test_an_override_chooses_the_preset_and_keys_beside_it_win(tmp_path):
    path = tmp_path / "rl.yaml"
    path.write_text(PRESET)
    reward = load(RLConfig, path, ["reward.outcome_weight=0.3", "reward.preset=code"]).reward
    assert (reward.accuracy, reward.outcome_weight, reward.judge.shuffle) == ("share", 0.3, False)
    assert (reward.process_weight, reward.judge.model) == (0.2, "j")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.preset=mine", "expected one of ['', 'paper', 'code']"),
        ("reward.preset=paper", "reward.judge.model: process_weight=0.8 needs a judge"),
        ("reward.judge.model=j", "reward.process_weight: a judge that pays nothing"),
        ("reward.length_weight=1", "reward.length_budget: length_weight needs it > 0"),
        ("reward.bank={hard: 3, capacity: 2}", "reward.bank.hard: expected at most capacity=2"),
        ("reward.false_negative_similarity=1.1", "expected a share in [0, 1], found 1.1"),
        (
            "reward={process_weight: 1, judge: {model: j, answer: score, positives: all}}",
            "reward.judge.answer: a score is read from one digit, so at most 9",
        ),
    ],
)
def test_reward_settings_that_cannot_work_are_refused(refuse, override, words):
    assert words in refuse(override)


def test_a_preset_that_is_no_name_is_refused(refuse):
    assert "reward.preset" in refuse("reward.preset=[paper]")


EVALUATE = """
run: {dir: runs/x}
reward: {model: models/embedder}
benchmarks:
- {suite: mmeb_v2, root: media}
"""


def test_an_evaluation_needs_something_to_measure_and_no_name_twice(refuse):
    nothing = EVALUATE.split("benchmarks:")[0]
    assert "or one of `benchmarks`" in refuse(text=nothing, cls=EvaluateConfig)
    both = "benchmarks=[{suite: mmeb_v2, root: a}, {suite: uvrb, root: b}]"
    assert "DiDeMo would be measured twice" in refuse(both, text=EVALUATE, cls=EvaluateConfig)


def test_the_leaderboard_takes_whole_suites_only(refuse):
    part = "benchmarks=[{suite: mmeb_v2, root: a, sets: [GQA]}]"
    name = "leaderboard.model_name=ours"
    assert "takes all 78 sets" in refuse(part, name, text=EVALUATE, cls=EvaluateConfig)
