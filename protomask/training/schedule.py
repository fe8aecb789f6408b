"""The order of a training run: warm-up, joint training, push, last layer, regions; and the one-cycle learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from protomask.training.settings import BaseSettings


@dataclass(frozen=True)
class Step:
    """One unit of a run, after which it can be interrupted: an epoch of ``warm``, ``joint`` or ``last``, or a whole
    ``push`` or ``locate``."""

    kind: str
    epoch: int


def schedule(settings: BaseSettings) -> tuple[Step, ...]:
    """All steps of a run, in order."""
    steps = [Step("warm", e) for e in range(1, settings.warm_epochs + 1)]
    for epoch in range(1, settings.joint_epochs + 1):
        steps.append(Step("joint", epoch))
        if settings.push_every and epoch % settings.push_every == 0 and epoch < settings.joint_epochs:
            steps += _pushed(settings, epoch)
    steps += _pushed(settings, settings.joint_epochs)
    return (*steps, Step("locate", 1)) if settings.locate else tuple(steps)


def is_tested(step: Step, settings: BaseSettings) -> bool:
    """Whether the test images are looked at after a step: after a push, and every ``test_every`` epochs."""
    if not settings.test_every or step.kind == "locate":
        return False
    return step.kind == "push" or step.epoch % settings.test_every == 0


def one_cycle(progress: float, rise: float = 0.15, start: float = 0.04) -> float:
    """Share of the peak learning rate at ``progress`` in [0, 1): from ``start`` to 1 and down to 0, by half cosines."""
    if progress < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / rise)) / 2
    return (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


def _pushed(settings: BaseSettings, epoch: int) -> list[Step]:
    return [Step("push", epoch), *(Step("last", e) for e in range(1, settings.last_layer_steps() + 1))]
