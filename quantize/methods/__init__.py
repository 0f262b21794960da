"""Methods: how a scheme's numbers are found. Each is one file; the union below is the whole list."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantize.methods._gguf_contents import gguf_contents
from quantize.methods._gguf_convert import convert_to_gguf
from quantize.methods._gguf_imatrix import collect_imatrix
from quantize.methods.autoawq import Autoawq
from quantize.methods.autogptq import Autogptq
from quantize.methods.autoround import Autoround
from quantize.methods.awq import Awq
from quantize.methods.bitsandbytes import Bitsandbytes
from quantize.methods.existing import Existing
from quantize.methods.gguf import Gguf
from quantize.methods.gptq import Gptq
from quantize.methods.gptqmodel import Gptqmodel
from quantize.methods.model_free import ModelFree
from quantize.methods.quip import Quip
from quantize.methods.rtn import Rtn
from quantize.methods.smoothquant import Smoothquant
from quantize.methods.spinquant import Spinquant

__all__ = [
    "Autoawq",
    "Autogptq",
    "Autoround",
    "Awq",
    "Bitsandbytes",
    "Existing",
    "Gguf",
    "Gptq",
    "Gptqmodel",
    "MethodConfig",
    "ModelFree",
    "Quip",
    "Rtn",
    "Smoothquant",
    "Spinquant",
    "collect_imatrix",
    "convert_to_gguf",
    "gguf_contents",
]

MethodConfig = Annotated[
    Rtn
    | Gptq
    | Awq
    | Smoothquant
    | Autoround
    | Spinquant
    | Quip
    | Bitsandbytes
    | Gptqmodel
    | Autoawq
    | Autogptq
    | Gguf
    | ModelFree
    | Existing,
    Field(discriminator="kind"),
]
