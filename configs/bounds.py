"""Checks of one setting at a time, shared by the checks of all sections."""


def positive(node: object, *names: str) -> list[str]:
    """Return a problem for each of these settings that is not more than 0."""
    return [
        f"{name}: expected more than 0, found {getattr(node, name)}"
        for name in names
        if not getattr(node, name) > 0
    ]


def not_negative(node: object, *names: str) -> list[str]:
    """Return a problem for each of these settings that is less than 0."""
    return [
        f"{name}: expected at least 0, found {getattr(node, name)}"
        for name in names
        if not getattr(node, name) >= 0
    ]


def share(node: object, *names: str) -> list[str]:
    """Return a problem for each of these settings that is outside [0, 1]."""
    return [
        f"{name}: expected a share in [0, 1], found {getattr(node, name)}"
        for name in names
        if not 0 <= getattr(node, name) <= 1
    ]


def lendable(node: object, *names: str) -> list[str]:
    """Return a problem for each of these numbers of GPUs that Ray cannot lend."""
    return [
        f"{name}: Ray lends a part of one GPU, or whole ones, found {getattr(node, name):g}"
        for name in names
        if getattr(node, name) > 1 and getattr(node, name) % 1
    ]
