"""Language models on held-out documents: likelihoods by document, and perplexity and bits per byte by domain from them.

What a model needs of the documents is token ids, 4 bytes each, held in memory for each tokenizer; texts are not kept.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.documents import Document, get_field
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.perplexity import (
    Estimate,
    mean_of,
    ratio,
    ratio_difference,
    share_below,
    strided_spans,
)
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.compilation import keep_compilations
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.scoring.likelihood import LanguageModel, predicted_bytes
from qurating_jax.scoring.lm_sources import LmSource

_DOCUMENTS_PER_CALL = 512
_MAX_SHAPES = 4  # programs to compile; more would fill batches better in longer work than this
_NO_DOMAIN = "unknown"

Ints = NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tokenized:
    """All documents as one tokenizer's ids.

    Attributes:
        values: int32 [N], ids of all documents end to end; where they begin with EOS it stands in front of each.
        offsets: int64 [n + 1], where each begins and the last one ends.
        num_bytes: int64 [n], UTF-8 bytes of the predicted tokens.
    """

    values: NDArray[np.int32]
    offsets: Ints
    num_bytes: Ints

    @property
    def num_tokens(self) -> Ints:
        """int64 [n], predicted tokens: all but a document's first."""
        return np.maximum(np.diff(self.offsets) - 1, 0)


@dataclass(frozen=True, eq=False)
class HeldOutTexts:
    """The documents of an evaluation: ids, domains, and their tokens by identity of the tokenizer."""

    ids: list[str]
    domains: list[str]
    tokenized: Mapping[str, Tokenized]


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What a model says of each document: int64 [n] predicted tokens and their bytes, float64 [n] nats."""

    source: LmSource
    num_tokens: Ints
    num_bytes: Ints
    nats: NDArray[np.float64]


def read_texts(
    documents: Iterable[Document],
    tokenizers: Sequence[TextTokenizer],
    *,
    domain_field: str,
    after_eos: bool,
    on_read: Callable[[int], None],
) -> HeldOutTexts:
    """Tokenizes documents, once with each tokenizer.

    Args:
        documents: what is evaluated on.
        tokenizers: of the models.
        domain_field: dotted path of the domain in a row; documents without one are of the domain `unknown`.
        after_eos: EOS stands in front of each document, so that its first token is predicted too.
        on_read: called with numbers of documents.

    Raises:
        UserError: nothing to predict, or a tokenizer without EOS where it is needed.
    """
    known = {tokenizer.identity: tokenizer for tokenizer in tokenizers}
    for tokenizer in known.values():
        if after_eos and tokenizer.eos_id is None:
            raise UserError(f"{tokenizer.source}: no end-of-text token to begin documents with; use --bos none")
    ids: list[str] = []
    domains: list[str] = []
    blocks: dict[str, list[Tokenized]] = {identity: [] for identity in known}
    stream = iter(documents)
    while batch := list(islice(stream, _DOCUMENTS_PER_CALL)):
        ids += [document.id for document in batch]
        for document in batch:
            domain = get_field(document.row, domain_field)
            domains.append(_NO_DOMAIN if domain is None else str(domain))
        texts = [document.text for document in batch]
        for identity, tokenizer in known.items():
            blocks[identity].append(_tokenize(texts, tokenizer, after_eos))
        on_read(len(batch))
    texts_read = HeldOutTexts(ids, domains, {identity: _joined(found) for identity, found in blocks.items()})
    if not any(found.num_tokens.any() for found in texts_read.tokenized.values()):
        raise UserError("no document of two tokens or more in the input; there is nothing to predict")
    return texts_read


def likelihoods(
    source: LmSource, model: LanguageModel, texts: HeldOutTexts, *, stride_tokens: int, on_done: Callable[[int], None]
) -> Likelihoods:
    """What a model says of every document.

    Raises:
        UserError: it says nothing (a likelihood that is not finite).
    """
    found = texts.tokenized[source.tokenizer.identity]
    suited = model.suited_to(model.window_sizes(found.num_tokens, stride_tokens), _MAX_SHAPES)
    nats, num_tokens = suited.negative_log_likelihoods(
        found.values, found.offsets, stride_tokens=stride_tokens, on_done=on_done
    )
    if not np.isfinite(nats).all():
        first = texts.ids[int(np.argmin(np.isfinite(nats)))]
        raise UserError(f"{source.name}: its likelihood of document {first} is not finite; its weights are broken")
    return Likelihoods(source, num_tokens, found.num_bytes, nats)


def likelihoods_of_all(
    sources: Sequence[LmSource],
    texts: HeldOutTexts,
    *,
    mesh_shape: MeshShape,
    compute: ComputeConfig,
    context_tokens: int,
    stride_tokens: int,
    batch_tokens: int | None,
) -> list[Likelihoods]:
    """All models, one after another: of each only the likelihoods stay. Arguments as the options of eval-lm say."""
    keep_compilations()
    mesh = make_mesh(mesh_shape)
    to_read = {
        identity: int(strided_spans(found.num_tokens, context_tokens - 1, stride_tokens)[2].sum())
        for identity, found in texts.tokenized.items()
    }
    found = []
    with progress("eval-lm", sum(to_read[source.tokenizer.identity] for source in sources), "tokens") as advance:
        for source in sources:
            model = source.load(mesh, compute=compute, context_tokens=context_tokens, batch_tokens=batch_tokens)
            one = likelihoods(source, model, texts, stride_tokens=stride_tokens, on_done=advance)
            del model  # before the next one's weights are read
            found.append(one)
            per_token = one.nats.sum() / max(one.num_tokens.sum(), 1)
            log.info("eval-lm: %s (%d of %d): %.4f nats/token", source.name, len(found), len(sources), per_token)
    return found


def documents_table(texts: HeldOutTexts, found: Sequence[Likelihoods]) -> pa.Table:
    """A row per model and document, in the order of the models and of the input."""
    n = len(texts.ids)
    names = pa.DictionaryArray.from_arrays(
        np.repeat(np.arange(len(found), dtype=np.int32), n), pa.array([one.source.name for one in found], pa.string())
    )
    return pa.table(
        {
            "model": names,
            "id": pa.array(texts.ids * len(found), pa.string()),
            "domain": pa.array(texts.domains * len(found), pa.string()),
            "num_tokens": np.concatenate([one.num_tokens for one in found]),
            "num_bytes": np.concatenate([one.num_bytes for one in found]),
            "nats": np.concatenate([one.nats for one in found]),
        }
    )


def evaluation(texts: HeldOutTexts, found: Sequence[Likelihoods], level: float) -> dict[str, Any]:
    """`names`, `models`, `baseline` and `differences` of an eval.json (see docs/eval_lm.md).

    The first model is the baseline of the differences.
    """
    names, member = np.unique(np.array(texts.domains, dtype=object).astype(str), return_inverse=True)
    parts = {str(name): np.flatnonzero(member == number) for number, name in enumerate(names)}
    first = found[0]
    return {
        "names": [one.source.name for one in found],  # in their order, which keys of JSON do not keep
        "baseline": first.source.name,
        "models": {one.source.name: _model(one, parts, level) for one in found},
        "differences": {one.source.name: _differences(one, first, parts, level) for one in found[1:]},
    }


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of each model of an eval.json: the figures on all documents."""
    return {
        name: {
            "tokens": of["all"]["num_tokens"],
            "perplexity": of["all"]["perplexity"]["value"],
            "bits_per_byte": of["all"]["bits_per_byte"]["value"],
        }
        for name, of in result["models"].items()
    }


def _tokenize(texts: list[str], tokenizer: TextTokenizer, after_eos: bool) -> Tokenized:
    values, offsets = tokenizer.encode_flat(texts)
    if after_eos:
        num_bytes = [len(text.encode()) for text in texts]
        lengths = np.diff(offsets)
        some = np.flatnonzero(lengths)  # an empty document has nothing after its EOS either
        values = np.insert(values, offsets[some], np.int32(tokenizer.eos_id or 0))
        offsets = np.concatenate([[0], np.cumsum(lengths + (lengths > 0))])
    else:
        num_bytes = [
            predicted_bytes(text, values[start:stop], tokenizer)
            for text, start, stop in zip(texts, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]
    return Tokenized(values, offsets, np.array(num_bytes, np.int64))


def _joined(blocks: Sequence[Tokenized]) -> Tokenized:
    lengths = [np.diff(block.offsets) for block in blocks]
    return Tokenized(
        np.concatenate([np.zeros(0, np.int32), *(block.values for block in blocks)]),
        np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]),
        np.concatenate([np.zeros(0, np.int64), *(block.num_bytes for block in blocks)]),
    )


def _model(one: Likelihoods, parts: Mapping[str, Ints], level: float) -> dict[str, Any]:
    everything = np.arange(len(one.nats))
    rows = {name: _measures(one, rows, level) for name, rows in parts.items()}
    counting = [row for row in rows.values() if row["nats_per_token"].value is not None]
    per_token = mean_of([row["nats_per_token"] for row in counting], level)
    macro = {
        "num_domains": len(counting),
        "nats_per_token": per_token,
        "perplexity": per_token.exponential(),
        "bits_per_byte": mean_of([row["bits_per_byte"] for row in counting], level),
    }
    return {
        "step": one.source.step,
        "tokenizer": one.source.tokenizer.identity,
        "all": _plain(_measures(one, everything, level)),
        "macro": _plain(macro),
        "domains": {name: _plain(row) for name, row in rows.items()},
    }


def _measures(one: Likelihoods, rows: Ints, level: float) -> dict[str, Any]:
    nats, tokens, sizes = one.nats[rows], one.num_tokens[rows], one.num_bytes[rows]
    per_token = ratio(nats, tokens, level)
    return {
        "num_documents": int((tokens > 0).sum()),
        "num_tokens": int(tokens.sum()),
        "num_bytes": int(sizes.sum()),
        "nats_per_token": per_token,
        "perplexity": per_token.exponential(),
        "bits_per_byte": ratio(nats / math.log(2), sizes, level),
    }


def _differences(one: Likelihoods, first: Likelihoods, parts: Mapping[str, Ints], level: float) -> dict[str, Any]:
    """Of a model less the baseline; below 0 it is the better one."""
    everything = np.arange(len(one.nats))
    rows = {name: _difference(one, first, rows, level) for name, rows in parts.items()}
    counting = [row for row in rows.values() if row["bits_per_byte"].value is not None]
    macro: dict[str, Any] = {"bits_per_byte": mean_of([row["bits_per_byte"] for row in counting], level)}
    tokens = [row["nats_per_token"] for row in counting]
    macro["nats_per_token"] = None if None in tokens else mean_of(tokens, level)
    return {
        "all": _plain(_difference(one, first, everything, level)),
        "macro": _plain(macro),
        "domains": {name: _plain(row) for name, row in rows.items()},
    }


def _difference(one: Likelihoods, first: Likelihoods, rows: Ints, level: float) -> dict[str, Any]:
    # Another tokenizer may have nothing to predict in a document of one word: it counts for neither.
    rows = rows[(one.num_tokens[rows] > 0) & (first.num_tokens[rows] > 0)]
    ours, theirs = ((side.nats[rows] / math.log(2), side.num_bytes[rows].astype(np.float64)) for side in (one, first))
    per_token: Estimate | None = None
    if one.source.tokenizer.identity == first.source.tokenizer.identity:
        tokens = one.num_tokens[rows]
        per_token = ratio_difference(one.nats[rows], tokens, first.nats[rows], tokens, level)
    return {
        "num_documents": len(rows),
        "nats_per_token": per_token,
        "bits_per_byte": ratio_difference(*ours, *theirs, level),
        "share_better": share_below(*ours, *theirs),
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, Estimate) else value for name, value in row.items()}
