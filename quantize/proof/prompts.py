"""What a checkpoint is asked: short texts, and conversations."""

from __future__ import annotations

__all__ = ["CONVERSATIONS", "POSITIONS", "PROMPTS", "TOP", "WITNESS_FILE"]

WITNESS_FILE = "witness.safetensors"
#: The last positions of each prompt that are compared.
POSITIONS = 8
#: Logits that are kept of each position; the rest of the vocabulary is kept as one sum.
TOP = 1024

#: Short texts of many kinds: the answers differ, and so do the weights that they lean on.
PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Water boils at a lower temperature on a mountain because the air there",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "12 + 30 = 42, 13 + 31 = 44, 14 + 32 =",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"], "field":',
    "Once upon a time there was a fox who could not sleep, so every night she",
    "Question: Which planet is the largest?\nAnswer:",
    "Der Zug nach Hamburg fährt um acht Uhr ab, und der nächste",
    "La lluvia en Sevilla es una maravilla, pero la nieve",
    "SELECT customer, SUM(price) FROM orders WHERE year = 2020 GROUP BY",
    "1. Wash the rice.\n2. Add two cups of water.\n3.",
    "Dear Sir or Madam,\n\nI am writing to complain about the",
    "the cat sat on the mat the cat sat on the mat the cat sat on the",
    "<html>\n  <head>\n    <title>Hello</title>\n  </head>\n  <body>\n    <h1>",
    "x = 3; y = 4; therefore x² + y² = 25 and the hypotenuse is",
    "東京は日本の首都です。京都は",
)

#: A question, a conversation that goes on, and one with instructions (which not every template knows).
CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is the capital of Italy?"},),
    (
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "  Another one,\nplease: 12 of them "},
    ),
    (
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is water wet?"},
    ),
)
