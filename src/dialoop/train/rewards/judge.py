"""Judge: another model, over an OpenAI-compatible endpoint, says what an answer is worth."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat, PositiveInt
from typing_extensions import override

from dialoop.core.errors import UpstreamError
from dialoop.train.endpoint import Endpoint  # noqa: TC001  pydantic reads the annotation
from dialoop.train.rewards import Reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.train.rewards import Answered


class Judge(Reward, frozen=True):
    """The judge's number over the scale, between 0 and 1."""

    kind: Literal["judge"] = "judge"
    endpoint: Endpoint
    """The judge."""
    instruction: str = (
        "Rate how well the answer serves the question, from 0 (useless) to {scale} (perfect)."
        " Reply with the number alone.\n\nQuestion:\n{prompt}\n\nAnswer:\n{answer}"
    )
    """What the judge is told; `{prompt}`, `{answer}`, `{solution}` and `{scale}` are filled in."""
    scale: PositiveFloat = 10
    """The best mark."""
    max_tokens: PositiveInt = 16
    """Longest verdict; the last number in it counts."""

    @override
    def scores(self, answers: Sequence[Answered]) -> list[float]:
        """All answers judged, several at once."""
        replies = self.endpoint.post_all("chat/completions", [self._body(a) for a in answers])
        return [self._mark(reply) for reply in replies]

    @override
    def score(self, answer: Answered) -> float:
        """One answer judged."""
        return self.scores([answer])[0]

    def _body(self, answer: Answered) -> dict[str, Any]:
        fields = {
            "prompt": "\n".join(f"{m.role}: {m.text}" for m in answer.prompt),
            "answer": answer.text,
            "solution": str(answer.column("solution") or ""),
            "scale": f"{self.scale:g}",
        }
        told = re.sub(
            r"\{(prompt|answer|solution|scale)\}", lambda m: fields[m[1]], self.instruction
        )
        content = [{"role": "user", "content": told}]
        return {"messages": content, "temperature": 0, "max_tokens": self.max_tokens}

    def _mark(self, reply: dict[str, Any]) -> float:
        try:
            text = reply["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise UpstreamError("the judge's reply is no chat completion") from error
        found = re.findall(r"\d+(?:\.\d+)?", text)
        if not found:
            raise UpstreamError(
                f"the judge gave no number but {text[:80]!r}",
                hint="say in `instruction` that the reply must be a number, or raise `max_tokens`",
            )
        return min(1.0, float(found[-1]) / self.scale)
