"""What a scheme and a model must have for the methods here, said before any weight is read."""

from __future__ import annotations

from quantize.artifact import ModelFacts
from quantize.scheme import PRESETS, Family, Scheme

__all__ = ["family_problems", "group_size_problems", "integer_problems", "model_problems", "rotation_problems"]

#: The group sizes that serving kernels know.
GROUP_SIZES = (32, 64, 128, 256)

#: Mixtures of experts whose experts transformers has in one tensor and llm-compressor 0.14 cannot take apart by name.
PACKED_EXPERTS = frozenset(
    {"gpt_oss", "granitemoe", "llama4", "minimax", "minimax_m2", "mixtral", "phimoe", "qwen3_5_moe", "qwen3_vl_moe"}
)

_NONE_FITS = "No group size fits them"
_PER_CHANNEL = "take a scheme with scales per channel, such as W8A8 or FP8_DYNAMIC, or put them into `ignore`"


def family_problems(method: str, scheme: Scheme, family: Family) -> list[str]:
    """One sentence where `method` is given a scheme of another library's."""
    if scheme.family == family:
        return []
    fitting = ", ".join(preset.name for preset in PRESETS.values() if preset.family == family)
    return [f"{method} makes {family} schemes and {scheme.name} is one of {scheme.family}'s. Take one of {fitting}."]


def model_problems(scheme: Scheme, facts: ModelFacts) -> list[str]:
    """What makes llm-compressor's methods impossible for a model: experts in one tensor, groups that do not fit."""
    if facts.architecture.removesuffix("_text") in PACKED_EXPERTS:
        what = f"llm-compressor has no names for the experts of a {facts.architecture}: they would stay as they are"
        return [f"{what}. Take `method: {{kind: gguf}}`, or a checkpoint of somebody else's by `kind: existing`."]
    return group_size_problems(scheme, facts)


def group_size_problems(scheme: Scheme, facts: ModelFacts) -> list[str]:
    """One sentence where the group size does not divide every Linear's input channels; none where they are unknown.

    llm-compressor stores a part of a block at a matrix' edge; kernels want whole ones.
    """
    if scheme.family != "compressed-tensors" or facts.linears is None:
        return []
    if scheme.block_size is not None:
        return _block_problems(scheme, scheme.block_size, facts.linears)
    if scheme.group_size is None:
        return []
    shapes = {shape: int(shape.partition("x")[2]) for shape in facts.linears}
    misfits = sorted(shape for shape, columns in shapes.items() if columns % scheme.group_size)
    if not misfits:
        return []
    sizes = () if scheme.fixed_groups else GROUP_SIZES
    fitting = [size for size in sizes if all(columns % size == 0 for columns in shapes.values())]
    mend = (
        f"Set group_size to {' or '.join(map(str, fitting))}."
        if fitting
        else f"{_NONE_FITS if not scheme.fixed_groups else f'{scheme.name} has no other'}: {_PER_CHANNEL}."
    )
    shapes_text = ", ".join(misfits)
    return [
        f"group size {scheme.group_size} does not divide the input channels of Linear {shapes_text} (out x in). {mend}"
    ]


def _block_problems(scheme: Scheme, side: int, linears: dict[str, int]) -> list[str]:
    misfits = sorted(shape for shape in linears if any(int(channels) % side for channels in shape.split("x")))
    if not misfits:
        return []
    sentence = (
        f"blocks of {side} x {side} do not divide Linear {', '.join(misfits)} (out x in), and the kernels that serve "
        f"{scheme.name} take whole blocks: {_PER_CHANNEL}."
    )
    return [sentence]


def integer_problems(method: str, scheme: Scheme) -> list[str]:
    """One sentence where `method`, which rounds to integers, is given a floating-point scheme."""
    if scheme.weight_type == "int":
        return []
    integer = ", ".join(
        preset.name for preset in PRESETS.values() if preset.weight_type == "int" and preset.family == scheme.family
    )
    return [f"{method} needs integer weights and {scheme.name} has floating-point ones. Take one of {integer}, or rtn."]


def rotation_problems(method: str, transform: str, block: int | None, sizes: dict[str, int]) -> list[str]:
    """One sentence where a rotation of `block` channels (None: all of them) does not fit the named sizes of a model."""
    unfit = {name: size for name, size in sizes.items() if block is not None and size % block}
    if unfit:
        named = ", ".join(f"{name} ({size})" for name, size in unfit.items())
        return [
            f"{method} rotates blocks of {block} channels, which do not divide {named}. Set block_size to a divisor."
        ]
    odd = {name: block or size for name, size in sizes.items() if (block or size) & ((block or size) - 1)}
    if odd and transform == "hadamard":
        named = ", ".join(f"{name} ({size})" for name, size in odd.items())
        mend = "Set block_size to a power of two that divides it, such as 64, or `transform: random-matrix`."
        return [f"{method}: Hadamard matrices are made for powers of two, and {named} is none. {mend}"]
    return []
