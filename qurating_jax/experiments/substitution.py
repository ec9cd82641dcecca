"""What `$name` stands for in the texts of experiment files."""

import re
from collections.abc import Callable, Mapping
from typing import Any

OUTPUT = "output"  # the one name that is neither a value's nor a step's

_REFERENCE = re.compile(r"\$(?:(\$)|([a-z][a-z0-9_]*)|\{([a-z][a-z0-9_]*)\})")
_MEANT = re.compile(r"\$[A-Za-z_{]\w*")  # begins like `$name`, and is none


def references(value: Any) -> list[str]:
    """Names (but `output`) that the texts in a value refer to, in order, each once."""
    if isinstance(value, str):
        found = [match[2] or match[3] for match in _REFERENCE.finditer(value) if not match[1]]
        found = [name for name in found if name != OUTPUT]
    elif isinstance(value, Mapping):
        found = [name for inner in value.values() for name in references(inner)]
    elif isinstance(value, (list, tuple)):
        found = [name for inner in value for name in references(inner)]
    else:
        found = []
    return list(dict.fromkeys(found))


def substitute(value: Any, of: Callable[[str], Any], *, dollar: str = "$") -> Any:
    """The value with every `$name` replaced by `of(name)`, and `$$` by `dollar`.

    A text that is a reference and nothing else becomes what `of` gives, a number or a list as well; in a list, a list
    takes its place among the others.

    Raises:
        ValueError: something that begins like `$name` and is none, or a list or group inside a longer text.
    """
    if isinstance(value, str):
        alone = _REFERENCE.fullmatch(value)
        if alone and not alone[1]:
            return of(alone[2] or alone[3])
        if meant := _MEANT.search(_REFERENCE.sub("\0", value)):
            raise ValueError(f"`{meant[0]}` in {value!r} is no $name (lower-case) or ${{name}}; $$ is a dollar sign")
        return _REFERENCE.sub(lambda match: dollar if match[1] else _inside(match[2] or match[3], of), value)
    if isinstance(value, Mapping):
        return {key: substitute(inner, of, dollar=dollar) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        found: list[Any] = []
        for inner in value:
            put = substitute(inner, of, dollar=dollar)
            found += put if isinstance(put, list) and not isinstance(inner, (list, tuple)) else [put]
        return found
    return value


def _inside(name: str, of: Callable[[str], Any]) -> str:
    """What stands for a reference inside a longer text."""
    if isinstance(found := of(name), (list, tuple, Mapping)):
        raise ValueError(f"`${name}` is {'a group' if isinstance(found, Mapping) else 'a list'}, not part of a text")
    return str(found)
