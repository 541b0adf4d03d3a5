"""The HTTP side of `serve` around an encoder that needs no engine."""

import numpy as np

from cluster.serving.app import Front
from cluster.serving.media import Media
from cluster.serving.request import Served
from configs.serving import LimitsConfig
from encoder.encoder import Encoded

LIMITS = LimitsConfig(body_bytes=2000, media_bytes=1000, items=3, requests=2, timeout_s=60)


async def lengths(request, inputs) -> Encoded:
    """Encode a text as its length."""
    sizes = [len(value["text"]) for value in inputs]
    vectors = np.array([[size, 0.1] for size in sizes], dtype=np.float32)
    return Encoded(vectors, [value["text"].upper() for value in inputs], sizes)


def front_of(encode=lengths, *, limits=LIMITS, token="", replicas=1, loopback=False) -> Front:
    served = Served(name="m", dimensions=frozenset(), items=limits.items, max_frames=8)
    media = Media(root=None, remote=None, max_file_bytes=1000, max_bytes=limits.media_bytes)
    front = Front(served, limits, media, encode, token=token, loopback=loopback)
    front.replicas = replicas
    return front
