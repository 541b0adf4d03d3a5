"""Give one's own data sets T-CoT traces by rule, to cold-start a Reasoner without a teacher model.

Example: python -m cluster.jobs.rule_traces configs/emoji/traces.yaml
"""

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.jobs.command import run_job
from cluster.run.run_folder import RunFolder
from configs.common import DataConfig, DataSetConfig
from configs.schema import RuleTracesConfig
from data.containers.addresses import parse_address
from data.embed_inputs import SUFFIX
from data.errors import ConfigError, DataError
from data.prompts import load_templates
from data.rows.locations import local_set
from data.rows.row_files import FileRow, read_rows
from data.rows.row_formats import ANSWER_KNOWN, JSON_FIELDS, KNOWN_FIELDS
from data.sets.load_sets import BadRow, LoadedSet, load_sets
from data.sets.rule_teacher import HeldOut, RuleTeacher, TracedPair, captions_of, trace_pairs
from data.types import Side

COLUMNS = {Side.QUERY: "query_cot", Side.TARGET: "pos_cot"}


@dataclass(slots=True)
class TracedSet:
    """One data set's traced pairs by split, and what was set aside."""

    settings: DataSetConfig
    train: list[TracedPair] = field(default_factory=list)
    heldout: list[TracedPair] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


def main(config: RuleTracesConfig) -> int:
    """Write the sets with traces, captions and, where asked for, `model/` into the run folder.

    ``train/`` holds for each set `filtered_<name>.json` (all traces by rule), `teacher_<name>.json`
    (a share of them off target) and `sight_<name>.json` (captions); ``heldout/`` holds
    `<name>.json` (traces by rule) and `sight_<name>.json`. Rows keep their paths, so the sets'
    roots stay the same. Of their columns they keep those that the format knows or `hardest_by`
    names.
    """
    folder = RunFolder(config, job="rule_traces")
    if folder.finished:
        print(folder.finished_line)
        return 0
    loaded = load_sets(config.data.train, limits=config.data)
    # `load_sets` has fetched what was not on disk.
    local_sets = [local_set(settings) for settings in config.data.train]
    refuse_cells_outside(local_sets, loaded)
    teacher = RuleTeacher(loaded)
    roots = [settings.root for settings in local_sets]
    kept = HeldOut(loaded, roots, share=config.heldout, seed=config.run.seed)
    sets = [
        trace_set(settings, loaded_set, teacher, kept, config)
        for settings, loaded_set in zip(local_sets, loaded, strict=True)
    ]
    bad = [row for traced_set in sets for row in traced_set.bad]
    folder.write_json("quarantine.json", [{"where": b.where, "reason": b.reason} for b in bad])
    refuse_bad_sets(sets, config.data)
    captioned: set[str] = set()
    captions: list[FileRow] = []
    for traced_set in sets:
        captions += write_set(traced_set, teacher, folder.path, captioned)
        print(described(traced_set))
    if config.vocabulary:
        # Here and not above: it loads torch and transformers, which other settings do not need.
        from data.demo.model import write_tiny_model

        write_tiny_model(
            folder.path / "model",
            corpus(sets, captions, config.data.templates),
            seed=config.run.seed,
            vocabulary=config.vocabulary,
        )
    folder.finish(
        rows=sum(len(traced_set.train) + len(traced_set.heldout) for traced_set in sets),
        bad_rows=len(bad),
    )
    return 0


def refuse_cells_outside(settings: list[DataSetConfig], loaded: list[LoadedSet]) -> None:
    """Refuse pictures in tables outside their set's root: the rows that are written name them.

    Raises:
        ConfigError: a set has such pictures.
    """
    for config, data_set in zip(settings, loaded, strict=True):
        root = Path(config.root).resolve()
        items = (
            item
            for pair in data_set.pairs
            for item in (pair.query, pair.target, *pair.hard_negatives, *pair.candidates)
        )
        for uri in (uri for item in items for uri in item.uris):
            address = parse_address(uri)
            if address.row is not None and not Path(address.path).is_relative_to(root):
                raise ConfigError(
                    f"data set '{config.name}': expected pictures inside its root {root}, found "
                    f"'{uri}'; set `root` to a folder that also holds the table"
                )


def trace_set(
    settings: DataSetConfig,
    loaded: LoadedSet,
    teacher: RuleTeacher,
    kept: HeldOut,
    config: RuleTracesConfig,
) -> TracedSet:
    """Return a set's pairs with their traces, split, and its bad rows."""
    done = TracedSet(settings)
    refused = (*loaded.unranked, *loaded.bad_rows)
    done.bad += [replace(row, reason=f"row refused: {row.reason}") for row in refused]
    traced = trace_pairs(
        loaded,
        teacher,
        media=config.data.media,
        on_target=config.on_target,
        seed=config.run.seed,
    )
    for row in traced:
        if isinstance(row, BadRow):
            done.bad.append(row)
            continue
        (done.heldout if kept.holds(row.pair) else done.train).append(row)
    return done


def refuse_bad_sets(sets: list[TracedSet], data: DataConfig) -> None:
    """Refuse sets with too many bad rows.

    Raises:
        DataError: more than ``data.max_bad_rows`` of a set's rows are bad, or none is left.
    """
    problems = []
    for traced in sets:
        good = len(traced.train) + len(traced.heldout)
        if not traced.train or len(traced.bad) > data.max_bad_rows * (good + len(traced.bad)):
            shown = "".join(f"\n    {bad.where}: {bad.reason}" for bad in traced.bad[:5])
            advice = "mend their files, or leave the set out"
            if traced.train:
                advice = f"mend them or raise data.max_bad_rows={data.max_bad_rows}"
            problems.append(
                f"data set '{traced.settings.name}': {len(traced.bad)} of "
                f"{good + len(traced.bad)} rows got no trace, {len(traced.heldout)} are held out "
                f"and {len(traced.train)} are left for training; {advice}:{shown}"
            )
    if problems:
        raise DataError("\n".join(problems))


def write_set(
    one: TracedSet, teacher: RuleTeacher, folder: Path, captioned: set[str]
) -> list[FileRow]:
    """Write one set's files and return its training captions; tell which columns are left out."""
    settings = one.settings
    name, root = settings.name, settings.root
    rows = read_rows(Path(settings.path), json_fields=JSON_FIELDS[settings.format])
    columns = KNOWN_FIELDS[settings.format] | {settings.hardest_by}
    used = (rows[pair.pair.row] for pair in (*one.train, *one.heldout))
    if unknown := sorted({column for row in used for column in row} - columns):
        print(
            f"{name}: the rows with traces lack columns that the format '{settings.format}' does "
            f"not know: {', '.join(unknown)}"
        )
    captions = captions_of(one.train, teacher, root=root, seen=captioned)
    files = {
        f"train/filtered_{name}.json": traced_rows(one.train, rows, columns, biased=False),
        f"train/teacher_{name}.json": traced_rows(one.train, rows, columns, biased=True),
        f"train/sight_{name}.json": captions,
        f"heldout/{name}.json": traced_rows(one.heldout, rows, columns, biased=False),
        f"heldout/sight_{name}.json": captions_of(one.heldout, teacher, root=root, seen=captioned),
    }
    for path, content in files.items():
        if content:
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            # A table's column of `hardest_by` may hold numbers that JSON does not know.
            text = json.dumps(content, indent=0, ensure_ascii=False, default=str)
            file.write_text(text + "\n", encoding="utf-8")
    return captions


def traced_rows(
    traced: Iterable[TracedPair],
    rows: Sequence[FileRow],
    columns: Collection[str],
    *,
    biased: bool,
) -> list[FileRow]:
    """Return these columns of the rows, with ids and traces."""
    traced_file_rows = []
    for pair in traced:
        traces = pair.biased if biased else pair.by_rule
        row = {name: cell for name, cell in rows[pair.pair.row].items() if name in columns}
        row |= {COLUMNS[side]: text for side, text in traces.items()}
        row |= {ANSWER_KNOWN: True}  # the rule takes its words from both sides
        traced_file_rows.append(row | {"id": pair.pair.pair_id})
    return traced_file_rows


def corpus(sets: list[TracedSet], captions: list[FileRow], templates: str) -> Iterator[str]:
    """Yield what a tokenizer is trained on: the training rows' texts, traces and prompts."""
    yield from (SUFFIX, "user\n", "assistant\n")
    yield from (template.template for template in load_templates(templates).values())
    yield from (turn["value"] for row in captions for turn in row["conversations"])
    for pair in (pair for traced_set in sets for pair in traced_set.train):
        for side in Side:
            yield pair.pair.item(side).instructed_text()
            yield pair.by_rule[side]
            yield pair.biased[side]


def described(one: TracedSet) -> str:
    """Return one line: rows, share on target, and what was set aside, by reason."""
    pairs = [*one.train, *one.heldout]
    right = sum(p.biased[side] == p.by_rule[side] for p in pairs for side in Side)
    text = (
        f"{one.settings.name}: {len(one.train)} training rows, {len(one.heldout)} held out, "
        f"{right / (2 * len(pairs)):.2f} of the teacher's traces on target"
    )
    reasons = Counter(bad.reason.split(":")[0] for bad in one.bad)
    return text + "".join(f"; {count} set aside ({why})" for why, count in reasons.items())


if __name__ == "__main__":
    sys.exit(run_job(RuleTracesConfig, main))
