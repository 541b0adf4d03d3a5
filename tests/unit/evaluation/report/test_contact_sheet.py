"""The contact sheet: pairs of every set, their evidence, and texts that cannot become HTML."""

import base64
import io
import re

import numpy as np
from PIL import Image

from configs.common import MediaConfig
from data.types import Box, Cues, Item, Kind, Side
from evaluation.report.contact_sheet import PAIRS_SHOWN, NearItems, build_sheet
from tests.builders import make_pair


def sheet(sets):
    return build_sheet(sets.items(), title="check", limits=MediaConfig())


def images_in(html):
    """Return the pictures inside a page, as arrays [H, W, 3]."""
    sources = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    files = [io.BytesIO(base64.b64decode(source)) for source in sources]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def test_pairs_are_spread_evenly_over_the_set_and_an_empty_set_has_no_heading():
    html = sheet({"many": [make_pair(f"p{n}") for n in range(2 * PAIRS_SHOWN)], "none": []})
    shown = re.findall(r"<h3>p(\d+)</h3>", html)
    assert [int(number) for number in shown] == list(range(0, 2 * PAIRS_SHOWN, 2))
    assert "<h2>many</h2>" in html
    assert "none" not in re.findall(r"<h2>(.+)</h2>", html)


def test_near_duplicates_stand_side_by_side_under_their_own_heading(tmp_path):
    pairs = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (80, 60), (250 * number, 0, 0)).save(path)
        item = Item(text="", kind=Kind.IMAGE, uris=(str(path),))
        pairs.append(make_pair(query=item, target=Item(text=f"<i>{number}</i>")))
    near = [
        NearItems(caption="row <1>", items=((pairs[0], Side.QUERY), (pairs[1], Side.QUERY))),
        NearItems(caption="row 2", items=((pairs[1], Side.TARGET), (pairs[0], Side.TARGET))),
    ]
    html = build_sheet([], [("rows & rows", near)], title="check", limits=MediaConfig())
    assert '<h1 class="more">Near duplicates</h1>' in html
    assert "<h2>rows &amp; rows</h2>" in html
    assert "<h3>row &lt;1&gt;</h3>" in html
    dark, red = images_in(html)
    assert dark[..., 0].max() < 60 < red[..., 0].max()
    assert html.index("&lt;i&gt;1&lt;/i&gt;") < html.index("&lt;i&gt;0&lt;/i&gt;")
    assert "Near duplicates" not in sheet({})


def test_texts_ids_and_names_are_escaped():
    pair = make_pair(
        "<b>id</b>",
        query=Item(text="<script>alert(1)</script>"),
        query_evidence=Cues(keywords=("<i>",)),
    )
    html = sheet({"<u>set</u>": [pair]})
    for raw in ("<b>id", "<script>", "<i>", "<u>"):
        assert raw not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;i&gt;" in html


def test_true_boxes_and_key_frames_are_drawn(tmp_path):
    uris = []
    for number in range(2):
        Image.new("RGB", (400, 400), (200, 0, 0)).save(tmp_path / f"{number}.png")
        uris.append(str(tmp_path / f"{number}.png"))
    picture = Item(text="", kind=Kind.IMAGE, uris=tuple(uris[:1]))
    clip = Item(text="", kind=Kind.VIDEO, uris=tuple(uris))
    boxed = make_pair(query=picture, query_evidence=Cues(boxes=(Box(0.5, 0.5, 1.0, 1.0),)))
    marked = make_pair(query=clip, query_evidence=Cues(key_frames=(1,)))
    box, strip = images_in(sheet({"set": [boxed, marked]}))
    dark = box.max(axis=-1) < 40
    assert dark[box.shape[0] // 2 :, box.shape[1] // 2 :].any()
    assert not dark[: box.shape[0] // 2 - 10].any()
    dark = strip.max(axis=-1) < 40
    assert dark[:, strip.shape[1] // 2 :].any()
    assert not dark[:, : strip.shape[1] // 2 - 10].any()
