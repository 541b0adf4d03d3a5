"""The RL objective by hand, and from reward to gradient against plain loops in float64.

Gradients are held against finite differences, one parameter at a time; `test_two_layers.py` does
that through a transformer.
"""

import dataclasses
import math
import random
from itertools import product

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from configs.learner import GRPOConfig
from configs.presets import PRESETS
from data.errors import DataError
from learner.rank.policy_loss import PolicyTokens, kl_estimate, policy_loss, token_weight
from tests.unit.learner.rank.objective import MAX_TOKENS, Example

SPLIT = [[slice(0, 2), slice(2, 3), slice(3, 3)], [slice(3, 3), slice(3, 5), slice(5, None)]]
"""Two ranks with three ragged micro-batches each, some empty."""
WHOLE = [[slice(None)]]


def presets() -> dict[str, GRPOConfig]:
    return {name: GRPOConfig(preset=name, **settings) for name, settings in PRESETS["grpo"].items()}


COMBINATIONS = {
    "default": GRPOConfig(),
    **{
        f"{ratio}, {mean}": GRPOConfig(ratio=ratio, loss_mean=mean)
        for ratio, mean in product(
            ("token", "sequence", "clipped_weight"), ("token", "sequence", "sequence_constant")
        )
    },
    **{f"{kl} in loss": GRPOConfig(kl=kl, kl_coef=0.5) for kl in ("none", "k1", "k2", "k3")},
    **{
        f"{kl} in reward": GRPOConfig(kl=kl, kl_in="reward", kl_coef=0.2)
        for kl in ("k1", "k2", "k3")
    },
    **{
        kind: GRPOConfig(advantage=kind, std_floor=0.7)
        for kind in ("group_norm", "mean_only", "leave_one_out", "batch_norm")
    },
    **{
        f"dual clip, {ratio}": GRPOConfig(dual_clip=1.3, ratio=ratio)
        for ratio in ("token", "sequence", "clipped_weight")
    },
    "overlong": GRPOConfig(overlong_penalty=0.5, overlong_share=0.6),
    **{
        f"tis, {ratio}": GRPOConfig(tis_cap=1.1, ratio=ratio)
        for ratio in ("token", "sequence", "clipped_weight")
    },
    "entropy": GRPOConfig(entropy_coef=0.3),
    "sides": GRPOConfig(query_weight=0.5, target_weight=2.0, loss_mean="sequence"),
    "band": GRPOConfig(sequence_band=1.1),
    "all at once": GRPOConfig(
        ratio="sequence",
        loss_mean="sequence",
        kl="k2",
        entropy_coef=0.1,
        tis_cap=1.2,
        sequence_band=1.3,
        target_weight=0.5,
    ),
}
CHOICES = {
    "advantage": ("group_norm", "mean_only", "leave_one_out", "batch_norm"),
    "std_floor": (1e-6, 0.5),
    "overlong_penalty": (0.0, 0.7),
    "loss_mean": ("token", "sequence", "sequence_constant"),
    "ratio": ("token", "sequence", "clipped_weight"),
    "clip_low": (0.1, 1.0),
    "clip_high": (0.2, 0.5),
    "dual_clip": (0.0, 1.3, 3.0),
    "kl": ("none", "k1", "k2", "k3"),
    "kl_in": ("loss", "reward"),
    "kl_coef": (0.3,),
    "entropy_coef": (0.0, 0.2),
    "query_weight": (1.0, 0.5),
    "target_weight": (1.0, 0.0),
    "tis_cap": (0.0, 1.2),
    "sequence_band": (0.0, 1.4),
}
EVERY = {**{f"preset {name}": config for name, config in presets().items()}, **COMBINATIONS}


def noise(config: GRPOConfig) -> float:
    """Return how far the behaviour is away, so that the clip touches some tokens only."""
    return min(2 * config.clip_high, 1.5)


@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradient_match_plain_loops_and_finite_differences(name):
    config = EVERY[name]
    example = Example(config, noise=noise(config))
    loss, gradients, tallies = example.fast(SPLIT)
    assert loss == pytest.approx(example.slow(), abs=1e-10)
    for found, expected in zip(gradients, example.finite_differences(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    assert not any(one.broken for one in tallies)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("seed", [1, 2])
def test_loss_matches_plain_loops_on_other_batches(name, seed):
    config = EVERY[name]
    example = Example(config, noise=noise(config), seed=seed)
    assert example.fast(SPLIT)[0] == pytest.approx(example.slow(), abs=1e-10)


@pytest.mark.parametrize("seed", range(40))
def test_any_combination_matches_plain_loops(seed):
    draw = random.Random(seed)
    config = GRPOConfig(**{name: draw.choice(values) for name, values in CHOICES.items()})
    example = Example(config, noise=noise(config), seed=seed)
    assert example.fast(SPLIT)[0] == pytest.approx(example.slow(), abs=1e-10)


@pytest.mark.parametrize("name", EVERY)
def test_the_split_in_ranks_and_micro_batches_changes_nothing(name):
    config = EVERY[name]
    example = Example(config, noise=noise(config))
    loss, gradients, _ = example.fast(WHOLE)
    other, others, _ = example.fast(SPLIT)
    assert other == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(others, gradients)


@pytest.mark.parametrize("name", [name for name, c in EVERY.items() if not c.tis_cap])
def test_the_clip_touches_some_tokens_in_these_examples(name):
    config = EVERY[name]
    example = Example(config, noise=noise(config))
    tokens = sum(len(one.response_ids) for one in example.samples)
    [tally] = example.fast(WHOLE)[2]
    assert 0 < tally.sums["clip_fraction"] < tokens


@pytest.mark.parametrize("name", EVERY)
def test_a_trace_without_advantage_has_a_gradient_by_kl_and_entropy_alone(name):
    example = Example(EVERY[name], noise=noise(EVERY[name]))
    example.samples = [dataclasses.replace(one, advantage=0.0) for one in example.samples]
    _, gradients, _ = example.fast(WHOLE)
    learns = any(gradient.abs().max() > 0 for gradient in gradients)
    assert example.objective.learns_from(0.0) is learns
    assert example.objective.learns_from(-0.1)


@pytest.mark.parametrize("name", PRESETS["grpo"])
def test_leaving_out_the_pass_of_traces_without_a_gradient_changes_no_bit_of_it(name):
    changes = {"kl": "none", "refill": 0, "overlong_penalty": 0.0}
    config = dataclasses.replace(presets()[name], **changes)
    example = Example(config, noise=noise(config))
    example.samples.sort(key=lambda one: one.advantage == 0)
    count = sum(one.advantage != 0 for one in example.samples)
    assert 0 < count < len(example.samples)
    # In micro-batches of their own: the last bits of a sum follow what it is made of.
    rest, dull = slice(0, count), slice(count, None)
    all_of, kept = example.fast([[rest, dull]]), example.fast([[rest]])
    assert all_of[0] == kept[0]
    for one, other in zip(all_of[1], kept[1], strict=True):
        assert torch.equal(one, other)


def published(name: str, example: Example) -> float:
    """Return the loss as the publication writes it, for traces of the version in training."""
    trained = [index for index, one in enumerate(example.traces) if one.key in example.wanted]
    now = [example.numbers(example.model)[index][0] for index in trained]
    reference = [example.initial[index][0] for index in trained]
    traces, count = [example.traces[index] for index in trained], len(trained)

    def clip(ratio: float, low: float, high: float) -> float:
        return min(max(ratio, 1 - low), 1 + high)

    def surrogate(ratio: float, advantage: float, low: float, high: float) -> float:
        return min(ratio * advantage, clip(ratio, low, high) * advantage)

    per_trace, tokens = [], 0
    for one, new, initial in zip(traces, now, reference, strict=True):
        a, old = example.wanted[one.key], one.behaviour
        ratios = [math.exp(n - o) for n, o in zip(new, old, strict=True)]
        length = len(new)
        tokens += length
        if name == "embed_rl":  # PPO by token with dual clip (Ye et al., 2020), k3 in the loss
            bounded = [surrogate(r, a, 0.2, 0.2) for r in ratios]
            if a < 0:
                bounded = [max(b, 3.0 * a) for b in bounded]
            kl = [math.exp(i - n) - (i - n) - 1 for n, i in zip(new, initial, strict=True)]
            per_trace.append(sum(b - 0.01 * k for b, k in zip(bounded, kl, strict=True)))
        elif name == "grpo":  # DeepSeekMath, equations 3 and 4
            kl = [math.exp(i - n) - (i - n) - 1 for n, i in zip(new, initial, strict=True)]
            terms = [surrogate(r, a, 0.2, 0.2) - 0.04 * k for r, k in zip(ratios, kl, strict=True)]
            per_trace.append(sum(terms) / length)
        elif name == "dr_grpo":  # no 1 / length; a constant in its place
            per_trace.append(sum(surrogate(r, a, 0.2, 0.2) for r in ratios) / MAX_TOKENS)
        elif name == "dapo":  # equation 8
            per_trace.append(sum(surrogate(r, a, 0.2, 0.28) for r in ratios))
        elif name == "gspo":  # equations 5 and 7
            whole = math.prod(ratios) ** (1 / length)
            per_trace.append(surrogate(whole, a, 3e-4, 4e-4))
        elif name == "cispo":  # equations 4 and 5
            weights = [min(r, 5.0) for r in ratios]
            per_trace.append(sum(w * a * n for w, n in zip(weights, new, strict=True)))
        elif name == "rloo":  # likelihood of the whole trace; on-policy, so no weights
            per_trace.append(a * sum(new) / MAX_TOKENS)
        elif name == "reinforce_pp":
            k2 = [(n - i) ** 2 / 2 for n, i in zip(new, initial, strict=True)]
            terms = [
                surrogate(r, a, 0.2, 0.2) - example.config.kl_coef * k
                for r, k in zip(ratios, k2, strict=True)
            ]
            per_trace.append(sum(terms))
        else:
            raise ValueError(name)
    by_token = name in ("embed_rl", "dapo", "cispo", "reinforce_pp")
    return -sum(per_trace) / (tokens if by_token else count)


@pytest.mark.parametrize("name", PRESETS["grpo"])
def test_a_preset_is_the_published_loss(name):
    config = presets()[name]
    example = Example(config, noise=0.0 if name == "rloo" else noise(config))
    example.samples = [dataclasses.replace(one, old_logprobs=None) for one in example.samples]
    assert example.fast(SPLIT)[0] == pytest.approx(published(name, example), abs=1e-10)


def tokens_of(now, behaviour, advantages, **changes) -> PolicyTokens:
    now = torch.tensor(now, dtype=torch.float64)
    settings = {
        "now_T": now,
        "entropy_T": torch.zeros_like(now),
        "behaviour_T": torch.tensor(behaviour, dtype=torch.float64),
        "old_T": now.detach(),
        "reference_T": now.detach(),
        "advantages_T": torch.tensor(advantages, dtype=torch.float64),
        "weights_T": torch.ones_like(now),
        "lengths": [len(now)] if len(now) else [],
        **changes,
    }
    return PolicyTokens(**settings)


def test_hand_worked_tokens():
    # On-policy; ratio 1.5 with a gain (clipped to 1.2); ratio 0.5 with a loss (clipped to 0.8).
    tokens = tokens_of(
        [-1.0, math.log(0.6), math.log(0.2)], [-1.0, *[math.log(0.4)] * 2], [2.0, 1.0, -1.0]
    )
    loss, sums, largest = policy_loss(tokens, GRPOConfig(kl_coef=0.1))
    assert loss.item() == pytest.approx(-(2.0 + 1.2 - 0.8))
    assert sums["clip_fraction"].item() == 2
    assert sums["kl"].item() == 0
    assert sums["off_policy_ratio"].item() == 3
    assert sums["mismatch_ratio"].item() == pytest.approx(1 + 1.5 + 0.5)
    assert largest["mismatch_ratio_max"].item() == pytest.approx(1.5)
    assert largest["logprob_gap"].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("ratio", "dual_clip", "gain", "slope"),
    [("token", 3.0, -3.0, 0.0), ("sequence", 3.0, -3.0, 0.0), ("token", 0.0, -20.0, -20.0)],
)
def test_a_negative_advantage_counts_at_most_as_often_as_dual_clip(ratio, dual_clip, gain, slope):
    # Twenty times likelier than when it was sampled; the second trace, with a gain, as ever.
    now = torch.tensor([math.log(0.8), -1.0], dtype=torch.float64, requires_grad=True)
    tokens = tokens_of([0.0] * 2, [math.log(0.04), -1.0], [-1.0, 1.0], now_T=now, lengths=[1, 1])
    config = GRPOConfig(ratio=ratio, dual_clip=dual_clip, kl="none")
    loss, sums, _ = policy_loss(tokens, config)
    loss.backward()
    assert loss.item() == pytest.approx(-gain - 1.0)
    assert now.grad.tolist() == pytest.approx([-slope, -1.0])
    assert sums["clip_fraction"].item() == (dual_clip > 0)


def test_truncated_importance_sampling_weighs_the_mismatch_and_clips_the_versions():
    # now / old = 1.5, clipped to 1.2; old / behaviour = 2, capped at 1.25.
    old = torch.tensor([math.log(0.4)], dtype=torch.float64)
    tokens = tokens_of([math.log(0.6)], [math.log(0.2)], [1.0], old_T=old)
    loss, sums, _ = policy_loss(tokens, GRPOConfig(tis_cap=1.25))
    assert loss.item() == pytest.approx(-1.2 * 1.25)
    assert sums["off_policy_ratio"].item() == pytest.approx(1.5)
    assert sums["mismatch_ratio"].item() == pytest.approx(2.0)


def test_engines_are_compared_by_traces_of_the_version_in_training_alone():
    old = torch.tensor([-1.0, -1.5], dtype=torch.float64)
    fresh = torch.tensor([True, False])
    tokens = tokens_of([-1.0, -1.0], [-1.1, -3.0], [1.0, 1.0], old_T=old, fresh_T=fresh)
    assert policy_loss(tokens, GRPOConfig())[2]["logprob_gap"].item() == pytest.approx(0.1)
    tokens = dataclasses.replace(tokens, fresh_T=torch.tensor([False, False]))
    assert policy_loss(tokens, GRPOConfig())[2]["logprob_gap"].item() == 0.0


def test_a_trace_out_of_the_band_has_no_loss_and_no_gradient():
    now = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    tokens = tokens_of([0.0] * 3, [-1.0, -1.4, -1.4], [1.0] * 3, now_T=now, lengths=[1, 2])
    loss, sums, _ = policy_loss(tokens, GRPOConfig(sequence_band=1.3))
    loss.backward()
    assert sums["masked_fraction"].item() == 2
    assert now.grad[0] != 0
    assert now.grad[1:].tolist() == [0, 0]


@pytest.mark.parametrize("ratio", ["token", "sequence", "clipped_weight"])
def test_an_advantage_raises_the_probability_of_its_token(ratio):
    now = torch.tensor([-1.0, -1.0], requires_grad=True)
    same = now.detach()
    tokens = tokens_of(
        [0.0] * 2, [-1.0] * 2, [1.0, -1.0], now_T=now, reference_T=same, lengths=[1, 1]
    )
    policy_loss(tokens, GRPOConfig(ratio=ratio, kl_coef=0.0))[0].backward()
    assert now.grad.tolist() == [-1.0, 1.0]


def test_the_entropy_bonus_lowers_the_loss():
    more = torch.tensor([0.5], dtype=torch.float64)
    tokens = tokens_of([-1.0], [-1.0], [0.0], entropy_T=more)
    assert policy_loss(tokens, GRPOConfig(entropy_coef=0.2))[0].item() == pytest.approx(-0.1)


@pytest.mark.parametrize("ratio", ["token", "sequence", "clipped_weight"])
def test_a_micro_batch_without_tokens_costs_nothing_but_has_a_gradient(ratio):
    now = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    tokens = tokens_of([], [], [], now_T=now)
    config = GRPOConfig(ratio=ratio, sequence_band=1.1, tis_cap=2.0)
    loss, sums, largest = policy_loss(tokens, config)
    loss.backward()
    assert loss.item() == 0
    assert {value.item() for value in (*sums.values(), *largest.values())} == {0}
    assert now.grad.shape == (0,)


def test_a_missing_reference_is_refused():
    tokens = tokens_of([-1.0], [-1.0], [1.0], reference_T=None)
    with pytest.raises(DataError, match="expected reference log-probabilities"):
        policy_loss(tokens, GRPOConfig())
    for config in (GRPOConfig(kl="none"), GRPOConfig(kl_in="reward")):
        assert "kl" not in policy_loss(tokens, config)[1]


def test_tokens_that_do_not_fit_the_traces_are_refused():
    with pytest.raises(DataError, match="behaviour: expected one value for each of 1 tokens"):
        tokens_of([-1.0], [-1.0, -1.0], [1.0])
    with pytest.raises(DataError, match="at least one token per trace"):
        tokens_of([-1.0], [-1.0], [1.0], lengths=[1, 0])


PAIRS = st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=20)


@given(PAIRS)
@example([(-9.5e-17, 0.0)])
def test_kl_estimates_by_token(pairs):
    now, reference = torch.tensor(pairs, dtype=torch.float64).T
    k1, k2, k3 = (kl_estimate(now, reference, kind) for kind in ("k1", "k2", "k3"))
    torch.testing.assert_close(k1, now - reference)
    torch.testing.assert_close(k2, k1**2 / 2)
    assert (k3 >= 0).all()
    assert (kl_estimate(now, now, "k3") == 0).all()


def test_k1_and_k3_are_unbiased():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    initial = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    kl = (policy * (policy / initial).log()).sum()
    for kind in ("k1", "k3"):
        expected = (policy * kl_estimate(policy.log(), initial.log(), kind)).sum()
        torch.testing.assert_close(expected, kl)


def test_an_unknown_estimate_is_refused():
    with pytest.raises(DataError, match="expected k1, k2 or k3, found 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


@pytest.mark.parametrize(
    ("loss_mean", "weight"), [("token", 1.0), ("sequence", 0.25), ("sequence_constant", 1.0)]
)
def test_weights_of_the_means(loss_mean, weight):
    assert token_weight(4, loss_mean=loss_mean) == weight
