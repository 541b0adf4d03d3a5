"""What a request is answered with: vectors as OpenAI's clients read them."""

import base64
import time
import uuid
from typing import Any

import numpy as np

from cluster.serving.request import EmbeddingsRequest
from encoder.encoder import Encoded


def answer(request: EmbeddingsRequest, encoded: Encoded, name: str) -> dict[str, Any]:
    """Return the body of an answer.

    Raises:
        FloatingPointError: a vector has a number that is not finite.
    """
    if not np.isfinite(encoded.vectors).all():
        raise FloatingPointError("a vector has a number that is not finite")
    if request.base64:
        vectors = [base64.b64encode(row).decode() for row in encoded.vectors.astype("<f4")]
    else:
        vectors = encoded.vectors.tolist()
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    if request.return_traces:
        for entry, trace in zip(data, encoded.traces, strict=True):
            entry["trace"] = trace
    tokens = sum(encoded.prompt_tokens)
    return {
        "id": f"embd-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
