"""A short run of the mutated files; `tests/fuzz_pictures.py` says how to run it for longer."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data.media.pictures import FORMATS, load_picture
from tests.fuzz_pictures import LIMITS, PLACES, fault, mutations, place_seeds, seeds

FILES = 600


def test_whole_files_of_every_accepted_format_are_read(tmp_path):
    formats = {"jpg": "JPEG", "pgm": "PPM", "pbm": "PPM", "pfm": "PPM"}
    files = seeds()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert load_picture(str(tmp_path / name), LIMITS).shape[2] == 3
    endings = {name.partition(".")[2] for name in files}
    assert {formats.get(ending, ending.upper()) for ending in endings} == set(FORMATS)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_mutated_files_give_pixels_or_an_error_of_ours_that_names_them(tmp_path):
    rng = np.random.default_rng(0)
    for index, (name, content) in enumerate(islice(mutations(seeds(), rng), FILES)):
        assert fault(tmp_path / f"{index}-{name}", content, frame=index % 2 == 1) is None


def test_mutated_videos_and_pdfs_give_pixels_or_an_error_of_ours_that_names_them(tmp_path):
    files, rng = place_seeds(), np.random.default_rng(0)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert load_picture(f"{tmp_path / name}{PLACES[Path(name).suffix]}", LIMITS).size
    for index, (name, content) in enumerate(islice(mutations(files, rng), FILES)):
        path, place = tmp_path / f"{index}-{name}", PLACES[Path(name).suffix]
        assert fault(path, content, frame=index % 2 == 1, place=place) is None
