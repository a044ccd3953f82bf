"""The base class and the field types that all sections of the configuration share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pacedrl.paths import expand_home

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
HomePath = Annotated[Path, AfterValidator(expand_home)]
"""A path in which a leading ``~`` stands for the home folder."""
HomeText = Annotated[str, AfterValidator(expand_home)]
"""Text that may be a path, in which a leading ``~`` stands for the home folder."""

MAY_CHANGE = "may change when a run is resumed"
Value = TypeVar("Value")
Free = Annotated[Value, MAY_CHANGE]
"""Type of a setting that a resumed run may change, because it affects memory, speed, locations or reporting, but not
what a step computes. All other settings must keep their values."""


class Section(BaseModel):
    """A section of the configuration: it rejects unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def changes(before: Section, now: Section, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each differing setting that a resumed run must keep: its dotted name, old value and new value."""
    for name, field in type(now).model_fields.items():
        old, new = getattr(before, name), getattr(now, name)
        if MAY_CHANGE in field.metadata or old == new:
            continue
        if isinstance(old, Section) and isinstance(new, Section):
            if type(old) is type(new):
                yield from changes(old, new, f"{path}{name}.")
                continue
            old, new, name = getattr(old, "name", old), getattr(new, "name", new), f"{name}.name"
        yield path + name, _plain(old), _plain(new)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value
