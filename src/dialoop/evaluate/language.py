"""Which language a text is in, for checks of an answer's language: by script, then common words.

Our own rules, not the classifier that IFEval's authors use: most of the asked languages have a
script of their own, and the rest differ in their commonest words and letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "THAI": "th", "TAMIL": "ta",
    "TELUGU": "te", "KANNADA": "kn", "GUJARATI": "gu", "BENGALI": "bn", "GURMUKHI": "pa",
    "MALAYALAM": "ml", "GREEK": "el", "HEBREW": "he",
    "DEVANAGARI": "deva", "CYRILLIC": "cyrl", "ARABIC": "arab", "LATIN": "latn",
}  # fmt: skip
"""The first word of a character's Unicode name, and its language or its shared script."""
_WORDS = {
    "deva": {
        "hi": "है हैं का की के में और से को यह",
        "mr": "आहे आहेत आणि चा ची चे या ही नाही",
        "ne": "छ छन् र को लाई यो हो गर्न",
    },
    "cyrl": {
        "ru": "и не что это как в на с для я мы они",  # noqa: RUF001
        "bg": "и не че това като е на се за аз ние те са да",  # noqa: RUF001
        "uk": "і не що це як в на з для та є",  # noqa: RUF001
    },
    "arab": {
        "ar": "في من على إلى أن هذا التي",
        "fa": "و در به از را این که است با",
        "ur": "اور کے کی کا میں ہے ہیں سے",
    },
    "latn": {
        "en": "the and of to in is that it for with you was are this have",
        "de": "der die das und ist nicht ein eine ich zu mit den von auf",
        "fr": "le la les et est un une des que pas dans pour je vous qui",
        "es": "el la los y es un una que de en no por con para las",
        "it": "il la che e di un una per non con sono gli del le",
        "pt": "o a os e um uma que de em para com por mais dos",
        "nl": "de het een en is van niet dat met voor ik op",
        "fi": "ja on ei se että oli hän mutta olen ovat joka kun myös",
        "vi": "và là của có cho không một các được trong những với tôi",
        "sw": "na ya wa ni kwa katika la za cha kuwa hii",
        "id": "dan yang di itu dengan untuk tidak ini dari dalam",
        "tr": "ve bir bu için ile de da olan daha ne",
        "pl": "i w nie na jest się z do to że",
    },
}  # fmt: skip
LANGUAGES = frozenset(
    {language for language in _SCRIPTS.values() if len(language) == 2}
    | {language for words in _WORDS.values() for language in words}
)


def language_of(text: str) -> str | None:
    """The two letters of the text's main language; None where nothing tells."""
    scripts = Counter(found for char in text if (found := _script(char)))
    if not scripts:
        return None
    if scripts["ja"] and scripts["ja"] * 10 > scripts["zh"]:  # kana stand between the characters
        scripts["ja"] += scripts.pop("zh", 0)
    script = scripts.most_common(1)[0][0]
    if script not in _WORDS:
        return script
    words = Counter(re.findall(r"[^\W\d_]+(?:[\u0900-\u0963]+[^\W\d_]*)*", text.casefold()))
    hits = {name: sum(words[w] for w in known.split()) for name, known in _WORDS[script].items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] else None


def _script(char: str) -> str | None:
    if not char.isalpha():
        return None
    return _SCRIPTS.get(unicodedata.name(char, "").split(" ")[0].split("-")[0])
