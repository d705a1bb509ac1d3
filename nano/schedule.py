"""Learning rates over a training."""


def constant_then_linear(step: int, steps: int, constant_share: float, last_share: float) -> float:
    """The factor on the learning rate at `step`: 1, then falling linearly to `last_share`."""
    progress = step / steps
    if progress < constant_share:
        return 1.0
    fallen = min(1.0, (progress - constant_share) / (1.0 - constant_share))
    return 1.0 + (last_share - 1.0) * fallen
