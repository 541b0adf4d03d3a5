"""Vectors from Python: `Encoder.from_pretrained(embedder, reasoner)`."""

from configs.schema import EncoderConfig as EncoderConfig
from encoder.encoder import Encoded as Encoded
from encoder.encoder import Encoder as Encoder
