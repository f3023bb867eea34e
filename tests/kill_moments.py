"""The random moments at which tests kill processes."""

from __future__ import annotations

import os
import random

SEED = "KILL_SEED"  # environment variable


def kill_moments() -> random.Random:
    """Moments that differ from run to run; their seed is printed, and ``KILL_SEED=…`` replays it."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(2**32))
    print(f"seed of the moments of killing: {seed}; {SEED}={seed} replays it")
    return random.Random(seed)
