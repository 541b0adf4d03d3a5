"""The job `check_data` through its command, on sets with some bad rows of every kind."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from configs.common import DataSetConfig
from data.sets.load_sets import load_set
from tests.e2e.jobs import run
from tests.media_files import encrypt, write_pdf, write_video

pytestmark = pytest.mark.extended
ROWS = {"signs": 100, "clips": 20, "heldout": 20}
BAD = {
    # Data set and row from 1: what the row has instead, its field in the list, words of the reason.
    ("signs", 5): ({"qry_image_path": "lost.png"}, "qry_image_path", "'lost.png' not found"),
    ("signs", 21): ({"qry_image_path": "broken.png"}, "qry_image_path", "not a readable picture"),
    ("signs", 37): ({"pos_text": 7}, "pos_text", "expected text, found int"),
    ("signs", 53): ({"pos_text": " "}, "pos_text or pos_image_path", "the target is empty"),
    ("signs", 69): ({"qry_image_path": "a.pdf#page=9"}, "qry_image_path", "9"),
    ("signs", 85): ({"qry_image_path": "secret.pdf"}, "qry_image_path", "the PDF is encrypted"),
    ("clips", 7): ({"video": "broken.mp4"}, "qry.video", "broken.mp4"),
}
DECODED = [("signs", 21)]
"""Those that only decoding tells."""


def write_pixels(path: Path, number: int) -> None:
    """Write a picture that has the number's own pixels."""
    pixels = np.full((48, 64, 3), 255, np.uint8)
    pixels[number % 30 : number % 30 + 16, number % 40 : number % 40 + 16] = (number, 0, 200)
    Image.fromarray(pixels).save(path)


def sign(number: int) -> dict[str, Any]:
    return {
        "qry": "Name the sign.",
        "qry_image_path": f"{number}.png",
        "pos_text": f"sign {number}",
        "qry_evidence": {"bbox_2d": [0, 0, 500, 500]},
    }


def clip(video: str, text: str) -> dict[str, Any]:
    return {
        "qry": {"conversations": [{"from": "human", "value": "<video>what"}], "video": video},
        "pos": {"conversations": [{"from": "gpt", "value": text}]},
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three sets, 5 % of whose rows are bad, and the job's settings."""
    home = tmp_path_factory.mktemp("check")
    root = home / "root"
    root.mkdir()
    for number in range(ROWS["signs"] + ROWS["heldout"]):
        write_pixels(root / f"{number}.png", number)
    whole = (root / "0.png").read_bytes()
    (root / "broken.png").write_bytes(whole[: len(whole) // 2])
    # Its pixels are those of another picture, its bytes are not.
    Image.open(root / "1.png").save(root / "2.png", compress_level=0)
    write_pdf(root / "a.pdf", 2)
    encrypt(write_pdf(root / "secret.pdf"))
    for number in range(ROWS["clips"]):
        write_video(root / f"{number}.mp4", 4 + number)
    clip_bytes = (root / "0.mp4").read_bytes()
    (root / "broken.mp4").write_bytes(clip_bytes[: len(clip_bytes) // 2])
    rows = {
        "signs": [sign(number) for number in range(ROWS["signs"])],
        "clips": [clip(f"{number}.mp4", f"clip {number}") for number in range(ROWS["clips"])],
        "heldout": [sign(ROWS["signs"] + number) for number in range(ROWS["heldout"])],
    }
    rows["heldout"][3] = sign(40)  # which is trained on, too
    copy = Image.open(root / "60.png").resize((128, 96))
    copy.save(root / "copy.jpg", quality=50)
    rows["heldout"][5]["qry_image_path"] = "copy.jpg"
    for (name, row), (change, _, _) in BAD.items():
        place = rows[name][row - 1]
        (place["qry"] if "video" in change else place).update(change)
    rows["signs"][20].pop("qry_evidence")
    for name, content in rows.items():
        (home / f"{name}.json").write_text(json.dumps(content))
    (home / "check.yaml").write_text(yaml.safe_dump(settings(home, max_bad_rows=0.06)))
    return home


def data_sets(home: Path) -> dict[str, dict[str, str]]:
    common = {name: {"name": name, "path": f"{home}/{name}.json"} for name in ROWS}
    return {
        name: {**own, "root": f"{home}/root", "format": "llavahound" if name == "clips" else "mmeb"}
        for name, own in common.items()
    }


def settings(home: Path, *, max_bad_rows: float) -> dict[str, Any]:
    sets = data_sets(home)
    data = {"train": [sets["signs"], sets["clips"]], "eval": [sets["heldout"]]}
    return {"run": {"dir": "runs/check"}, "data": {**data, "max_bad_rows": max_bad_rows}}


def command(home: Path, *changes: str) -> list[str]:
    return [sys.executable, "-m", "cluster.jobs.check_data", str(home / "check.yaml"), *changes]


@pytest.fixture(scope="module")
def printed(home: Path) -> str:
    """Return what the job printed, which has ended well."""
    return run(*command(home), home=home)


def test_every_bad_row_is_named_with_its_field_and_the_reason(home: Path, printed: str) -> None:
    lines = pq.read_table(home / "runs/check/quarantine.parquet").to_pylist()
    assert {(line["data_set"], line["row"]) for line in lines} == set(BAD)
    assert len(lines) == len(BAD)
    for line in lines:
        _, field, words = BAD[line["data_set"], line["row"]]
        assert line["file"] == f"{home}/{line['data_set']}.json"
        assert (line["field"], words in line["reason"]) == (field, True), line


def test_reading_leaves_the_good_rows(home: Path, printed: str) -> None:
    for name, own in data_sets(home).items():
        refused = {row - 1 for bad, row in BAD if bad == name and (bad, row) not in DECODED}
        rows = [pair.row for pair in load_set(DataSetConfig(**own)).pairs]
        assert rows == [row for row in range(ROWS[name]) if row not in refused]


def test_the_figures_count_media_and_name_what_is_there_twice(home: Path, printed: str) -> None:
    summary = json.loads((home / "runs/check/check.json").read_text())
    signs, clips, heldout = summary["sets"]
    assert (signs["rows"], signs["rows_set_aside"], signs["pairs_set_aside"]) == (100, 5, 1)
    counts = {
        "named": 100,
        "usable": 97,
        "copies": 0,
        "shown": 95,
        "set_aside": 1,
        "one_colour": 0,
    }
    assert signs["media"] == counts
    assert (clips["media"]["set_aside"], clips["media"]["one_colour"]) == (
        0,
        clips["media"]["shown"],
    )
    assert clips["kinds"] == {"query": {"video": 19}, "target": {"text": 19}}
    assert heldout["tokens"]["query"]["min"] > 100
    assert signs["twice"]["pictures"] == {
        "count": 1,
        "examples": [{"text": "", "at": [f"{home}/root/{n}.png" for n in (1, 2)]}],
    }
    shared = {leak["what"]: leak for leak in summary["leaks"]}
    assert shared.keys() == {"pictures", "target_texts"}
    assert [leak["count"] for leak in shared.values()] == [1, 1]
    assert shared["target_texts"]["examples"][0]["text"] == "sign 40"
    assert "training set 'signs' and held-out set 'heldout' have in common: 1 pictures" in printed


def test_the_contact_sheet_shows_both_sides_of_pairs_of_every_set(home: Path, printed: str) -> None:
    sheet, heading, near = (
        (home / "runs/check/contact_sheet.html")
        .read_text()
        .partition('<h1 class="more">Near duplicates</h1>')
    )
    assert heading
    assert near.count("data:image/") == 2 * near.count('class="pair"') > 0
    assert sheet.count('class="pair"') == 3 * 16
    assert sheet.count("data:image/") == 3 * 16


def test_training_leaves_out_what_nearly_repeats_a_held_out_row(home: Path, printed: str) -> None:
    path = home / "runs/check/near_duplicates.parquet"
    lines = pq.read_table(path).to_pylist()
    leaks = {(line["data_set"], line["row"], line["of_row"]) for line in lines}
    assert {("signs", 41, 4), ("signs", 61, 6)} <= leaks
    assert "data sets with leave_out: " in printed
    signs = data_sets(home)["signs"]
    before = {pair.row for pair in load_set(DataSetConfig(**signs)).pairs}
    after = {pair.row for pair in load_set(DataSetConfig(**signs, leave_out=str(path))).pairs}
    assert before - after == before & {line["row"] - 1 for line in lines}
    assert 50 < len(after) < len(before)


def test_a_refused_set_ends_with_two(home: Path, printed: str) -> None:
    change = ["run.dir=runs/strict", "data.max_bad_rows=0.01"]
    refused = run(*command(home, *change), home=home, exit_code=2)
    assert "5 of 100 rows are bad, more than data.max_bad_rows=0.01" in refused
    assert (home / "runs/strict/quarantine.parquet").is_file()
    assert not (home / "runs/strict/stage.json").exists()
