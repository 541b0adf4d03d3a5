"""Pictures for actors that no file holds, and pictures that are decoded without a Ray."""

import ray

from cluster.pictures import Decoder, SharedPictures
from data.media.pictures import load_pictures
from data.types import Pictures


def share_pictures(pictures: Pictures) -> SharedPictures:
    """Put pictures into the object store; they leave it with the last one who holds the result."""
    return shared_as(ray.put(pictures), pictures)


def shared_as(ref: object, pictures: Pictures) -> SharedPictures:
    """Return what says that pictures are where ``ref`` is."""
    return SharedPictures((ref,), {uri: pixels.shape[:2] for uri, pixels in pictures.items()})


class DecoderHere:
    """Stands in for `cluster.pictures.Decoder`: the references are the pictures themselves."""

    def share(self, uris, limits, *, frames=frozenset()):
        pictures, failed = load_pictures(uris, limits, frames=frames)
        return shared_as(pictures, pictures), failed

    share_blocks = Decoder.share_blocks
