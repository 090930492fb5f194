"""Instructions whose keeping a program can check, written after IFEval's list.

Source: Zhou et al. 2023, arXiv:2311.07911, table 1, and section 2 for the loose variants. Sentences
and languages are told by rules of our own.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dialoop.core.errors import UserError
from dialoop.evaluate.language import LANGUAGES, language_of

if TYPE_CHECKING:
    from collections.abc import Callable

_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|e\.g|i\.e|a\.m|p\.m|Inc|Ltd|Co|No|[A-Z])\.", re.ASCII
)


def is_kept(name: str, kwargs: dict[str, Any], answer: str) -> bool:
    """Whether an answer keeps one instruction; an empty answer keeps none.

    Args:
        name: `group:instruction`, as IFEval writes it.
        kwargs: its parameters; those that are None are left out.
        answer: the text.

    Raises:
        UserError: no instruction of that name, or other parameters than it has.
    """
    if name not in CHECKS:
        raise UserError(
            f"unknown instruction `{name}`", hint=f"use one of {', '.join(sorted(CHECKS))}"
        )
    given = {key: value for key, value in kwargs.items() if value is not None}
    try:
        return bool(answer.strip()) and CHECKS[name](answer, **given)
    except TypeError as error:
        raise UserError(f"instruction `{name}`: {error}") from error


def variants(answer: str) -> tuple[str, ...]:
    """The answer as it is, without its first and last lines, and all of them without asterisks."""
    lines = answer.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(some).strip() if some is not lines else answer for some in cut]
    return (*texts, *(text.replace("*", "") for text in texts))


def count_sentences(text: str) -> int:
    """Sentences, ended by `.`, `!`, `?` or their full-width forms; not by abbreviations."""
    plain = _ABBREVIATIONS.sub("x", text)
    parts = re.split(r"[.!?]+[\"')\]]*(?:\s+|$)|[。！？]+|\n\s*\n", plain)  # noqa: RUF001
    return sum(bool(re.search(r"\w", part)) for part in parts)


def count_words(text: str) -> int:
    """Runs of letters and digits, as IFEval counts."""
    return len(re.findall(r"\w+", text))


def _holds(count: int, relation: str, bound: int) -> bool:
    if relation == "at least":
        return count >= bound
    if relation == "less than":
        return count < bound
    raise UserError(f"unknown relation `{relation}`", hint="use `at least` or `less than`")


def _find(word: str, text: str) -> list[str]:
    return re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)


def _keywords(text: str, keywords: list[str]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    count = len(re.findall(re.escape(keyword), text, re.IGNORECASE))
    return _holds(count, relation, frequency)


def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(_find(word, text) for word in forbidden_words)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def _language(text: str, language: str) -> bool:
    if language not in LANGUAGES:
        raise UserError(
            f"instruction `language:response_language`: `{language}` is not told apart here",
            hint=f"use one of {', '.join(sorted(LANGUAGES))}",
        )
    return language_of(text) == language


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(count_sentences(text), relation, num_sentences)


def _words(text: str, num_words: int, relation: str) -> bool:
    return _holds(count_words(text), relation, num_words)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Divided by `***`."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = [part for n, part in enumerate(parts) if part.strip() or 0 < n < len(parts) - 1]
    return all(part.strip() for part in inner) and len(inner) == num_paragraphs


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Divided by empty lines."""
    parts = [part.strip() for part in text.split("\n\n")]
    filled = [part for part in parts if part]
    if len(filled) != num_paragraphs or not 0 < nth_paragraph <= len(filled):
        return False
    word = filled[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    letters = [char for char in postscript_marker.lower() if char.isalpha()]
    if postscript_marker in {"P.S.", "P.P.S"}:
        pattern = r"\.?\s?".join(letters) + r".*$"
        return re.search(r"\s*" + pattern, text.lower(), re.MULTILINE) is not None
    return postscript_marker.lower() in text.lower()


def _bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


def _constrained(text: str) -> bool:
    return any(option in text for option in _CONSTRAINED)


def _highlights(text: str, num_highlights: int) -> bool:
    found = re.findall(r"\*\*[^\n\*]*\*\*|\*[^\n\*]*\*", text)
    return sum(bool(part.strip("*").strip()) for part in found) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    pattern = rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?"
    return len(re.split(pattern, text)) - 1 >= num_sections


def _json(text: str) -> bool:
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _title(text: str) -> bool:
    return any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _repeat(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _two_responses(text: str) -> bool:
    parts = text.split("******")
    filled = [part.strip() for part in parts if part.strip()]
    inner_empty = any(not part.strip() for part in parts[1:-1])
    return not inner_empty and len(filled) == 2 and filled[0] != filled[1]


def _capital(text: str) -> bool:
    return text.isupper() and language_of(text) in {"en", None}


def _lowercase(text: str) -> bool:
    return text.islower() and language_of(text) in {"en", None}


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _no_comma(text: str) -> bool:
    return "," not in text


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    plain = text.strip()
    return len(plain) > 1 and plain[0] == plain[-1] == '"'


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
"""By IFEval's names."""
