"""Ten EG-RL steps with a real causal model as Reasoner and a real BERT as Embedder, on texts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from configs.common import EngineConfig, MediaConfig
from data.types import EmbedRequest
from reward.engines.embedder_actor import EmbedderActor

pytestmark = [pytest.mark.models, pytest.mark.timeout(3000)]
REPOSITORY = Path(__file__).parents[2]
STEPS, PAIRS, SIBLINGS = 10, 4, 4
GAP = 1e-3
CAPITALS = """
Austria Vienna, Belgium Brussels, Bulgaria Sofia, Canada Ottawa, Chile Santiago, China Beijing,
Colombia Bogota, Croatia Zagreb, Cuba Havana, Denmark Copenhagen, Egypt Cairo, Estonia Tallinn,
Finland Helsinki, France Paris, Germany Berlin, Greece Athens, Hungary Budapest, India Delhi,
Ireland Dublin, Italy Rome, Japan Tokyo, Kenya Nairobi, Latvia Riga, Norway Oslo, Peru Lima,
Poland Warsaw, Portugal Lisbon, Romania Bucharest, Russia Moscow, Spain Madrid, Sweden Stockholm,
Turkey Ankara
"""
QUERY = "Find the sentence about the capital of {}."
TARGET = "{} is the seat of a national government."


def rows() -> list[dict[str, str]]:
    """Return 32 text-to-text rows in the format of MMEB-train."""
    names = [entry.split() for entry in CAPITALS.replace("\n", " ").split(",")]
    return [
        {"qry": QUERY.format(country), "pos_text": TARGET.format(city)} for country, city in names
    ]


def settings(folder: Path, reasoner: Path, embedder: Path) -> dict[str, Any]:
    """Return the job's settings; JSON is YAML."""
    engine = {"dtype": "float32", "enforce_eager": True, "cpu_kv_cache_gb": 1, "max_num_seqs": 32}
    data = {"name": "capitals", "path": str(folder / "rows.json"), "root": str(folder)}
    return {
        "run": {"dir": str(folder / "run")},
        "data": {"templates": "brief", "train": [data]},
        "reasoner": str(reasoner),
        "rollout": {
            "pool": {"cpus": 0.5},
            "engine": {**engine, "max_model_len": 512},
            "sampling": {"max_tokens": 48},
        },
        "reward": {
            "model": str(embedder),
            "pooling": "mean",
            "pool": {"cpus": 0.5},
            "engine": {**engine, "max_model_len": 256},
        },
        "learner": {
            "cpus": 0.5,
            "zero_stage": 0,
            "bf16": False,
            "micro_batch_tokens": 512,
            "optimizer": {"lr": 1e-6},
        },
        "steps": STEPS,
        "pairs": PAIRS,
        "siblings": SIBLINGS,
        "checkpoint_every": STEPS,
        "parity": {"mean": GAP / 10, "p999": GAP},
    }


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, smollm2_folder, minilm_folder) -> Path:
    """The folder of a finished run of the job."""
    folder = tmp_path_factory.mktemp("capitals")
    (folder / "rows.json").write_text(json.dumps(rows()))
    config = folder / "rl.yaml"
    config.write_text(json.dumps(settings(folder, smollm2_folder, minilm_folder)))
    done = subprocess.run(
        [sys.executable, "-m", "cluster.jobs.rl", str(config)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "EMBED_RL_ROOT": str(folder),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=2700,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return folder / "run"


def test_ten_steps_train_and_the_engine_holds_what_the_learner_sent(run_folder: Path) -> None:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [one["step"] for one in steps] == list(range(1, STEPS + 1))
    for one in steps:
        assert one["sync/checksum_ok"] == 1.0
        assert one["sync/tensors"] == 272
        assert one["sync/logprob_max_abs_diff"] < GAP
        assert one["dropped/total"] == 0
        assert np.isfinite([one["reward/total"], one["policy/loss"], one["policy/grad_norm"]]).all()
    assert any(one["policy/kl"] > 0 for one in steps)


def test_the_exported_reasoner_loads_and_has_learnt(run_folder: Path, smollm2_folder) -> None:
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (smollm2_folder, run_folder / "export")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert AutoTokenizer.from_pretrained(run_folder / "export").chat_template


def test_the_embedder_is_the_published_one(minilm_folder: Path) -> None:
    """vLLM's vectors against transformers', pooled by hand, the instruction before the text."""
    texts = {"paris": "Paris is lovely. ", "rome": "Rome is old.", "long": "Oslo is far. " * 200}
    variables = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=1,
        runtime_env={"env_vars": variables},
    )
    actor = ray.remote(EmbedderActor).remote(
        name="reward-0",
        model=str(minilm_folder),
        engine=EngineConfig(dtype="float32", max_model_len=256, enforce_eager=True),
        media=MediaConfig(),
        pooling="mean",
        instruction="about: ",
    )
    ray.get(actor.ready.remote())
    requests = [EmbedRequest(key=key, content=(text,)) for key, text in texts.items()]
    vectors, failed = ray.get(actor.embed.remote(requests, {}))
    ray.get(actor.close.remote())
    ray.shutdown()
    assert failed == {}
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    net = AutoModel.from_pretrained(minilm_folder, dtype=torch.float32).eval()
    for key, text in texts.items():
        inputs = tokenizer("about: " + text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = net(**inputs).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.linalg.norm(vectors[key]) == pytest.approx(1.0, abs=1e-5)
        assert float(vectors[key] @ expected) > 0.9999, key
