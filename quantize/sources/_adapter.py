"""An adapter of peft's: where it lies, and what of it can be merged into the weights of a model whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from quantize.artifact import ModelFacts
from quantize.errors import SourceError
from quantize.record import Record
from quantize.sources._digests import remembered_sha256
from quantize.sources._facts import read_config, read_header
from quantize.sources.hub import Hub, fetch_one

__all__ = ["CONFIG", "PREFIX", "WEIGHTS", "Adapter", "misfits", "modules_of", "refusals"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What peft puts before the names of a base's modules.
PREFIX = "base_model.model."

#: Settings that merging takes into account, or that say nothing of the weights as they were saved.
_MERGED = frozenset(
    {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"}
    | {"eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"}
    | {"layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"}
    | {"peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config"}
    | {"target_modules", "task_type", "use_dora", "use_rslora"}
)
#: Ways to begin training that leave the base as it is. The others (PiSSA, OLoRA ...) take a part of it away first.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


class Adapter(Record):
    """A directory, or a repository on the hub at a revision, that `save_pretrained` of peft has written."""

    path: str | None = None
    repo: str | None = None
    revision: Annotated[str, Field(description="The repository's branch, tag or commit.")] = "main"

    @model_validator(mode="after")
    def _one_place(self) -> Adapter:
        if (self.path is None) == (self.repo is None):
            raise ValueError("an adapter is either at a path or in a repo: give one of the two")
        if self.path is not None and self.revision != "main":
            raise ValueError("revision belongs to a repo: a path names the adapter itself")
        return self

    @property
    def shown(self) -> str:
        """How it is spoken of."""
        return Path(self.path).name if self.path is not None else f"{self.repo}@{self.revision}"

    def identity(self) -> dict[str, Any]:
        """The digests of its two files, or its commit. Raises SourceError."""
        if (hub := self._hub()) is not None:
            return hub.identity()
        return {"files": {path.name: remembered_sha256(path) for path in self._files()}}

    def pinned(self, identity: dict[str, Any]) -> Adapter:
        """The same at the commit of its identity."""
        return self if self.path is not None else self.model_copy(update={"revision": identity["commit"]})

    def config(self) -> dict[str, Any]:
        """Its `adapter_config.json`. Raises SourceError."""
        return read_config(self._files()[0] if (hub := self._hub()) is None else fetch_one(hub, CONFIG))

    def link(self, out: Path) -> None:
        """Put its two files into `out`, and nothing else: peft would open pickled weights too. Raises SourceError."""
        hub = self._hub()
        for path in self._files() if hub is None else [fetch_one(hub, name) for name in (CONFIG, WEIGHTS)]:
            (out / path.name).symlink_to(path.resolve())
        read_header(out / WEIGHTS)

    def _hub(self) -> Hub | None:
        return Hub(repo=self.repo, revision=self.revision) if self.repo is not None else None

    def _files(self) -> list[Path]:
        folder = Path(self.path or "")
        if not (folder / CONFIG).is_file():
            raise SourceError(
                f"there is no adapter: no {CONFIG}.", where=str(folder), fix="Check model.adapter.path in the recipe."
            )
        if not (folder / WEIGHTS).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            found = (
                "only pickle weights (adapter_model.bin), which can run code when loaded" if pickled else "no weights"
            )
            raise SourceError(
                f"there are {found}.",
                where=str(folder),
                fix="Save the adapter with save_pretrained(safe_serialization=True) of peft.",
            )
        return [folder / CONFIG, folder / WEIGHTS]


def refusals(config: dict[str, Any]) -> list[str]:
    """Why an adapter with these settings cannot be merged without losing a part of it; empty where it can."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"it is of type {kind}, and LORA is what is merged. Merge it yourself and take the result as `model`"]
    beginning = config.get("init_lora_weights")
    if beginning not in _BEGINNINGS:
        mend = "Save it with `path_initial_model_for_weight_conversion`, which makes it plain LoRA"
        return [f"init_lora_weights is {beginning!r}, which began with a changed base. {mend}"]
    if config.get("bias", "none") != "none":
        return [f"bias is {config['bias']!r}: biases were trained beside it. Merge it yourself and take the result"]
    other = sorted(name for name, value in config.items() if value and name not in _MERGED)
    if other:
        return [f"its setting {other[0]} ({config[other[0]]!r}) is not merged. Merge it yourself and take the result"]
    return []


def modules_of(header: dict[str, Any]) -> set[str]:
    """The base's modules that an adapter's tensors belong to, by the names of its tensors."""
    return {
        name.removeprefix(PREFIX).partition(".lora_")[0]
        for name in header
        if name.startswith(PREFIX) and ".lora_" in name
    }


def misfits(header: dict[str, Any], facts: ModelFacts) -> list[str]:
    """One sentence where a matrix of the adapter is not made for the base's module, as far as shapes are known."""
    for name, tensor in sorted(header.items()):
        module, _, leaf = name.removeprefix(PREFIX).partition(".lora_")
        known = facts.modules.get(module)
        if known is None or leaf not in ("A.weight", "B.weight"):
            continue
        outputs, inputs = map(int, known.split("x"))
        here, there = (tensor["shape"][-1], inputs) if leaf == "A.weight" else (tensor["shape"][0], outputs)
        if here != there:
            side = "input" if leaf == "A.weight" else "output"
            what = f"its matrices for {module} have {here} {side} channels and the base's module {there}"
            return [f"{what}: it was trained on another model"]
    lost = sorted(module for module in modules_of(header) if facts.modules and _unknown(module, facts))
    return [f"it changes {lost[0]}, which the base has not: it was trained on another model"] if lost else []


def _unknown(module: str, facts: ModelFacts) -> bool:
    """Whether a module in a layer is none of the base's Linears; heads and embeddings are not among those."""
    return module not in facts.modules and ".layers." in module and any(".layers." in name for name in facts.modules)
