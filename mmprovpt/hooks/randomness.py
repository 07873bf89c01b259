"""Random numbers that depend on where training stands, not on how it got there."""
import random
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*numbers: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) by any numbers >= 0.

    No device is waited for.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def fixed_randomness(*numbers: int):
    """Inside, every global generator starts from ``numbers``; afterwards each goes on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            seed_everything(*numbers)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
