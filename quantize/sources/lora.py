"""A LoRA adapter merged into its base: the model as it is served, one set of weights without an adapter beside it.

    W + scale * B @ A      scale: alpha / r, or alpha / sqrt(r) (rsLoRA); DoRA renormalises the columns besides

peft does the merging, layer by layer: a layer's weight is taken to float32, merged, and rounded once to the dtype that
the base has. (peft by itself would round the product to bfloat16 first, and the sum again.) Memory is that of the base
in its own dtype. An adapter that changes more than its layers' weights (other modules saved beside it, biases, another
kind of adapter) is refused by the name of the setting: a part of it would be lost.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quantize.artifact import ModelFacts
from quantize.errors import QuantizeError, SourceError
from quantize.handed import Progress
from quantize.loading import auto_class
from quantize.record import Record
from quantize.sources._adapter import CONFIG, PREFIX, WEIGHTS, Adapter, misfits, modules_of, refusals
from quantize.sources._check import check_checkpoint
from quantize.sources._facts import read_config, read_header
from quantize.sources.directory import Directory
from quantize.sources.gguf import Gguf
from quantize.sources.hub import Hub
from quantize.sources.package import Package

__all__ = ["Lora"]

_NAME = "adapter"
#: What is written anew and not copied from the base.
_WRITTEN = ("config.json", "model.safetensors.index.json")


class Lora(Record):
    """A base model with a LoRA adapter of peft's merged into it."""

    kind: Literal["lora"] = "lora"
    base: Annotated[Hub | Directory | Gguf | Package, Field(discriminator="kind")]
    adapter: Adapter

    @property
    def online(self) -> bool:
        """See `protocols.Source`."""
        return self.base.online or self.adapter.path is None

    @property
    def libraries(self) -> tuple[str, ...]:
        """See `protocols.Source`."""
        return tuple(dict.fromkeys((*self.base.libraries, "peft", "torch", "transformers")))

    def identity(self) -> dict[str, Any]:
        """Both identities."""
        return {"base": self.base.identity(), "adapter": self.adapter.identity()}

    def pinned(self, identity: dict[str, Any]) -> Lora:
        """See `protocols.Source`."""
        base, adapter = self.base.pinned(identity["base"]), self.adapter.pinned(identity["adapter"])
        return self.model_copy(update={"base": base, "adapter": adapter})

    def problems(self, facts: ModelFacts) -> list[str]:
        """The base's; settings that cannot be merged whole; matrices that are not the base's, where both are known."""
        config = self.adapter.config()
        shapes = {} if self.adapter.path is None else read_header(Path(self.adapter.path) / WEIGHTS)
        own = [*refusals(config), *misfits(shapes, facts)]
        base = [problem.replace("model.dequantize", "model.base.dequantize") for problem in self.base.problems(facts)]
        return [*base, *(f"model.adapter: {problem}" for problem in own)]

    def notes(self, facts: ModelFacts) -> list[str]:
        """What was merged, and on what the adapter says that it was trained."""
        config, base = self.adapter.config(), self.base
        trained, named = config.get("base_model_name_or_path"), getattr(base, "repo", None)
        other = f". It says that it was trained on {trained}" if trained and named not in (None, trained) else ""
        what = f"the LoRA adapter {self.adapter.shown} (rank {config.get('r')}) merged into it"
        note = f"the baseline is the base model with {what}, in float32 and rounded once to {facts.dtype}{other}"
        return [*base.notes(facts), note]

    def facts(self) -> ModelFacts:
        """The base's: merging changes no shape."""
        return self.base.facts()

    def fetch(self, out: Path, progress: Progress) -> None:
        """Fetch both beside `out`, write the merged checkpoint into it, and check that."""
        beside = out.parent / ".base"
        try:
            base, adapter = beside / "checkpoint", beside / "adapter"
            base.mkdir(parents=True)
            adapter.mkdir()
            self.adapter.link(adapter)
            said = refusals(read_config(adapter / CONFIG))
            if said:
                raise SourceError(said[0], where=self.adapter.shown)
            self.base.fetch(base, progress)
            _merge(base, adapter, out, self.adapter.shown, progress)
            for path in sorted(base.iterdir()):
                if path.suffix != ".safetensors" and path.name not in _WRITTEN:
                    shutil.copyfile(path, out / path.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        check_checkpoint(out, progress)


def _merge(base: Path, adapter: Path, out: Path, where: str, progress: Progress) -> None:
    """Write config and weights of the merged model into `out`. Raises SourceError where the two do not fit together."""
    from transformers import GenerationConfig

    progress("loading the base", 0, None)
    model = auto_class(base).from_pretrained(
        base, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    progress("merging the adapter", 0, None)
    try:
        merged = _merged(model, adapter)
    except QuantizeError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise SourceError(
            f"the adapter does not fit the base: {type(error).__name__}: {str(error).strip()}.",
            where=where,
            fix="Name the base that it was trained on as `model.base`.",
        ) from error
    # transformers refuses to save generation settings that contradict each other; the base's file is copied instead.
    merged.generation_config = GenerationConfig()
    merged.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)


def _merged(model: Any, adapter: Path) -> Any:
    """The model with the adapter in its weights, layer by layer in float32, each in its own dtype again."""
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft only warns of is looked for below
        adapted = PeftModel.from_pretrained(model, str(adapter), adapter_name=_NAME, is_trainable=False)
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    told, taken = (
        modules_of(read_header(adapter / WEIGHTS)),
        {name.removeprefix(PREFIX) for name in layers},
    )
    if told != taken:
        lost = sorted(told ^ taken)
        raise SourceError(
            f"the adapter's weights and the base's modules do not agree on {len(lost)} of them, {lost[0]} first.",
            where=str(adapter),
            fix="Name the base that it was trained on as `model.base`.",
        )
    _refuse_tied(adapted, layers)
    with torch.inference_mode():
        for module in layers.values():
            weight = module.get_base_layer().weight
            dtype, weight.data = weight.dtype, weight.data.float()
            module.merge(safe_merge=True, adapter_names=[_NAME])
            weight.data = weight.data.to(dtype)
    return adapted.unload()


def _refuse_tied(adapted: Any, layers: dict[str, Any]) -> None:
    """Raises SourceError for an adapter on one of two modules that share a weight: merging would change the other."""
    model = adapted.get_base_model()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = None not in ends and ends[0].weight is ends[1].weight
    changed = [name for name, module in layers.items() if any(module is end for end in ends)]
    if tied and changed:
        raise SourceError(
            f"the adapter changes {changed[0].removeprefix(PREFIX)}, and the base has one matrix for embedding and "
            "output head: merged into it, it would change both.",
            fix="Train it without these, or give a base whose head is a matrix of its own.",
        )
