"""Shell completion: the scripts, and the words that could come next.

The scripts ask `dialoop __complete WORDS...`, whose last word is the one being typed, so they
never go stale. With no answer the shell completes file names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialoop.cli.arguments import SWITCHES, lookup
from dialoop.cli.help import spellings
from dialoop.core.errors import UserError
from dialoop.core.fields import fields
from dialoop.jobs.catalog import CATALOG, find

if TYPE_CHECKING:
    from dialoop.core.schema import Spec

BASH = """\
_dialoop() {
  local words
  words="$(dialoop __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)"
  COMPREPLY=()
  while IFS= read -r word; do [ -n "$word" ] && COMPREPLY+=("$word"); done <<< "$words"
}
complete -o default -o bashdefault -F _dialoop dialoop
"""

ZSH = """\
#compdef dialoop
_dialoop() {
  local -a found
  found=("${(@f)$(dialoop __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  found=(${found:#})
  if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _dialoop dialoop
"""

FISH = """\
function __dialoop_words
  set -l typed (commandline -opc) (commandline -ct)
  dialoop __complete $typed[2..-1] 2>/dev/null
end
complete -c dialoop -a '(__dialoop_words)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(words: list[str]) -> str:
    """The completion script of the shell named in `words`.

    Raises:
        UserError: no shell, or one that we have no script for.
    """
    if len(words) != 1 or words[0] not in SCRIPTS:
        given = f"unknown shell `{words[0]}`" if words else "no shell named"
        raise UserError(
            f"completion: {given}",
            hint='name bash, zsh or fish; for this session: eval "$(dialoop completion bash)"',
        )
    return SCRIPTS[words[0]]


def complete(words: list[str]) -> list[str]:
    """What the last word may become; empty when only a file name makes sense.

    Args:
        words: the command without `dialoop`, the last one unfinished.
    """
    *before, typed = words or [""]
    found = find(before)
    if found is None:
        names = [*CATALOG, *(name for kind in CATALOG.values() for name in kind.also)]
        return _next_words([*names, "completion", "--help", "--version"], before, typed)
    _, kind, rest = found
    spec = kind.load_spec()
    if typed.startswith("-"):
        return [flag for flag in _flags(spec) if flag.startswith(typed)]
    target = lookup(spec, rest[-1].lstrip("-")) if rest and rest[-1].startswith("-") else None
    choices = target[1].choices if target else ()
    return [choice for choice in choices if choice.startswith(typed)]


def _next_words(names: list[str], before: list[str], typed: str) -> list[str]:
    """The next word of each name that begins with `before`."""
    following = [
        name.split()[len(before)]
        for name in names
        if name.split()[: len(before)] == before and len(name.split()) > len(before)
    ]
    return sorted({word for word in following if word.startswith(typed)})


def _flags(spec: type[Spec]) -> list[str]:
    flags = {flag for field in fields(spec) for flag in spellings(spec, field)}
    flags |= {
        f"--no-{field.path}"
        for field in fields(spec)
        if field.shape == "flag" and "." not in field.path
    }
    return sorted(flags | {f"--{name.replace('_', '-')}" for name in SWITCHES})
