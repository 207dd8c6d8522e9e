"""The registry: an architecture is a dataclass of options that compiles to a LayerPlan.

Third parties add one with `@register`, or with an entry point in the group `uniattn_pl.architectures`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from typing import ClassVar, TypeVar

from uniattn_pl.architectures.measurement_protocol import Measurements
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.roles import MIXED

ENTRY_POINT_GROUP = "uniattn_pl.architectures"


class Architecture(ABC):
    """Base of every architecture; subclasses are dataclasses whose fields are the user's options."""

    name: ClassVar[str]
    summary: ClassVar[str]
    mechanism: ClassVar[str] = MIXED  # what it saves by, of `plan.roles.MECHANISMS`: its colour where no plan is known

    @property
    def measured(self) -> bool:
        """Whether the layers are chosen by measurement, so that `choose` and not `compile` gives the plan."""
        return False

    def check(self, shape: ModelShape) -> None:
        """Raise PlanError when the options cannot work on a model of this shape, before anything is measured."""
        if not self.measured:
            self.compile(shape).check(shape)

    @abstractmethod
    def compile(self, shape: ModelShape) -> LayerPlan:
        """Return the plan for a model of this shape. Raises PlanError when the options do not fit it."""

    def choose(self, shape: ModelShape, measurements: Measurements) -> LayerPlan:
        """Return the plan for this model on this data. Raises PlanError when the options do not fit it."""
        return self.compile(shape)


ARCHITECTURES: dict[str, type[Architecture]] = {}

A = TypeVar("A", bound=type[Architecture])


def register(architecture: A) -> A:
    """Add an architecture under its `name`; usable as a class decorator.

    Args:
        architecture: a dataclass of options, whose fields a config may set.

    Raises:
        ValueError: another class is registered under that name.
    """
    registered = ARCHITECTURES.setdefault(architecture.name, architecture)
    if registered is not architecture:
        raise ValueError(f"architecture '{architecture.name}' is already registered by {registered.__module__}.")
    return architecture


def available() -> list[str]:
    """Names of all architectures: built in, registered, and offered by installed packages."""
    return sorted({*ARCHITECTURES, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def get_architecture(name: str) -> type[Architecture]:
    """Return the class registered under `name`, importing it from its entry point if need be.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in ARCHITECTURES:
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            register(point.load())
    if name not in ARCHITECTURES:
        names = available()
        raise UserError(f"unknown architecture '{name}'.{did_you_mean(name, names)} Available: {', '.join(names)}.")
    return ARCHITECTURES[name]
