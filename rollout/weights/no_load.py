"""A load format of vLLM that reads no weights, for engines that pull all of them.

vLLM's own `dummy` would not do: it also fills buffers with random numbers, such as those by which
Qwen3-VL's vision tower normalises pixels, and a pull brings parameters only.
"""

from torch import nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

from data.model.model_size import tensor_shapes

LOAD_FORMAT = "pulled"


@register_model_loader(LOAD_FORMAT)
class PulledWeights(BaseModelLoader):
    """Gives parameters small random values; all else stays as the model's construction made it."""

    def download_model(self, model_config: ModelConfig) -> None:
        """Do nothing: the folder is not read."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Fill the parameters, with which the engine measures what memory the model takes."""
        for parameter in model.parameters():
            initialize_single_dummy_weight(parameter)


def folder_buffers(model: nn.Module, folder: str) -> list[str]:
    """Return the buffers of a model that its folder seems to set, and no pull.

    They are told by the last two parts of their names, as vLLM renames what is before.
    """
    ends = {_end(name) for name in tensor_shapes(folder)}
    stored = model.state_dict().keys() & {name for name, _ in model.named_buffers()}
    return sorted(name for name in stored if _end(name) in ends)


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])
