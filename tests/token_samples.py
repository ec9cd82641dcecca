"""Token rows for tests: layouts in plain Python as the truth, and token directories without the stage."""

import numpy as np

from qurating_jax.data.tokens import TokenRowsWriter


def packed(documents, sequence_tokens, eos):
    """Documents [(id, ids)] closed and joined, cut into rows: (tokens, segment ids, pieces), lists of lists.

    A piece is {"row", "id", "start", "num_tokens", "offset"}. Documents without ids have no part in it.
    """
    rows, segments, pieces = [], [], []
    for name, ids in documents:
        closed = [*map(int, ids), eos] if len(ids) else []
        for offset, token in enumerate(closed):
            if not rows or len(rows[-1]) == sequence_tokens:
                rows.append([])
                segments.append([])
            if offset == 0 or not rows[-1]:
                row, start = len(rows) - 1, len(rows[-1])
                pieces.append({"row": row, "id": name, "start": start, "num_tokens": 0, "offset": offset})
            pieces[-1]["num_tokens"] += 1
            number = sum(piece["row"] == len(rows) - 1 for piece in pieces[-len(rows[-1]) - 1 :])
            rows[-1].append(token)
            segments[-1].append(number)
    return padded(rows, sequence_tokens), padded(segments, sequence_tokens), pieces


def segments(documents, sequence_tokens, overlap, min_tail, eos=None):
    """Windows of one document each, as `packed`, and the number of tokens that were dropped."""
    rows, pieces, dropped = [], [], 0
    for name, ids in documents:
        closed = [*map(int, ids), *([] if eos is None or not len(ids) else [eos])]
        begin, held = 0, 0  # tokens of the document that some window holds
        while held < len(closed):
            window = closed[begin : begin + sequence_tokens]
            if len(window) < min_tail:
                dropped += len(closed) - held
                break
            pieces.append({"row": len(rows), "id": name, "start": 0, "num_tokens": len(window), "offset": begin})
            rows.append(window)
            held = begin + len(window)
            begin = held - overlap
    ones = [[1] * len(row) for row in rows]
    return padded(rows, sequence_tokens), padded(ones, sequence_tokens), pieces, dropped


def padded(rows, size):
    """Rows filled up with zeros: int32 [rows, size]."""
    return np.array([[*row, *[0] * (size - len(row))] for row in rows], np.int32).reshape(-1, size)


def write_rows(directory, tokens, segment_ids, *, vocab_size=1 << 31):
    """Writes a token directory of whole arrays [rows, T]."""
    num_rows, size = tokens.shape
    writer = TokenRowsWriter(directory, num_rows=num_rows, sequence_tokens=size, vocab_size=vocab_size)
    for number in range(writer.num_shards):
        start, stop = writer.span(number)
        writer.write(number, tokens[start:stop], segment_ids[start:stop])
