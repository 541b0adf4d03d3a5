"""What is checked before anything starts: settings that name things of this machine."""

import json
import logging
import os
from pathlib import Path

from cluster.serving.loopback import is_loopback
from cluster.serving.request import Served
from configs.errors import ConfigError
from configs.schema import ServeConfig

log = logging.getLogger(__name__)


def check_settings(config: ServeConfig) -> str:
    """Return the token, which is empty where none is asked for.

    Raises:
        ConfigError: the token's environment variable is empty, or a folder is not there.
    """
    if config.media_root and not Path(config.media_root).is_dir():
        raise ConfigError(f"media_root: expected a folder, found none at {config.media_root}")
    if not config.token_env:
        if not is_loopback(config.host):
            log.warning("host=%s: whoever reaches it is answered; set token_env", config.host)
        return ""
    token = os.environ.get(config.token_env, "").strip()
    if not token:
        raise ConfigError(
            f"token_env: expected a token in the environment variable {config.token_env}, found "
            "none; set the variable, or leave token_env empty"
        )
    return token


def served_by(config: ServeConfig) -> Served:
    """Return what requests may ask for; the Embedder's folder has been checked."""
    model = json.loads((Path(config.reward.model) / "config.json").read_text(encoding="utf-8"))
    return Served(
        name=config.name,
        dimensions=frozenset(model.get("matryoshka_dimensions") or ()),
        items=config.limits.items,
        max_frames=config.data.media.max_frames,
    )
