"""Read every row of data sets, decode every picture, frame and page that is shown, say what is bad.

It names rows that nearly repeat others, too.

Example: python -m cluster.jobs.check_data configs/demo/check_data.yaml
"""

import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.jobs.command import run_job
from cluster.placement import Role
from cluster.run.quarantine import QUARANTINE, QUARANTINE_FILE
from cluster.run.run_folder import SETTINGS_FILE, RunFolder, write_atomically
from cluster.run.stage_loop import plain_console, progress_bar
from cluster.session import session
from configs.common import DataConfig, MediaConfig
from configs.schema import CheckDataConfig
from data.checks.near_duplicates import (
    NearDuplicate,
    describe_near,
    near_by_set,
    near_duplicates,
    near_row,
)
from data.checks.set_figures import (
    CheckedSet,
    Medium,
    contents_of,
    decode_group,
    describe_set,
    leaks,
    media_groups,
    readable_pairs,
    set_aside,
)
from data.errors import ClusterError, DataError
from data.sets.fingerprints import files_fingerprint
from data.sets.load_sets import load_each, log_bad_rows, repeated_names, set_problems
from data.sets.subsets import CHECKED_FILES
from evaluation.report.contact_sheet import PAIRS_SHOWN, NearItems, build_sheet
from evaluation.summary import STAGE_FILE

log = logging.getLogger(__name__)

NEAR_FILE = "near_duplicates.parquet"
CHECK_FILE = "check.json"
SHEET_FILE = "contact_sheet.html"
NEAR = pa.schema(
    [
        ("data_set", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("side", pa.string()),
        ("what", pa.string()),
        ("similarity", pa.float64()),
        ("of_data_set", pa.string()),
        ("of_file", pa.string()),
        ("of_row", pa.int64()),
        ("of_side", pa.string()),
    ]
)
GROUPS_PER_TASK = 64
"""Media, or videos, that a Ray task decodes one after the other."""
TRIED_ALONE = 10_000
"""More media than this are not lost to broken files."""
LEAKS_SHOWN = 20
MEDIA_SHOWN = 5
TASK_RETRIES = 1
"""Further tries of a task whose process ended, as when a node is lost."""


def roles(config: CheckDataConfig) -> list[Role]:
    """Return what the job needs at least; it decodes on all CPUs of the cluster that are free."""
    return [Role("decoding", 1, 1, 0)]


def main(config: CheckDataConfig) -> int:
    """Write `quarantine.parquet`, `near_duplicates.parquet`, `check.json` and `contact_sheet.html`.

    A table is printed.

    Raises:
        DataError: a job would refuse a set; the files are written before.
    """
    # A check is made again: what it looks at, or its settings, may have been mended.
    for name in (STAGE_FILE, SETTINGS_FILE):
        (Path(config.run.dir) / name).unlink(missing_ok=True)
    folder = RunFolder(config, job="check_data")
    limits = config.data.media
    sets, problems = read_sets(config.data)
    groups = media_groups(
        (pair for checked in sets for pair in checked.loaded.pairs),
        limits.max_frames,
        (item for checked in sets for item in checked.loaded.distractors.values()),
    )
    media: dict[str, Medium] = {}
    if groups:
        namespace, timeout_s = str(folder.path.absolute()), config.run.nodes_timeout_s
        with session(roles(config), namespace=namespace, nodes_timeout_s=timeout_s):
            media = decode_all(groups, limits)
    summary, entries = write_files(folder, sets, media, limits, title=config.run.experiment)
    problems += media_problems(summary, config.data)
    console = plain_console()
    console.print(table_of(summary))
    reasons = [medium.reason for medium in media.values() if medium.reason]
    for reason in reasons[:MEDIA_SHOWN]:
        console.print(f"set aside: {reason}", highlight=False, soft_wrap=True)
    if len(reasons) > MEDIA_SHOWN:
        console.print(f"... and {len(reasons) - MEDIA_SHOWN} more media", highlight=False)
    for line in leak_lines(summary["leaks"]):
        console.print(line, highlight=False)
    for near in summary["near_duplicates"]:
        console.print(f"{near['rows']} {words_of(near)}", highlight=False)
    if summary["near_duplicates"]:
        console.print(
            f"look at them in {SHEET_FILE}; data sets with leave_out: {folder.path / NEAR_FILE} "
            "leave these rows out",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"wrote {QUARANTINE_FILE} ({entries} entries), {NEAR_FILE}, {CHECK_FILE} and {SHEET_FILE} "
        f"to {folder.path}",
        highlight=False,
        soft_wrap=True,
    )
    if problems:
        raise DataError("\n".join(problems))
    folder.finish(rows=sum(checked.loaded.read for checked in sets), entries=entries)
    return 0


def leak_lines(leaks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to print of leaks: the target texts of all sets, such as labels, in one line."""

    def in_common(leak: Mapping[str, Any]) -> str:
        return (
            f"training set '{leak['train']}' and held-out set '{leak['held_out']}' have in common: "
            f"{leak['count']} {leak['what'].replace('_', ' ')}"
        )

    texts = [leak for leak in leaks if leak["what"] == "target_texts"]
    lines = [in_common(leak) for leak in leaks if leak["what"] != "target_texts"][:LEAKS_SHOWN]
    if texts:
        most = max(texts, key=lambda leak: leak["count"])
        lines.append(
            f"{in_common(most)}, as class labels may be; {len(texts)} pairs of sets share target "
            "texts, and this pair shares the most"
        )
    if leaks:
        lines.append(
            f"{CHECK_FILE} names {len(leaks)} cases under 'leaks'; remove from one set what must "
            "not be in both"
        )
    return lines


def media_problems(summary: Mapping[str, Any], data: DataConfig) -> list[str]:
    """Return which sets have more pairs set aside for their media than jobs may set aside."""
    return [
        f"data set '{entry['name']}': media of {entry['pairs_set_aside']} of "
        f"{entry['pairs']} pairs cannot be decoded, more than "
        f"data.max_bad_rows={data.max_bad_rows}; see {QUARANTINE_FILE}, and replace the files"
        for entry in summary["sets"]
        if entry["pairs_set_aside"] > data.max_bad_rows * entry["pairs"]
    ]


def read_sets(data: DataConfig) -> tuple[list[CheckedSet], list[str]]:
    """Return the sets that can be read, and why a job would refuse any of all sets."""
    sets: list[CheckedSet] = []
    problems = [*repeated_names(data.train), *repeated_names(data.eval)]
    for held_out, every in ((False, data.train), (True, data.eval)):
        # What an earlier check wrote does not change what this one reads.
        whole = [replace(settings, leave_out="") for settings in every]
        for settings, loaded in zip(
            whole, load_each(whole, media=data.media, offline=data.offline), strict=True
        ):
            if isinstance(loaded, DataError):
                problems.append(str(loaded))
                continue
            log_bad_rows(loaded)
            refused = set_problems(loaded, settings, max_bad_rows=data.max_bad_rows)
            problems += refused
            sets.append(
                CheckedSet(
                    settings=settings, held_out=held_out, loaded=loaded, problems=tuple(refused)
                )
            )
    return sets, problems


def decode_all(groups: Sequence[Mapping[str, Any]], limits: MediaConfig) -> dict[str, Medium]:
    """Decode all `media_groups` on the nodes of the cluster; return what became of each by uri.

    A file that ends the process which decodes it is broken, too. (PDFs and video files are opened
    in this process before, as their pages and frames are counted.)

    Raises:
        ClusterError: nothing or too little came back, so the files are not to blame.
    """
    media = _decode(groups, limits, per_task=GROUPS_PER_TASK)
    if lost := [group for group in groups if not media.keys() >= set(group["uris"])]:
        log.warning(
            "the processes that decode %d files or cells ended before these were done; each is "
            "tried alone",
            len(lost),
        )
        if len(lost) <= TRIED_ALONE:
            media |= _decode(lost, limits, per_task=1)
    if len(lost) > TRIED_ALONE or (groups and not media):
        raise ClusterError(
            f"expected Ray's tasks to decode {len(groups)} files or cells, {len(lost)} of them did "
            "not come back: see the errors above and Ray's logs (/tmp/ray); every node needs this "
            "code, its packages, the files and memory to decode them"
        )
    for group in lost:
        for uri in group["uris"]:
            reason = (
                f"{uri}: expected pixels, found that the process which decodes it ended each time; "
                "replace or remove it, unless Ray's logs (/tmp/ray) say that the node was at fault"
            )
            media.setdefault(uri, Medium(reason=reason))
    return media


def _decode(
    groups: Sequence[Mapping[str, Any]], limits: MediaConfig, *, per_task: int
) -> dict[str, Medium]:
    """Return what became of the media whose tasks ended well."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # not each task's begin and end
    media: dict[str, Medium] = {}
    blocks = ray.data.from_items(list(groups), override_num_blocks=-(-len(groups) // per_task))
    with warnings.catch_warnings():
        # Without max_retries Ray Data tries a task whose process died again and again. Ray marks it
        # as deprecated and offers no replacement.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        decoded = blocks.flat_map(decode_group, fn_args=(limits,), max_retries=TASK_RETRIES)
    with progress_bar(plain_console()) as bar:
        task = bar.add_task("decoding", total=sum(len(group["uris"]) for group in groups))
        for row in decoded.iter_rows():
            uri = row.pop("uri")
            media[uri] = Medium(**row)
            bar.update(task, completed=len(media))
    return media


def write_files(
    folder: RunFolder,
    sets: Sequence[CheckedSet],
    media: Mapping[str, Medium],
    limits: MediaConfig,
    *,
    title: str,
) -> tuple[dict[str, Any], int]:
    """Write the job's files; return what `check.json` holds, and the entries set aside."""
    frames = limits.max_frames
    entries = [row for checked in sets for row in set_aside(checked, media, frames)]
    folder.write_table(QUARANTINE_FILE, pa.Table.from_pylist(entries, schema=QUARANTINE))
    contents = [contents_of(checked.loaded, media, frames) for checked in sets]
    pairs = list(zip(sets, contents, strict=True))
    report = near_duplicates(sets, media, frames)
    near = report.duplicates
    files: dict[str, str] = {}
    for checked in sets:
        files |= files_fingerprint(checked.settings, checked.loaded.files)
    folder.write_table(
        NEAR_FILE,
        pa.Table.from_pylist(
            [near_row(entry) for entry in near],
            schema=NEAR.with_metadata({CHECKED_FILES: json.dumps(files)}),
        ),
    )
    summary = {
        "sets": [
            describe_set(checked, media, own, limits) | {"near": counts}
            for (checked, own), counts in zip(pairs, report.contents, strict=True)
        ],
        "leaks": leaks(pairs),
        "near_duplicates": describe_near(near),
    }
    folder.write_json(CHECK_FILE, summary)
    readable = [
        (heading(checked), readable_pairs(checked.loaded, media, frames)) for checked in sets
    ]
    sheet = build_sheet(
        readable, near_sections(near), title=f"{title}: the data sets", limits=limits
    )
    write_atomically(folder.path / SHEET_FILE, sheet)
    return summary, len(entries)


def near_sections(near: Sequence[NearDuplicate]) -> list[tuple[str, list[NearItems]]]:
    """Return the contact sheet's near duplicates: one for each row, by the two sets."""
    sections = []
    for summary, (_, _, entries) in zip(describe_near(near), near_by_set(near), strict=True):
        items = [
            NearItems(
                caption="{data_set} row {row}, {side} {what}: {similarity:.0%} like "
                "{of_data_set} row {of_row}, {of_side}".format(**near_row(entry)),
                items=(
                    (entry.checked.loaded.pairs[entry.pair], entry.side),
                    (entry.of_checked.loaded.pairs[entry.of_pair], entry.of_side),
                ),
            )
            for entry in entries[:PAIRS_SHOWN]
        ]
        sections.append((words_of(summary), items))
    return sections


def words_of(near: Mapping[str, Any]) -> str:
    """Return in words which rows of `describe_near` nearly repeat which."""
    rows = f"{'held-out' if near['held_out'] else 'training'} set '{near['data_set']}'"
    if near["of_held_out"] and not near["held_out"]:
        return f"rows of {rows} that nearly repeat parts of held-out set '{near['of_data_set']}'"
    return f"rows of {rows} that nearly repeat earlier rows of it"


def heading(checked: CheckedSet) -> str:
    """Return a set's heading on the contact sheet; names are unique among one part's sets only."""
    return f"{'held-out' if checked.held_out else 'training'} set {checked.loaded.name}"


def table_of(summary: Mapping[str, Any]) -> Table:
    """Return the table that the job prints: a line for each set."""
    caption = "aside: set aside, of rows and of media; twice, near: equal and alike pictures"
    table = Table(
        title="data sets", caption=caption, box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    table.add_column("set")
    for column in (
        "rows",
        "aside",
        "pairs",
        "media",
        "aside",
        "twice",
        "near",
        "query tokens",
    ):
        table.add_column(column, justify="right")
    for entry in summary["sets"]:
        tokens = entry["tokens"]["query"]
        table.add_row(
            Text(f"{entry['name']}{' (held out)' if entry['held_out'] else ''}"),
            *(str(entry[key]) for key in ("rows_read", "rows_set_aside", "pairs")),
            *(str(entry["media"][key]) for key in ("shown", "set_aside")),
            str(entry["twice"]["pictures"]["count"]),
            str(entry["near"]["pictures"]),
            "-".join(str(tokens[key]) for key in ("min", "max")) if tokens else "",
        )
    return table


if __name__ == "__main__":
    sys.exit(run_job(CheckDataConfig, main, roles=roles))
