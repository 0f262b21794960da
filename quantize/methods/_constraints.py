"""What a scheme and a model must have for the methods here, said before any weight is read."""

from __future__ import annotations

from quantize.artifact import ModelFacts
from quantize.scheme import PRESETS, Family, Scheme

__all__ = ["family_problems", "group_size_problems", "integer_problems"]

#: The group sizes that serving kernels know.
GROUP_SIZES = (32, 64, 128, 256)


def family_problems(method: str, scheme: Scheme, family: Family) -> list[str]:
    """One sentence where `method` is given a scheme of another library's."""
    if scheme.family == family:
        return []
    fitting = ", ".join(preset.name for preset in PRESETS.values() if preset.family == family)
    return [f"{method} makes {family} schemes and {scheme.name} is one of {scheme.family}'s. Take one of {fitting}."]


def group_size_problems(scheme: Scheme, facts: ModelFacts) -> list[str]:
    """One sentence where the group size does not divide every Linear's input channels; none where they are unknown."""
    if scheme.strategy != "group" or scheme.group_size is None or facts.linears is None:
        return []
    shapes = {shape: int(shape.partition("x")[2]) for shape in facts.linears}
    misfits = sorted(shape for shape, columns in shapes.items() if columns % scheme.group_size)
    if not misfits:
        return []
    fitting = [size for size in GROUP_SIZES if all(columns % size == 0 for columns in shapes.values())]
    mend = (
        f"Set group_size to {' or '.join(map(str, fitting))}."
        if fitting
        else "No group size fits them: take a scheme with scales per channel, such as W8A8 or FP8_DYNAMIC."
    )
    shapes_text = ", ".join(misfits)
    return [
        f"group size {scheme.group_size} does not divide the input channels of Linear {shapes_text} (out x in). {mend}"
    ]


def integer_problems(method: str, scheme: Scheme) -> list[str]:
    """One sentence where `method`, which rounds to integers, is given a floating-point scheme."""
    if scheme.weight_type == "int":
        return []
    integer = ", ".join(
        preset.name for preset in PRESETS.values() if preset.weight_type == "int" and preset.family == scheme.family
    )
    return [f"{method} needs integer weights and {scheme.name} has floating-point ones. Take one of {integer}, or rtn."]
