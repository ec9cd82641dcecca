"""The scorer against `transformers`: the same weights and windows on both sides, in turns."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.models import hf
from qurating_jax.models.llama import Params
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.turns import Compiling, Side, compiled, in_turns, ratios, summary
from qurating_jax.scoring.benching import peer
from qurating_jax.scoring.benching.peer import TorchRater
from qurating_jax.scoring.benching.samples import Sample, deal, sample_of
from qurating_jax.scoring.benching.setting import CRITERIA, Setting, mfu, our_side, padding, score
from qurating_jax.scoring.neural import NeuralModel

_TOLERANCE = 1e-4  # of scores in float32
_COMPARED_WINDOWS = 32


@dataclass(frozen=True, eq=False)
class Contest:
    """Who takes part.

    Attributes:
        setting: the model and the sizes.
        params: its weights.
        attentions: our implementations of attention, one side each.
        peers: sides of `transformers` by name; none where there is nothing to compare with.
        peer_windows: windows of their batches.
    """

    setting: Setting
    params: Params
    attentions: Sequence[str]
    peers: dict[str, TorchRater]
    peer_windows: int

    def full(self) -> dict[str, Any]:
        """Windows of `window_tokens` alone."""
        tokens, batch_tokens = self.setting.window_tokens, self.peer_windows * self.setting.window_tokens
        num = max(1, self.setting.turn_tokens // batch_tokens) * self.peer_windows
        sample = sample_of(np.full(num, tokens), tokens, self.setting.model.vocab_size)
        models = {f"ours ({name})": self._suited(sample, attention=name) for name in self.attentions}
        everything = [np.arange(len(sample))] * self.setting.rounds
        sides = {name: our_side(model, sample, everything) for name, model in models.items()}
        batches = [peer.batches_of(sample, self.peer_windows, is_sorted=False)] * self.setting.rounds
        sides |= {name: rater.side(sample, batches, self.setting.model) for name, rater in self.peers.items()}
        return self._measure(sample, models, sides, {})

    def mixture(self, sample: Sample) -> dict[str, Any]:
        """Windows of documents; `transformers` once with windows sorted by length and once as they come."""
        rounds, turn_tokens = self.setting.rounds, self.setting.turn_tokens
        first = self.attentions[0]
        model = self._suited(sample, attention=first)
        plan = list(model.scorer.plan(sample.sizes))
        members = [np.sort(batch.members[batch.members >= 0]) for batch in plan]
        dealt = deal(members, [int(sample.sizes[windows].sum()) for windows in members], turn_tokens, rounds)
        models = {f"ours ({first})": model}
        sides = {name: our_side(model, sample, [np.concatenate(hand) for hand in dealt]) for name in models}
        waste = {name: padding(model, sample.sizes) for name in models}
        eager = {name: rater for name, rater in self.peers.items() if not rater.compiled}  # shapes vary
        for name, rater in eager.items():
            for suffix, is_sorted in (("sorted", True), ("unsorted", False)):
                batches = peer.batches_of(sample, self.peer_windows, is_sorted=is_sorted)
                batches.sort(key=lambda batch: peer.places(sample, batch) / len(batch))
                tokens = [int(sample.sizes[batch].sum()) for batch in batches]
                hands = deal(batches, tokens, turn_tokens, rounds)
                sides[f"{name}, {suffix}"] = rater.side(sample, hands, self.setting.model)
                waste[f"{name}, {suffix}"] = 1 - sum(tokens) / sum(peer.places(sample, batch) for batch in batches)
        found = self._measure(sample, models, sides, waste)
        return found | {"windows": len(sample), "mean_window_tokens": float(sample.sizes.mean())}

    def _suited(self, sample: Sample, **changed: Any) -> NeuralModel:
        return self.setting.rater(self.params, **changed).suited_to(sample.sizes, self.setting.num_shapes)

    def _measure(
        self, sample: Sample, models: dict[str, NeuralModel], sides: dict[str, Side], waste: dict[str, float]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"sides": {name: {} for name in sides}}
        before = {}
        for name, side in sides.items():  # not counted: compiling, starting threads; too large a batch fails at once
            with Compiling() as before[name]:
                began = time.perf_counter()
                side.run(0)
                found["sides"][name]["first_seconds"] = time.perf_counter() - began
        found |= self._agreement(sample, models)
        turns = in_turns(sides, self.setting.rounds)
        for name, of_side in turns.items():
            entry = found["sides"][name]
            entry |= summary(of_side)
            if name in models:
                entry |= compiled([before[name], *(turn.compiling for turn in of_side)])
                entry["shapes"] = len({batch.shape for batch in models[name].scorer.plan(sample.sizes)})
            if name in waste:
                entry["padding_of_all"] = waste[name]
            entry["mfu"] = mfu(entry["flops_per_second"], self.setting.mesh.size if name in models else 1)
        first = next(iter(models))
        found["ratios"] = {
            mine: {
                other: ratios(turns[mine], turns[other])
                for other in sides
                if other not in models or (mine == first and other != mine)
            }
            for mine in models
        }
        return found

    def _agreement(self, sample: Sample, models: dict[str, NeuralModel]) -> dict[str, Any]:
        """The largest difference of scores between two sides, over windows of all lengths."""
        windows = spread_windows(sample, _COMPARED_WINDOWS)
        scores = {name: score(model, sample, windows) for name, model in models.items()}
        for name, rater in self.peers.items():
            if not rater.compiled:
                starts = range(0, len(windows), self.peer_windows)
                scores[name] = rater.score(sample, [windows[start : start + self.peer_windows] for start in starts])
        return agreement(scores, self.setting.compute.dtype)


def spread_windows(sample: Sample, number: int) -> NDArray[np.int64]:
    """Up to so many windows of a sample, evenly spread over their lengths, shortest first."""
    order = np.argsort(sample.sizes, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int))]


def agreement(scores: dict[str, NDArray[np.float32]], dtype: str) -> dict[str, Any]:
    """How far sides are apart: the largest difference to the first one, and the scores' standard deviation.

    Raises:
        UserError: more than 1e-4 in float32: the sides do not compute the same.
    """
    first = next(iter(scores.values()))
    differences = {name: float(np.abs(other - first).max()) for name, other in list(scores.items())[1:]}
    worst = max(differences.values(), default=0.0)
    if dtype == "float32" and not worst < _TOLERANCE:
        raise UserError(f"the sides do not compute the same scores: {differences} beside {next(iter(scores))}")
    return {"score_differences": differences, "score_std": float(first.std()), "compared_windows": len(first)}


def peers(setting: Setting, params: Params, modes: Sequence[str]) -> tuple[dict[str, TorchRater], str | None]:
    """The sides of `transformers` by name, or why there is none."""
    if not modes or (reason := peer.obstacle(setting.model)):
        return {}, reason if modes else None
    with tempfile.TemporaryDirectory() as directory:
        hf.save(directory, params, setting.model, labels=CRITERIA, dtype=setting.compute.dtype)
        return {
            f"torch ({mode})": TorchRater.load(directory, setting.compute.dtype, compiled=mode == "compile")
            for mode in modes
        }, None
