"""One optimiser step of each objective: in plain PyTorch, with the learner's parts, by the learner.

All take the same samples in the same micro-batches, from the same weights.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from configs.learner import GRPOConfig, LearnerConfig
from data.model.chat import ChatEncoder
from data.types import Content, ContrastPair, Kind, Picture, TrainSample
from learner.micro_batches import MiniBatch
from learner.objectives import ContrastiveObjective, PolicyObjective, SupervisedObjective
from learner.rank.batching import Row, collate, process_pictures, train_row
from learner.rank.contrastive import Temperature, info_nce
from learner.rank.models import EmbeddingHead, TokenHead, load_model, model_tokens
from learner.rank.policy_loss import kl_estimate, policy_loss
from learner.rank.policy_tokens import policy_tokens
from learner.rank.sft import supervised_loss
from tests.gpu.sizes import Sequence, Size

Task = Literal["policy", "supervised", "contrastive"]
GRPO = GRPOConfig()
TEMPERATURE = 0.05
"""Of the contrastive loss."""
WORDS = ("what", "color", "is", "the", "circle", "square", "triangle", "green", "blue", "yellow")
MIX = ("text", "text", "text", "image", "image", "images", "page", "video")
"""Kinds of input, over and over."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every loop trains on."""

    folder: str
    size: Size
    device: torch.device
    encoder: ChatEncoder
    learner: LearnerConfig
    pictures: dict[str, np.ndarray]
    samples: list[TrainSample]
    pairs: list[ContrastPair]

    def micro_batches(self) -> list[list[TrainSample]]:
        """Return the samples, longest first, cut where the padded tokens exceed the budget."""
        rows = sorted(self.samples, key=lambda one: -len(train_row(one).ids))
        return _cut(rows, [len(train_row(one).ids) for one in rows], self.size.micro_batch_tokens)

    def contents(self) -> list[Content]:
        """Return queries, targets and hard negatives of the contrastive batch, in this order."""
        negatives = [content for pair in self.pairs for content in pair.negatives]
        return [*(p.query for p in self.pairs), *(p.target for p in self.pairs), *negatives]

    def sequences(self, task: Task) -> list[Sequence]:
        """Return what a step makes the model compute."""
        if task == "contrastive":
            embedded = [(c, self.encoder.embed(c, self.pictures)) for c in self.contents()]
            return [Sequence(len(p.expanded), 0, self._patches(c)) for c, p in embedded]
        return [
            Sequence(len(train_row(s).ids), len(s.response_ids), self._patches(s.content))
            for s in self.samples
        ]

    def _patches(self, content: Content) -> tuple[int, ...]:
        shown = [part for part in content if isinstance(part, Picture)]
        grids = process_pictures(shown, self.pictures, self.encoder)
        return tuple(int(np.prod(grids[picture].grid)) for picture in shown)


def build_work(
    folder: str, size: Size, encoder: ChatEncoder, learner: LearnerConfig, device: torch.device
) -> Work:
    """Return random samples and pairs of every kind of input."""
    rng = np.random.default_rng(0)
    vocabulary = size.text.get("vocab_size", len(encoder.tokenizer))
    allowed = np.setdiff1d(np.arange(vocabulary), encoder.banned_ids())
    pictures: dict[str, np.ndarray] = {}

    def draw(kind: str) -> Content:
        count = {"text": 0, "images": 3, "video": size.frames}.get(kind, 1)
        side = size.frame_side if kind == "video" else size.picture_side
        shown = {"page": Kind.PAGE, "video": Kind.VIDEO}.get(kind, Kind.IMAGE)
        names = [f"{kind}-{len(pictures) + index}" for index in range(count)]
        for name in names:
            pictures[name] = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        words = rng.choice(WORDS, int(rng.integers(*size.prompt_words)))
        return (*(Picture(name, shown) for name in names), " ".join(words))

    samples = []
    for index in range(size.traces):
        content = draw(MIX[index % len(MIX)])
        ids = rng.choice(allowed, int(rng.integers(*size.response_tokens)))
        samples.append(
            TrainSample(
                key=f"s{index}",
                content=content,
                prompt_ids=np.array(encoder.encode(content, pictures).expanded),
                response_ids=ids,
                advantage=float(rng.normal()),
                logprobs=rng.normal(-np.log(vocabulary), 0.1, len(ids)).astype(np.float32),
            )
        )
    pairs = [
        ContrastPair(
            query=draw(MIX[index % len(MIX)]),
            target=draw(MIX[-1 - index % len(MIX)]),
            target_key=f"t{index // 2}",
            negatives=(draw("image"),) if index % 2 else (),
        )
        for index in range(size.pairs)
    ]
    return Work(
        folder=folder,
        size=size,
        device=device,
        encoder=encoder,
        learner=learner,
        pictures=pictures,
        samples=samples,
        pairs=pairs,
    )


class Masters:
    """AdamW on float32 copies of the parameters, as ZeRO keeps them."""

    def __init__(self, net: nn.Module, learner: LearnerConfig) -> None:
        self._params = [param for param in net.parameters() if param.requires_grad]
        self._copies = [param.detach().float() for param in self._params]
        self._clip = learner.optimizer.grad_clip
        self._adamw = torch.optim.AdamW(
            self._copies, lr=learner.optimizer.lr, weight_decay=0.0, fused=True
        )

    def step(self) -> None:
        """Apply the gradients and drop them."""
        for copy, param in zip(self._copies, self._params, strict=True):
            copy.grad = torch.zeros_like(copy) if param.grad is None else param.grad.float()
            param.grad = None
        torch.nn.utils.clip_grad_norm_(self._copies, self._clip)
        self._adamw.step()
        with torch.no_grad():
            torch._foreach_copy_(self._params, self._copies)
        self._adamw.zero_grad()


class PlainLoop:
    """Plain transformers and PyTorch: all logits of the responses at once, all graphs kept."""

    name = "bare PyTorch"

    def __init__(self, work: Work, task: Task) -> None:
        self.work = work
        self.net = load_model(work.folder, work.learner).to(work.device)
        self.reference = None
        if task == "policy":
            frozen = load_model(work.folder, work.learner).to(work.device)
            self.reference = frozen.requires_grad_(False).eval()
        self._optimizer = Masters(self.net, work.learner)
        self._banned = torch.tensor(work.encoder.banned_ids(), device=work.device)
        self._loss = {
            "policy": lambda: self._by_token(self.policy_term),
            "supervised": lambda: self._by_token(self.supervised_term),
            "contrastive": self.contrastive,
        }[task]

    def step(self) -> float:
        """Take one optimiser step and return its loss."""
        loss = self._loss()
        self._optimizer.step()
        return loss

    def _by_token(self, term: Any) -> float:
        total = sum(len(sample.response_ids) for sample in self.work.samples)
        loss = 0.0
        for samples in self.work.micro_batches():
            part = term(samples) / total
            part.backward()
            loss += part.item()
        return loss

    def policy_term(self, samples: Rows[TrainSample]) -> Tensor:
        """Return the summed clipped surrogate with k3 to the reference."""
        now_T = self._logprobs(self.net, samples, banned=True)
        with torch.no_grad():
            reference_T = self._logprobs(self.reference, samples, banned=True)
        behaviour_T = torch.from_numpy(np.concatenate([s.logprobs for s in samples])).to(now_T)
        advantages = [np.full(len(s.response_ids), s.advantage) for s in samples]
        advantages_T = torch.from_numpy(np.concatenate(advantages)).to(now_T)
        ratio_T = torch.exp(now_T - behaviour_T)
        clipped_T = ratio_T.clamp(1 - GRPO.clip_low, 1 + GRPO.clip_high)
        gain_T = torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)
        return (GRPO.kl_coef * kl_estimate(now_T, reference_T, GRPO.kl) - gain_T).sum()

    def supervised_term(self, samples: Rows[TrainSample]) -> Tensor:
        """Return the summed negative log-likelihood."""
        return -self._logprobs(self.net, samples, banned=False).sum()

    def contrastive(self) -> float:
        """Add the gradient of the symmetric InfoNCE and return the loss."""
        contents = self.work.contents()
        ids = [self.work.encoder.embed(c, self.work.pictures).expanded for c in contents]
        parts, index = [], []
        for some in self._embed_plan(ids):
            hidden = self._hidden(self.net, [np.array(ids[i]) for i in some],
                                  [contents[i] for i in some])  # fmt: skip
            ends = torch.tensor([len(ids[i]) - 1 for i in some], device=hidden.device)
            parts.append(hidden[torch.arange(len(some), device=hidden.device), ends].float())
            index += some
        order = torch.tensor(index, device=self.work.device).argsort()
        vectors_ND = nn.functional.normalize(torch.cat(parts)[order], dim=-1)
        pairs = self.work.pairs
        count = len(pairs)
        scores = vectors_ND[:count] @ vectors_ND[count:].T / TEMPERATURE
        owners = [i for i, pair in enumerate(pairs) for _ in pair.negatives]
        shut = torch.zeros_like(scores, dtype=torch.bool)
        for i, pair in enumerate(pairs):
            shut[i, :count] = torch.tensor(
                [j != i and other.target_key == pair.target_key for j, other in enumerate(pairs)]
            )
            shut[i, count:] = torch.tensor([owner != i for owner in owners])
        scores = scores.masked_fill(shut, -1e9)
        labels = torch.arange(count, device=scores.device)
        forward = nn.functional.cross_entropy(scores, labels)
        backward = nn.functional.cross_entropy(scores[:, :count].T, labels)
        loss = (forward + backward) / 2
        loss.backward()
        return loss.item()

    def _embed_plan(self, ids: Rows[Rows[int]]) -> list[list[int]]:
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        return _cut(order, [len(ids[i]) for i in order], self.work.size.micro_batch_tokens)

    def _logprobs(self, net: nn.Module, samples: Rows[TrainSample], *, banned: bool) -> Tensor:
        rows = [train_row(sample) for sample in samples]
        hidden = self._hidden(net, [row.ids for row in rows], [s.content for s in samples])
        logits = [
            hidden[i, len(row.ids) - row.num_response - 1 : len(row.ids) - 1]
            for i, row in enumerate(rows)
        ]
        logits_TV = net.get_output_embeddings()(torch.cat(logits)).float()
        if banned:
            logits_TV = logits_TV.index_fill(1, self._banned, -1e9)
        targets = np.concatenate([sample.response_ids for sample in samples])
        targets_T = torch.from_numpy(targets).to(logits_TV.device)
        return torch.log_softmax(logits_TV, -1).gather(1, targets_T[:, None])[:, 0]

    def _hidden(self, net: nn.Module, rows: Rows[np.ndarray], contents: Rows[Content]) -> Tensor:
        """Return the last hidden states of rows padded on the right, [B, L, D]."""
        encoder, device = self.work.encoder, self.work.device
        length = max(map(len, rows))
        ids = np.stack([np.pad(row, (0, length - len(row))) for row in rows])
        mask = np.stack([np.arange(length) < len(row) for row in rows])
        inputs = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "mm_token_type_ids": torch.from_numpy(ids == encoder.image_token_id).long(),
        }
        images = [i for c in contents for i in encoder.encode(c, self.work.pictures).images]
        if images:
            inputs |= encoder.pixels(images)
        moved = {name: tensor.to(device) for name, tensor in inputs.items()}
        return net.base_model(**moved, use_cache=False).last_hidden_state


class PartsLoop(PlainLoop):
    """The learner's collation, heads and losses, without DeepSpeed."""

    name = "learner's parts, no DeepSpeed"

    def __init__(self, work: Work, task: Task) -> None:
        super().__init__(work, task)
        self.head: nn.Module = TokenHead(self.net)
        if task == "contrastive":
            self.head = EmbeddingHead(self.net, Temperature(TEMPERATURE, learned=False))
        self._initial = None if self.reference is None else TokenHead(self.reference)
        self._tokens = model_tokens(self.net, work.encoder.tokenizer)

    def policy_term(self, samples: Rows[TrainSample]) -> Tensor:
        now_T, entropy_T, _ = self.score(self.head, samples, banned=self._banned)
        with torch.no_grad():
            reference_T, _, _ = self.score(self._initial, samples, banned=self._banned)
        tokens = policy_tokens(samples, now_T, entropy_T, reference_T, loss_mean=GRPO.loss_mean)
        return policy_loss(tokens, GRPO)[0]

    def supervised_term(self, samples: Rows[TrainSample]) -> Tensor:
        logprobs_T, _, correct_T = self.score(self.head, samples)
        return supervised_loss(logprobs_T, correct_T)[0]

    def score(
        self, head: nn.Module, samples: Rows[TrainSample], **settings: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the head gives to a micro-batch."""
        return head(self._collate([train_row(sample) for sample in samples]), **settings)

    def contrastive(self) -> float:
        """In two passes, as the learner does it beyond one micro-batch."""
        rows = [
            Row(
                key=str(index),
                ids=np.array(self.work.encoder.embed(content, self.work.pictures).expanded),
                pictures=tuple(part for part in content if isinstance(part, Picture)),
            )
            for index, content in enumerate(self.work.contents())
        ]
        plan = self._embed_plan([row.ids for row in rows])
        batches = [self._collate([rows[i] for i in some]) for some in plan]
        with torch.no_grad():
            found = [self.head(batch) for batch in batches]
        made = torch.cat([vectors for vectors, _ in found])
        vectors_ND = torch.empty_like(made)
        vectors_ND[torch.tensor([i for some in plan for i in some], device=made.device)] = made
        vectors_ND.requires_grad_()
        count = len(self.work.pairs)
        owners = [i for i, pair in enumerate(self.work.pairs) for _ in pair.negatives]
        keys = torch.tensor([int(p.target_key[1:]) for p in self.work.pairs], device=made.device)
        loss, _ = info_nce(
            vectors_ND[:count],
            vectors_ND[count : 2 * count],
            vectors_ND[2 * count :],
            right_BB=(keys[:, None] == keys).fill_diagonal_(False),
            owners_K=torch.tensor(owners, device=made.device),
            temperature=found[0][1],
        )
        loss.backward()
        for some, batch in zip(plan, batches, strict=True):
            (self.head(batch)[0] * vectors_ND.grad[some]).sum().backward()
        return loss.item()

    def _collate(self, rows: list[Row]) -> Any:
        wanted = (picture for row in rows for picture in row.pictures)
        patches = process_pictures(wanted, self.work.pictures, self.work.encoder)
        return collate(rows, patches, self._tokens).to(self.work.device)


class LearnerLoop:
    """One rank of the learner as jobs run it, on DeepSpeed; all loops share its process group."""

    name = "learner on DeepSpeed"
    _worker: Any = None

    def __init__(self, work: Work, task: Task) -> None:
        # Here and not above: not every machine has DeepSpeed.
        from learner.objectives import LearnerPlan
        from learner.rank.worker import LearnerWorker

        if self._worker is None:
            worker = LearnerWorker(0, 1)
            port = worker.open_rendezvous("127.0.0.1", work.learner.timeout_s)
            worker.join("127.0.0.1", port, work.learner.timeout_s)
            LearnerLoop._worker = worker
        objective = {
            "policy": PolicyObjective(reference=work.folder, grpo=GRPO, max_tokens=1024),
            "supervised": SupervisedObjective(),
            "contrastive": ContrastiveObjective(temperature=TEMPERATURE),
        }[task]
        self._worker.build(
            LearnerPlan(
                model=work.folder,
                objective=objective,
                learner=work.learner,
                media=work.size.media,
                steps=100,
            )
        )
        micro, tokens = work.micro_batches(), sum(len(s.response_ids) for s in work.samples)
        self._step = {
            "policy": lambda: self._worker.train_policy(
                [
                    MiniBatch(
                        micro_batches=micro, total_tokens=tokens, total_traces=len(work.samples)
                    )
                ],
                work.pictures,
            ).metrics["policy/loss"],
            "supervised": lambda: self._worker.train_supervised(
                micro, work.pictures, total_tokens=tokens
            ).metrics["supervised/loss"],
            "contrastive": lambda: self._worker.train_contrastive(
                work.pairs, work.pictures
            ).metrics["contrast/loss"],
        }[task]

    def step(self) -> float:
        """Take one optimiser step and return its loss."""
        return self._step()

    @classmethod
    def close(cls) -> None:
        """Let go of the last engine."""
        cls._worker = None


def _cut(rows: Rows[Any], lengths: Rows[int], budget: int) -> list[list[Any]]:
    """Return runs of rows, longest first, whose padded tokens stay within the budget."""
    runs: list[list[Any]] = []
    longest = 0
    for row, length in zip(rows, lengths, strict=True):
        if not runs or (len(runs[-1]) + 1) * longest > budget:
            runs.append([])
            longest = length
        runs[-1].append(row)
    return runs
