"""Python: the user's own function, `reward(prompt, answer, sample) -> float`."""

from __future__ import annotations

import math
import traceback
from functools import cached_property
from pathlib import Path  # noqa: TC003  pydantic reads the annotation
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from dialoop.chat.message import to_openai
from dialoop.core.errors import UserError
from dialoop.data.sample import to_json
from dialoop.train.rewards import Reward

if TYPE_CHECKING:
    from collections.abc import Callable

    from dialoop.train.rewards import Answered


class Python(Reward, frozen=True):
    """What a function of a file of one's own returns; the file runs as part of this program."""

    kind: Literal["python"] = "python"
    file: Path
    """The Python file."""
    function: str = "reward"
    """Function in it: takes the messages before the answer (a list of role and content), the
    answer's text, and the record as a dictionary; returns a number."""

    @property
    @override
    def name(self) -> str:
        """File and function, where that is not `reward`."""
        plain = self.function == "reward"
        return self.file.stem if plain else f"{self.file.stem}_{self.function}"

    @override
    def score(self, answer: Answered) -> float:
        """What the function returns.

        Raises:
            UserError: it fails, with file and line, or returns no number.
        """
        prompt = [to_openai(message) for message in answer.prompt]
        try:
            value = self._called(prompt, answer.text, to_json(answer.sample))
        except Exception as error:
            raise self._failed(error) from error
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return float(value)
        raise UserError(
            f"reward `{self.file}`: {self.function} returned {value!r}, which is no finite number",
            hint="return a number, usually between 0 and 1",
        )

    @cached_property
    def _called(self) -> Callable[..., Any]:
        try:
            source = self.file.read_text(encoding="utf-8")
            names: dict[str, Any] = {"__name__": self.file.stem, "__file__": str(self.file)}
            exec(compile(source, str(self.file), "exec"), names)  # noqa: S102 - as the user asked
        except OSError as error:
            raise UserError(
                f"reward `{self.file}`: {error.strerror}", hint="give the path of a Python file"
            ) from error
        except Exception as error:
            raise self._failed(error) from error
        if not callable(function := names.get(self.function)):
            raise UserError(
                f"reward `{self.file}` defines no function `{self.function}`",
                hint="define `def reward(prompt, answer, sample)`, or name yours as `function`",
            )
        return function

    def _failed(self, error: Exception) -> UserError:
        if isinstance(error, UserError):
            return error
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.file)]
        line = own[-1].lineno if own else getattr(error, "lineno", None)
        return UserError(
            f"reward `{self.file}`, line {line}: {type(error).__name__}: {error}",
            hint="mend the function; it is called with every answer, wrong ones too",
        )
