"""What the shipped settings read from the environment."""

import pytest


@pytest.fixture(autouse=True)
def pictograms(monkeypatch):
    monkeypatch.setenv("EMOJI", "/data/pictograms")
