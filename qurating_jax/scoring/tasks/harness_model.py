"""Our language models as a model of EleutherAI's lm-evaluation-harness, made from its name and plain arguments.

The numbers are those of the harness's own `hf` model on the exported checkpoint: the same cuts between context and
continuation, the same truncation from the left, rolling windows and ends of generations. How they come about is not:
continuations of one context, and contexts that begin alike, are read in one pass (see `trees`). Continuations longer
than the model's context, which `hf` refuses, are read in parts.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from qurating_jax.models.config import AttentionChoice, ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.scoring.lm_sources import LmSource, find_language_models
from qurating_jax.scoring.tasks.continuations import ContinuationScorer
from qurating_jax.scoring.tasks.generation import Generator, Prompt
from qurating_jax.scoring.tasks.prompts import PromptTokenizer

NAME = "qurating"
_MAX_NEW_TOKENS = 256  # where a task does not say, as the `hf` model has it
# Of a generation's settings; those of sampling change nothing where the likeliest token is taken.
_KNOWN = {"do_sample", "temperature", "until", "max_gen_toks", "top_p", "top_k"}
_DTYPES = ("float32", "bfloat16")

log = logging.getLogger(__name__)


def register() -> None:
    """Makes `qurating` a model of the harness in this process; again is no harm."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=QuratingLM)


class QuratingLM(TemplateLM):
    """A language model of ours, or of Hugging Face, on the devices that this process sees.

    Args:
        model: as `eval-lm --model` takes it: PATH, NAME=PATH, RUN@STEP, a hub id.
        revision: of a hub id.
        tokenizer: where the model has none of its own.
        context_tokens: the longest sequence that it is shown; None: the longest it is made for.
        dtype: of the matrix products, float32 or bfloat16.
        batch_tokens: tokens of a batch on all devices; None: what suits them.
        attention: attention kernels, as of `ComputeConfig`.
        data: devices per axis of the mesh, as of `MeshShape`; so are `fsdp` and `tensor`.
        fsdp: see `data`.
        tensor: see `data`.
        batch_size: what the harness passes to every model; batches go by `batch_tokens` here.
        max_batch_size: see `batch_size`.
        device: see `batch_size`; JAX decides (`JAX_PLATFORMS`).

    Raises:
        UserError: as of `find_language_models`; several models (`RUN@all`); a context longer than the model's; a
            setting that is none (`UsageError`).
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        tokenizer: str | None = None,
        context_tokens: int | None = None,
        dtype: str = "float32",
        batch_tokens: int | None = None,
        attention: str = "auto",
        data: int = -1,
        fsdp: int = 1,
        tensor: int = 1,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        compute = _compute(dtype, attention)
        self.source = _find(str(model), revision, tokenizer, context_tokens)
        self._context_tokens = context_tokens or self.source.config.max_positions
        self._prompts = PromptTokenizer(self.source.tokenizer)
        mesh = make_mesh(MeshShape(data=data, fsdp=fsdp, tensor=tensor))
        params = self.source.params(mesh, dtype)
        self._continuations = ContinuationScorer(
            params,
            self.source.config,
            mesh,
            compute=compute,
            context_tokens=self._context_tokens,
            batch_tokens=batch_tokens,
        )
        self._generator = Generator(
            params,
            self.source.config,
            mesh,
            compute=compute,
            eos_id=self._prompts.eos_id,
            batch_tokens=batch_tokens,
        )

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token; -1 where there is none."""
        return -1 if self._prompts.eos_id is None else self._prompts.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self._prompts.require_prefix()

    @property
    def max_length(self) -> int:
        """The longest sequence that the model is shown."""
        return self._context_tokens

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate where a task does not say."""
        return _MAX_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """What tells this tokenizer from others."""
        return self.source.tokenizer.identity

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a text; see `PromptTokenizer.encode`."""
        return self._prompts.encode([string], special=add_special_tokens)[0]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each (context, continuation), and whether greedy decoding would produce it."""
        pairs = [request.args for request in requests]
        encoded = self._prompts.encode_pairs(pairs)
        return self._loglikelihood_tokens([(pair, *ids) for pair, ids in zip(pairs, encoded, strict=True)])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, every token predicted once, in disjoint windows of `max_length`; 0 of none."""
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for number, encoded in enumerate(self._prompts.encode(texts)):
            found = utils.get_rolling_token_windows(
                encoded, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            for context, continuation in map(utils.make_disjoint_window, found):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, up to its stop strings, the end of text or `max_gen_toks`.

        Raises:
            UserError: sampling or another setting that changes what is generated, or no room for a context.
        """
        prompts, stops = [], []
        for request in requests:
            context, given = request.args
            settings = self._settings(given)
            until = handle_stop_sequences(list(settings["until"]), eos=self._prompts.eos_text or None)
            room = self.max_length - settings["max_gen_toks"]
            tokens = self._prompts.encode_prompt(context)[-room:] or [self.prefix_token_id]
            stops.append(until)
            prompts.append(Prompt(tokens, settings["max_gen_toks"], self._end_finder(until)))
        with progress("generating", len(prompts), "requests") as advance:
            made = self._generator(prompts, advance)
        texts = []
        for request, new, until in zip(requests, made, stops, strict=True):
            text = postprocess_generated_text(self._prompts.decode(new), stop=until, think_end_token=None)
            texts.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        parts, owners = [], []
        for number, (_, context, continuation) in enumerate(requests):
            found = self._parts(context, continuation)
            parts += found
            owners += [number] * len(found)
        if len(parts) > len(requests):
            cut = sum(len(request[2]) > self.max_length for request in requests)
            log.warning(
                "%d continuations are longer than the %d tokens that the model is shown: they are read in parts",
                cut,
                self.max_length,
            )
        with progress("log-likelihoods", sum(len(tail) for _, tail in parts), "tokens") as advance:
            values, are_greedy = self._continuations(parts, advance)
        totals, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        np.add.at(totals, owners, values)
        np.logical_and.at(greedy, owners, are_greedy)
        answers = list(zip(totals.tolist(), greedy.tolist(), strict=True))
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:  # windows of a text have no answer of their own
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _parts(self, context: list[int], continuation: list[int]) -> list[tuple[list[int], list[int]]]:
        """What is read of a pair: itself, or parts of half the model's length, each after all that stands before it.

        So every token of a long continuation is still predicted from half of what the model can be shown, or from all
        that there is.
        """
        if len(continuation) <= self.max_length:
            return [(context, continuation)]
        step = max(self.max_length // 2, 1)
        starts = range(0, len(continuation), step)
        return [(context + continuation[:start], continuation[start : start + step]) for start in starts]

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        settings = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        unknown = sorted(settings.keys() - _KNOWN)
        if unknown:
            raise UserError(f"generation_kwargs: {', '.join(unknown)} cannot be done here; take them out of the task")
        if settings["do_sample"]:
            raise UserError(
                "generation_kwargs: do_sample or a temperature above 0 samples, and only the likeliest token is taken "
                "here; set do_sample: false and temperature: 0"
            )
        if not 0 < settings["max_gen_toks"] < self.max_length:
            raise UserError(
                f"generation_kwargs: max_gen_toks {settings['max_gen_toks']} leaves no room for a context in the "
                f"{self.max_length} tokens that the model is shown; set it lower"
            )
        return settings

    def _end_finder(self, until: Sequence[str]) -> Callable[[list[int]], int | None]:
        wanted = [text for text in until if text]

        def found(tokens: list[int]) -> bool:
            text = self._prompts.decode(tokens, special=True)
            return any(stop in text for stop in wanted)

        def find_end(tokens: list[int]) -> int | None:
            if not found(tokens):
                return None
            return next((size for size in range(1, len(tokens)) if found(tokens[:size])), len(tokens))

        return find_end


def _compute(dtype: str, attention: str) -> ComputeConfig:
    if dtype not in _DTYPES:
        raise UsageError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    if attention not in get_args(AttentionChoice):
        raise UsageError(f"attention {attention!r} is none of {', '.join(get_args(AttentionChoice))}")
    return ComputeConfig(dtype=dtype, attention=attention)  # type: ignore[arg-type]


def _find(model: str, revision: str | None, tokenizer: str | None, context_tokens: int | None) -> LmSource:
    found = find_language_models([model], revision=revision, tokenizer=tokenizer, context_tokens=context_tokens)
    if len(found) != 1:
        raise UserError(f"{model}: {len(found)} models; give one checkpoint, as RUN@STEP")
    return found[0]
