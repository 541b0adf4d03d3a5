"""Every objective through a transformer of two layers in float64.

The learner's way, padded micro-batches through its heads, against each sequence alone in plain
loops: the loss, and its gradient by finite differences along a random direction of every tensor.
GPT-2, because the norms of newer models compute in float32 whatever the model's precision.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from configs.learner import GRPOConfig
from configs.presets import PRESETS
from data.types import GroupKey, Side, TrainSample, TrajectoryKey
from learner.objectives import PolicyObjective
from learner.rank.batching import Row, TextTokens, collate, train_row
from learner.rank.contrastive import Temperature, info_nce
from learner.rank.models import EmbeddingHead, TokenHead
from learner.rank.policy_loss import policy_loss
from learner.rank.policy_tokens import policy_tokens
from learner.rank.sft import supervised_loss
from tests.unit.learner.rank.objective import Scored, Trace, slow_trace

VOCABULARY, MAX_TOKENS, TEMPERATURE = 11, 8, 0.7
PAD, BANNED = TextTokens(pad=0), torch.tensor([0, 3])
SPLIT = [slice(0, 3), slice(3, 3), slice(3, None)]
"""Ragged micro-batches, one of them empty."""
STEP = 1e-6

POLICIES = {
    **{name: GRPOConfig(preset=name, **settings) for name, settings in PRESETS["grpo"].items()},
    "k1 in loss": GRPOConfig(kl="k1", kl_coef=0.5),
    "all corrections": GRPOConfig(
        kl="k2", entropy_coef=0.2, tis_cap=1.1, sequence_band=1.3, loss_mean="sequence"
    ),
}


def model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=8,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config).double()


def prompts(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, VOCABULARY, int(rng.integers(1, 6))) for _ in range(count)]


@torch.no_grad()
def alone(net: GPT2LMHeadModel, sample: TrainSample, *, temperature: float = 1.0) -> Scored:
    """Return log-probabilities and entropies of one response by plain transformers."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]))
    hidden = net.base_model(input_ids=ids[None]).last_hidden_state[0]
    words = net.get_output_embeddings().weight
    logits = hidden[len(sample.prompt_ids) - 1 : -1] @ words.T / temperature
    if temperature != 1.0:  # as sampled from
        logits[:, BANNED] = -1e9
    rows = torch.log_softmax(logits, -1)
    picked = rows[torch.arange(len(rows)), torch.from_numpy(sample.response_ids)]
    return picked.tolist(), (-(rows.exp() * rows).sum(-1)).tolist()


def samples(net: GPT2LMHeadModel, config: GRPOConfig) -> list[TrainSample]:
    """Return traces with advantages; the behaviour is away, every other one is of an old version.

    The advantages are any numbers here: `test_losses.py` makes them from rewards.
    """
    rng = np.random.default_rng(1)
    found = []
    for index, prompt in enumerate(prompts(6)):
        key = TrajectoryKey(GroupKey(index // 2, "p", Side.QUERY), index % 2)
        ids = rng.integers(4, VOCABULARY, int(rng.integers(1, MAX_TOKENS)))
        bare = TrainSample(key=str(key), content=(), prompt_ids=prompt, response_ids=ids)
        now = np.array(alone(net, bare, temperature=TEMPERATURE)[0])
        behaviour = now + min(2 * config.clip_high, 1.5) * rng.normal(size=len(ids))
        old = behaviour + 0.1 * rng.normal(size=len(ids)) if index % 2 else None
        found.append(
            TrainSample(
                key=str(key),
                content=(),
                prompt_ids=prompt,
                response_ids=ids,
                advantage=float(rng.normal()),
                weight=config.query_weight,
                logprobs=behaviour,
                old_logprobs=old,
            )
        )
    return found


def check(net: GPT2LMHeadModel, loss: Tensor, slow: Callable[[], float]) -> None:
    """Hold a loss and its gradient against ``slow``, in every tensor of the model."""
    assert loss.item() == pytest.approx(slow(), abs=1e-9)
    loss.backward()
    generator = torch.Generator().manual_seed(0)
    moved = []
    for name, param in net.named_parameters():
        way = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                param.add_(sign * STEP * way)
                ends.append(slow())
                param.sub_(sign * STEP * way)
        found = (param.grad * way).sum().item()
        assert found == pytest.approx((ends[0] - ends[1]) / (2 * STEP), abs=1e-6), name
        moved.append(abs(found))
    assert len(moved) == 28
    assert np.median(moved) > 1e-4


@pytest.mark.parametrize("name", POLICIES)
def test_policy_gradients_match_finite_differences(name):
    config = POLICIES[name]
    net, initial = model(0), model(1)
    head, reference = TokenHead(net), TokenHead(initial)
    rows = samples(net, config)
    objective = PolicyObjective(reference="", grpo=config, max_tokens=MAX_TOKENS)
    total = objective.total(tokens=sum(len(r.response_ids) for r in rows), traces=len(rows))
    score = {"banned": BANNED, "temperature": TEMPERATURE}

    def term(some: list[TrainSample]) -> Tensor:
        batch = collate([train_row(sample) for sample in some], {}, PAD)
        with torch.no_grad():
            reference_T = reference(batch, **score)[0] if objective.reference_in_loss else None
        now_T, entropy_T, _ = head(batch, **score, entropy_gradient=config.entropy_coef > 0)
        tokens = policy_tokens(some, now_T, entropy_T, reference_T, loss_mean=config.loss_mean)
        return policy_loss(tokens, config)[0]

    # What carries no gradient (see `Example.finite_differences`) stays as it is before the step.
    constants = [
        tuple(alone(one, row, temperature=TEMPERATURE)[0] for one in (net, initial)) for row in rows
    ]

    def slow() -> float:
        loss = 0.0
        for row, fixed in zip(rows, constants, strict=True):
            trace = Trace(
                row.key, torch.empty(0), row.response_ids, 0.0, row.logprobs, row.old_logprobs
            )
            now = alone(net, row, temperature=TEMPERATURE)
            loss += row.weight * slow_trace(trace, row.advantage, now, fixed, config)
        return loss / total

    check(net, sum(term(rows[part]) for part in SPLIT) / total, slow)


def test_supervised_gradients_match_finite_differences():
    net = model(0)
    head = TokenHead(net)
    rows = samples(net, GRPOConfig())
    total = sum(len(row.response_ids) for row in rows)

    def term(some: list[TrainSample]) -> Tensor:
        logprobs_T, _, correct_T = head(collate([train_row(sample) for sample in some], {}, PAD))
        return supervised_loss(logprobs_T, correct_T)[0]

    check(
        net,
        sum(term(rows[part]) for part in SPLIT) / total,
        lambda: -sum(sum(alone(net, row)[0]) for row in rows) / total,
    )


KEYS = ["a", "b", "a", "c"]
OWNERS = [1, 1, 3]
"""Rows of the hard negatives."""
TWINS = torch.tensor([[a == b and i != j for j, b in enumerate(KEYS)] for i, a in enumerate(KEYS)])


def slow_info_nce(
    queries: list[Tensor], targets: list[Tensor], negatives: list[Tensor], *, temperature: float
) -> float:
    """Return the symmetric loss with its masks, one similarity at a time."""

    def score(one: Tensor, other: Tensor) -> float:
        return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True)) / temperature

    loss = 0.0
    for row, key in enumerate(KEYS):
        others = [i for i, other in enumerate(KEYS) if i != row and other != key]
        own = score(queries[row], targets[row])
        forward = [score(queries[row], targets[i]) for i in others]
        forward += [
            score(queries[row], one)
            for one, owner in zip(negatives, OWNERS, strict=True)
            if owner == row
        ]
        backward = [score(queries[i], targets[row]) for i in others]
        for wrong in (forward, backward):
            loss += math.log(sum(math.exp(s) for s in (own, *wrong))) - own
    return loss / (2 * len(KEYS))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrastive_gradients_match_finite_differences(temperature):
    net = model(0)
    head, count = EmbeddingHead(net, Temperature(temperature, learned=False)), len(KEYS)
    rows = [
        Row(key=str(index), ids=ids, pictures=())
        for index, ids in enumerate(prompts(2 * count + len(OWNERS)))
    ]

    def vector(row: Row) -> Tensor:
        with torch.no_grad():
            hidden = net.transformer(input_ids=torch.from_numpy(row.ids)[None]).last_hidden_state
        return hidden[0, -1] / hidden[0, -1].norm()

    def slow() -> float:
        made = [vector(row) for row in rows]
        return slow_info_nce(
            made[:count], made[count : 2 * count], made[2 * count :], temperature=temperature
        )

    made, heats = zip(*(head(collate(rows[part], {}, PAD)) for part in SPLIT), strict=True)
    made_ND = torch.cat(made)
    loss, _ = info_nce(
        made_ND[:count],
        made_ND[count : 2 * count],
        made_ND[2 * count :],
        right_BB=TWINS,
        owners_K=torch.tensor(OWNERS),
        temperature=heats[0],
    )
    check(net, loss, slow)
