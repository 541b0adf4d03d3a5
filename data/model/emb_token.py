"""A released model as the start of an Embedder: the same folder with an `<emb>` token."""

import json
import shutil
from pathlib import Path
from typing import Any

from data.errors import ConfigError, DataError
from data.model.chat import EMB_TOKEN
from data.model.model_folder import load_processor

TEMPLATE = "chat_template.jinja"


def with_emb_token(folder: str, into: Path) -> str:
    """Return a model folder whose tokenizer has `<emb>`: ``folder`` itself where it has.

    Otherwise ``into`` becomes a folder of links to its files beside a tokenizer of its own. The
    weights stay as they are: released models have more rows in their embeddings than tokens, and
    the new one takes the first that is free.

    Raises:
        ConfigError: no row is free.
        DataError: the folder is incomplete, or does not say how many rows there are.
    """
    processor = load_processor(folder)
    tokenizer = getattr(processor, "tokenizer", processor)
    if EMB_TOKEN in tokenizer.get_vocab():
        return folder
    source = Path(folder).absolute()
    rows = _embedding_rows(source)
    tokenizer.add_tokens([EMB_TOKEN], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(EMB_TOKEN) >= rows:
        raise ConfigError(
            f"{folder}: expected a free row in the embeddings for {EMB_TOKEN}, found {rows} rows, "
            "all taken; add the token and a row with transformers (`add_tokens`, "
            "`resize_token_embeddings`) and save the folder again"
        )
    partial = into.with_name(f".{into.name}")
    for leftover in (partial, into):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    tokenizer.save_pretrained(partial)
    for path in source.iterdir():
        target = partial / path.name
        if path.name == TEMPLATE:
            target.unlink(missing_ok=True)  # the processor's, which the tokenizer's may differ from
        if not target.exists():
            target.symlink_to(path)
    partial.rename(into)
    return str(into)


def _embedding_rows(source: Path) -> int:
    path = source / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = config.get("text_config", config).get("vocab_size")
    if not isinstance(rows, int):
        raise DataError(f"{path}: expected the number of embeddings, vocab_size, found {rows}")
    return rows
