"""Named sets of settings: what a publication chose.

A preset sets every key of its objective. So no default of these keys stays in effect and, if the
command line names the preset, no value of the YAML file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_PUBLISHED_REWARD: dict[str, Any] = {
    "format_weight": 0.05,
    "temperature": 0.5,
    "judge": {"answer": "choice", "positives": "all", "negatives": 4},
    "gain_weight": 0.0,
    "length_weight": 0.0,
    "length_budget": 0,
    "gate_by_format": False,
    "bank": {"recent": 0, "hard": 0, "capacity": 0},
    "false_negative_similarity": 1.0,
}
_PLAIN_OBJECTIVE: dict[str, Any] = {
    "advantage": "group_norm",
    "std_floor": 1e-6,
    "min_spread": 1e-6,
    "refill": 0,
    "replay_groups": 0,
    "replay_age": 4,
    "overlong_penalty": 0.0,
    "overlong_share": 0.2,
    "loss_mean": "token",
    "ratio": "token",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": 0.0,
    "kl": "none",
    "kl_in": "loss",
    "kl_coef": 0.01,  # for who adds a KL; the preset itself has none
    "entropy_coef": 0.0,
    "query_weight": 1.0,
    "target_weight": 1.0,
    "tis_cap": 0.0,
    "sequence_band": 0.0,
    # How many updates a publication takes depends on the size of its batches.
    "updates_per_step": 1,
}
"""What a published objective sets where its publication says nothing else."""
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Both need judge.model. They differ from the original where it guesses: a judge without a
    # usable answer drops the trace. What the Embedder reads (evidence,
    # pooling) is no part of the formula.
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
        # The published code of Embed-RL: 64 prompts a step, mini-batches
        # of 32. Its policy loss is verl's, with dual clip.
        "embed_rl": {
            **_PLAIN_OBJECTIVE,
            "advantage": "group_norm",
            "loss_mean": "token",
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "dual_clip": 3.0,
            "kl": "k3",
            "kl_in": "loss",
            "kl_coef": 0.01,
            "updates_per_step": 2,
        },
        # DeepSeekMath (Shao et al., 2024): mean over each trace, then over traces; k3 in the loss.
        "grpo": {
            **_PLAIN_OBJECTIVE,
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
            **_PLAIN_OBJECTIVE,
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
            **_PLAIN_OBJECTIVE,
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
            **_PLAIN_OBJECTIVE,
            "advantage": "group_norm",
            "loss_mean": "sequence",
            "ratio": "sequence",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "kl": "none",
        },
        # MiniMax-M1 (2025): no lower bound. The upper one is of ScaleRL (Khatri et al., 2025).
        "cispo": {
            **_PLAIN_OBJECTIVE,
            "advantage": "group_norm",
            "loss_mean": "token",
            "ratio": "clipped_weight",
            "clip_low": 1.0,
            "clip_high": 4.0,
            "kl": "none",
        },
        # Ahmadian et al., 2024 (Back to basics): REINFORCE on whole traces, KL in the reward.
        # Published on-policy, where every weight is 1; the bound is ours, and the KL's weight.
        "rloo": {
            **_PLAIN_OBJECTIVE,
            "advantage": "leave_one_out",
            "loss_mean": "sequence_constant",
            "ratio": "clipped_weight",
            "clip_low": 1.0,
            "clip_high": 1.0,
            "kl": "k1",
            "kl_in": "reward",
            "kl_coef": 0.01,
        },
        # Hu et al., 2025 (REINFORCE++), the variant with baseline. The KL's weight is ours.
        "reinforce_pp": {
            **_PLAIN_OBJECTIVE,
            "advantage": "batch_norm",
            "loss_mean": "token",
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": "k2",
            "kl_in": "loss",
            "kl_coef": 0.01,
        },
    },
}
"""Values by section and name; a section asks for one with its key `preset`."""


def with_presets(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return trees of settings, later ones winning, with the presets that they name.

    ``parts`` are by origin: the file's tree, then the command line's. A file's preset lies under
    the file, a preset of the command line over the file and under all of the command line. The last
    name that the command line gives counts, and takes the place of the file's. An unknown name adds
    nothing: the key itself is refused where it stands.
    """
    (origin, file), *overrides = parts.items()
    under: dict[str, Any] = {}
    over: dict[str, Any] = {}
    for section in PRESETS:
        asked = _last_name(section, [tree for _, tree in overrides])
        if asked is None:
            under |= _layer(section, _last_name(section, [file]))
        else:
            over |= _layer(section, asked)
    return {**under, origin: file, **over, **dict(overrides)}


def _last_name(section: str, trees: Sequence[Mapping[str, Any]]) -> Any:
    """Return what the trees give last for a section's preset; None where none gives anything."""
    keys = [tree[section] for tree in trees if isinstance(tree.get(section), dict)]
    return next((settings["preset"] for settings in reversed(keys) if "preset" in settings), None)


def _layer(section: str, name: Any) -> dict[str, Any]:
    """Return a preset's tree by its origin; none where the name is not known."""
    if not isinstance(name, str) or name not in PRESETS[section]:
        return {}
    return {f"preset {section}.preset={name}": {section: PRESETS[section][name]}}
