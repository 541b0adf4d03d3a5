"""The one error of the bottom layer; `data.errors` draws the whole tree."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, or impossible; the message lists every problem."""
