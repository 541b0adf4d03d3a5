"""A benchmark's results beside the published ones, and the files that they become."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.schema import LeaderboardConfig
from data.errors import DataError
from data.types import EmbedRequest, Item
from evaluation.benchmarks.tables import benchmark_suite
from evaluation.runner import Evaluation, Settings, evaluate
from evaluation.sets import EvaluationQuery, EvaluationSet
from evaluation.suite_results import (
    save_leaderboard,
    save_suite,
    suite_metrics,
    suite_results,
    suite_table,
)
from evaluation.variants import NO_COT

SETTINGS = Settings(templates="brief", item_tokens=0, max_frames=4, resamples=5, seed=0)
SUITE = benchmark_suite("mmeb_v2").sets
MODEL = LeaderboardConfig(
    model_name="ours",
    model_backbone="Qwen3-VL",
    model_size=2.1,
    model_release_date="2026-11-30",
    url="https://example.org",
)


def embed(requests: list[EmbedRequest]) -> dict[str, np.ndarray]:
    """Return one axis for each text, so that equal texts are nearest."""
    texts = [str(request.content[0])[:4] for request in requests]
    axes = {text: axis for axis, text in enumerate(dict.fromkeys(texts))}
    return {r.key: np.eye(2)[axes[t]] for r, t in zip(requests, texts, strict=True)}


def measured(*names: str) -> Evaluation:
    """Return an evaluation of sets in which the first of two queries finds its target."""
    sets = [
        EvaluationSet(
            name=name,
            queries=[
                EvaluationQuery(query_id="1", item=Item(text="blue"), right={"b": 1}),
                EvaluationQuery(query_id="2", item=Item(text="blue?"), right={"r": 1}),
            ],
            candidates={"b": Item(text="blue!"), "r": Item(text="red.")},
            metric="hit@1" if name == "own" else SUITE[name].metric,
            suite="" if name == "own" else "mmeb_v2",
            groups=() if name == "own" else SUITE[name].groups,
        )
        for name in names
    ]
    return evaluate(sets, reasoners={}, embed=embed, settings=SETTINGS)


def test_only_the_suites_sets_are_in_its_table_means_and_files(tmp_path: Path) -> None:
    evaluation = measured("own", "ChartQA", "GQA")
    results = suite_results(evaluation, "mmeb_v2", NO_COT)
    rows = {row.name: row for row in suite_table(results, "mmeb_v2").rows}
    assert list(rows) == ["ChartQA", "GQA", "all", "image", "image/vqa"]
    assert [row.score for row in rows.values()] == [50.0] * 5
    published = [SUITE[name].published["Embed-RL-2B"] for name in ("ChartQA", "GQA")]
    assert rows["ChartQA"].published[0] == published[0]
    assert rows["all"].published[0] == pytest.approx(sum(published) / 2)
    assert suite_metrics(evaluation, "mmeb_v2") == {
        f"no_cot/mmeb_v2/{group}": 0.5 for group in ("all", "image", "image/vqa")
    }
    save_suite(evaluation, "mmeb_v2", tmp_path)
    files = sorted(path.name for path in (tmp_path / "scores/no_cot").iterdir())
    assert files == ["ChartQA_score.json", "GQA_score.json"]


def test_a_rivals_scores_stand_before_the_published_ones(tmp_path: Path) -> None:
    results = suite_results(measured("ChartQA", "GQA"), "mmeb_v2", NO_COT)
    table = suite_table(results, "mmeb_v2", {"other, rival": results[:1]})
    assert [model.model for model in table.published][:2] == ["other, rival", "Embed-RL-2B"]
    assert {row.name: row.published[0] for row in table.rows if row.sets == 1} == {
        "ChartQA": 50.0,
        "GQA": None,
    }


def test_the_leaderboards_file_needs_every_set(tmp_path: Path) -> None:
    results = suite_results(measured(*SUITE), "mmeb_v2", NO_COT)
    sizes = {"dimensions": 2, "max_tokens": 512}
    entry = json.loads(save_leaderboard(results, MODEL, tmp_path, **sizes).read_text())
    assert [len(sets) for sets in entry["metrics"].values()] == [36, 18, 24]
    assert entry["metrics"]["visdoc"]["ViDoSeek-page-fixed"]["ndcg_linear@5"] > 0
    with pytest.raises(DataError, match="no set ImageNet-1K"):
        save_leaderboard(results[1:], MODEL, tmp_path, **sizes)
