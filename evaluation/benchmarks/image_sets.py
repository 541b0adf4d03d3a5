"""The image sets of MMEB-V2: a row has a query and its candidates, the right one first."""

from functools import partial

from data.rows.row_formats import RowReader
from data.rows.trace_files import row_name
from data.types import Item
from evaluation.benchmarks.reading import NOTHING, SetReader, unlike
from evaluation.benchmarks.texts import (
    joined_lines,
    query_item,
    target_item,
    without_placeholder,
)


def read_text_targets(reader: SetReader, *, strip: bool) -> None:
    """Classification, questions, and pictures that seek a text: a candidate's key is its text.

    ``strip``: VLM2Vec takes the white space from the instruction's ends before it joins.
    """
    needed = ("qry_inst", "qry_text", "qry_img_path", "tgt_text")
    for row in reader.rows(reader.places[0], *needed):
        texts = row.texts("tgt_text")
        for text in texts:
            if text not in reader.candidates:
                shown = without_placeholder(text)
                item = target_item(reader.prompts, vlm2vec=shown, text=shown)
                reader.candidates[text] = item
        _add(reader, row, _query(reader, row, strip=strip), texts)


def read_picture_targets(reader: SetReader, *, pictured: bool) -> None:
    """Candidates that are pictures, some with captions. ``pictured``: the query has a picture, too.

    A candidate's key is its path, and in the second case `<path>:<caption>`, as several objects of
    one picture are candidates.
    """
    needed = ("qry_inst", "qry_text", "tgt_inst", "tgt_text", "tgt_img_path")
    for row in reader.rows(reader.places[0], *needed, *(("qry_img_path",) if pictured else ())):
        captions, paths = row.texts("tgt_text"), row.texts("tgt_img_path")
        if len(captions) != len(paths):
            raise unlike(row, "tgt_text", f"{len(paths)} texts, one a picture", len(captions))
        if not all(paths):
            raise unlike(row, "tgt_img_path", "paths", "an empty one")
        captioned = bool(captions) and bool(captions[0].strip())
        instruction = without_placeholder(row.text("tgt_inst"))
        keys = []
        for caption, path in zip(captions, paths, strict=True):
            key = path + ":" + caption.strip('"') if pictured else path
            keys.append(key)
            if key in reader.candidates:
                continue
            reader.names[key] = path
            caption = without_placeholder(caption)
            glued = f"{instruction} {caption}" if captioned else instruction
            # Qwen3-VL-Embedding looks at each caption where the query is a text.
            own = (caption if captioned else "") if pictured else caption.strip()
            reader.candidates[key] = target_item(
                reader.prompts,
                vlm2vec=joined_lines(glued),
                text=own,
                **reader.picture(path, row.where)._asdict(),
            )
        if pictured:
            query = _query(reader, row, strip=True)
        else:
            instruction, text = _asked(row)
            query = query_item(reader.prompts, instruction, text, glued=f"{instruction} {text}")
        _add(reader, row, query, keys)


def _asked(row: RowReader) -> tuple[str, str]:
    """Return a query's instruction and text."""
    return (
        without_placeholder(row.text("qry_inst")),
        without_placeholder(row.text("qry_text")),
    )


def _query(reader: SetReader, row: RowReader, *, strip: bool) -> Item:
    """Return a query with a picture."""
    instruction, text = _asked(row)
    before = instruction.strip() if strip else instruction
    path = row.text("qry_img_path")
    picture = reader.picture(path, row.where) if path else NOTHING
    glued = joined_lines(f"{before} {text}" if text else before)
    return query_item(reader.prompts, instruction, text, glued=glued, **picture._asdict())


def _add(reader: SetReader, row: RowReader, query: Item, keys: list[str]) -> None:
    if not keys:
        raise unlike(row, "tgt_text", "candidates", "none")
    named = row_name(row.row, ("qry_text", "qry_img_path"))
    reader.add_query(reader.row_id(), query, {keys[0]: 1}, keys, row.where, named=named)


PARSERS = {
    "image_cls": partial(read_text_targets, strip=False),
    "image_qa": partial(read_text_targets, strip=True),
    "image_i2t": partial(read_text_targets, strip=False),
    "image_t2i": partial(read_picture_targets, pictured=False),
    "image_i2i_vg": partial(read_picture_targets, pictured=True),
}
