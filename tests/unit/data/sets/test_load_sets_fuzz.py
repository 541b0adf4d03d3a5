"""Untrusted rows: whatever a file holds, only this project's own errors come out.

For longer: `settings(max_examples=100_000)(test)()` of a test below.
"""

import re
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from configs.common import DataConfig
from data.embed_inputs import embed_content
from data.errors import DataError
from data.rows.row_formats import KNOWN_FIELDS
from data.sets.load_sets import load_set, load_sets
from data.types import Kind
from tests.builders import TRACES, write_picture, write_set

NAMES = ("a.png", "v/1.jpg", "lost.png", "../out.png", "/etc/hostname", "link.png", "v", "\0")
TEXTS = st.one_of(
    st.text(st.characters()),  # halves of characters, too: JSON can spell them
    st.sampled_from([*NAMES, *TRACES.values(), "<|image_1|>\n", "\r\n ", "q", "human", "gpt"]),
)
NUMBERS = st.one_of(
    st.integers(), st.integers(-1, 1001), st.floats(), st.sampled_from([0.0, 0.5, 1e308])
)
ATOMS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(
            st.one_of(TEXTS, st.sampled_from(["bbox_2d", "key_frames", "text_keywords"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
EVIDENCE = st.fixed_dictionaries(
    {},
    optional={
        "bbox_2d": st.one_of(st.lists(NUMBERS), st.lists(st.lists(NUMBERS, max_size=5)), VALUES),
        "key_frames": st.one_of(st.lists(NUMBERS, max_size=4), VALUES),
        "text_keywords": st.one_of(st.lists(TEXTS, max_size=4), VALUES),
    },
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "from": st.one_of(st.sampled_from(["human", "gpt"]), VALUES),
            "value": st.one_of(TEXTS, VALUES),
        }
    ),
    max_size=4,
)
FRAMES = st.lists(st.one_of(st.sampled_from(NAMES), ATOMS), max_size=4)
PART = st.fixed_dictionaries(
    {"conversations": st.one_of(TURNS, VALUES)}, optional={"video": st.one_of(FRAMES, VALUES)}
)
SHAPES = {
    "qry": st.one_of(TEXTS, PART),
    "pos": PART,
    "tgt_text": st.lists(TEXTS, max_size=3),
    "tgt_img_path": st.lists(st.one_of(st.just(""), st.sampled_from(NAMES)), max_size=3),
    "image": st.one_of(st.sampled_from(NAMES), FRAMES),
    "conversations": TURNS,
    "qry_evidence": EVIDENCE,
    "pos_evidence": EVIDENCE,
    "error": st.sampled_from(["", None, "timeout"]),
}
"""What is likely to be read of a field; texts for all others."""


TALK = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dog"}]
TRACED = {
    "id": "row",
    "label": "dog",
    "query_cot": TRACES[Kind.IMAGE],
    "pos_cot": TRACES[Kind.TEXT],
    "qry_evidence": {"bbox_2d": [0, 0, 500, 500]},
    "pos_evidence": {"text_keywords": ["dog"]},
}
GOOD_ROWS = {
    "mmeb": {"qry": "what?", "qry_image_path": "a.png", "pos_text": "a dog", **TRACED},
    "llavahound": {
        "qry": {"conversations": TALK, "video": ["v/1.jpg", "a.png", "v/1.jpg"]},
        "pos": {"conversations": TALK},
        **TRACED,
        "query_cot": TRACES[Kind.VIDEO],
        "qry_evidence": {"key_frames": [1, 3]},
    },
    "mmeb_eval": {
        "qry_inst": "find",
        "qry_img_path": "a.png",
        "tgt_text": ["a dog", ""],
        "tgt_img_path": ["", "v/1.jpg"],
        **TRACED,
    },
    "colpali": {
        "query": "what is shown?",
        "image": "a.png",
        "image_filename": "a.jpg",
        "source": "pdf",
        **TRACED,
        "query_cot": TRACES[Kind.TEXT],
        "pos_cot": TRACES[Kind.PAGE],
        "qry_evidence": None,
        "pos_evidence": {"bbox_2d": [0, 0, 500, 500]},
    },
    "caption": {"id": "row", "image": "a.png", "conversations": TALK},
}


def rows_of(form: str) -> st.SearchStrategy:
    """Return good rows with up to three fields of which each is likely, or anything."""
    fields = {name: st.one_of(SHAPES.get(name, TEXTS), VALUES) for name in KNOWN_FIELDS[form]}
    changes = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )
    extra = st.dictionaries(TEXTS, VALUES, max_size=1)
    return st.builds(lambda row, more: GOOD_ROWS[form] | more | row, changes, extra)


FORMATS = sorted(GOOD_ROWS)
CASES = st.sampled_from(FORMATS).flatmap(
    lambda form: st.tuples(st.just(form), st.lists(rows_of(form), min_size=1, max_size=3))
)


def make_root(folder: Path) -> None:
    """Write the files that some of the names are of."""
    for width, name in enumerate(("a.png", "v/1.jpg", "images/blank.jpg"), start=8):
        write_picture(folder / "root" / name, width, 8)
    (folder / "root/link.png").symlink_to("/etc/hostname")


@given(CASES, st.integers(1, 3))
def test_any_value_in_any_field_is_read_or_set_aside_with_file_row_and_field(case, max_frames):
    form, rows = case
    with tempfile.TemporaryDirectory() as name:
        make_root(Path(name))
        config = write_set(Path(name), rows, format=form)
        loaded = load_set(config, max_frames=max_frames)
        for bad in loaded.bad_rows:
            assert re.match(rf"{re.escape(bad.where)}, fields? '", bad.reason)
            named = bad.reason.removeprefix(f"{bad.where}, ").replace("'", "")
            assert re.match(rf"fields? {re.escape(bad.field)}: ", named)
            assert bad.where == "{} row {}".format(*loaded.place(bad.index))
            assert re.search(r"rows\.json row [1-3]$", bad.where)
            bad.reason.encode()
        assert {pair.row for pair in loaded.pairs} | {
            int(bad.where.rsplit(" ", 1)[1]) - 1 for bad in loaded.bad_rows
        } == set(range(len(rows)))
        ids = [pair.pair_id for pair in loaded.pairs]
        assert len(ids) == len(set(ids))
        for pair in loaded.pairs:
            # All of it can be written, and read by the Embedder.
            repr(pair).encode()
            "".join((pair.pair_id, pair.label, pair.query_trace, pair.target_trace)).encode()
            for item in (pair.query, pair.target, *pair.candidates, *pair.hard_negatives):
                item.key().encode()
                embed_content(item, pair.query_trace, item_tokens=0, max_frames=max_frames)
                assert all(Path(uri).is_relative_to(Path(config.root)) for uri in item.uris)
                assert (item.kind is Kind.TEXT) == (not item.uris)


@given(CASES)
def test_a_job_refuses_a_set_with_a_message_that_can_be_printed(case):
    form, rows = case
    with tempfile.TemporaryDirectory() as name:
        make_root(Path(name))
        try:
            load_sets([write_set(Path(name), rows, format=form)], limits=DataConfig())
        except DataError as error:
            str(error).encode()


PIECES = st.sampled_from(
    [
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b":",
        b",",
        b"\n",
        b"\\ud83d",
        b"null",
        b"NaN",
        b"1e999",
        b'"qry"',
    ]
)


@given(
    st.sampled_from(FORMATS),
    st.one_of(st.binary(), st.lists(st.one_of(PIECES, st.binary(max_size=4))).map(b"".join)),
)
@example("mmeb", b"[" * 5000)
@example("mmeb", b'{"qry": ' * 5000)
@example("mmeb", b"9" * 5000)
@example("mmeb", b'[{"id": ' + b"9" * 4000 + b', "qry": "a", "pos_text": "b"}]')
@example(
    "mmeb", b'[{"qry": "a", "pos_text": "b", "qry_evidence": ' + b"[" * 900 + b"]" * 900 + b"}]"
)
def test_any_bytes_are_rows_or_refused_with_the_file(form, content):
    with tempfile.TemporaryDirectory() as name:
        make_root(Path(name))
        config = write_set(Path(name), [], format=form)
        Path(config.path).write_bytes(content)
        reason = ""
        try:
            load_set(config)
        except DataError as error:
            reason = str(error)
        assert not reason or reason.startswith(config.path)
        reason.encode()
