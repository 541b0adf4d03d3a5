"""The settings for pictures of one's own: each loads, and reads what an earlier stage writes."""

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

CONFIGS = Path(__file__).parents[3] / "configs"
FOLDER = CONFIGS / "emoji"
STAGES = {
    "traces": RuleTracesConfig,
    "sight": WarmStartConfig,
    "embedder": EmbedderConfig,
    "warm_start": WarmStartConfig,
    "rl": RLConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
}
OWN = ("traces", "embedder", "warm_start", "rl", "evaluate")
RELEASED = {"emoji": (), "own": ("models",)}
"""Folders of models that no stage writes."""
MOST_LINES = 25
"""Of a file in configs/own, which a reader shall take in at a glance."""


def test_every_file_is_a_stage():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(STAGES)
    files = sorted((CONFIGS / "own").glob("*.yaml"))
    assert {path.stem for path in files} == set(OWN)
    assert all(len(path.read_text().splitlines()) < MOST_LINES for path in files)


@pytest.mark.parametrize(
    ("name", "stage"),
    [*(("emoji", stage) for stage in STAGES), *(("own", stage) for stage in OWN)],
)
def test_stage_reads_only_what_earlier_stages_write(name, stage):
    place, runs = CONFIGS / name, f"runs/{name}/"
    stages = OWN if name == "own" else tuple(STAGES)
    config = load(STAGES[stage], place / f"{stage}.yaml")
    assert config.run.dir.startswith(runs) or stage == "report"
    earlier = stages[: stages.index(stage)]
    names = {one.name for one in load(RuleTracesConfig, place / "traces.yaml").data.train}
    data = getattr(config, "data", None)
    for one in [*data.train, *data.eval] if data else []:
        if not one.path.startswith(runs):
            continue
        folder, split, file = one.path.removeprefix(runs).split("/")
        prefixes = {"train": ("filtered_", "teacher_", "sight_"), "heldout": ("", "sight_")}[split]
        assert folder == "traces"
        assert file in {f"{prefix}{name}.json" for prefix in prefixes for name in names}
    models = [getattr(config, key, "") for key in ("model", "reasoner", "warm_start", "eg_rl")]
    models.append(config.reward.model if hasattr(config, "reward") else "")
    for model in filter(None, models):
        assert model.removeprefix(runs).split("/")[0] in (*earlier, *RELEASED[name])


def test_set_lies_where_the_variable_says(monkeypatch):
    for stage in ("traces", "embedder", "evaluate"):
        config = load(STAGES[stage], FOLDER / f"{stage}.yaml")
        roots = {one.root for one in [*config.data.train, *config.data.eval]}
        assert roots == {"/data/pictograms"}
    assert config.data.eval[0].path == "/data/pictograms/eval/emoji_i2t.jsonl"
    monkeypatch.delenv("EMOJI")
    with pytest.raises(ConfigError, match="'EMOJI' not found"):
        load(RuleTracesConfig, FOLDER / "traces.yaml")
