"""The lines of the ablation from results made here."""

from data.types import Kind
from evaluation.metrics import Estimate
from evaluation.report.ablation import ablation
from evaluation.runner import OVERALL, Evaluation, VariantResult


def result(variant: str, kind: str, hit: float | None, *, queries: int = 10) -> VariantResult:
    return VariantResult(
        variant=variant,
        source=OVERALL,
        queries=queries,
        excluded={},
        candidates_excluded=0,
        metrics={} if hit is None else {"hit_at_1": Estimate(hit, hit - 0.1, hit + 0.1)},
        valid=None,
        on_target=None,
        kind=kind,
    )


def evaluation(*results: VariantResult) -> Evaluation:
    return Evaluation(results=results, queries=())


def test_lines_are_by_kind_then_reasoner_with_the_gain() -> None:
    found = ablation(
        evaluation(
            *(
                result(reasoner + suffix, kind, hit)
                for kind in (Kind.PAGE, Kind.IMAGE)
                for reasoner in ("warm_start", "eg_rl")
                for suffix, hit in (("_text", 0.25), ("", 0.75))
            )
        )
    )
    assert [(row.kind, row.title) for row in found] == [
        (Kind.IMAGE, "Warm start"),
        (Kind.IMAGE, "EG-RL"),
        (Kind.PAGE, "Warm start"),
        (Kind.PAGE, "EG-RL"),
    ]
    assert {row.gain for row in found} == {0.5}


def test_tasks_between_texts_have_no_evidence_to_switch_off() -> None:
    both = [result("eg_rl_text", Kind.TEXT, 0.5), result("eg_rl", Kind.TEXT, 0.5)]
    assert ablation(evaluation(*both)) == []


def test_what_was_not_ranked_in_both_ways_has_no_line() -> None:
    both = [result("eg_rl_text", Kind.IMAGE, None, queries=0), result("eg_rl", Kind.IMAGE, 0.5)]
    assert ablation(evaluation(*both)) == []
    assert ablation(evaluation(both[1])) == []


def test_the_fewer_queries_are_counted() -> None:
    text, full = result("eg_rl_text", Kind.VIDEO, 0.5, queries=7), result("eg_rl", Kind.VIDEO, 0.5)
    [row] = ablation(evaluation(text, full))
    assert row.queries == 7
    assert row.gain is None  # over other queries
