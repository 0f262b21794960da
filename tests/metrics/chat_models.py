"""Copies of the tiny Llama whose tokenizers and templates treat the beginning of a text in different ways."""

import json
import shutil
from pathlib import Path

CHECKPOINT = Path(__file__).parents[1] / "tiny_llama" / "checkpoint"
BOS = "<|endoftext|>"
TURNS = (
    "{% for m in messages %}<|pad|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|pad|>assistant:{% endif %}"
)


def chat_model(folder, *, template, adds_bos):
    """A checkpoint in `folder` with a chat template, or none, whose tokenizer may put a BOS before every text."""
    shutil.copytree(CHECKPOINT, folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "bos_token": BOS}), "utf-8")
    if adds_bos:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text("utf-8"))
        number = next(token["id"] for token in data["added_tokens"] if token["content"] == BOS)
        data["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [number], "tokens": [BOS]}},
        }
        path.write_text(json.dumps(data), "utf-8")
    return folder


def write_items(path, items):
    path.write_text("\n".join(json.dumps(item) for item in items), "utf-8")
    return str(path)


def sums(count, **more):
    """Conversations about sums, with a system message."""
    return [
        {
            "id": f"chat-{number}",
            "messages": [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": f"{number} plus {number + 1} is"},
            ],
            "answer": str(2 * number + 1),
            **more,
        }
        for number in range(count)
    ]
