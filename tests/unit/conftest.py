"""Property tests hold what is true, not how busy the machine is: no time limit per example."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no-deadline")
