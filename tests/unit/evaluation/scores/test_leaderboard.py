"""The leaderboard's files: layout, and what is refused."""

import json
import math

import pytest

from configs.schema import LeaderboardConfig
from data.errors import DataError
from evaluation.measure import METRICS
from evaluation.scores.leaderboard import (
    check_entry,
    leaderboard_entry,
    save_entry,
    save_set_scores,
)

MODALITIES = {"image": ["VOC2007"], "video": ["MSVD"], "visdoc": ["ViDoSeek-page-fixed"]}
MODEL = LeaderboardConfig(
    model_name="Ours-2B",
    model_backbone="Qwen3-VL-2B",
    model_size=2.13,
    model_release_date="2026-01-02",
    url="https://example.org/ours",
)


def entry_of(results) -> dict:
    return leaderboard_entry(
        results,
        MODEL,
        dimensions=2048,
        max_tokens=8192,
        modalities=MODALITIES,
        generated="2026-01-03",
    )


@pytest.fixture
def results(make_result) -> list:
    return [make_result(name, "abc", "bac") for [name] in MODALITIES.values()]


def test_a_set_has_a_file_of_24_metrics_and_two_counts(make_result, tmp_path) -> None:
    path = save_set_scores(make_result("MSVD", "abc", "bac", metric="hit@50"), tmp_path / "new")
    assert path == tmp_path / "new" / "MSVD_score.json"
    scores = json.loads(path.read_text("utf-8"))
    assert tuple(scores) == (*METRICS, "num_pred", "num_data")
    assert len(METRICS) == 24
    assert (scores["hit@1"], scores["mrr@10"]) == (0.5, 0.75)
    assert (scores["num_pred"], scores["num_data"]) == (2, 2)


def test_a_model_has_one_file_with_its_metadata_and_all_sets(results, tmp_path) -> None:
    path = save_entry(entry_of(results), tmp_path)
    assert path.name == "Ours-2B.json"
    entry = json.loads(path.read_text("utf-8"))
    assert entry["metadata"] == {
        "model_name": "Ours-2B",
        "model_backbone": "Qwen3-VL-2B",
        "model_size": 2.13,
        "embedding_dimension": 2048,
        "max_length_tokens": 8192,
        "model_release_date": "2026-01-02",
        "url": "https://example.org/ours",
        "data_source": "Self-Reported",
        "report_generated_date": "2026-01-03",
    }
    assert {modality: list(sets) for modality, sets in entry["metrics"].items()} == MODALITIES
    assert entry["metrics"]["visdoc"]["ViDoSeek-page-fixed"]["ndcg_linear@1"] == 0.5
    check_entry(entry, modalities=MODALITIES)


def test_ties_against_the_system_are_what_a_file_holds(make_result, tmp_path) -> None:
    result = make_result("MSVD", "bac", benchmark_orders=("abc",))
    path = save_set_scores(result, tmp_path)
    assert json.loads(path.read_text("utf-8"))["hit@1"] == 0


def test_all_that_is_missing_is_named_at_once(results, make_result) -> None:
    results[1] = make_result("MSVD", "abc", "bac", num_data=3)
    with pytest.raises(DataError) as refused:
        entry_of(results[1:])
    assert "expected all 3 sets" in str(refused.value)
    assert "image: no set VOC2007" in str(refused.value)
    assert "video/MSVD: 2 of 3 queries were ranked" in str(refused.value)


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan])
def test_a_metric_that_is_no_share_is_refused(results, value) -> None:
    entry = entry_of(results)
    entry["metrics"]["video"]["MSVD"]["map@5"] = value
    with pytest.raises(DataError, match=f"video/MSVD: map@5 is {value}, expected 0 to 1"):
        check_entry(entry, modalities=MODALITIES)


def test_a_metric_or_a_count_that_is_missing_is_named(results) -> None:
    entry = entry_of(results)
    del (
        entry["metrics"]["image"]["VOC2007"]["f1@10"],
        entry["metrics"]["image"]["VOC2007"]["num_data"],
    )
    del entry["metrics"]["visdoc"]
    with pytest.raises(DataError) as refused:
        check_entry(entry, modalities=MODALITIES)
    assert "image/VOC2007: no f1@10, num_data" in str(refused.value)
    assert "visdoc: no set ViDoSeek-page-fixed" in str(refused.value)


def test_a_page_set_under_its_old_name_is_refused(results, make_result) -> None:
    results[2] = make_result("ViDoSeek-page", "abc")
    with pytest.raises(DataError, match="not among its sets: ViDoSeek-page;"):
        entry_of(results)


def test_two_results_of_a_set_are_refused(results) -> None:
    with pytest.raises(DataError, match="found 4 of 3 sets; not among its sets: none"):
        entry_of([*results, results[0]])


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a\nb"])
def test_a_name_that_leads_out_of_the_folder_is_refused(make_result, tmp_path, name) -> None:
    with pytest.raises(DataError, match="cannot be the name of a file"):
        save_set_scores(make_result(name, "abc"), tmp_path / "in")
    assert list(tmp_path.rglob("*.json")) == []
