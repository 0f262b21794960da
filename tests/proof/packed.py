"""Runs in the environment of a library with packed weights: `packed.py make|prove FORMAT FOLDER CHECKPOINT`.

`make` quantizes the checkpoint into the folder; `prove` prints, as JSON lines, the proof of what was made and of copies
with planted errors.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from quantize import proof
from quantize.handed import Host, QuantizeJob
from quantize.scheme import preset

Tensors = dict[str, Any]


def make(form: str, folder: Path, source: Path) -> None:
    """Four rows of tokens at random: what is proved is not how good it is."""
    import torch

    tokens = torch.randint(3, 512, (4, 64), generator=torch.Generator().manual_seed(0))
    method: Any
    if form == "gptq":
        from quantize.methods.gptqmodel import Gptqmodel

        method, scheme = Gptqmodel(), "W4A16"
    else:
        from quantize.methods.autoawq import Autoawq

        method, scheme = Autoawq(), "W4A16_ASYM"
    checkpoint, witness = folder / "checkpoint", folder / "witness"
    checkpoint.mkdir(parents=True)
    witness.mkdir()
    note = partial(proof.record, tokenizer_dir=source, out=witness, checkpoint=checkpoint)
    grouped = replace(preset(scheme), group_size=64)
    host = Host({}, folder, 1)
    method.quantize(
        QuantizeJob(source, checkpoint, grouped, ("lm_head",), tokens, "cpu", 0, note, lambda *_: None, host)
    )


def nothing(_: Tensors) -> None:
    """An honest checkpoint."""


def scale(tensors: Tensors) -> None:
    """5 % on the scales of one Linear."""
    tensors["model.layers.3.self_attn.q_proj.scales"].mul_(1.05)


def swap(tensors: Tensors) -> None:
    """Two layers change places."""
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        other = name.replace("layers.1.", "layers.2.")
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()


def permute(tensors: Tensors) -> None:
    """The packed words of one Linear, one row further."""
    packed = tensors["model.layers.2.mlp.down_proj.qweight"]
    packed.copy_(packed.roll(1, 0))


def prove(form: str, folder: Path, source: Path) -> None:
    """One line a plant: its name, a blank, and the proof."""
    from safetensors.torch import load_file, save_file

    from quantize.engines.transformers import Transformers

    for plant in (nothing, scale, swap, permute):
        place = folder / f"{form}-{plant.__name__}"
        shutil.copytree(folder / "checkpoint", place)
        (path,) = place.glob("*.safetensors")
        tensors = load_file(path)
        plant(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        session = Transformers(runs_in="gptqmodel").open(place, "cpu", Host({}, folder, 1))
        print(plant.__name__, proof.prove(place, folder / "witness", source, session).model_dump_json(), flush=True)
        session.close()


if __name__ == "__main__":
    {"make": make, "prove": prove}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
