"""The page of search results: hits in order, boxes drawn, and texts that cannot become HTML."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from configs.common import MediaConfig
from data.stores.encoded import EncodedItem
from data.types import Box, Cues, Kind
from evaluation.report.search_page import TEXT_CHARS, build_search_page
from tests.builders import TRACES

TEXT = EncodedItem(
    item_id="t",
    file="rows.jsonl",
    text="a red star",
    kind=Kind.TEXT,
    uris=(),
    trace="",
    cues=Cues(),
)
PINK = np.array([208, 33, 138])


def page(*hits: EncodedItem, query: EncodedItem = TEXT) -> str:
    return build_search_page(
        query,
        [(0.9 - 0.1 * place, hit) for place, hit in enumerate(hits)],
        title="Search: a red star",
        count=384,
        limits=MediaConfig(),
    )


def images_in(html: str) -> list[np.ndarray]:
    """Return the pictures inside a page, as arrays [H, W, 3]."""
    sources = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    files = [io.BytesIO(base64.b64decode(source)) for source in sources]
    return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]


@pytest.fixture
def picture(tmp_path) -> EncodedItem:
    """A white picture, of which the trace boxes the left half."""
    path = tmp_path / "a.png"
    Image.new("RGB", (200, 100), "white").save(path)
    return replace(
        TEXT,
        item_id="a",
        file="a.png",
        text="",
        kind=Kind.IMAGE,
        uris=(str(path),),
        trace=TRACES[Kind.IMAGE],
        cues=Cues(boxes=(Box(0.0, 0.0, 0.5, 1.0),)),
    )


def test_hits_are_shown_in_order_with_rank_similarity_and_file(picture):
    html = page(picture, replace(TEXT, item_id="b", text="a blue star"))
    assert re.findall(r"<h3>(.+?)</h3>", html) == ["1. a", "2. b"]
    assert re.findall(r'class="similarity">(.+?)<', html) == ["0.9000", "0.8000"]
    assert re.findall(r'class="file">(.+?)<', html) == [
        "text: rows.jsonl",
        "image: a.png",
        "text: rows.jsonl",
    ]
    assert "The 2 nearest of 384 items" in html
    assert "<i>&lt;thinking&gt;</i>left" in html
    assert 'alt="image a.png; boxes framed: 1"' in html


def test_boxes_are_drawn_on_the_pictures(picture):
    [drawn] = images_in(page(picture))
    pink = (np.abs(drawn - PINK) < 30).all(axis=2)
    width = drawn.shape[1]
    assert pink[:, : width // 2 + 3].any()
    assert not pink[:, width // 2 + 8 :].any()
    [plain] = images_in(page(replace(picture, cues=Cues())))
    assert not (np.abs(plain - PINK) < 30).all(axis=2).any()


def test_a_page_needs_no_other_file_and_a_lost_picture_is_a_tile(picture, tmp_path):
    html = page(replace(picture, uris=(str(tmp_path / "gone.png"),)))
    assert len(images_in(html)) == 1
    assert not re.search(r'(src|href)="(?!data:image/)', html)
    assert not re.search(r"https?:", html)
    assert "default-src 'none'" in html
    assert 'name="viewport"' in html


def test_a_name_is_said_once(picture):
    html = page(replace(picture, item_id="a.png"))
    assert re.findall(r'class="file">(.+?)<', html) == ["text: rows.jsonl", "image"]


def test_texts_names_traces_and_keywords_are_escaped():
    bad = "<script>alert('x')</script>"
    hit = replace(
        TEXT, item_id=bad, file=f"{bad}.png", text=bad, trace=bad, cues=Cues(keywords=(bad,))
    )
    html = build_search_page(hit, [(1.0, hit)], title=bad, count=1, limits=MediaConfig())
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)") == 11


def test_long_texts_are_cut():
    html = page(replace(TEXT, text="y" * 2 * TEXT_CHARS))
    assert max(map(len, re.findall("y{9,}", html))) == TEXT_CHARS
