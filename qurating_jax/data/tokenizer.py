"""Text to token ids and back, with the `tokenizers` library alone, from a directory, a file or the Hugging Face Hub.

A `tokenizer.json` is taken at its word: ids are what `transformers.PreTrainedTokenizerFast(tokenizer_file=...)` gives
with `add_special_tokens=False`. Two consequences, both on purpose:

- The name of a special token inside a document (`<|endoftext|>`) becomes that token's id, as in `transformers`. So
  a boundary between documents is never found by looking for the id; it is stored beside the tokens.
- A tokenizer class that rebuilds its pipeline instead of reading it (`LlamaTokenizer` of transformers 5: other ids for
  texts that begin with a space) has no say. `save` names the class that reads the file.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qurating_jax.data.long_texts import PIECE_CHARACTERS, encode_long
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

log = logging.getLogger(__name__)

EOS_TOKEN = "<|endoftext|>"
_BATCH_CHARACTERS = 1 << 20

_FILE = "tokenizer.json"
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
_OTHER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEPT_SETTINGS = ("model_max_length", "chat_template", "clean_up_tokenization_spaces")
# Where no settings say it, in this order: GPT-2 and NeoX, Llama 1 and 2, Llama 3, Gemma, Qwen.
_USUAL_EOS_TOKENS = (EOS_TOKEN, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
# What `Qwen2Tokenizer` of transformers 5 puts around the vocabulary and merges that it finds, whatever stands there.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class TextTokenizer:
    """A tokenizer without special tokens, padding or truncation.

    Attributes:
        identity: hex sha256 of all that decides the ids of a text; equal for the same tokenizer from a file, a
            directory or the hub, whatever its padding, truncation and template for special tokens.
        eos_id: id of the end-of-text token; None where the tokenizer has none.
        bos_id: id of the token that its settings name for a text's beginning; None where they name none.
        vocab_size: the largest id plus one.
        source: where it was loaded from.
    """

    def __init__(self, serialized: str, *, source: str, settings: Mapping[str, Any] | None = None) -> None:
        """Builds the tokenizer.

        Args:
            serialized: the content of a tokenizer.json.
            source: names the origin in errors.
            settings: keys of `tokenizer_config.json` and `config.json` (named tokens, `eos_token_id`).

        Raises:
            UserError: not a tokenizer.
        """
        self.source = source
        self._tokenizer = _build(serialized, source)
        self._settings = dict(settings or {})
        self.identity = _identity(self._tokenizer)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_id = self._find_eos()
        bos = _content(self._settings.get("bos_token"))
        self.bos_id = None if bos is None else self._tokenizer.token_to_id(bos)

    @property
    def backend(self) -> "Tokenizer":
        """The `tokenizers.Tokenizer` itself, for what needs character offsets."""
        return self._tokenizer

    @property
    def is_qwen2(self) -> bool:
        """Whether it splits texts as Qwen2's does.

        Beside a model of that type `transformers.AutoTokenizer` makes a Qwen2 tokenizer of any tokenizer.json, whatever
        class `save` names (transformers 5, MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS).
        """
        content = json.loads(self._tokenizer.to_str())
        before = content["pre_tokenizer"] or {}
        steps = before.get("pretokenizers", [])
        return (
            content["model"].get("type") == "BPE"
            and content["normalizer"] == {"type": "NFC"}
            and [step["type"] for step in steps] == ["Split", "ByteLevel"]
            and steps[0]["pattern"] == {"Regex": _QWEN2_WORDS}
            and not steps[1]["use_regex"]
            and not steps[1]["add_prefix_space"]
        )

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text: int32 arrays `[num_tokens]`, no special tokens added; an empty text has none.

        Raises:
            ValueError: a text is not a string of Unicode characters (a lone surrogate).
        """
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._encode(list(texts))]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts, one after another: what `encode` gives, in memory close to that of its result.

        `tokenizers` takes a few hundred bytes for a token until its encoding is dropped, so about 1 MB of texts is
        encoded at a time (longer texts in pieces, see `long_texts`); two batches are under way, so that one is encoded
        while the other becomes arrays.

        Args:
            texts: n texts.

        Returns:
            int32 ids [N], and int64 offsets [n + 1]: text i has ids `offsets[i]` to `offsets[i + 1]`.

        Raises:
            ValueError: a text is not a string of Unicode characters (a lone surrogate).
        """
        values, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        with ThreadPoolExecutor(2, thread_name_prefix="encode") as threads:
            for ids, sizes in threads.map(self._encode_batch, _batches(texts)):
                values.append(ids)
                lengths.append(sizes)
        return np.concatenate(values), np.cumsum(np.concatenate(lengths))

    def _encode_batch(self, batch: tuple[int, list[str]]) -> tuple[np.ndarray, np.ndarray]:
        first, texts = batch
        long = {n: text for n, text in enumerate(texts) if isinstance(text, str) and len(text) > PIECE_CHARACTERS}
        encodings = self._encode(["" if n in long else text for n, text in enumerate(texts)], first)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        for number, text in long.items():
            try:
                ids[number] = encode_long(self._tokenizer, text)
            except TypeError:
                raise ValueError(_what_is_wrong([text], first + number)) from None
        return np.concatenate(ids), np.array([len(one) for one in ids], np.int64)

    def _encode(self, texts: list[str], first: int = 0) -> "list[Encoding]":
        try:
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            raise ValueError(_what_is_wrong(texts, first)) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens written out."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def save(self, directory: str) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which give the same ids in `transformers.AutoTokenizer`.

        The named special tokens, the chat template and the length limit of the source are kept; code is not.
        """
        config = {key: self._settings[key] for key in _KEPT_SETTINGS if self._settings.get(key) is not None}
        for name in _NAMED_TOKENS:
            token = _content(self._settings.get(name))
            if token is not None and self._tokenizer.token_to_id(token) is not None:
                config[name] = token
        if self.eos_id is not None:
            added = self._tokenizer.get_added_tokens_decoder().get(self.eos_id)
            # Not `id_to_token` of an added token: it gives the normalized name (`▁</s>`).
            config["eos_token"] = added.content if added else self._tokenizer.id_to_token(self.eos_id)
        storage.make_dirs(directory)
        storage.write_text(storage.join(directory, _FILE), self._tokenizer.to_str(pretty=True) + "\n")
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        storage.write_json(storage.join(directory, "tokenizer_config.json"), config)

    def _find_eos(self) -> int | None:
        named = _content(self._settings.get("eos_token"))
        if named is not None:
            found = self._tokenizer.token_to_id(named)
            if found is not None:
                return found
            log.warning("%s: its end-of-text token %r is not in its vocabulary", self.source, named)
        given = self._settings.get("eos_token_id")
        given = given[0] if isinstance(given, list) and given else given
        if isinstance(given, int) and 0 <= given < self.vocab_size:
            return given
        special = {token.content: index for index, token in self._tokenizer.get_added_tokens_decoder().items()}
        return next((special[token] for token in _USUAL_EOS_TOKENS if token in special), None)


def has_tokenizer(directory: str) -> bool:
    """True where a directory holds a tokenizer.json of its own."""
    return storage.exists(storage.join(directory, _FILE))


def load_tokenizer(path_or_id: str, revision: str | None = None) -> TextTokenizer:
    """Loads a tokenizer.

    Args:
        path_or_id: a directory (with tokenizer.json, or with sentencepiece's tokenizer.model or vocab.json +
            merges.txt, which `transformers` converts), a tokenizer.json file, or a hub id such as
            `EleutherAI/gpt-neox-20b`. What exists on disk is a path.
        revision: branch, tag or commit of a hub id.

    Raises:
        UserError: no tokenizer there, an unfinished stage output, or the hub cannot be reached. Code from a
            repository is never run.
    """
    if storage.is_dir(path_or_id):
        return _load_directory(path_or_id, source=path_or_id)
    if storage.exists(path_or_id):
        return TextTokenizer(storage.read_text(path_or_id), source=path_or_id)
    if path_or_id.endswith(".json") or not _HUB_ID.fullmatch(path_or_id) or path_or_id.startswith("."):
        raise UserError(f"{path_or_id}: no such path; a tokenizer is a directory, a tokenizer.json or a hub id")
    directory = _download(path_or_id, revision)
    return _load_directory(directory, source=f"{path_or_id}@{Path(directory).name}")


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Trains byte-level BPE (GPT-2's pre-tokenizer, no normalizer) whose only special token is `<|endoftext|>`.

    All 256 bytes are in the alphabet, so every text is encoded and decodes to itself. Ties between merges go by
    the vocabulary's order: the same texts give the same tokenizer. `vocab_size` counts everything (at least 257); too
    little text gives fewer tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer.to_str(), source="trained here", settings={"eos_token": EOS_TOKEN})


def _load_directory(directory: str, *, source: str) -> TextTokenizer:
    if manifest.is_artifact(directory):
        manifest.read(directory)
        model = storage.join(directory, "hf")  # of a stage that trained, converted or fetched one
        directory = model if not has_tokenizer(directory) and storage.is_dir(model) else directory
    names = storage.list_dir(directory)
    settings: dict[str, Any] = {}
    for name in reversed(_SETTINGS_FILES):  # the first in the list has the last word
        if name in names:
            content = storage.read_json(storage.join(directory, name))
            settings |= content if isinstance(content, dict) else {}
    if _FILE in names:
        return TextTokenizer(storage.read_text(storage.join(directory, _FILE)), source=source, settings=settings)
    if not any(name in names for name in _OTHER_FILES):
        raise UserError(f"{source}: no tokenizer there ({_FILE}, {', '.join(_OTHER_FILES[:3])} ...)")
    if storage.is_remote(directory):
        raise UserError(f"{source}: has no {_FILE}, and other formats are read from local disk only; copy it first")
    serialized, eos_token = _convert(directory, names, source)
    return TextTokenizer(serialized, source=source, settings=settings | ({"eos_token": eos_token} if eos_token else {}))


def _convert(directory: str, names: Sequence[str], source: str) -> tuple[str, str | None]:
    """What `transformers` makes of a directory without tokenizer.json: (serialization, end-of-text token)."""
    from transformers import AutoTokenizer, GPT2TokenizerFast

    # Without a config nothing says which model it is for; vocab.json + merges.txt alone is GPT-2's own layout.
    known = any(name in names for name in _SETTINGS_FILES)
    loader = GPT2TokenizerFast if not known and "merges.txt" in names else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "`pip install sentencepiece protobuf` may be missing; " if "tokenizer.model" in names else ""
        raise UserError(f"{source}: has no {_FILE} and could not be converted: {hint}{reason}") from None


def _download(hub_id: str, revision: str | None) -> str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{hub_id}@{revision}" if revision else hub_id
    try:
        return snapshot_download(hub_id, revision=revision, allow_patterns=[_FILE, *_SETTINGS_FILES, *_OTHER_FILES])
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise UserError(
            f"{where}: neither a path here nor a repository (or revision) on the Hugging Face Hub that you may read"
        ) from None
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise UserError(f"{where}: not a path here, and the hub did not answer{offline}: {reason}") from None


def _build(serialized: str, source: str) -> "Tokenizer":
    """The tokenizer of a serialization with everything off that makes ids depend on more than the text."""
    from tokenizers import Tokenizer

    try:
        content = json.loads(serialized)
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{source}: not a tokenizer.json (no model in it)")
    content |= {"padding": None, "truncation": None}
    if content["model"].get("dropout"):
        log.warning("%s: BPE dropout %s is switched off", source, content["model"]["dropout"])
        content["model"]["dropout"] = None
    try:
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{source}: not a tokenizer.json that this version of `tokenizers` reads ({error})") from None


def _identity(tokenizer: "Tokenizer") -> str:
    content = json.loads(tokenizer.to_str())
    decisive = {key: content.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return manifest.sha256(json.dumps(decisive, sort_keys=True))


def _content(token: Any) -> str | None:
    """A special token of a settings file: a string, or an object with its `content`."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Consecutive texts of about `_BATCH_CHARACTERS` together, with the number of the first one."""
    first, size = 0, 0
    for number, text in enumerate(texts):
        size += len(text) if isinstance(text, str) else 0
        if size >= _BATCH_CHARACTERS or number + 1 == len(texts):
            yield first, list(texts[first : number + 1])
            first, size = number + 1, 0


def _what_is_wrong(texts: Sequence[Any], first: int) -> str:
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            return f"text {index} is a {type(text).__name__}, not a string"
        found = re.search("[\ud800-\udfff]", text)
        if found:
            return f"text {index} is not valid Unicode: lone surrogate U+{ord(found[0]):04X} at {found.start()}"
    return "texts are to be a sequence of strings"
