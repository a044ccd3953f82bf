"""What all sections of the configuration have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pacedrl.paths import expand_home

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
HomePath = Annotated[Path, AfterValidator(expand_home)]
"""A path; ``~`` is the home folder."""
HomeText = Annotated[str, AfterValidator(expand_home)]
"""A path or a name of another kind; ``~`` at the start is the home folder."""

MAY_CHANGE = "may change when a run is resumed"
Value = TypeVar("Value")
Free = Annotated[Value, MAY_CHANGE]
"""The type of a setting that a resumed run may change: it alters memory, speed, places or what is reported, but not
what a step computes. A setting of any other type must stay as it was."""


class Section(BaseModel):
    """Unknown keys are errors; nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def changes(before: Section, now: Section, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings that must stay and differ: dotted name, value before, value now, as plain values."""
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
