"""What the evidence adds: each Reasoner's traces as text only against text + evidence, by kind."""

from dataclasses import dataclass

from data.types import Kind
from evaluation.metrics import Estimate
from evaluation.report.gallery import REASONERS
from evaluation.report.plots import COLOURS, GREY
from evaluation.runner import Evaluation
from evaluation.variants import TEXT_SUFFIX

KINDS = (Kind.IMAGE, Kind.VIDEO, Kind.PAGE)
"""Kinds of task with evidence to switch off; between texts the keywords are the text's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """hit@1 of one Reasoner on the tasks of one kind; the same traces in both."""

    kind: Kind
    reasoner: str
    title: str
    colour: str
    text: Estimate
    evidence: Estimate
    queries: int
    """Ranked queries of the variant that ranked fewer."""
    same_queries: bool
    """Whether both ranked as many."""

    @property
    def gain(self) -> float | None:
        """Return what the evidence adds to hit@1; None where one ranked more queries."""
        return self.evidence.mean - self.text.mean if self.same_queries else None


def ablation(evaluation: Evaluation) -> list[AblationRow]:
    """Return the lines of the ablation by kind, then Reasoner; without those not ranked at all."""
    rows = []
    for kind in KINDS:
        results = evaluation.of_kind(kind)
        for name, title in REASONERS.items():
            text, evidence = results.get(name + TEXT_SUFFIX), results.get(name)
            if text is None or evidence is None or not (text.metrics and evidence.metrics):
                continue
            rows.append(
                AblationRow(
                    kind=kind,
                    reasoner=name,
                    title=title,
                    colour=COLOURS.get(name, GREY),
                    text=text.metrics["hit_at_1"],
                    evidence=evidence.metrics["hit_at_1"],
                    queries=min(text.queries, evidence.queries),
                    same_queries=text.queries == evidence.queries,
                )
            )
    return rows
