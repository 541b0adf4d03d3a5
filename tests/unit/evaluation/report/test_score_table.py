"""The console's table of a benchmark."""

import io

from rich.console import Console

from evaluation.report.score_table import print_scores
from evaluation.scores.published import Published, ScoreRow, ScoreTable


def row(name: str, **more) -> ScoreRow:
    return ScoreRow(
        **{
            "name": name,
            "metric": "hit@1",
            "sets": 1,
            "queries": 1000,
            "num_data": 1000,
            "score": 61.04,
            "benchmark_order": 61.04,
            "published": (60.3,),
            **more,
        }
    )


def printed(*rows: ScoreRow) -> str:
    published = Published(
        model="Embed-RL-2B", source="its [paper]", settings="8 frames of a video", scores={}
    )
    console = Console(file=io.StringIO(), width=80)
    print_scores(ScoreTable(rows=rows, published=(published,)), console)
    return console.file.getvalue()


def cells(text: str, name: str) -> list[str]:
    [line] = [line.split() for line in text.splitlines() if line.startswith(name)]
    return line


def test_a_line_has_our_score_the_published_one_and_the_gain() -> None:
    text = printed(row("VOC2007"), row("[b]all", metric="", sets=78, queries=52, num_data=90))
    assert cells(text, "VOC2007") == ["VOC2007", "hit@1", "1000", "61.0", "60.3", "+0.7"]
    assert cells(text, "[b]all")[1:] == ["78", "sets", "52/90", "61.0", "60.3", "-"]
    assert "no gain where only a part of the queries was ranked" in text
    assert "no gain" not in printed(row("VOC2007"))
    assert "Embed-RL-2B: its [paper]; 8 frames of a video" in text


def test_what_is_not_published_is_a_dash() -> None:
    assert cells(printed(row("VOC2007", published=(None,))), "VOC2007")[-2:] == ["-", "-"]


def test_the_benchmarks_order_is_shown_where_ties_matter() -> None:
    assert "order" not in printed(row("VOC2007"))
    text = printed(row("VOC2007", benchmark_order=70.0))
    assert "order" in text
    assert cells(text, "VOC2007")[3:5] == ["61.0", "70.0"]


def test_the_longest_name_fits_80_columns_whole() -> None:
    name = "ViDoRe_syntheticDocQA_healthcare_industry"
    text = printed(row(name, metric="ndcg_linear@5", score=100.0, benchmark_order=0.0))
    assert max(map(len, text.splitlines())) <= 80
    assert name in "".join(line.split(" ")[0] for line in text.splitlines())
