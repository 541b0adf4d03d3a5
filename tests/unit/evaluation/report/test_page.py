"""The report from small run folders made here."""

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from cluster.jobs.report import main
from cluster.run.stage_loop import plain_console, progress_bar
from configs.common import MediaConfig, RolloutConfig, RunConfig
from configs.schema import ReportConfig
from data.errors import DataError
from data.monitor_table import MONITORS
from data.stores.facts import held_out_recipe
from data.stores.keys import content_key
from data.stores.traces import StoredTrace, Subject, TraceCost, TraceStore
from data.tcot import render
from data.types import Box, Content, Cues, EmbedRequest, Item, Kind, Pair, Picture, Side, TCoT
from evaluation.adaptive.effects import TraceEffects
from evaluation.adaptive.gate import adaptive_figures
from evaluation.costs import Costs
from evaluation.report.adaptive_text import adaptive_sentences
from evaluation.report.console_tables import print_table
from evaluation.report.gallery import choose_queries, over_time
from evaluation.report.headline_table import (
    headline,
    headline_metrics,
    short_title_of,
    title_of,
)
from evaluation.results_file import load_evaluation, save_evaluation
from evaluation.runner import Evaluation, Settings, evaluate
from evaluation.sets import sets_of_pairs
from evaluation.summary import Runs, build_summary, load_metrics, load_runs, load_stage

BOX = Box(0.0, 0.0, 0.5, 0.5)
EVIL = "<script>alert('x')</script>"
STAGES = ("data", "rl")
CONTROL_TITLES = ("another row's trace", "mean of samples")
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects tags and texts; fails on tags that are closed in the wrong order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]


def save_picture(path: Path) -> str:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return str(path)


def make_pairs(folder: Path) -> list[Pair]:
    image = save_picture(folder / "image.png")
    frames = tuple(save_picture(folder / f"{i}.png") for i in range(3))
    return [
        Pair(
            pair_id="i",
            source="color",
            query=Item(text=f"what is {EVIL}", kind=Kind.IMAGE, uris=(image,)),
            target=Item(text="red"),
            query_evidence=Cues(boxes=(BOX,)),
        ),
        Pair(
            pair_id="v",
            source="clip",
            query=Item(text="when", kind=Kind.VIDEO, uris=frames),
            target=Item(text="", kind=Kind.VIDEO, uris=frames),
            query_evidence=Cues(key_frames=(1,)),
        ),
        Pair(
            pair_id="t",
            source="find",
            query=Item(text="find it"),
            target=Item(text="", kind=Kind.IMAGE, uris=(image,)),
        ),
        Pair(
            pair_id="gone",
            source="color",
            query=Item(text="gone", kind=Kind.PAGE, uris=(str(folder / "gone.png"),)),
            target=Item(text="blue"),
        ),
    ]


def reason(requests: list[tuple[Subject, Content]]) -> dict[str, str]:
    answers = {}
    for subject, content in requests:
        pictures = [part for part in content if isinstance(part, Picture)]
        kind = pictures[0].kind if pictures else Kind.TEXT
        cues = Cues(keywords=("it",), boxes=(BOX,), key_frames=(1,))
        trace = TCoT(thinking=f"look {EVIL}", rethink="so", answer="this", cues=cues)
        answers[subject.key] = render(trace, kind=kind)
    return answers


def embed(requests: list[EmbedRequest]) -> dict[str, np.ndarray]:
    return {r.key: np.random.default_rng(int(r.key, 16)).normal(size=8) for r in requests}


@pytest.fixture
def config(tmp_path: Path) -> ReportConfig:
    """Return settings of a report over freshly written run folders."""
    found = evaluate(
        sets_of_pairs(make_pairs(tmp_path)),
        reasoners={"warm_start": reason, "eg_rl": reason},
        embed=embed,
        settings=Settings(templates="brief", item_tokens=0, max_frames=4, resamples=20, seed=0),
    )
    save_evaluation(found, tmp_path / "evaluate")
    for name, job in zip(STAGES, ("demo_data", "rl"), strict=True):
        (tmp_path / name).mkdir()
        stage = {"job": job, "seconds": 12.5, "steps": 3}
        (tmp_path / name / "stage.json").write_text(json.dumps(stage))
    lines = [
        {"step": step, "reward/total": 0.1 * step, "time/rollout_s": 1.0, "time/step_s": 1.5}
        for step in (1, 2, 3)
    ]
    (tmp_path / "rl" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return ReportConfig(
        run=RunConfig(dir=str(tmp_path / "out"), experiment="a small run"),
        evaluate=str(tmp_path / "evaluate"),
        rl=str(tmp_path / "rl"),
        stages=[str(tmp_path / name) for name in STAGES],
        gallery=8,
    )


def runs_of(config: ReportConfig) -> Runs:
    stages = [Path(stage) for stage in config.stages]
    return load_runs(evaluate=Path(config.evaluate), rl=Path(config.rl), stages=stages)


def page_of(config: ReportConfig) -> Page:
    assert main(config) == 0
    return Page((Path(config.run.dir) / "report.html").read_text(encoding="utf-8"))


def test_report_is_one_self_contained_page(config: ReportConfig) -> None:
    page = page_of(config)
    images = page.images()
    assert len([uri for uri in images if uri.startswith("data:image/svg+xml;base64,")]) == 3
    assert len(images) > 12
    assert all(uri.startswith("data:image/") for uri in images)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}


def kept_traces(config: ReportConfig, step: int, weights: str, answer: str) -> TraceStore:
    """Keep a trace of each item of the pairs as `rl` does after a step; return its store."""
    recipe = held_out_recipe(
        weights, RolloutConfig(), MediaConfig(), templates="brief", step=step, version=step + 1
    )
    store = TraceStore(Path(config.rl) / "store/traces", recipe)
    made = []
    for pair in make_pairs(Path(config.rl).parent):
        for side in Side:
            item = pair.item(side)
            key = content_key((item.key(), side))
            of = Subject(key=key, item=item, side=side, task=pair.source)
            cues = Cues(keywords=("it",), boxes=(BOX,), key_frames=(1,))
            trace = TCoT(thinking=EVIL, rethink="so", answer=answer, cues=cues)
            made.append(StoredTrace(of=of, text=render(trace, kind=item.kind)))
    store.add(made, made_by="a test")
    return store


def test_the_same_items_are_shown_after_each_measurement_of_rl(config: ReportConfig) -> None:
    assert "over time" not in page_of(config).text  # a run from before they were kept
    kept_traces(config, 0, "a", "at first")
    kept_traces(config, 2, "b", "lost in a kill")
    kept_traces(config, 2, "c", "done again")
    kept_traces(config, 3, "d", "at last")
    page = page_of(config)
    shown = page.text.partition("The same item over time")[2]
    for words in ("before RL", "step 2", "step 3", "at first", "done again", "at last"):
        assert shown.count(words) == 4
    assert "lost in a kill" not in shown
    alts = [tag[1]["alt"] for tag in page.tags if tag[0] == "img"]
    assert sum(str(alt).startswith("item with evidence") for alt in alts) == 12
    assert EVIL in shown

    # Of many measurements some are shown, and only items that have a trace at all of these.
    for step in range(4, 20):
        kept_traces(config, step, "e", "later")
    items = runs_of(config).held_out
    pictured = [item for item in items if item.shown]
    cards = over_time(items, (), count=8, seed=0)
    assert {tuple(view.step for view in card.steps) for card in cards} == {
        (0, 4, 6, 9, 11, 14, 16, 19)
    }
    assert len(cards) == len(pictured) > 4
    del pictured[0].traces[9]
    assert len(over_time(items, (), count=8, seed=0)) == len(pictured) - 1


def test_texts_of_data_and_models_are_escaped(config: ReportConfig) -> None:
    html_page = page_of(config)
    assert EVIL in html_page.text
    assert "script" not in {tag for tag, _ in html_page.tags}


ODD_NAMES = (r"a$_$b $\frac{$", "[/red] :key: [b]", f'{EVIL} & "c" -- ]]>')
"""As a data set may be called: a formula, rich's markup, HTML."""


def test_names_of_data_sets_are_neither_formula_nor_markup(config: ReportConfig) -> None:
    pairs = make_pairs(Path(config.evaluate).parent)
    named = [replace(one, source=name) for one, name in zip(pairs, ODD_NAMES, strict=False)]
    settings = Settings(templates="brief", item_tokens=0, max_frames=4, resamples=20, seed=0)
    reasoners = {"warm_start": reason, "eg_rl": reason}
    found = evaluate(sets_of_pairs(named), reasoners=reasoners, embed=embed, settings=settings)
    left_out = [replace(one, excluded={ODD_NAMES[1]: 1}) for one in found.results]
    save_evaluation(replace(found, results=tuple(left_out)), Path(config.evaluate))
    page = page_of(replace(config, run=replace(config.run, experiment=ODD_NAMES[2])))
    assert all(name in page.text for name in ODD_NAMES)
    assert "script" not in {tag for tag, _ in page.tags}
    for uri in page.images():
        if uri.startswith("data:image/svg+xml;base64,"):
            ElementTree.fromstring(base64.b64decode(uri.partition(",")[2]))
    console = plain_console()
    with console.capture() as printed:
        print_table(runs_of(config).evaluation, console)
    assert ODD_NAMES[1] in " ".join(printed.get().split())


def test_a_progress_bar_shows_the_name_of_a_run_folder_as_it_is() -> None:
    console = plain_console()
    with console.capture() as printed, progress_bar(console) as bar:
        bar.add_task(ODD_NAMES[1], total=1, completed=1)
    assert ODD_NAMES[1] in printed.get()


def test_table_holds_the_five_variants(config: ReportConfig) -> None:
    text = page_of(config).text
    for title in ("No T-CoT", "Warm start, text only", "EG-RL, text + evidence"):
        assert title in text
    rows = headline(runs_of(config).evaluation.overall())
    assert len(rows) == 5
    assert any(row.best for row in rows)


def test_ablation_of_the_evidence_is_shown_by_kind_of_task(config: ReportConfig) -> None:
    text = page_of(config).text.partition("What the evidence adds")[2]
    table = text.partition("queries\n")[2].split("Traces before and after")[0]
    # The only page query has no picture to show; its Reasoner and Embedder are toys and answer.
    lines = [line for line in table.splitlines() if line.startswith(("image", "video", "page"))]
    assert lines == [f"{k}{r}" for k in ("image", "video", "page") for r in ("Warm start", "EG-RL")]


def test_both_printed_tables_fit_80_columns(config: ReportConfig) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(runs_of(config).evaluation, console)
    lines = console.export_text().splitlines()
    assert any("what the evidence adds" in line for line in lines)
    rows = [line.split() for line in lines if line.startswith(("image", "video", "page"))]
    assert [(row[0], row[-1]) for row in rows] == [
        *[("image", "2")] * 2,
        *[("video", "1")] * 2,
        *[("page", "1")] * 2,
    ]
    assert not [line for line in lines if "\u2026" in line]


def evaluation_of(*, misses: str) -> Evaluation:
    """Return an evaluation in which every query of set ``misses`` retrieves something wrong."""
    pairs = [
        Pair(
            pair_id=f"{source}{number}",
            source=source,
            query=Item(text=f"{source} {number}"),
            target=Item(text=f"{source} {number}"),
        )
        for source, count in (("[/x] many", 3), ("one", 1), ("two", 2))
        for number in range(count)
    ]

    def read(requests: list[EmbedRequest]) -> dict[str, np.ndarray]:
        texts = [str(request.content[0]).split("Summarize")[0] for request in requests]
        return {
            request.key: np.eye(7)[0 if misses in text else 1 + int(text[-1])]
            for request, text in zip(requests, texts, strict=True)
        }

    settings = Settings(templates="brief", item_tokens=0, max_frames=4, resamples=5, seed=0)
    return evaluate(sets_of_pairs(pairs), reasoners={}, embed=read, settings=settings)


def printed(evaluation: Evaluation) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(evaluation, console)
    return console.export_text().splitlines()


def test_both_means_and_each_set_beside_its_chance_are_printed() -> None:
    found = evaluation_of(misses="many")
    lines = [" ".join(line.split()) for line in printed(found)]
    # Three of six queries miss, and one of three sets.
    assert "[/x] many 0.333 0.000 3" in lines
    assert "one 1.000 1.000 1" in lines
    assert "two 0.500 1.000 2" in lines
    assert "all queries 0.500 0.500 6" in lines
    assert "mean over sets 0.611 0.667" in lines
    [over_sets] = [line for line in lines if line.startswith("No T-CoT 0.667 1.000 ")]
    assert over_sets.endswith("3 sets")
    metrics = headline_metrics(found)
    assert metrics["no_cot/hit_at_1"] == pytest.approx(1 / 2)
    assert metrics["no_cot/hit_at_1_over_sets"] == pytest.approx(2 / 3)
    summary = build_summary(Runs(evaluation=found, records=(), stages=()))
    assert summary["hit_at_1"]["no_cot"] == pytest.approx(1 / 2)
    assert summary["hit_at_1_over_sets"]["no_cot"] == pytest.approx(2 / 3)


def with_controls() -> Evaluation:
    """Return an evaluation of four texts with both controls, of which the costs are known."""
    pairs = [
        Pair(pair_id=n, source="find", query=Item(text=f"find {n}"), target=Item(text=n))
        for n in "abcd"
    ]
    return evaluate(
        sets_of_pairs(pairs),
        reasoners={"warm_start": reason, "eg_rl": reason},
        samplers=dict.fromkeys(("warm_start", "eg_rl"), lambda asked: [reason(asked)] * 2),
        embed=embed,
        settings=Settings(
            templates="brief",
            item_tokens=0,
            max_frames=4,
            resamples=20,
            seed=0,
            controls=("other_trace", "samples"),
        ),
        costs=Costs(
            traces={"eg_rl": lambda keys: TraceCost(tokens=321.25, wall_ms=65.43)},
            contents_per_second=lambda keys: 1234.56,
        ),
    )


def test_controls_and_costs_are_printed_within_80_columns() -> None:
    lines = printed(with_controls())
    assert not [line for line in lines if "\u2026" in line or len(line) > 80]
    titles = [f"{name}, {what}" for name in ("Warm start", "EG-RL") for what in CONTROL_TITLES]
    assert [t for line in lines for t in titles if line.startswith(t + " ")][:4] == titles
    # A variant stands in one of the two tables by data set.
    assert [line.split()[1] for line in lines if line.startswith("data set")] == ["set"] * 2
    start = next(i for i, line in enumerate(lines) if "Traces of queries" in line)
    costs = [line.split() for line in lines[start:]]
    assert ["Warm", "start", "1.000", "0.000", "-", "-", "8"] in costs
    assert ["EG-RL", "1.000", "0.000", "321.2", "65.4", "8"] in costs
    assert lines[-1] == "The Embedder read 1234.6 contents per second."


def test_differences_are_printed_with_interval_and_p(config: ReportConfig) -> None:
    made = runs_of(config).evaluation
    lines = printed(made)
    start = next(i for i, line in enumerate(lines) if "Paired differences" in line)
    rows = [line.split() for line in lines[start + 3 : start + 8]]
    first = made.differences[0].difference
    assert rows[0] == [
        *("EG-RL", "Warm", "start"),
        *("+0.000", "+0.00", "to", "+0.00", "1.000", str(first.queries)),
    ]
    assert [row[:4] for row in rows[1:3]] == [
        ["Warm", "start", "No", "T-CoT"],
        ["EG-RL", "No", "T-CoT", f"{made.differences[2].difference.mean:+.3f}"],
    ]


def test_the_page_shows_controls_differences_and_costs(config: ReportConfig) -> None:
    text = page_of(config).text
    assert "Paired differences" in text
    assert "another item of its set" not in text
    folder = Path(config.evaluate)
    save_evaluation(with_controls(), folder)
    text = page_of(replace(config, run=replace(config.run, dir=str(folder.parent / "2")))).text
    assert "another item of its set" in text
    differences, _, costs = text.partition("Paired differences")[2].partition("Cost of the traces")
    assert sum(" to " in line for line in differences.splitlines()) == 9
    assert "Warm startWarm start, another row's trace" in differences
    assert "1234.6 contents per second" in costs
    assert {"start1.000.00", "EG-RL1.000.00"} <= set(costs.split())
    assert "321.2" in costs
    assert "65.4" in costs


def with_adaptive_trace(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation of which all that a gate saves is known: nothing of 300 tokens."""
    effects = TraceEffects(
        features=np.zeros((4, 1), np.float32),
        hit_without=np.zeros(4, bool),
        hit_with=np.ones(4, bool),
        tokens=np.full(4, 300.0),
        excluded={"embedding not finite or zero": 2},
    )
    figures = adaptive_figures(effects, effects, reasoner="eg_rl", resamples=5, seed=0)
    return replace(evaluation, adaptive=figures)


def test_an_adaptive_trace_is_printed_and_shown_on_the_page(config: ReportConfig) -> None:
    evaluation = with_adaptive_trace(runs_of(config).evaluation)
    assert "EG-RL traces only some" not in "".join(printed(replace(evaluation, adaptive=None)))
    assert "Adaptive trace" not in page_of(config).text
    lines = printed(evaluation)
    assert not [line for line in lines if "\u2026" in line or len(line) > 80]
    rows = [line.split() for line in lines]
    assert ["75.0", *("0.250", "0.25-0.25") * 3] in rows
    assert any("left out: 2 x embedding not finite or zero" in line for line in lines)
    words = " ".join(" ".join(lines).split())
    assert "takes 300.0 tokens a query with the gate" in words
    assert "traces 100% of 4: hit@1 1.000 (1.00 to 1.00), 300.0 tokens" in words
    assert "of the tokens that the oracle saves" not in words  # it saves none
    folder = Path(config.evaluate)
    save_evaluation(evaluation, folder)
    assert load_evaluation(folder).adaptive == evaluation.adaptive
    page = page_of(replace(config, run=replace(config.run, dir=str(folder.parent / "2"))))
    section = page.text.partition("Adaptive trace")[2].partition("Training")[0]
    assert "takes 300.0 tokens a query with the gate" in " ".join(section.split())
    assert (folder.parent / "2/plots/adaptive.svg").is_file()


def test_what_a_gate_saves_of_the_oracles_tokens_is_told() -> None:
    helps = np.array([True, False, False, False])
    effects = TraceEffects(
        features=np.arange(4, dtype=np.float32)[:, None],
        hit_without=~helps,
        hit_with=np.ones(4, bool),
        tokens=np.full(4, 300.0),
        excluded={},
    )
    figures = adaptive_figures(effects, effects, reasoner="eg_rl", resamples=5, seed=0)
    # All are alike to the gate, so that it needs all tokens, and the oracle a quarter.
    saves = "There the gate saves 0.00 (0.00 to 1.00) of the tokens that the oracle saves, a random"
    assert adaptive_sentences(figures)[1] == f"{saves} gate 0.00."
    assert figures.saving.oracle == 75


def test_a_column_of_which_nothing_is_known_is_not_printed(config: ReportConfig) -> None:
    def head(evaluation: Evaluation) -> list[str]:
        return next(line for line in printed(evaluation) if line.startswith("variant")).split()

    known = runs_of(config).evaluation
    assert head(known)[-3:] == ["valid", "target", "n"]
    # No query's true evidence is known.
    results = tuple(replace(one, on_target=None) for one in known.results)
    assert head(replace(known, results=results))[-2:] == ["valid", "n"]
    assert head(evaluation_of(misses="none"))[-2:] == ["nDCG@5", "n"]


def test_an_evaluation_that_was_written_before_is_shown_without_chance(
    config: ReportConfig,
) -> None:
    file = Path(config.evaluate) / "evaluation.json"
    written = json.loads(file.read_text())
    for result in written["results"]:
        del result["chance"]
    written = {"results": written["results"]}
    file.write_text(json.dumps(written))
    table = Path(config.evaluate) / "evaluation.parquet"
    pq.write_table(pq.read_table(table).drop_columns("chance"), table)
    lines = [line.split() for line in printed(runs_of(config).evaluation)]
    assert ["color", "-"] in [line[:2] for line in lines]
    assert not {"Paired", "Traces"} & {line[0] for line in lines if line}
    assert "Cost of the traces" not in page_of(config).text


def test_monitors_are_shown_with_their_limits_and_alarms(config: ReportConfig) -> None:
    lines = [
        {"step": 1, "hack/all_wrong": 0.95, "alarm/all_wrong": 1.0, "hack/all_right": 0.25},
        {"step": 2, "hack/all_wrong": 0.5, "hack/trace_worth": 0.75},
    ]
    (Path(config.rl) / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    page = page_of(config)
    text = page.text.partition("Monitors of the reward")[2].partition("hit@1 by task")[0]
    assert "Alarms rang 1 time." in text
    assert "1 of 2 steps: 1" in text
    assert MONITORS["all_wrong"].advice in text
    assert "above 0.1" in text
    assert {"0.95", "0.50", "0.25", "0.75"} <= set(text.split())
    assert len([uri for uri in page.images() if "svg+xml" in uri]) == 3 + 3


def test_no_monitor_recorded_no_section(config: ReportConfig) -> None:
    assert "Monitors of the reward" not in page_of(config).text


def test_biased_teacher_is_told_of_only_where_the_demo_ran(config: ReportConfig) -> None:
    assert "biased on purpose" in page_of(config).text
    assert "biased on purpose" not in page_of(replace(config, stages=config.stages[1:])).text


def test_gallery_shows_each_query_before_and_after(config: ReportConfig) -> None:
    text = page_of(config).text.partition("Traces before and after")[2]
    assert text.count("gold at") == 8
    assert "off target" not in text
    # The truth is known of two of the four queries.
    assert text.count("on target") == 4


def test_gallery_is_dealt_in_turn_and_repeats(config: ReportConfig) -> None:
    queries = runs_of(config).evaluation.queries
    chosen = choose_queries(queries, 3, seed=1)
    assert [before.source for before, _ in chosen] == ["color", "clip", "find"]
    assert all((b.variant, a.variant) == ("warm_start", "eg_rl") for b, a in chosen)
    assert chosen == choose_queries(queries, 3, seed=1)


def test_no_gallery_and_no_curves_still_make_a_page(config: ReportConfig) -> None:
    (Path(config.rl) / "metrics.jsonl").write_text("")
    page = page_of(replace(config, gallery=0))
    assert "No RL step was recorded" in page.text
    assert "Traces before and after" not in page.text


def test_summary_has_the_promised_fields(config: ReportConfig) -> None:
    main(config)
    found = json.loads((Path(config.run.dir) / "summary.json").read_text())
    assert list(found) == [
        "hit_at_1",
        "hit_at_1_over_sets",
        "valid",
        "on_target",
        "seconds",
        "steps",
        "queries",
    ]
    assert (
        list(found["hit_at_1"])
        == list(found["hit_at_1_over_sets"])
        == [
            "no_cot",
            "warm_start_text",
            "warm_start",
            "eg_rl_text",
            "eg_rl",
        ]
    )
    assert found["valid"] == {"warm_start": 1.0, "eg_rl": 1.0}
    assert found["on_target"] == {"warm_start": 1.0, "eg_rl": 1.0}
    assert found["seconds"] == {"data": 12.5, "rl": 12.5}
    assert (found["steps"], found["queries"]) == (3, 4)


def test_what_could_not_be_measured_is_null(tmp_path: Path) -> None:
    found = evaluate(
        sets_of_pairs(make_pairs(tmp_path)),
        reasoners={"eg_rl": lambda requests: {}},
        embed=embed,
        settings=Settings(templates="brief", item_tokens=0, max_frames=4, resamples=20, seed=0),
    )
    summary = build_summary(Runs(evaluation=found, records=(), stages=()))
    assert summary["hit_at_1"]["eg_rl"] is None
    assert summary["hit_at_1"]["no_cot"] is not None
    assert summary["hit_at_1_over_sets"]["eg_rl"] is None
    assert (summary["steps"], summary["queries"]) == (0, 0)


def test_names_of_variants() -> None:
    assert title_of("eg_rl_text") == "EG-RL, text only"
    assert title_of("other") == "other, text + evidence"
    assert title_of("eg_rl_other") == "EG-RL, another row's trace"
    assert title_of("warm_start_samples") == "Warm start, mean of samples"
    assert short_title_of("eg_rl") == "EG-RL"
    assert short_title_of("eg_rl_text") == "EG-RL, text only"


def test_missing_and_broken_files_are_named(config: ReportConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation\.json not found"):
        main(replace(config, evaluate=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=r"stage\.json not found"):
        load_stage(tmp_path / "nowhere")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"step": 1}\n{"step": 2')
    with pytest.raises(DataError, match="line 2: expected a JSON object"):
        load_metrics(broken)
    broken.write_text('{"reward/total": 1}\n')
    with pytest.raises(DataError, match=r"line 1: .* no \['step'\]"):
        load_metrics(broken)
