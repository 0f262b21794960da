"""What goes into each environment: pins that travel with the package.

`pins/<name>.toml` says what an environment is for, what is installed in which order, and what must import in the end;
`pins/<name>.txt` names every package of one that was made and tried, and constrains every step. Neither names torch's
build: pip takes the one that this machine's pip configuration offers.

The pins' digest stands for the environment in keys, whether it is made yet or not: it covers what changes what gets
installed, not the words about it.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from quantize.errors import QuantizeError, UsageError
from quantize.record import Record, digest

__all__ = ["SHIPPED", "Needs", "Pins", "Step", "known", "names", "read"]

#: The folder of the pins that the package ships. Functions that take another one do so for trials with small packages.
SHIPPED = Path(__file__).parent / "pins"


class Step(Record):
    """One call of pip. `isolated` False: packages are built with what the steps before have installed."""

    packages: tuple[str, ...] = Field(min_length=1)
    isolated: bool = True


class Needs(Record):
    """What a machine must have: an NVIDIA GPU to run it, a Python older than `python_below` ("3.12") to make it."""

    cuda: bool = False
    python_below: str | None = None


class Pins(Record):
    """One environment. `gigabytes` on disk and `minutes` on two cores are what making it took where it was measured."""

    name: str
    about: str
    gigabytes: float
    minutes: float
    needs: Needs = Needs()
    steps: tuple[Step, ...]
    remove: tuple[str, ...] = ()
    imports: tuple[str, ...] = Field(min_length=1)
    constraints: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Sha256 (hex) of what gets installed."""
        parts = {"steps": self.steps, "remove": self.remove, "constraints": self.constraints}
        return digest({"name": self.name, **parts})


def names(folder: Path = SHIPPED) -> tuple[str, ...]:
    """The environments that there are pins for."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def known(name: str, folder: Path = SHIPPED) -> str:
    """`name`, if there are pins for it. Raises UsageError with the nearest name."""
    offered = names(folder)
    if name in offered:
        return name
    near = difflib.get_close_matches(name.lower().replace("_", "-"), offered, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(offered)}."
    raise UsageError(f"{name!r} is not an environment.", fix=hint)


def read(name: str, folder: Path = SHIPPED) -> Pins:
    """The pins of an environment. Raises UsageError for an unknown name, QuantizeError for files that are damaged."""
    path = folder / f"{known(name, folder)}.toml"
    frozen = path.with_suffix(".txt")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        lines = frozen.read_text(encoding="utf-8").splitlines() if frozen.exists() else []
        constraints = sorted(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        return Pins.model_validate({**table, "name": name, "constraints": constraints})
    except (OSError, ValueError, ValidationError) as error:
        raise QuantizeError(
            f"these pins cannot be read ({error}).", where=str(path), fix="Install the program again."
        ) from error
