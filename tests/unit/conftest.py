"""Property tests hold what is true, not how busy the machine is: no time limit per example."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
