"""Rivals: other Embedders on the same items, measured beside ours, with toy engines."""

from collections.abc import Mapping

import numpy as np
import pytest
from rich.console import Console

from data.types import EmbedRequest, Item, Pair, Picture, Side
from evaluation.report.console_tables import print_table
from evaluation.report.headline_table import headline, headline_metrics, title_of
from evaluation.report.plots import GREY, colour_of
from evaluation.results_file import load_evaluation, save_evaluation
from evaluation.runner import Evaluation, Settings, evaluate
from evaluation.sets import sets_of_pairs
from evaluation.variants import NO_COT, compared_variants, variants_of
from tests.unit.evaluation.test_runner import TRUE_BOX, Embedder, Reasoner, image_pair, of

SETTINGS = Settings(templates="brief", item_tokens=0, max_frames=4, resamples=50, seed=0)
COLOURS = ("red", "blue", "green")


class Rival:
    """A rival that knows a picture's colour by its address; it keeps what it was asked for."""

    def __init__(self, broken: str = "\0") -> None:
        self.broken = broken
        self.asked: dict[Side, list[EmbedRequest]] = {}

    def __call__(
        self, requests: Mapping[Side, list[EmbedRequest]]
    ) -> dict[Side, dict[str, np.ndarray]]:
        self.asked = dict(requests)
        return {
            side: {r.key: self._vector(r) for r in asked if self.broken not in repr(r.content)}
            for side, asked in requests.items()
        }

    def _vector(self, request: EmbedRequest) -> np.ndarray:
        says = " ".join(p.uri if isinstance(p, Picture) else p for p in request.content)
        return np.array([float(colour in says) for colour in COLOURS] + [0.1])


def measured(rival: Rival, **reasoners: Reasoner) -> Evaluation:
    sets = sets_of_pairs([image_pair(colour) for colour in COLOURS])
    return evaluate(
        sets, reasoners=reasoners, embed=Embedder(), rivals={"other": rival}, settings=SETTINGS
    )


def test_a_rival_is_ranked_on_the_same_queries_without_traces() -> None:
    rival = Rival()
    evaluation = measured(rival, eg_rl=Reasoner(TRUE_BOX))
    overall = evaluation.overall()
    assert list(overall) == [NO_COT, "eg_rl_text", "eg_rl", "other_rival"]
    assert overall["other_rival"].metrics["hit_at_1"].mean == 1.0
    assert overall[NO_COT].metrics["hit_at_1"].mean == 0.0
    assert overall["other_rival"].valid is None
    assert all(not query.trace for query in of(evaluation, "other_rival").values())
    read = [part for asked in rival.asked.values() for r in asked for part in r.content]
    assert not any("<thinking>" in part for part in read if isinstance(part, str))
    assert evaluation.set_results["other_rival"][0].by_query() == dict.fromkeys(
        (f"{colour}-0" for colour in COLOURS), 1.0
    )


def test_queries_and_candidates_are_told_apart() -> None:
    rival = Rival()
    same = [Pair(pair_id=c, source="s", query=Item(text=c), target=Item(text=c)) for c in COLOURS]
    evaluate(
        sets_of_pairs(same),
        reasoners={},
        embed=Embedder(),
        rivals={"other": rival},
        settings=SETTINGS,
    )
    keys = {side: [request.key for request in asked] for side, asked in rival.asked.items()}
    assert len(keys[Side.QUERY]) == len(COLOURS)
    assert keys[Side.QUERY] == keys[Side.TARGET]


def test_what_a_rival_cannot_embed_is_left_out_and_counted() -> None:
    result = measured(Rival(broken="/red")).overall()["other_rival"]
    assert (result.queries, result.excluded) == (2, {"query: no embedding": 1})


def test_the_width_of_the_vectors_is_that_of_ours() -> None:
    assert measured(Rival()).dimensions == 4096


def test_ours_are_compared_with_each_rival_on_the_same_queries() -> None:
    variants = variants_of(["warm_start", "eg_rl"], (), ["a", "b"])
    assert [v.name for v in variants[-2:]] == ["a_rival", "b_rival"]
    pairs = [pair for pair in compared_variants(variants) if pair[1].endswith("_rival")]
    assert pairs == [
        (ours, rival)
        for ours in ("warm_start", "eg_rl", NO_COT)
        for rival in ("a_rival", "b_rival")
    ]
    [difference] = [c for c in measured(Rival()).differences if c.second == "other_rival"]
    assert (difference.first, difference.difference.mean) == (NO_COT, -1.0)


def test_a_rival_stands_in_files_metrics_and_tables(tmp_path, capsys) -> None:
    evaluation = measured(Rival(), eg_rl=Reasoner(TRUE_BOX))
    save_evaluation(evaluation, tmp_path)
    loaded = load_evaluation(tmp_path)
    assert loaded.overall()["other_rival"] == evaluation.overall()["other_rival"]
    assert headline_metrics(loaded)["other_rival/hit_at_1"] == 1.0
    assert title_of("other_rival") == "other, rival"
    row = headline(loaded.overall())[-1]
    assert (row.title, row.colour) == ("other, rival", colour_of("other_rival"))
    assert row.colour != GREY
    print_table(loaded, Console(width=80))
    printed = capsys.readouterr().out
    assert "other, rival" in printed
    assert "-1.000" in printed


@pytest.mark.parametrize("name", ["eg_rl_text", "eg_rl_other", "no_cot"])
def test_no_name_of_a_rival_poses_as_a_variant_of_ours(name: str) -> None:
    assert title_of(f"{name}_rival").endswith(", rival")
