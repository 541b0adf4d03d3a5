"""The folder of a rival: one that its library can load, or refused before anything heavy starts."""

import json
from importlib.util import find_spec
from pathlib import Path

from configs.schema import RivalConfig
from data.errors import ConfigError, DataError
from data.model.model_folder import check_folder

MODULES = "modules.json"
LIBRARY = "sentence_transformers"


def check_rival(rival: RivalConfig) -> None:
    """Refuse a rival whose folder or library is missing.

    Raises:
        ConfigError: sentence-transformers is not installed.
        DataError: as `check_folder`; for sentence-transformers also a folder that does not say what
            the model is made of, or that needs code of its own.
    """
    if rival.library == "vllm":
        check_folder(rival.model)
        return
    if find_spec(LIBRARY) is None:
        raise ConfigError(
            f"rival '{rival.name}': sentence-transformers is not installed; run `pip install -c "
            "constraints.txt '.[rivals]'` on every node, or set library=vllm"
        )
    folder, path = Path(rival.model), Path(rival.model) / MODULES
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a model folder, found none; check the path, or download the model "
            "to it"
        )
    if not path.is_file():
        raise DataError(
            f"{path}: expected the list of a model's modules, found no file: sentence-transformers "
            "would guess how to pool; save the model with sentence-transformers, or set "
            "library=vllm and pooling"
        )
    try:
        kinds = [str(module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: expected a list of modules, each with its type, found none ({error!r}); copy "
            "the file again"
        ) from error
    own = [kind for kind in kinds if not kind.startswith(f"{LIBRARY}.")]
    if own:
        raise DataError(
            f"{path}: expected modules of sentence-transformers, found '{own[0]}', which needs "
            "code that is never run; use another model"
        )
