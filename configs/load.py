"""Presets + YAML + dotted overrides -> a frozen config object; all that is wrong at once."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from configs.common import MISSING
from configs.errors import ConfigError
from configs.presets import PRESETS, with_presets
from configs.schema import JOB_CONFIGS, RENAMED, problems

log = logging.getLogger(__name__)
T = TypeVar("T")
_Path = tuple[str | int, ...]
"""Keys and indices from the root of the settings to one of them."""
_AS_WRITTEN = "_as_written"
"""Attribute of loaded settings: the texts that gave a value as `${...}`, by path."""
_REFUSALS = (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Return the settings in a YAML file, changed by ``section.key=value`` overrides.

    An override may also be a further YAML file, such as one that says where all jobs run: sections
    and keys in it that only other jobs have are left out. A preset lies under the keys of what
    names it, file or overrides; one that the overrides name lies over the file. What it changes is
    logged.

    Raises:
        ConfigError: unknown keys, wrong types, missing values, impossible combinations.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file}: config file not found{_near(file)}")
    messages: list[str] = []
    try:
        parts = {str(file): _plain(OmegaConf.load(file))}
    except _REFUSALS as error:
        raise ConfigError(f"{file}: not readable as YAML settings: {error}") from error
    for text in overrides:
        try:
            parts[f"override '{text}'"] = _override(cls, text)
        except _REFUSALS as error:
            messages.append(f"override '{text}': {error}")
    merged = OmegaConf.structured(cls)
    defaults = OmegaConf.to_container(merged, resolve=False)
    parts = {origin: _emptied(tree, defaults) for origin, tree in parts.items()}
    for origin, tree in with_presets(parts).items():
        try:
            merged = OmegaConf.merge(merged, tree)
            continue
        except _REFUSALS:
            pass
        # Something in it is wrong; value by value, so that all errors show.
        for key, value in _leaves((), tree):
            try:
                merged = OmegaConf.merge(merged, _nest(key, value))
            except _REFUSALS:
                messages += [f"{origin}: {text}" for text in _refused(merged, key, value)]
    config: Any = None
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        messages += [
            f"{file}: {key}: no value; set it in the file or as {key}=..." for key in missing
        ]
        # Something stands in for what is missing, so that the other problems show too.
        filled = _fill(OmegaConf.to_container(merged, resolve=False))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), filled))
        source = f"{file} with the overrides" if overrides else str(file)
        messages += [f"{source}: {text}" for text in problems(config)]
    except _REFUSALS as error:
        messages.append(f"{file}: {error}")
    if messages:
        listed = "\n  ".join(messages)
        raise ConfigError(f"{len(messages)} problem(s) in the settings:\n  {listed}")
    for line in _said_of_presets(config, parts):
        log.info(line)
    object.__setattr__(config, _AS_WRITTEN, _interpolations(filled))
    return config


def to_yaml(config: Any) -> str:
    """Return the settings as YAML, those given as `${...}` as they were given."""
    return OmegaConf.to_yaml(OmegaConf.create(_tree(config)))


def to_flat(config: Any) -> dict[str, Any]:
    """Return dotted key -> value, lists as one value (for run parameters).

    What was given as `${...}` stays as it was given: it may stand for a password.
    """

    def walk(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat.update(walk(f"{prefix}.{key}" if prefix else str(key), value))
        return flat

    return walk("", _tree(config))


def values_given(config: Any) -> dict[str, Any]:
    """Return what settings given as `${...}` stand for: by key, as in `data.train[0].root`."""
    resolved = OmegaConf.to_container(OmegaConf.structured(config))
    texts: dict[_Path, str] = getattr(config, _AS_WRITTEN, {})
    return {_dotted(path): _at(resolved, path) for path in texts}


def _tree(config: Any) -> Any:
    """Return settings as plain mappings and lists, with `${...}` where that was given."""
    tree = OmegaConf.to_container(OmegaConf.structured(config))
    texts: dict[_Path, str] = getattr(config, _AS_WRITTEN, {})
    for path, text in texts.items():
        _at(tree, path[:-1])[path[-1]] = text
    return tree


def _interpolations(node: Any, path: _Path = ()) -> dict[_Path, str]:
    """Return the texts with `${...}` in plain settings, by the keys and indices on the way."""
    if isinstance(node, str):
        return {path: node} if "${" in node else {}
    inside = node.items() if isinstance(node, dict) else ()
    inside = enumerate(node) if isinstance(node, list) else inside
    return {k: v for key, child in inside for k, v in _interpolations(child, (*path, key)).items()}


def _at(tree: Any, path: _Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _dotted(path: _Path) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]


def _said_of_presets(config: Any, parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield for each preset what it changes, and which keys beside it win over it."""
    bare = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(type(config)), *parts.values()))
    for section, table in PRESETS.items():
        name = getattr(getattr(config, section, None), "preset", "")
        if not name:
            continue
        before, now = to_flat(getattr(bare, section)), to_flat(getattr(config, section))
        wanted = {".".join(key): value for key, value in _leaves((), table[name])}
        changed = [f"{k} {before[k]} -> {now[k]}" for k in wanted if now[k] != before[k]]
        kept = [f"{k}={now[k]} (preset: {v})" for k, v in wanted.items() if now[k] != v]
        text = f"{section}.preset={name} changes {', '.join(changed) or 'nothing'}"
        yield f"{text}; keys beside it that win: {', '.join(kept)}" if kept else text


def _near(file: Path) -> str:
    """Return in words which files may be meant by a config file that is not there.

    They are those of its folder and those that Embed-RL brings.
    """
    paths = [*file.parent.glob("*.yaml"), *Path(__file__).parent.rglob("*.yaml")]
    near = get_close_matches(str(file), dict.fromkeys(map(os.path.relpath, paths)))
    return f"; near it there are {', '.join(near)}" if near else ""


def _override(cls: type, text: str) -> dict[str, Any]:
    if "=" in text:
        return _plain(OmegaConf.from_dotlist([text]))
    if not text.endswith((".yaml", ".yml")):
        raise ConfigError("expected section.key=value, or a further YAML file")
    own = {field.name for field in fields(cls)}
    others = {field.name for config in JOB_CONFIGS for field in fields(config)} - own
    tree = _plain(OmegaConf.load(text))
    return {key: value for key, value in tree.items() if key not in others}


def _plain(tree: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(tree, resolve=False)
    if plain is not None and not isinstance(plain, dict):
        raise ConfigError(f"expected a mapping of settings, found {type(plain).__name__}")
    return plain or {}


def _emptied(tree: Any, defaults: Any) -> Any:
    """Return settings in which a key without a value is an empty list, text or section."""
    if not isinstance(tree, dict) or not isinstance(defaults, dict):
        return tree
    settings = {}
    for key, value in tree.items():
        default = defaults.get(key, MISSING)
        if value is None and isinstance(default, list | str | dict) and default != MISSING:
            value = type(default)()
        settings[key] = _emptied(value, default)
    return settings


def _leaves(path: tuple[str, ...], node: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return each value with the path of its keys."""
    if not isinstance(node, dict) or not node:
        return [(path, node)]
    return [leaf for key, value in node.items() for leaf in _leaves((*path, str(key)), value)]


def _nest(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return OmegaConf.create(value)


def _refused(merged: Any, path: tuple[str, ...], value: Any) -> list[str]:
    """Return why a value cannot be merged; in a list of sections, for each entry and key."""
    name = ".".join(path)
    if name in RENAMED:
        return [f"{name}: has been replaced by {RENAMED[name]}; set these instead"]
    if any(key.isdigit() for key in path):
        return [f"{name}: a list is given whole, as <key>=[...], not entry by entry"]
    parts: list[tuple[str, Any]] = []
    for index, entry in enumerate(value if isinstance(value, list) else []):
        place = f" (in {name}[{index}]"
        if not isinstance(entry, dict):
            parts.append((f"{place})", [entry]))
            continue
        owner = f", '{entry['name']}')" if isinstance(entry.get("name"), str) else ")"
        parts += [(f"{place}.{key}{owner}", [{key: setting}]) for key, setting in entry.items()]
    messages: list[str] = []
    for place, part in parts or [("", value)]:
        try:
            OmegaConf.merge(merged, _nest(path, part))
        except _REFUSALS as error:
            messages.append(f"{name}: {str(error).splitlines()[0]}{place}")
    return messages


def _fill(node: Any) -> Any:
    """Return plain settings with a text wherever a value is missing."""
    if isinstance(node, dict):
        return {key: _fill(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value) for value in node]
    return "missing" if node == MISSING else node
