"""Where the files of a data set lie: on disk, in the hub's cache, or in a cache of fetched files.

`local_set` is the one place that knows addresses: all other code reads paths on disk. What is in a
cache already needs no network.
"""

import hashlib
import logging
import os
import re
import shutil
import tempfile
from dataclasses import replace
from glob import escape
from pathlib import Path

from configs.common import DataSetConfig, is_address, may_hold_secret
from data.durable import DISK_FULL, sync_tree
from data.errors import DataError, NotFetched
from data.rows.archives import archive_pattern
from data.rows.folder_lock import locked
from data.rows.row_files import row_files

log = logging.getLogger(__name__)

SHOWN = 5
"""Revisions and files that a message names."""

_ON_DISK = ("file://", "local://")
_HUB = "hf://"
_PINNED = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})(?:/+(?P<inner>.*))?"
)
_NOT_PINNED = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(/.*)?"
)
_HUB_FORM = "hf://datasets/<org>/<name>@<revision of 40 hex digits>"
_FETCH = "set data.offline: false to fetch it"


def local_set(config: DataSetConfig, *, offline: bool = True) -> DataSetConfig:
    """Return a set's settings with `path` and `root` on disk; of a set on disk they are the same.

    ``offline``: what is in no cache is refused, else it is fetched.

    Raises:
        DataError: an address without a pinned revision, of an unknown kind, or with a password; the
            files are not there or cannot be fetched. The message says what to do.
        NotFetched: the files are in no cache, and ``offline`` forbids to fetch them.
    """
    places = {}
    for key in ("path", "root"):
        try:
            places[key] = _on_disk(config, key, offline=offline)
        except DataError as error:
            raise type(error)(f"data set '{config.name}', {key}: {error}") from None
    return replace(config, **places)


def linked_folder(config: DataSetConfig) -> Path | None:
    """Return the folder that the links under a set's root lead to: the hub's `blobs`; else None."""
    match = _PINNED.fullmatch(config.root)
    return (_hub_folder(match["repo"]) / "blobs").resolve() if match else None


def _on_disk(config: DataSetConfig, key: str, *, offline: bool) -> str:
    """Return the path on disk of a set's `path` or `root`, whichever is the key."""
    address, is_root = getattr(config, key), key == "root"
    if not is_address(address):
        return address
    if address.startswith(_ON_DISK):
        return address.split("://", 1)[1]
    if address.startswith(_HUB):
        wanted = [archive_pattern(entry) for entry in config.unpack] or ["*"]
        return _from_hub(address, wanted if is_root else None, offline=offline)
    if is_root:
        raise DataError(
            f"expected a folder on disk or {_HUB_FORM}, found {_shown(address)}; mount it as a "
            "folder, or copy it to a disk"
        )
    return _from_url(address, offline=offline)


def _from_hub(address: str, within_root: list[str] | None, *, offline: bool) -> str:
    """Return the path in the hub's cache; ``within_root``: what is wanted of a root."""
    match = _PINNED.fullmatch(address)
    if match is None or {".", ".."} & set((match["inner"] or "").split("/")):
        raise DataError(
            f"expected {_HUB_FORM}{'/<file or folder>' if within_root is None else ''}, found "
            f"{_shown(address)}{_revision_hint(address)}; the data set's page on the hub lists its "
            "revisions under 'History'"
        )
    inner = (match["inner"] or "").strip("/")
    folder = f"{escape(inner)}/" if inner else ""
    patterns = [f"{folder}{pattern}" for pattern in within_root or ["*.parquet"]]
    if within_root is None and inner:
        patterns += [escape(inner), f"{escape(inner)}-*.parquet"]
    snapshot = _snapshot(match["repo"], match["revision"], patterns, offline=offline)
    target = snapshot / inner
    if not target.exists() and (within_root is not None or row_files(target) == [target]):
        raise (NotFetched if offline else DataError)(
            _no_such_file(address, snapshot, inner, offline=offline)
        )
    return str(target)


def _snapshot(repo: str, revision: str, patterns: list[str], *, offline: bool) -> Path:
    """Return the folder of a revision in the hub's cache, with the files that were asked for."""
    from huggingface_hub import constants, errors, snapshot_download

    what = f"revision {revision} of {repo}"
    load = f"`hf download {repo} --repo-type dataset --revision {revision}`"
    try:
        folder = snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=patterns,
            local_files_only=offline,
        )
        return Path(folder)
    except errors.IncompleteSnapshotError as error:
        if offline:
            # Whoever asked looks for the file by name.
            return Path(error.snapshot_path)
        raise _no_network(what, load) from None
    except errors.LocalEntryNotFoundError:
        if not offline:
            raise _no_network(what, load) from None
        there = sorted(path.name for path in (_hub_folder(repo) / "snapshots").glob("*"))
        known = ", ".join(there[:SHOWN]) + (", ..." if len(there) > SHOWN else "")
        raise NotFetched(
            f"{what} is not in the hub's cache {constants.HF_HUB_CACHE} (there: "
            f"{known or 'no revision of this data set'}); {_FETCH}, or run {load}"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(
            f"the hub has no {what}; look up the revision on the data set's page, under 'History'"
        ) from None
    except (errors.RepositoryNotFoundError, errors.DisabledRepoError):
        raise DataError(
            f"the hub does not show the data set {repo}: it does not exist or you have no access; "
            "check its name, accept its terms on its page, and run `hf auth login`"
        ) from None
    except Exception as error:  # network, certificates, disk
        raise _not_fetched(what, error, Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE") from None


def _no_network(what: str, load: str) -> DataError:
    return DataError(
        f"{what} is not whole in the hub's cache and the hub cannot be reached; check the network, "
        f"HF_ENDPOINT and HF_HUB_OFFLINE, or run {load} where there is a network and copy the cache"
    )


def _no_such_file(address: str, snapshot: Path, inner: str, *, offline: bool) -> str:
    target = snapshot / inner
    if target.is_symlink():
        return (
            f"{address} is a link to {os.readlink(target)}, which is not in the hub's cache; "
            f"delete {target}, then fetch it again with data.offline: false"
        )
    folder = next(parent for parent in target.parents if parent.is_dir())
    names = sorted(os.listdir(folder))
    there = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    where = f"{folder.relative_to(snapshot)}/" if folder != snapshot else "it"
    cached = f" in the hub's cache; correct it or {_FETCH}" if offline else "; correct it"
    return (
        f"expected '{inner}' in the revision of {address}, found only {there or 'nothing'} in "
        f"{where}{cached}"
    )


def _revision_hint(address: str) -> str:
    """Return which revision the cache has under the name that was written, if it has one."""
    match = _NOT_PINNED.fullmatch(address)
    if match is None:
        return ""
    named = match["revision"] or "main"
    revision = cached_revision(match["repo"], named)
    return f" ('{named}' is {revision} in the hub's cache)" if revision else ""


def cached_revision(repo: str, name: str = "main") -> str:
    """Return the revision of a data set that has a name in the hub's cache; empty: none has."""
    try:
        return (_hub_folder(repo) / "refs" / name).read_text().strip()
    except OSError:
        return ""


def _hub_folder(repo: str) -> Path:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / "--".join(("datasets", *repo.split("/")))


def _from_url(address: str, *, offline: bool) -> str:
    """Return the path of the copy of a file or folder; it is fetched once."""
    if may_hold_secret(address):
        raise DataError(
            f"expected an address without a password, a key or '?', found {_shown(address)}; put "
            "these into the environment variables of its client (for s3:// AWS_ACCESS_KEY_ID), or "
            "download the file yourself"
        )
    cache = cache_folder("files")
    folder = cache / hashlib.sha256(address.encode()).hexdigest()[:32]
    try:
        if not folder.is_dir():
            if offline:
                raise NotFetched(f"{address} is not in the cache {cache}; {_FETCH}")
            cache.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_suffix(".lock")) as alone:
                # What a job that was killed has left.
                for part in cache.glob(f"{folder.name}.*.part") if alone else ():
                    shutil.rmtree(part, ignore_errors=True)
                if not folder.is_dir():
                    _fetch(address, folder)
        copies = list(folder.iterdir())
    except OSError as error:
        raise _not_fetched(address, error, cache, "EMBED_RL_CACHE") from None
    if len(copies) != 1:
        raise DataError(
            f"{address}: expected one file or folder in {folder}, found {len(copies)}; delete "
            f"{folder}, then it is fetched again"
        )
    return str(copies[0])


def cache_folder(kind: str) -> Path:
    """Return the folder of this project's cache with what only saves time."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("EMBED_RL_CACHE") or f"{base}/embed-rl").expanduser() / kind


def _fetch(address: str, folder: Path) -> None:
    """Copy a file, or the parquet files of a folder, into a new folder, which then is whole."""
    import fsspec

    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        system, inner = fsspec.core.url_to_fs(address)
        info = system.info(inner)
        name = Path(inner).name
        target = part / (name if name not in ("", "..") else "rows")
        files = {target: inner}
        if info["type"] == "directory":
            target.mkdir()
            names = [name for name in system.find(inner) if name.endswith(".parquet")]
            if not names:
                raise DataError(
                    f"{address}: expected parquet files in the folder, found none; check the data "
                    "set's `path`"
                )
            above = len(inner.rstrip("/")) + 1
            files = {target / name[above:]: name for name in names}
        for file, name in files.items():
            size = system.info(name)["size"]
            log.info("%s: fetching %s MiB into %s", address, (size or 0) >> 20, folder)
            if not file.resolve().is_relative_to(part.resolve()):
                raise DataError(f"{address}: found a file '{name}' that leads out of the folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(file))
            if size is not None and file.stat().st_size != size:
                raise DataError(
                    f"{address}: expected {size} bytes of {name}, {file.stat().st_size} came; run "
                    "the same command again"
                )
        sync_tree(part)
        part.replace(folder)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"{address} needs a package that is not installed ({_clean(error)}); install it with "
            "pip, or copy the file to a disk"
        ) from None
    except Exception as error:  # clients raise anything
        # Of a host that does not answer, too, they say that a file is not found.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or isinstance(cause, FileNotFoundError):
            raise DataError(f"{address}: file not found; check the data set's `path`") from None
        raise _not_fetched(address, cause, folder.parent, "EMBED_RL_CACHE") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _not_fetched(what: str, error: BaseException, cache: Path, variable: str) -> DataError:
    if getattr(error, "errno", None) in DISK_FULL:
        return DataError(
            f"{what}: no room left in {cache} to fetch it; make room there, or set {variable} to a "
            "folder on a larger disk"
        )
    return DataError(
        f"{what} cannot be fetched into {cache} ({type(error).__name__}: {_clean(error)}); check "
        f"the network, the address, your access and that {cache} can be written ({variable} names "
        "another folder), then run the same command again"
    )


def _shown(address: str) -> str:
    """Return an address without what may be a secret."""
    return "'" + re.sub(r"://[^/]*@", "://...@", address).split("?")[0] + "'"


def _clean(error: BaseException) -> str:
    """Return the message of a client without the secrets that addresses in it may have."""
    text = re.sub(r"://[^/\s]*@", "://...@", str(error))
    return re.sub(r"\?\S*|hf_\w+", "...", text)[:300]
