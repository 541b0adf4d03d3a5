"""The README.md of an export: a model card of the Hugging Face hub, made from the run.

It names data sets and models, but no path of the machine: a card is made to be published.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from cluster.run.run_folder import parse_record
from configs.common import DataConfig, DataSetConfig, MediaConfig
from configs.schema import EmbedderConfig, RLConfig
from data.embed_inputs import SUFFIX
from data.model.chat import EMB_TOKEN
from data.model.model_folder import sees_pictures, vector_width
from evaluation.metrics import OVER_SETS

HIT = "eval/hit_at_1"
WITHOUT_TRACE = f"{HIT}_no_trace"
BY_SET = "_by_set/"


def embedder_card(
    config: EmbedderConfig, measured: Mapping[str, float], prompts: Mapping[str, str]
) -> str:
    """Return the card of an Embedder.

    ``measured``: what `train_stage` returned. ``prompts``: instructions by name.
    """
    media, vision = config.data.media, sees_pictures(config.model)
    tags = [
        "sentence-transformers",
        "transformers",
        "embed-rl",
        *(["multimodal"] if vision else []),
    ]
    settings = {
        "steps": f"{measured.get('steps', config.steps):g}",
        "pairs in a step": config.batch,
        "temperature of the loss": f"{config.temperature:g}",
        "learning rate": f"{config.learner.optimizer.lr:g}",
        "hard negatives": config.hard_negatives,
        "share of items without their trace": f"{config.trace_dropout:g}",
        "share of the others without evidence": f"{config.evidence_dropout:g}",
        "seed": config.run.seed,
    }
    return _filled(
        "embedder_card.jinja",
        head=_head(
            config.model,
            config.data,
            model_name=Path(config.run.dir).name,
            library_name="sentence-transformers",
            pipeline_tag="feature-extraction",
            tags=tags,
            eval_results=_results(measured),
        ),
        name=Path(config.run.dir).name,
        base=_name_of(config.model),
        vision=vision,
        media=media,
        width=vector_width(config.model),
        dimensions=config.dimensions,
        prompts=_rows({f"prompt `{name}`": text for name, text in prompts.items()}),
        image_size=_size(media.image_min_pixels, media.image_max_pixels),
        page_size=_size(media.page_min_pixels, media.page_max_pixels),
        suffix=SUFFIX,
        emb=EMB_TOKEN,
        item_tokens=config.data.item_tokens,
        pixels=_pixel_rows(media),
        samples=config.evaluation.samples,
        scores=_score_rows(measured, config.dimensions),
        settings=_rows(_sets(config.data) | settings),
    )


def reasoner_card(config: RLConfig, measured: Mapping[str, float], *, step: int) -> str:
    """Return the card of a Reasoner as it was after ``step``; ``measured``: the metrics of it."""
    vision = sees_pictures(config.reasoner)
    settings = {
        "steps": f"{config.steps}, exported after {step}",
        "pairs in a step, traces of an item": f"{config.pairs}, {config.siblings}",
        "learning rate": f"{config.learner.optimizer.lr:g}",
        "seed": config.run.seed,
        "tokens of an item's own text": config.data.item_tokens,
    }
    return _filled(
        "reasoner_card.jinja",
        head=_head(
            config.reasoner,
            config.data,
            model_name=Path(config.run.dir).name,
            library_name="transformers",
            pipeline_tag="image-text-to-text" if vision else "text-generation",
            tags=["embed-rl", "reasoning"],
        ),
        name=Path(config.run.dir).name,
        base=_name_of(config.reasoner),
        embedder=_name_of(config.reward.model),
        pooling=config.reward.pooling,
        templates=config.data.templates,
        samples=config.evaluation.samples,
        hit=measured.get(HIT),
        settings=_rows(_sets(config.data) | settings),
        vision=vision,
        pixels=_pixel_rows(config.data.media),
    )


def measured_at(metrics: Path, step: int) -> dict[str, float]:
    """Return what a run measured in a step, by its file of metrics; nothing if it lacks the step.

    Raises:
        OSError: the file cannot be read.
    """
    with metrics.open("rb") as lines:
        records = [record for record in map(parse_record, lines) if record is not None]
    return next((record for record in reversed(records) if record["step"] == step), {})


def _head(model: str, data: DataConfig, **fields: Any) -> str:
    """Return the card's YAML."""
    from huggingface_hub import ModelCardData  # takes a second

    datasets = sorted({name for settings in data.train if (name := _hub_set(settings))})
    card = ModelCardData(base_model=_hub_model(model), datasets=datasets or None, **fields)
    return card.to_yaml()


def _results(measured: Mapping[str, float]) -> list[Any] | None:
    """Return each held-out set's scores as the hub reads them; None: there are none."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="retrieval",
            dataset_type=name,
            dataset_name=name,
            metric_type="hit_at_1",
            metric_name=f"hit@1 {kind} trace",
            metric_value=round(value, 4),
        )
        for prefix, kind in ((WITHOUT_TRACE, "without"), (HIT, "with"))
        for name, value in _by_set(measured, prefix).items()
    ] or None


def _score_rows(measured: Mapping[str, float], dimensions: Sequence[int]) -> str:
    """Return the lines of the table of scores; empty: nothing was measured."""
    if HIT not in measured:
        return ""
    sets = {**_by_set(measured, WITHOUT_TRACE), **_by_set(measured, HIT)}
    ends = {"all queries": "", "mean of the sets": OVER_SETS}
    ends |= {f"`{name}`": f"{BY_SET}{name}" for name in sets}
    rows = {name: (WITHOUT_TRACE + end, HIT + end) for name, end in ends.items()}
    rows |= {f"all queries, {size} dimensions": ("", f"{HIT}_dim_{size}") for size in dimensions}
    return _rows(
        {
            name: " | ".join(f"{measured[key]:.3f}" if key in measured else "" for key in keys)
            for name, keys in rows.items()
        }
    )


def _by_set(measured: Mapping[str, float], metric: str) -> dict[str, float]:
    prefix = metric + BY_SET
    return {
        name.removeprefix(prefix): value
        for name, value in measured.items()
        if name.startswith(prefix)
    }


def _pixel_rows(media: MediaConfig) -> str:
    kinds = {"picture": "image", "page": "page", "frame": "frame", "crop": "crop"}
    rows = {
        f"pixels of a {kind}, at least and most": (
            f"{getattr(media, f'{name}_min_pixels')}, {getattr(media, f'{name}_max_pixels')}"
        )
        for kind, name in kinds.items()
    }
    return _rows({**rows, "frames of a video at most": media.max_frames})


def _sets(data: DataConfig) -> dict[str, Any]:
    return {"data sets": ", ".join(f"`{settings.name}`" for settings in data.train)}


def _rows(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())


def _size(least: int, most: int) -> str:
    return json.dumps({"shortest_edge": least, "longest_edge": most})


def _name_of(model: str) -> str:
    """Return a model's name on the hub, else its folder's; an export's with that of its run."""
    path = Path(model)
    local = f"{path.parent.name}/{path.name}" if path.name == "export" else path.name
    return _hub_model(model) or local


def _hub_model(folder: str) -> str | None:
    """Return the name on the hub of a model in the hub's cache; of other folders nothing."""
    named = re.search(r"/models--([^/]+?)--([^/]+)/", f"{folder}/")
    return "/".join(named.groups()) if named else None


def _hub_set(settings: DataSetConfig) -> str | None:
    named = re.match(r"hf://datasets/([^/@]+/[^/@]+)", settings.path)
    return named[1] if named else None


def _filled(template: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    text = resources.files("data").joinpath("templates", template).read_text("utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(text).render(values) + "\n"
