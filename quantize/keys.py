"""What goes into a stage's key, and stages made with it.

A key covers all that changes a stage's bytes or numbers and nothing else: the identity of what it reads, its config,
the keys of its inputs, the versions of the libraries that matter to it (those of another environment as its identity),
and the class of device where numbers depend on it. Paths, the executor and log levels are not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from quantize.device import Device
from quantize.engines import EngineConfig
from quantize.environments import Environment, locate
from quantize.errors import MissingDependency
from quantize.plan import Stage
from quantize.recipe import Recipe
from quantize.record import digest
from quantize.stages import STAGES

#: How long an engine is waited for: no answer depends on it.
_WAITING = {"load_seconds", "request_seconds"}

__all__ = ["Needs", "StageMaker", "dump", "served", "settings"]


@dataclass(frozen=True, slots=True)
class Needs:
    """The environments whose interpreters a stage calls, and the one that it runs in itself."""

    environments: tuple[str, ...] = ()
    hosted: str | None = None


@dataclass(frozen=True, slots=True)
class StageMaker:
    """Makes the stages of a recipe for a device."""

    recipe: Recipe
    device: Device
    located: dict[str, Environment] = field(default_factory=dict)

    def environments(self, *names: str | None) -> dict[str, Environment]:
        """Where environments are, each looked for once."""
        for name in names:
            if name is not None and name not in self.located:
                self.located[name] = locate(name, self.recipe.environments)
        return {name: self.located[name] for name in names if name is not None}

    def stage(
        self,
        kind: str,
        name: str,
        config: dict[str, Any],
        identity: dict[str, Any],
        inputs: dict[str, Stage],
        libraries: tuple[str, ...],
        on_device: bool = True,
        needs: Needs = Needs(),
        alone: bool = False,
        online: bool = False,
    ) -> Stage:
        """Key and build one stage. `identity` replaces `config` in the key: it has digests where config has paths."""
        plain = {key: dump(value) for key, value in config.items()}
        key = self.key(kind, identity, inputs, libraries, on_device=on_device, needs=needs)
        device = self.device.kind if on_device else "cpu"
        version, environments = STAGES[kind].version, self.environments(*needs.environments)
        hosted = needs.hosted
        return Stage(kind, name, key, version, plain, inputs, libraries, device, environments, hosted, alone, online)

    def key(
        self,
        kind: str,
        identity: dict[str, Any],
        inputs: dict[str, Stage],
        libraries: tuple[str, ...],
        *,
        on_device: bool,
        needs: Needs,
    ) -> str:
        """The digest of all that a stage of this kind depends on."""
        # What is installed in another environment is its own identity's to say.
        asked = () if needs.hosted is not None else libraries
        environments = {name: found.identity for name, found in self.environments(*needs.environments).items()}
        return digest(
            {
                "kind": kind,
                "version": STAGES[kind].version,
                "identity": identity,
                "inputs": {label: stage.key for label, stage in inputs.items()},
                "libraries": {library: _version(library) for library in asked},
                "device": self.device.device_class if on_device else None,
                "threads": self.recipe.resources.threads if on_device else None,
                # Engines that are compiled for a machine, or choose their kernels by it, answer as its instructions let
                # them; what runs in the program's own environment is float32 on any CPU.
                **({"environments": environments, "instructions": self.device.instructions} if environments else {}),
            }
        )


def settings(engine: EngineConfig) -> dict[str, Any]:
    """An engine's settings as far as an answer may depend on them: how long to wait for one is none."""
    return engine.model_dump(mode="json", by_alias=True, exclude={*_WAITING, "slots"})


def served(engine: EngineConfig) -> dict[str, Any]:
    """An engine's settings as far as the time of an answer may depend on them: how many are given at once is one."""
    return engine.model_dump(mode="json", by_alias=True, exclude=_WAITING)


def dump(value: Any) -> Any:
    """A value as plain data."""
    if isinstance(value, list):
        return [dump(item) for item in value]
    return value.model_dump(mode="json", by_alias=True) if hasattr(value, "model_dump") else value


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        raise MissingDependency(
            f"the package {library} is not installed.", fix=f"Run: pip install {library} -c constraints.txt"
        ) from None
