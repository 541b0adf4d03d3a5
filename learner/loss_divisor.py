"""What the summed loss of a step is divided by, the same number on all ranks."""

from data.errors import DataError


def loss_total(*, tokens: int, traces: int, max_tokens: int, loss_mean: str) -> float:
    """Return what a step's summed loss is divided by, from its tokens and traces on all ranks.

    Raises:
        DataError: there is nothing to divide by, or the mean is unknown.
    """
    totals = {"token": tokens, "sequence": traces, "sequence_constant": traces * max_tokens}
    if loss_mean not in totals:
        raise DataError(f"loss_mean: expected {', '.join(totals)}, found '{loss_mean}'")
    if totals[loss_mean] < 1:
        raise DataError(
            f"expected tokens to train on, found {tokens} in {traces} traces with a limit of "
            f"{max_tokens}"
        )
    return float(totals[loss_mean])
