"""Items that belong to no pair: what a folder and rows give, and what is set aside."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.common import MediaConfig
from data.errors import DataError
from data.sets.items import NamedItem, SavedItems, SetAside, read_item, read_items
from data.types import Kind
from tests.builders import write_picture
from tests.inputs.media_files import encrypt, write_pdf, write_video

MEDIA = MediaConfig(max_frames=4)


def read(source: Path, root: Path | None = None, media: MediaConfig = MEDIA):
    """Return the items by id, and what was set aside."""
    entries = list(read_items(source, root=root or source, media=media))
    items = {entry.item_id: entry for entry in entries if isinstance(entry, NamedItem)}
    return items, [entry for entry in entries if isinstance(entry, SetAside)]


def write_rows(folder: Path, rows: list) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    for name in ("b10.png", "b2.png", "sub/a.PNG", ".hidden/c.png"):
        write_picture(root / name)
    write_pdf(root / "report.pdf", pages=2)
    write_video(root / "clip.mp4", frames=10)
    return root


def test_a_folder_gives_its_media_in_natural_order_with_paths_as_ids(folder):
    items, aside = read(folder)
    assert list(items) == [
        *("b2.png", "b10.png", "clip.mp4"),
        *("report.pdf#page=1", "report.pdf#page=2", "sub/a.PNG"),
    ]
    assert aside == []
    kinds = [entry.item.kind for entry in items.values()]
    assert kinds == [Kind.IMAGE, Kind.IMAGE, Kind.VIDEO, Kind.PAGE, Kind.PAGE, Kind.IMAGE]
    assert items["report.pdf#page=2"].file == "report.pdf"
    assert items["report.pdf#page=2"].item.uris == (f"{folder.resolve()}/report.pdf#page=2",)
    clip = items["clip.mp4"].item
    assert [uri.rpartition("=")[2] for uri in clip.uris] == ["0", "3", "6", "9"]
    assert clip.times == (0.0, 0.12, 0.24, 0.36)


def test_frames_have_no_times_where_models_see_pictures(folder):
    items, _ = read(folder, media=MediaConfig(max_frames=3, video="frames"))
    clip = items["clip.mp4"].item
    assert (len(clip.uris), clip.times) == (3, ())


def test_bad_files_of_a_folder_are_set_aside_each_with_its_reason(folder, tmp_path):
    (folder / "notes.txt").write_text("hello")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 cut")
    (folder / "broken.mp4").write_bytes(b"no video")
    encrypt(write_pdf(folder / "secret.pdf"))
    write_picture(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    items, aside = read(folder)
    assert len(items) == 6
    reasons = {entry.file: entry.reason for entry in aside}
    assert all(entry.row is None for entry in aside)
    for name, said in (
        ("notes.txt", "found the ending '.txt'"),
        ("broken.pdf", "a damaged PDF"),
        ("broken.mp4", "not a readable video"),
        ("secret.pdf", "encrypted"),
        ("link.png", "is a link to"),
    ):
        assert said in reasons.pop(name)
    assert reasons == {}


def test_rows_are_texts_pictures_pages_and_videos(folder, tmp_path):
    rows = [
        {"id": "t", "text": "  a red star ", "price": 3},
        {"text": "a star", "image": "b2.png", "instruction": "find it"},
        {"id": 7, "page": "report.pdf"},
        {"id": "second", "page": "report.pdf#page=2"},
        {"id": "scan", "page": "b10.png"},
        {"id": "clip", "video": "clip.mp4"},
        {"id": "frames", "video": ["b2.png", "b10.png"]},
    ]
    path = write_rows(tmp_path, rows)
    items, aside = read(path, folder)
    assert aside == []
    assert list(items) == [
        *("t", "row-1", "7#page=1", "7#page=2", "second", "scan", "clip", "frames"),
    ]
    assert (items["t"].item.text, items["t"].file) == ("a red star", str(path))
    star = items["row-1"]
    assert (star.item.text, star.item.instruction) == ("a star", "find it")
    assert (star.file, star.row_file, star.row) == ("b2.png", str(path), 2)
    assert [items[name].item.kind for name in ("scan", "frames")] == [Kind.PAGE, Kind.VIDEO]


def test_bad_rows_are_set_aside_with_row_and_field(folder, tmp_path):
    rows = [
        {"id": "a", "text": "x"},
        {"id": "a", "text": "y"},
        {"text": " "},
        {"image": "b2.png", "page": "report.pdf"},
        {"image": "none.png"},
        {"image": "../rows.jsonl"},
        {"page": "report.pdf#page=3"},
        {"video": "b2.png"},
        {"text": 5},
        5,
    ]
    items, aside = read(write_rows(tmp_path, rows), folder)
    assert list(items) == ["a"]
    assert items["a"].item.text == "x"
    assert [(entry.row, entry.field) for entry in aside] == [
        *((2, "id"), (3, "text"), (4, "page"), (5, "image"), (6, "image"), (7, "page")),
        *((8, "video"), (9, "text"), (10, "")),
    ]
    for entry, said in zip(
        aside,
        [
            *("an id of its own", "found neither", "image and page", "not found", "leaves it"),
            *("a page from 1 to 2", "a video file", "expected text", "expected an object"),
        ],
        strict=True,
    ):
        assert said in entry.reason
        assert entry.file == str(tmp_path / "rows.jsonl")


def test_ids_are_unique_also_where_pages_and_rows_would_share_one(folder, tmp_path):
    rows = [{"id": "r", "page": "report.pdf"}, {"id": "r#page=2", "text": "x"}]
    items, aside = read(write_rows(tmp_path, rows), folder)
    assert list(items) == ["r#page=1", "r#page=2"]
    assert items["r#page=2"].item.kind is Kind.PAGE
    assert [entry.row for entry in aside] == [2]


def test_a_cell_of_a_table_may_hold_the_picture(folder, tmp_path, table_cache):
    pixels = (folder / "b2.png").read_bytes()
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"image": [pixels], "text": ["a star"]}), path)
    items, aside = read(path, folder)
    assert aside == []
    assert items["row-0"].item.uris == (f"{path}#row=0&column=image",)
    assert items["row-0"].file == str(path)


def test_rows_that_cannot_be_opened_end_the_reading(tmp_path):
    with pytest.raises(DataError, match="file not found"):
        read(tmp_path / "none.jsonl", tmp_path)


def test_saved_items_are_read_again_as_they_were(folder, tmp_path):
    rows = [{"id": "t", "text": "x", "instruction": "find"}, {"id": "c", "video": "clip.mp4"}]
    items, _ = read(write_rows(tmp_path, rows), folder)
    saved = SavedItems(tmp_path / "items.parquet", as_video=True)
    saved.save(items.values())
    assert len(saved) == 2
    assert list(saved) == list(saved) == list(items.values())
    assert saved.shows([Kind.VIDEO, Kind.PAGE])
    assert not saved.shows([Kind.IMAGE, Kind.PAGE])


def test_a_query_may_be_a_link_but_not_several_pages(folder, tmp_path):
    (tmp_path / "link.png").symlink_to(folder / "b2.png")
    item = read_item({"image": "link.png", "text": "as here"}, root=tmp_path, media=MEDIA)
    assert (item.kind, item.text) == (Kind.IMAGE, "as here")
    with pytest.raises(DataError, match="one page, found a PDF of 2; name one"):
        read_item({"page": "report.pdf"}, root=folder, media=MEDIA)
