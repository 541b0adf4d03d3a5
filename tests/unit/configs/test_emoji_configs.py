"""The settings of the real pictures: each loads, and each reads what an earlier stage writes."""

from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load
from configs.schema import (
    EmbedderConfig,
    EvaluateConfig,
    ReportConfig,
    RLConfig,
    RuleTracesConfig,
    WarmStartConfig,
)

FOLDER = Path(__file__).parents[3] / "configs/emoji"
STAGES = {
    "traces": RuleTracesConfig,
    "sight": WarmStartConfig,
    "embedder": EmbedderConfig,
    "warm_start": WarmStartConfig,
    "rl": RLConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
}
RUNS = "runs/emoji/"


def test_every_file_is_a_stage():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_reads_only_what_earlier_stages_write(stage):
    config = load(STAGES[stage], FOLDER / f"{stage}.yaml")
    earlier = list(STAGES)[: list(STAGES).index(stage)]
    names = {one.name for one in load(RuleTracesConfig, FOLDER / "traces.yaml").data.train}
    data = getattr(config, "data", None)
    for one in [*data.train, *data.eval] if data else []:
        if not one.path.startswith(RUNS):
            continue
        folder, split, file = one.path.removeprefix(RUNS).split("/")
        prefixes = {"train": ("filtered_", "teacher_", "sight_"), "heldout": ("", "sight_")}[split]
        assert folder == "traces"
        assert file in {f"{prefix}{name}.json" for prefix in prefixes for name in names}
    models = [getattr(config, key, "") for key in ("model", "reasoner", "warm_start", "eg_rl")]
    models.append(config.reward.model if hasattr(config, "reward") else "")
    for model in filter(None, models):
        assert model.removeprefix(RUNS).split("/")[0] in earlier


def test_set_lies_where_the_variable_says(monkeypatch):
    for stage in ("traces", "embedder", "evaluate"):
        config = load(STAGES[stage], FOLDER / f"{stage}.yaml")
        roots = {one.root for one in [*config.data.train, *config.data.eval]}
        assert roots == {"/data/pictograms"}
    assert config.data.eval[0].path == "/data/pictograms/eval/emoji_i2t.jsonl"
    monkeypatch.delenv("EMOJI")
    with pytest.raises(ConfigError, match="'EMOJI' not found"):
        load(RuleTracesConfig, FOLDER / "traces.yaml")
