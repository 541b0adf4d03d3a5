"""What an adaptive trace saves, in words, for page and console."""

from evaluation.adaptive.figures import AdaptiveFigures


def adaptive_sentences(figures: AdaptiveFigures) -> list[str]:
    """Return what an adaptive trace saves, a sentence each."""
    saving, at = figures.saving, figures.at_threshold
    sentences = [
        f"hit@1 {figures.target:.3f}, the lower end of the interval of always tracing, takes "
        f"{saving.gate:.1f} tokens a query with the gate, {saving.random:.1f} at random, "
        f"{saving.oracle:.1f} with the oracle."
    ]
    if saving.of_oracle is not None and saving.random_of_oracle is not None:
        share = saving.of_oracle
        sentences.append(
            f"There the gate saves {share.mean:.2f} ({share.low:.2f} to {share.high:.2f}) of the "
            f"tokens that the oracle saves, a random gate {saving.random_of_oracle.mean:.2f}."
        )
    hit = at.hit_at_1
    sentences.append(
        f"At the threshold chosen on {figures.train_queries} training queries, the gate traces "
        f"{at.traced:.0%} of {figures.queries}: hit@1 {hit.mean:.3f} ({hit.low:.2f} to "
        f"{hit.high:.2f}), {at.tokens.mean:.1f} tokens a query."
    )
    return sentences
