"""InfoNCE: its masks, its temperature, and that neither ranks nor micro-batches change it."""

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from configs.learner import TEMPERATURES
from data.types import ContrastPair
from learner.objectives import ContrastiveObjective
from learner.rank.batching import Batch
from learner.rank.contrastive import (
    Temperature,
    accumulate_contrast,
    info_nce,
    leading,
    mark_right,
)

NONE_KD = torch.zeros(0, 3)
NO_OWNER = torch.zeros(0, dtype=torch.int64)
WIDTH = 5


def unit(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def marked(keys: str, known: tuple[tuple[int, str], ...] = ()) -> torch.Tensor:
    """Return `mark_right` of targets that are named by letters, and of (row, target) besides."""
    rows = torch.tensor([row for row, _ in known], dtype=torch.int64)
    numbers = [torch.tensor([ord(key) for key in some], dtype=torch.int64)
               for some in (keys, [key for _, key in known])]  # fmt: skip
    return mark_right(numbers[0], rows, numbers[1])


def loss_of(queries, targets, keys, negatives=None, owners=NO_OWNER, temperature=0.1):
    return info_nce(
        queries,
        targets,
        NONE_KD.to(queries.dtype) if negatives is None else negatives,
        right_BB=marked(keys),
        owners_K=owners,
        temperature=torch.tensor([temperature], dtype=queries.dtype),
    )


def test_hand_worked_pair_of_rows():
    vectors = torch.eye(2, 3)
    loss, accuracy = loss_of(vectors, vectors, "ab", temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert accuracy.item() == 1.0


def test_equal_keys_are_no_negatives_in_either_direction():
    queries, targets = unit(3, 0), unit(3, 1)
    loss, _ = loss_of(queries, targets, "aab")
    expected = 0.0
    for scores in (queries @ targets.T / 0.1, targets @ queries.T / 0.1):
        for row, columns in ((0, [0, 2]), (1, [1, 2]), (2, [0, 1, 2])):
            expected -= (scores[row, row] - torch.logsumexp(scores[row, columns], 0)).item()
    assert loss.item() == pytest.approx(expected / 6)


def test_all_keys_equal_leave_nothing_to_learn():
    loss, _ = loss_of(unit(4, 0), unit(4, 1), "aaaa")
    assert loss.item() == 0


def test_a_hard_negative_stands_against_its_owner_only():
    queries, targets, negatives = unit(2, 0), unit(2, 1), unit(1, 2)
    owners = torch.tensor([1])
    queries.requires_grad_()
    with_hard, _ = loss_of(queries, targets, "ab", negatives, owners)
    without, _ = loss_of(queries, targets, "ab")
    change = torch.autograd.grad(with_hard - without, queries)[0]
    assert with_hard > without
    assert change[0].abs().max() < 1e-12
    assert change[1].abs().max() > 0


def test_swapping_the_sides_gives_the_same_loss():
    queries, targets = unit(5, 0), unit(5, 1)
    keys = "abacd"
    assert loss_of(queries, targets, keys)[0].item() == pytest.approx(
        loss_of(targets, queries, keys)[0].item()
    )


def test_targets_known_to_be_right_for_a_query_are_no_negatives_of_it_alone():
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = True  # the same target
    expected[3, 0] = expected[3, 2] = True  # known of the query of 3, not of theirs
    assert torch.equal(marked("abacd", known=((3, "a"), (4, "d"))), expected)


def test_no_rows_have_nothing_right():
    assert marked("").shape == (0, 0)


def test_leading_dimensions_are_unit_vectors_again_and_whole_ones_stay_as_they_are():
    vectors = unit(4, 0)
    cut = leading(vectors, 2)
    assert torch.allclose(cut.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(cut[:, 0] / cut[:, 1], vectors[:, 0] / vectors[:, 1])
    assert leading(vectors, 3) is vectors


@pytest.mark.parametrize("initial", [0.011, 0.02, 0.3, 0.99])
def test_a_learned_temperature_starts_where_it_is_told(initial):
    learned, fixed = (Temperature(initial, learned=learned) for learned in (True, False))
    like = torch.zeros(1, dtype=torch.float64)
    assert learned(like).item() == pytest.approx(initial, rel=1e-5)
    assert fixed(like).item() == initial
    assert list(fixed.parameters()) == []


@pytest.mark.parametrize("push", [-50.0, 50.0])
def test_a_learned_temperature_stays_within_its_bounds(push):
    temperature = Temperature(0.05, learned=True)
    with torch.no_grad():
        temperature.raw.add_(push)
    low, high = TEMPERATURES
    assert low * (1 - 1e-5) <= temperature(torch.zeros(1)).item() <= high


# The whole batch against one rank, two ranks, one pass and two: a small model in float64.


class Head(torch.nn.Module):
    """Embeds features as `EmbeddingHead` embeds tokens."""

    def __init__(self, *, learned: bool, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 6, dtype=torch.float64)
        self.dropout = torch.nn.Dropout(dropout)
        self.second = torch.nn.Linear(6, WIDTH, dtype=torch.float64)
        self.temperature = Temperature(0.2, learned=learned).double()

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.dropout(torch.tanh(self.first(batch.inputs["features"])))
        vectors = torch.nn.functional.normalize(self.second(hidden), dim=-1)
        return vectors, self.temperature(vectors)


class Engine:
    """Gradients by plain autograd; remembers the vectors that it made."""

    def __init__(self, head: Head, step: int) -> None:
        self.head = head
        self.step = step
        self.made: list[torch.Tensor] = []

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        vectors, temperature = self.head(batch)
        self.made.append(vectors.detach())
        return vectors, temperature

    def seed_dropout(self, turn: int) -> None:
        torch.manual_seed(1000 * self.step + turn)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients averaged over the ranks, as DeepSpeed averages them."""
        found = {name: param.grad.clone() for name, param in self.head.named_parameters()}
        for gradient in found.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        return found


@dataclass(frozen=True)
class Case:
    learned: bool
    dimensions: tuple[int, ...]
    micro_batch: int
    """Vectors of one pass."""


CASES = [
    Case(learned, dimensions, micro_batch)
    for learned, dimensions in ((False, ()), (True, (2, 3)))
    for micro_batch in (3, 100)
]


def rows() -> list[ContrastPair]:
    """Seven rows with hard negatives; some share a target or know another row's to be right."""
    plain = [
        ContrastPair(
            query=(f"q{i}",), target=(f"t{i}",), target_key=f"t{i}",
            negatives=tuple((f"n{i}/{j}",) for j in range(count)),
        )
        for i, count in enumerate((0, 1, 0, 2, 0, 0, 1))
    ]  # fmt: skip
    changes = {4: {"target": ("t0",), "target_key": "t0"}, 3: {"right": ("t3", "t2")}}
    changes |= {5: {"right": ("t0", "t6")}, 6: {"right": ("t5",)}}
    return [replace(row, **changes.get(i, {})) for i, row in enumerate(plain)]


def features(contents: list[tuple]) -> torch.Tensor:
    seeds = [zlib.crc32(repr(content).encode()) for content in contents]
    made = [np.random.default_rng(seed).normal(size=4) for seed in seeds]
    return torch.from_numpy(np.array(made).reshape(len(contents), 4))


def make_batch(contents: list[tuple]) -> Batch:
    none = torch.zeros(0, dtype=torch.int64)
    inputs = {"features": features(contents)}
    return Batch(
        inputs=inputs, vision=None, last_B=none, rows_T=none, columns_T=none, targets_T=none
    )


def run(own: list[ContrastPair], case: Case, head: Head, step: int = 1) -> tuple:
    """Return loss, gradients and engine of one step on this rank's rows."""
    contents = [row.query for row in own] + [row.target for row in own]
    contents += [negative for row in own for negative in row.negatives]
    # Not in order, as batches are cut by length; filled up to the other rank's number.
    order = np.random.default_rng(1).permutation(len(contents)).tolist()
    places = [order[i : i + case.micro_batch] for i in range(0, len(order), case.micro_batch)]
    number = torch.tensor(len(places))
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    places += [[] for _ in range(int(number) - len(places))]
    engine = Engine(head, step)
    found = accumulate_contrast(
        engine,
        [make_batch([contents[i] for i in place]) for place in places],
        places,
        own,
        objective=ContrastiveObjective(
            temperature=0.2, learn_temperature=case.learned, dimensions=case.dimensions
        ),
    )
    return found.loss, engine.gradients(), engine


def start(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/{ranks}", rank=rank,
                            world_size=ranks)  # fmt: skip


def run_rank(rank: int, folder: str) -> None:
    """Run all cases on one of two ranks, with 4 and 3 rows, and write what rank 0 finds."""
    torch.set_num_threads(1)
    start(rank, 2, folder)
    found = [run(rows()[rank::2], case, Head(learned=case.learned))[:2] for case in CASES]
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """Loss and gradients of each case on two ranks."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    mp.spawn(run_rank, args=(folder,), nprocs=2)
    return dict(zip(CASES, torch.load(f"{folder}/found.pt"), strict=True))


@pytest.fixture
def one_rank(tmp_path):
    start(0, 1, str(tmp_path))
    yield
    dist.destroy_process_group()


def plain(case: Case) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of the whole batch, term by term, in one graph."""
    head = Head(learned=case.learned)
    batch = rows()

    def is_right(row: ContrastPair, other: ContrastPair) -> bool:
        return other.target_key in {row.target_key, *row.right}

    def vector(content: tuple, size: int) -> torch.Tensor:
        made, _ = head(make_batch([content]))
        return torch.nn.functional.normalize(made[0][:size], dim=0)

    heat = head.temperature(torch.zeros(1, dtype=torch.float64))[0]
    total = torch.zeros((), dtype=torch.float64)
    sizes = (*case.dimensions, WIDTH)
    for size in sizes:
        for i, row in enumerate(batch):
            others = [j for j in range(len(batch)) if j != i and not is_right(row, batch[j])]
            askers = [j for j in range(len(batch)) if j != i and not is_right(batch[j], row)]
            query, target = vector(row.query, size), vector(row.target, size)
            wrong = [batch[j].target for j in others] + list(row.negatives)
            forward = [query @ target, *(query @ vector(one, size) for one in wrong)]
            backward = [target @ query, *(target @ vector(batch[j].query, size) for j in askers)]
            for scores in (forward, backward):
                total = total - torch.log_softmax(torch.stack(scores) / heat, 0)[0]
    loss = total / (2 * len(batch) * len(sizes))
    loss.backward()
    return loss.item(), {name: param.grad for name, param in head.named_parameters()}


def assert_same(found: tuple, expected: tuple) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(found[1][name], gradient, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_of_one_rank_are_those_of_the_plain_batch(case, one_rank):
    assert_same(run(rows(), case, Head(learned=case.learned))[:2], plain(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_of_two_ranks_are_those_of_the_plain_batch(case, on_two_ranks):
    assert_same(on_two_ranks[case], plain(case))


def test_both_passes_see_the_same_dropout_and_steps_do_not(one_rank):
    case = Case(learned=False, dimensions=(), micro_batch=6)
    made = run(rows(), case, Head(learned=False, dropout=0.5), step=1)[2].made
    half = len(made) // 2
    assert half == 3
    for first, second in zip(made[:half], made[half:], strict=True):
        assert torch.equal(first, second)
    again = run(rows(), case, Head(learned=False, dropout=0.5), step=1)[2].made
    other = run(rows(), case, Head(learned=False, dropout=0.5), step=2)[2].made
    still = run(rows(), case, Head(learned=False))[2].made
    assert torch.equal(made[0], again[0])
    assert not torch.equal(made[0], other[0])
    assert not torch.equal(made[0], still[0])
