"""Another model scores an answer, behind an endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from quantize.errors import MissingDependency
from quantize.record import Record, digest
from quantize.scorers._judging import Judging, Rules, compiled

__all__ = ["Judge"]

#: What takes no part in what a judge says.
_HOW_TO_REACH = {"url", "api_key_env", "timeout", "retries", "at_once"}
_PLACES = re.compile(r"\{(prompt|answer|output)\}")


def _is_address(url: str) -> str:
    if not re.match(r"https?://[^/\s@]+(/\S*)?\Z", url):
        raise ValueError(f"{url!r} is not the address of an endpoint, such as https://api.example.com/v1")
    return url.rstrip("/")


def _finds_a_number(text: str) -> str:
    compiled(text)
    return text


class Judge(Record):
    """`prompt_template` is what the judge is asked, with {prompt}, {answer} (the item's) and {output} filled in.

    Asked at temperature 0, at `url`/chat/completions. `reply` finds the score in what it says (one group; the number at
    the end unless the recipe says otherwise), on the `scale` from worst to best; a reply without one is no score, and
    so is an answer that the judge refuses to judge (too long for it, filtered), and more than `errors_at_most` of them
    are a hard stop. A judge that does not answer within `timeout` seconds, or says
    that it cannot, is asked again `retries` times, with growing pauses; then the stage fails, and what was judged is
    kept: the same answer to the same item is paid for once, whichever arm gives it.

    Every row has the judge's own word for who it is: the model that it reports and, `by_fingerprint`, its
    `system_fingerprint`. Arms that were judged by different ones are not compared. `version` names the one to accept:
    another is an error at once, and a new one judges both arms anew. The key is read from the variable `api_key_env`.
    """

    kind: Literal["judge"] = "judge"
    generates: ClassVar[bool] = True
    reads_lines: ClassVar[bool] = False
    url: Annotated[str, AfterValidator(_is_address)]
    model: Annotated[str, Field(min_length=1)]
    prompt_template: str
    reply: Annotated[str, AfterValidator(_finds_a_number)] = r"(?<![\d./-])(-?\d+(?:\.\d+)?)\W*\Z"
    scale: tuple[float, float] = (0.0, 1.0)
    version: Annotated[str | None, Field(min_length=1)] = None
    by_fingerprint: bool = True
    max_tokens: Annotated[int, Field(gt=0)] = 512
    api_key_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    at_once: Annotated[int, Field(ge=1, le=64)] = 4
    errors_at_most: Annotated[float, Field(ge=0, lt=1)] = 0.02

    @model_validator(mode="after")
    def _can_be_asked(self) -> Judge:
        if "output" not in _PLACES.findall(self.prompt_template):
            raise ValueError("prompt_template has no {output}: the judge would not see what the model said")
        if not self.scale[0] < self.scale[1]:
            raise ValueError("scale goes from worst to best: its second number is the greater one")
        return self

    def identity(self) -> dict[str, Any]:
        """See `scoring.Scorer`: who is asked what, by the template's digest, and not how it is reached."""
        config = self.model_dump(mode="json", exclude={*_HOW_TO_REACH, "prompt_template"})
        return {**config, "prompt_template": digest(self.prompt_template)}

    def problem(self, target: str) -> str | None:
        """See `scoring.Scorer`."""
        wanted = "answer" in _PLACES.findall(self.prompt_template)
        return "the judge is shown the item's 'answer', and it has none" if wanted and not target.strip() else None

    def lacking(self) -> str | None:
        """See `scoring.Scorer`."""
        if self.api_key_env is None or os.environ.get(self.api_key_env):
            return None
        return f"the variable {self.api_key_env}, which holds the judge's key, is not set"

    def open(self, kept: Path | None) -> Judging:
        """See `scoring.Scorer`. Raises MissingDependency where the key is not set."""
        lacking = self.lacking()
        if lacking is not None:
            raise MissingDependency(f"{lacking}.", fix=f"export {self.api_key_env}=...")
        asked = {key: value for key, value in self.identity().items() if key != "errors_at_most"}
        rules = Rules(
            url=f"{self.url}/chat/completions",
            key=os.environ[self.api_key_env] if self.api_key_env is not None else None,
            body={"model": self.model, "temperature": 0, "max_tokens": self.max_tokens},
            template=digest(self.prompt_template),
            ask=self._filled,
            reply=compiled(self.reply),
            scale=self.scale,
            version=self.version,
            by_fingerprint=self.by_fingerprint,
            timeout=self.timeout,
            retries=self.retries,
            at_once=self.at_once,
        )
        return Judging(rules, kept / f"{digest(asked)[:24]}.jsonl" if kept is not None else None, digest(asked))

    def _filled(self, prompt: str, answer: str, output: str) -> str:
        """The template with its three places filled, once: what is filled in is not read again."""
        texts = {"prompt": prompt, "answer": answer, "output": output}
        return _PLACES.sub(lambda match: texts[match[1]], self.prompt_template)
