"""How much of documents files of this machine hold: by footers of Parquet, and by reading some of the rest."""

import os
from collections.abc import Sequence

from qurating_jax.experiments.files import Amount
from qurating_jax.runtime.errors import UserError

NOTHING = Amount()

_MOST_BYTES_READ = 64 << 20  # of files without footers: a plan takes seconds
_MOST_FILES_SUMMED = 8  # whose column of token counts is read; the others have as many tokens for their rows


def held(place: str, text_field: str, tokens_field: str) -> Amount:
    """What a path, glob or directory holds.

    Args:
        place: of documents, local.
        text_field: column of the text.
        tokens_field: column of the documents' token counts, which not all documents have.

    Returns:
        Documents, tokens by that column, bytes of text (of Parquet nearly: its own bookkeeping is taken off by four
        bytes a text, and a text that stands twice may count once); None for what is not known.
    """
    from qurating_jax.data import documents

    try:
        files = documents.find_files([place])
        footers = [file for file in files if file.endswith(".parquet")]
        found = [_parquet(file, text_field, tokens_field, n < _MOST_FILES_SUMMED) for n, file in enumerate(footers)]
        found += _lines([file for file in files if not file.endswith(".parquet")], text_field)
    except (UserError, OSError):  # the stage that reads it says what is wrong with it
        return NOTHING
    rows = [one.documents for one in found]
    sizes = [one.bytes for one in found]
    return Amount(
        documents=None if None in rows else sum(filter(None, rows)),
        tokens=_tokens(found),
        bytes=None if None in sizes else sum(filter(None, sizes)),
    )


def _lines(files: Sequence[str], text_field: str) -> list[Amount]:
    """Files without footers: the first ones are read, the others have as much in a byte on disk."""
    found: list[Amount] = []
    left, sizes = _MOST_BYTES_READ, [os.path.getsize(file) for file in files]
    for file, size in zip(files, sizes, strict=True):
        left -= size
        if left < 0:
            break
        found.append(_read(file, text_field))
    read, rest = sum(sizes[: len(found)]), sum(sizes[len(found) :])
    if rest and not read:
        return [NOTHING]
    if rest:
        documents, text = sum(one.documents or 0 for one in found), sum(one.bytes or 0 for one in found)
        found.append(Amount(documents=round(documents * rest / read), bytes=round(text * rest / read)))
    return found


def _read(file: str, text_field: str) -> Amount:
    from qurating_jax.data.documents import Rejects, get_field, read_rows

    number = size = 0
    with Rejects(None, "skip") as rejects:
        for _, row in read_rows(file, rejects=rejects):
            text = get_field(row, text_field)
            number += 1
            size += len(text.encode(errors="replace")) if isinstance(text, str) else 0
    return Amount(documents=number, bytes=size)


def _tokens(found: list[Amount]) -> int | None:
    """Of all files, by those whose column was read."""
    few, rest = found[:_MOST_FILES_SUMMED], found[_MOST_FILES_SUMMED:]
    if any(one.tokens is None for one in few) or any(one.documents is None for one in found):
        return None
    tokens = sum(one.tokens or 0 for one in few)
    documents = sum(one.documents or 0 for one in few)
    more = sum(one.documents or 0 for one in rest)
    return tokens + round(tokens / documents * more) if documents else tokens


def _parquet(file: str, text_field: str, tokens_field: str, sum_tokens: bool) -> Amount:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            footer, rows = opened.metadata, opened.metadata.num_rows
            columns = {footer.schema.column(place).path: place for place in range(footer.num_columns)}
            size = tokens = None
            if text_field in columns:
                groups = [
                    footer.row_group(number).column(columns[text_field]) for number in range(footer.num_row_groups)
                ]
                size = max(0, sum(group.total_uncompressed_size for group in groups) - 4 * rows)
            if tokens_field in columns and sum_tokens:
                tokens = int(pc.sum(opened.read(columns=[tokens_field])[tokens_field]).as_py() or 0)
    except pa.ArrowException:
        return NOTHING
    return Amount(documents=rows, tokens=tokens, bytes=size)
