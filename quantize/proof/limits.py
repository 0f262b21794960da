"""How far apart the answers of one set of weights may lie in two programs, and what the planted errors measure.

Limits in nat for the KL divergence, averaged over the positions, by whether activations are rounded and by the dtype of
the arithmetic. Measured on the trained test model (0.8M parameters) and on SmolLM2-135M-Instruct, on CPUs:

| mean KL, transformers                   | weights rounded | activations too (W8A8, FP8_DYNAMIC) |
|---|---|---|
| float32, reloaded, same kernels         | 0               | 0            |
| float32, other number of threads        | <= 1e-12        | <= 0.012     |
| float32, other attention kernel         | <= 1e-11        | <= 0.025     |
| bfloat16 against itself or float32      | <= 0.002        | <= 0.086     |
| 5 % on the scales of any one Linear     | >= 4.7e-6       | >= 7e-5      |
| two layers swapped                      | >= 0.22         | >= 0.197     |

| mean KL, transformers with bitsandbytes | NF4, FP4        | INT8 (activations too) |
|---|---|---|
| float32, reloaded, one thread or two    | <= 2e-16        | <= 2e-16     |
| bfloat16 against float32                | <= 8e-4         | <= 0.0043    |

| mean KL, transformers with GPTQModel    | gptq            | awq          |
|---|---|---|
| float32, reloaded                       | 5e-17           | 2e-17        |
| 5 % on the scales of one Linear         | 1.4e-5          | 9.2e-6       |
| two layers swapped                      | 0.30            | 0.45         |

The test model in vLLM on a CPU, not quantized, float32: 6.8e-12 against transformers.

| mean KL, llama.cpp against transformers | F32    | F16    | BF16  | Q8_0   | Q4_0   | Q4_K_M |
|---|---|---|---|---|---|---|
| test model                              | 1.8e-6 | 6.6e-6 | 1e-4  | 8.4e-4 | 0.0024 | 0.0073 |
| SmolLM2                                 | 9.8e-7 |        |       | 0.0036 | 0.0045 | 0.0081 |
| test model, 5 % on one matrix           | 7.4e-6 | 7.7e-6 |       | 9.0e-4 | 0.0023 |        |
| test model, two layers swapped          | 0.32   | 0.32   |       | 0.33   | 0.34   |        |

In float32 with only weights rounded answers are reproducible, and the limit is sharp. Rounded activations are not: a
last-bit difference flips roundings, and flips move the answers further than 5 % on one layer does. There the limit is
for gross errors only, and `fingerprint` finds the fine ones. llama.cpp rounds activations to 8 bits for every quantized
type, and its key-value cache to 16 bits even for F32, which is what moves that column. The mean, because the largest KL
of an honest reload in another dtype (7.5) is as large as that of two swapped layers (1.8 to 28).
"""

from __future__ import annotations

__all__ = ["LIMITS", "limit"]

#: (engine, are activations rounded, dtype of the arithmetic) -> nat. `*` is any engine that has no line of its own.
LIMITS: dict[tuple[str, bool, str], float] = {
    ("*", False, "float32"): 1e-7,
    ("*", True, "float32"): 0.07,
    ("*", False, "bfloat16"): 0.02,
    ("*", True, "bfloat16"): 0.13,
    ("*", False, "float16"): 0.02,
    ("*", True, "float16"): 0.13,
    ("llamacpp", False, "float32"): 2e-5,
    ("llamacpp", False, "float16"): 0.002,
    ("llamacpp", False, "bfloat16"): 0.01,
    ("llamacpp", True, "float32"): 0.05,
    ("llamacpp", True, "float16"): 0.05,
}


def limit(engine: str, rounded: bool, *dtypes: str) -> float:
    """The limit for answers of two arithmetics: that of the coarser of `dtypes`."""
    return max(LIMITS.get((engine, rounded, dtype), LIMITS["*", rounded, dtype]) for dtype in dtypes)
