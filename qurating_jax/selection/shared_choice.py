"""The choice of a run in a file, so that all its workers copy the same documents, and a killed run goes on with it."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from qurating_jax.data.parts import Parts
from qurating_jax.runtime import storage
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.choosing import Choice, open_source
from qurating_jax.selection.copying.ranks import Ranking
from qurating_jax.selection.copying.rows import CopyInputs
from qurating_jax.selection.drawing.decision import Decision
from qurating_jax.selection.keys.cache import PARTS
from qurating_jax.selection.keys.duplicates import read_duplicates, together
from qurating_jax.selection.keys.files import KeyFiles
from qurating_jax.selection.options import SelectOptions

_TIMEOUT_SECONDS = 6 * 3600.0


def shared_choice(path: str, make: Callable[[], Choice], claims: Claims | None) -> tuple[dict[str, Any], Ranking]:
    """The explanation and the order of a run's selection: chosen by its first worker, the others wait for it.

    Raises:
        UserError: what stands at the path is none of this version, or `make` fails.
    """
    with contextlib.ExitStack() as stack:
        if claims is not None and not storage.exists(path):
            stack.enter_context(claims.wait("decision", timeout=_TIMEOUT_SECONDS, purpose="decides"))
        if not storage.exists(path):
            storage.write_json(path, _to_json(make()))
    found = storage.read_json(path)
    try:
        return dict(found["explanation"]), Ranking.from_json(found["ranking"])
    except (KeyError, TypeError, ValueError):
        raise _broken(path) from None


def open_inputs(options: SelectOptions, files: Sequence[str], path: str) -> CopyInputs:
    """What the copying pass reads, by the choice at a path.

    Raises:
        UserError: what stands there is no choice of this version, or its key files have been removed.
    """
    found = storage.read_json(path)
    try:
        directory = str(found["keys"])
        scores = {str(name): storage.join(directory, str(place)) for name, place in found["scores"].items()}
        duplicates = [storage.join(directory, str(name)) for name in found["duplicates"]]
        tokens, decision = str(found["tokens"]), Decision.from_json(found["decision"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _broken(path) from None
    where = storage.join(directory, PARTS)
    keys = KeyFiles(directory, Parts.from_json(storage.read_json(where), where=where), id_field=options.id_field)
    keys = keys.with_scores(scores).without(together([read_duplicates(place) for place in duplicates]))
    keys = keys.with_tokens(tokens) if tokens else keys
    return CopyInputs(keys, decision, open_source(options, files, keys.parts, keys.schema))


def _to_json(choice: Choice) -> dict[str, Any]:
    directory = choice.keys.directory
    return {
        "keys": directory,
        "scores": {name: _name(place) for name, place in choice.keys.added_scores.items()},
        "tokens": choice.keys.tokens_from,
        "duplicates": [_name(found.path) for found in choice.duplicates],
        "decision": choice.decision.to_json(),
        "ranking": choice.ranking.to_json(),
        "explanation": choice.explanation,
    }


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _broken(path: str) -> UserError:
    return UserError(f"{path}: not a choice of this version; start again with --overwrite")
