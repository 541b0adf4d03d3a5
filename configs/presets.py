"""Named sets of settings: what a publication chose, under everything that a file sets itself."""

from collections.abc import Mapping
from typing import Any

_PUBLISHED_REWARD: dict[str, Any] = {
    "format_weight": 0.05,
    "temperature": 0.5,
    "judge": {"answer": "choice", "positives": "all", "negatives": 4},
    "gain_weight": 0.0,
    "length_weight": 0.0,
    "gate_by_format": False,
    "bank": {"recent": 0, "hard": 0},
    "false_negative_similarity": 1.0,
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Both need judge.model. They differ from the original where it guesses: a judge without a
    # usable answer drops the trace (spec, section 1.3).
    "reward": {
        # Sup. B.2, Eq. 3 and 4: 0.05 F + 0.2 Acc m + 0.8 R; Acc asks for all n traces in the top
        # n, R is 1 or 0, the candidates are shuffled.
        "paper": {
            **_PUBLISHED_REWARD,
            "outcome_weight": 0.2,
            "accuracy_weight": 1.0,
            "accuracy": "all",
            "process_weight": 0.8,
            "process_pays": "one",
            "judge": {**_PUBLISHED_REWARD["judge"], "shuffle": True},
        },
        # The published code: 0.05 F + 0.8 (0.5 Acc m) + 0.2 R; Acc is a share, R is m or 0, all n
        # positives come first.
        "code": {
            **_PUBLISHED_REWARD,
            "outcome_weight": 0.8,
            "accuracy_weight": 0.5,
            "accuracy": "share",
            "process_weight": 0.2,
            "process_pays": "margin",
            "judge": {**_PUBLISHED_REWARD["judge"], "shuffle": False},
        },
    },
    "grpo": {
        # DeepSeekMath (Shao et al., 2024): mean over each trace, then over traces; k3 in the loss.
        "grpo": {
            "advantage": "group_norm",
            "loss_mean": "sequence",
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": "k3",
            "kl_in": "loss",
            "kl_coef": 0.04,
        },
        # Liu et al., 2025 (Understanding R1-Zero-like training): no division by spread or length.
        "dr_grpo": {
            "advantage": "mean_only",
            "loss_mean": "sequence_constant",
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": "none",
        },
        # Yu et al., 2025: clip higher, token mean, overlong shaping, no KL, dynamic sampling. The
        # paper samples until a step is full; its published recipes stop after 10 rounds.
        "dapo": {
            "advantage": "group_norm",
            "loss_mean": "token",
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "kl": "none",
            "overlong_penalty": 1.0,
            "overlong_share": 0.2,
            "refill": 9,
        },
        # Zheng et al., 2025 (Group sequence policy optimization).
        "gspo": {
            "advantage": "group_norm",
            "loss_mean": "sequence",
            "ratio": "sequence",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "kl": "none",
        },
        # MiniMax-M1 (2025): no lower bound. The upper one is of ScaleRL (Khatri et al., 2025).
        "cispo": {
            "advantage": "group_norm",
            "loss_mean": "token",
            "ratio": "clipped_weight",
            "clip_low": 1.0,
            "clip_high": 4.0,
            "kl": "none",
        },
        # Ahmadian et al., 2024 (Back to basics): REINFORCE on whole traces, KL in the reward.
        # Published on-policy, where every weight is 1; the bound is ours.
        "rloo": {
            "advantage": "leave_one_out",
            "loss_mean": "sequence_constant",
            "ratio": "clipped_weight",
            "clip_low": 1.0,
            "clip_high": 1.0,
            "kl": "k1",
            "kl_in": "reward",
        },
        # Hu et al., 2025 (REINFORCE++), the variant with baseline.
        "reinforce_pp": {
            "advantage": "batch_norm",
            "loss_mean": "token",
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": "k2",
            "kl_in": "loss",
        },
    },
}
"""Values by section and name; a section asks for one with its key `preset`."""


def with_presets(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return trees of settings, later ones winning, behind those of the presets they name.

    ``parts`` are by origin. The last part that names a section's preset decides which one it is.
    An unknown name adds nothing: the key itself is refused where it stands.
    """
    layers: dict[str, Any] = {}
    for section, table in PRESETS.items():
        trees = [tree[section] for tree in parts.values() if isinstance(tree.get(section), dict)]
        names = [tree["preset"] for tree in trees if "preset" in tree]
        if names and isinstance(names[-1], str) and names[-1] in table:
            layers[f"preset {section}.preset={names[-1]}"] = {section: table[names[-1]]}
    return {**layers, **parts}
