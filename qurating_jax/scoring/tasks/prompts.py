"""Requests as token ids, cut where the harness's own `hf` model cuts them.

`hf` tokenizes with `transformers`, special tokens added as the tokenizer.json says (Llama's begins a text with BOS);
a text that begins with the name of the prefix token already gets none. Its rules are in lm_eval/api/model.py and
lm_eval/models/huggingface.py (0.4.13).
"""

from collections.abc import Iterator, Sequence

from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.runtime.errors import UserError

_BATCH_CHARACTERS = 1 << 20

Pair = tuple[list[int], list[int]]


class PromptTokenizer:
    """A tokenizer as the harness uses it.

    Attributes:
        eos_id: the end-of-text token; None where there is none.
        prefix_id: what stands before a text without context: BOS, or else EOS; None where there is neither.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._backend, self._source = tokenizer.backend, tokenizer.source
        self.eos_id = tokenizer.eos_id
        self.prefix_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        self.eos_text = self._name(self.eos_id)
        self._prefix_text = self._name(self.prefix_id)
        self._bos_text = self._name(tokenizer.bos_id)

    def encode(self, texts: Sequence[str], *, special: bool | None = None) -> list[list[int]]:
        """Token ids of texts; `special`: whether special tokens are added, None: unless a text brings its own."""
        found: list[list[int]] = [[] for _ in texts]
        for adds in (False, True):
            members = [n for n, text in enumerate(texts) if adds == (self._adds(text) if special is None else special)]
            for number, encoding in zip(members, self._encode([texts[n] for n in members], adds), strict=True):
                found[number] = encoding
        return found

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of what a generation goes on from; here only the name of BOS stands for special tokens."""
        adds = not (self._bos_text and text.startswith(self._bos_text))
        return self._encode([text], adds)[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Contexts and continuations as token ids.

        White space at the end of a context goes to its continuation; both are tokenized as one text, and the
        continuation is what comes behind as many tokens as the context alone has.

        Raises:
            UserError: a continuation without tokens, or an empty context where no token can stand for it.
        """
        found: list[Pair] = []
        for some in _batches(pairs):
            found += self._encode_some(some, len(found))
        return found

    def _encode_some(self, pairs: Sequence[tuple[str, str]], first: int) -> list[Pair]:
        moved = [_move_space(context, continuation) for context, continuation in pairs]
        wholes = self._distinct([context + continuation for context, continuation in moved if context])
        contexts = self._distinct([context for context, _ in moved if context])
        alone = self._distinct([continuation for context, continuation in moved if not context], special=False)
        found = []
        for number, (context, continuation) in enumerate(moved):
            if context:
                head = contexts[context]
                tail = wholes[context + continuation][len(head) :]
            else:
                head, tail = self._after_prefix(alone[continuation])
            if not head or not tail:
                raise UserError(
                    f"request {first + number}: no token of the {'continuation' if head else 'context'} is left to "
                    f"score ({pairs[number][0][-40:]!r} + {pairs[number][1][:40]!r}); mend the task"
                )
            found.append((head, tail))
        return found

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; `special`: with the names of special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=not special)

    def require_prefix(self) -> int:
        """`prefix_id`; a `UserError` where there is none."""
        if self.prefix_id is None:
            raise UserError(f"{self._source}: the tokenizer has neither BOS nor EOS to stand before an empty context")
        return self.prefix_id

    def _after_prefix(self, continuation: list[int]) -> Pair:
        prefix = self.require_prefix()
        if continuation and continuation[0] == prefix:
            return continuation[:1], continuation[1:]
        return [prefix], continuation

    def _adds(self, text: str) -> bool:
        return not (self._prefix_text and text.startswith(self._prefix_text))

    def _distinct(self, texts: Sequence[str], special: bool | None = None) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, self.encode(distinct, special=special), strict=True))

    def _encode(self, texts: list[str], adds: bool) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=adds)]
        except TypeError:
            raise UserError("a request is not valid Unicode (a lone surrogate); mend the task's data") from None

    def _name(self, token: int | None) -> str:
        return "" if token is None else self._backend.decode([token], skip_special_tokens=False)


def _move_space(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _batches(pairs: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    """Consecutive pairs of about `_BATCH_CHARACTERS` together: `tokenizers` takes much memory for what it holds."""
    first = size = 0
    for number, (context, continuation) in enumerate(pairs):
        size += len(context) + len(continuation)
        if size >= _BATCH_CHARACTERS or number + 1 == len(pairs):
            yield pairs[first : number + 1]
            first, size = number + 1, 0
