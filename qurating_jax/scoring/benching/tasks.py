"""Our side and the harness's own `hf` model on the same requests of tasks, in turns."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from qurating_jax.runtime.turns import Amount, Compiling, Side, compiled, in_turns, ratios, spread, summary
from qurating_jax.scoring.tasks.loading import LoadedTask, quiet

OURS, HF = "ours", "hf"


def hf_obstacle() -> str | None:
    """Why there is nothing to compare with, in one line; None where there is."""
    import importlib.util

    missing = [name for name in ("torch", "transformers", "accelerate") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed: ours is measured alone" if missing else None


def hf_model(directory: str, *, context_tokens: int, dtype: str, batch_size: int) -> Any:
    """The harness's own model of a Hugging Face directory, on a GPU where torch has one."""
    with quiet():
        import torch
        from lm_eval.models.huggingface import HFLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return HFLM(
            pretrained=directory,
            max_length=context_tokens,
            dtype=dtype,
            batch_size=batch_size,
            device=device,
        )


def requests_of(task: LoadedTask, limit: int | None) -> list[Any]:
    """Everything that a task asks, as the harness would."""
    requests = []
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        for part in task.parts.values():
            part.build_all_requests(limit=limit, rank=0, world_size=1)
            requests += part.instances
    return requests


def contest(models: dict[str, Any], requests: Sequence[Any], rounds: int) -> dict[str, Any]:
    """All models on the same requests, every one of them once a round.

    Args:
        models: by name; the first is ours.
        requests: of one task, all of one kind.
        rounds: turns of every model.

    Returns:
        `requests`, `tokens` (what the requests show, each by itself), `kind`; per model in `sides` requests and tokens
        per second, and of ours what was compiled before; `ratio` and `agreement` where there are two.
    """
    kind = requests[0].request_type
    first = models[OURS]
    amount = Amount(_num_tokens(first, requests))
    answers: dict[str, list[Any]] = {}

    def side(name: str) -> Side:
        def run(_: int) -> Amount:
            answers[name] = _ask(models[name], kind, requests)
            return amount

        return Side(lambda: _ask(models[name], kind, requests[:1]), run)

    sides = {name: side(name) for name in models}
    with Compiling() as before:
        _ask(first, kind, requests)
    turns = in_turns(sides, rounds)
    found: dict[str, Any] = {"kind": kind, "requests": len(requests), "tokens": amount.tokens, "sides": {}}
    for name, of_side in turns.items():
        found["sides"][name] = summary(of_side) | {
            "requests_per_second": spread([len(requests) / turn.wall for turn in of_side])
        }
    found["sides"][OURS] |= compiled([before])
    if HF in models:
        found |= {"ratio": ratios(turns[OURS], turns[HF]), "agreement": agreement(answers[OURS], answers[HF])}
    return found


def agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, float]:
    """How far two models' answers are from each other.

    Returns:
        Of texts `same`, the share that is equal; of log-likelihoods `largest_difference` in nats, the same relative to
        `theirs`, and `greedy_same`, the share of equal flags.
    """
    if isinstance(ours[0], str):
        return {"same": float(np.mean([mine == other for mine, other in zip(ours, theirs, strict=True)]))}
    mine, other = (np.array([answer[0] for answer in side], np.float64) for side in (ours, theirs))
    flags = [a[1] == b[1] for a, b in zip(ours, theirs, strict=True)]
    difference = np.abs(mine - other)
    return {
        "largest_difference": float(difference.max()),
        "largest_relative_difference": float((difference / np.maximum(np.abs(other), 1e-9)).max()),
        "greedy_same": float(np.mean(flags)),
    }


def _ask(model: Any, kind: str, requests: Sequence[Any]) -> list[Any]:
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        return list(getattr(model, kind)(list(requests), disable_tqdm=True))


def _num_tokens(model: Any, requests: Sequence[Any]) -> int:
    texts = [args[0] if isinstance(args[-1], dict) else "".join(args) for args in (one.args for one in requests)]
    return sum(min(len(model.tok_encode(text)), model.max_length) for text in texts)
