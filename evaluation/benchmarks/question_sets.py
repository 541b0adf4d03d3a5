"""The sets of questions about a video in MMEB-V2: the candidates are the options of the row."""

from collections.abc import Sequence

from data.rows.row_formats import RowReader
from data.rows.trace_files import row_name
from evaluation.benchmarks.reading import SetReader, choice, filled, unlike
from evaluation.benchmarks.texts import VLM2VEC, query_item, target_item
from evaluation.sets import PublishedName

YES_NO = ("yes", "no")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_mvbench(reader: SetReader) -> None:
    """Twenty tasks of one file each; a candidate's key is its text with the letter."""
    for task, place in zip(reader.benchmark_set.configs, reader.places, strict=True):
        for row in reader.rows(place, "question", "video", "candidates", "answer"):
            options, answer = row.texts("candidates"), filled(row, "answer")
            if answer not in options:
                raise unlike(row, "answer", f"one of {options}", answer)
            text, lettered = _with_options(row, options)
            # The folder has the name of the video file with its ending.
            video = f"{task}/{filled(row, 'video')}"
            right = options.index(answer)
            named = row_name({**row.row, "subset": task}, ("subset", "question", "video"))
            _add(reader, row, named, video, text, lettered, lettered, right, options)


def read_nextqa(reader: SetReader) -> None:
    """Five options in fields of their own, which VLM2Vec shows without letters."""
    fields = [f"a{number}" for number in range(5)]
    for row in reader.rows(reader.places[0], "video", "question", "answer", *fields):
        options = [row.name(field) for field in fields]
        text, lettered = _with_options(row, options)
        keys = options if reader.prompts == VLM2VEC else lettered
        right = choice(row, "answer", len(options))
        video, named = filled(row, "video"), row_name(row.row, ("question", "video"))
        _add(reader, row, named, video, text, keys, keys, right, options)


def read_videomme(reader: SetReader) -> None:
    """Options with letters, `A. ...`, which are the keys; the texts have no letters."""
    for row in reader.rows(reader.places[0], "videoID", "question", "options", "answer"):
        options, answer = row.texts("options"), filled(row, "answer")
        letters = _LETTERS[: len(options)]
        if len(answer) != 1 or answer not in letters:
            raise unlike(row, "answer", f"one of the letters {letters}", answer)
        text = "\n".join((filled(row, "question"), *options))
        right = letters.index(answer)
        video, named = filled(row, "videoID"), row_name(row.row, ("question", "videoID"))
        _add(reader, row, named, video, text, options, _bare(options), right, options)


def read_egoschema(reader: SetReader) -> None:
    """As Video-MME, but for fields, and how the question and its options are joined."""
    for row in reader.rows(reader.places[0], "video_idx", "question", "option", "answer"):
        options = row.texts("option")
        # VLM2Vec has no blank behind the question.
        between = "" if reader.prompts == VLM2VEC else " "
        text = filled(row, "question") + between + " ".join(options)
        right = choice(row, "answer", len(options))
        video, named = filled(row, "video_idx"), row_name(row.row, ("question", "video_idx"))
        _add(reader, row, named, video, text, options, _bare(options), right, options)


def read_activitynetqa(reader: SetReader) -> None:
    """Questions that are answered by yes or no."""
    for row in reader.rows(reader.places[0], "video_name", "question", "answer"):
        answer = filled(row, "answer")
        if answer not in YES_NO:
            raise unlike(row, "answer", " or ".join(YES_NO), answer)
        text = filled(row, "question") + "? (A) yes; (B) no."
        video = f"v_{filled(row, 'video_name')}"
        right = YES_NO.index(answer)
        named = row_name(row.row, ("question", "video_name"))
        _add(reader, row, named, video, text, YES_NO, YES_NO, right, YES_NO)


def _with_options(row: RowReader, options: Sequence[str]) -> tuple[str, list[str]]:
    """Return the question with its options, and the options, each with its letter."""
    lettered = [f"({_letter(row, number)}) {text}" for number, text in enumerate(options)]
    return "\n".join((filled(row, "question"), "Options:", *lettered)).rstrip(), lettered


def _letter(row: RowReader, number: int) -> str:
    if number >= len(_LETTERS):
        raise unlike(row, "candidates", f"at most {len(_LETTERS)} options", number + 1)
    return _LETTERS[number]


def _bare(options: Sequence[str]) -> list[str]:
    """Return options without what stands before the first `. ` of each."""
    return [option[option.find(". ") :].strip(". ") for option in options]


def _add(
    reader: SetReader,
    row: RowReader,
    named: PublishedName,
    video: str,
    text: str,
    keys: Sequence[str],
    texts: Sequence[str],
    right: int,
    options: Sequence[str],
) -> None:
    """Add a row; published files name it by ``named``, and its ``options`` as they are there."""
    instruction, shown = reader.benchmark_set.instruction, reader.video(video, row.where)
    for key, shown_text, option in zip(keys, texts, options, strict=True):
        if key not in reader.candidates:
            item = target_item(reader.prompts, vlm2vec=shown_text, text=shown_text)
            reader.candidates[key] = item
            reader.names[key] = option
    # VLM2Vec's instruction ends with a blank, and a blank follows.
    glued = f"{instruction} Question:  {text}"
    item = query_item(reader.prompts, instruction, text, glued=glued, **shown._asdict())
    reader.add_query(reader.row_id(), item, {keys[right]: 1}, keys, row.where, named=named)


PARSERS = {
    "mvbench": read_mvbench,
    "nextqa": read_nextqa,
    "videomme": read_videomme,
    "egoschema": read_egoschema,
    "activitynetqa": read_activitynetqa,
}
