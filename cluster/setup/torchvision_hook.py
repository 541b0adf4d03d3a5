"""Let torchvision's Python code import beside a torch it was not compiled for.

Set-up copies this file into site-packages, where a `.pth` line imports it at every interpreter
start (`cluster.setup.mend_torchvision`). It must therefore stay tiny, import no third party at the
top, and depend on nothing else here. It does not provide the compiled operators: calling them
raises.
"""

import sys
from importlib.machinery import PathFinder

# The two operators torchvision registers fake kernels for at import, unguarded. Without the
# compiled library nobody has declared them, and the import fails.
SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)
_libraries = []  # a torch Library withdraws its schemas when it is collected


def _declare_schemas():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _libraries.append(library)


class TorchvisionFinder:
    """Declares the schemas when torchvision is first executed, then steps aside."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        # Wrapping the execution, not the search: many libraries only ask whether torchvision
        # exists, and a question must not cost an import of torch.
        def exec_module(module):
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _declare_schemas()
            execute(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, TorchvisionFinder())
