import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qurating_jax.data.parts import Parts
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import part_files
from qurating_jax.scoring.part_files import Plan

PARTS = Parts((5, 4), (0, 3, 6, 9))
LISTS = {0: b'{"line": 1}\n', 2: b'{"line": 8}\n{"line": 9}\n'}


@pytest.fixture
def output(tmp_path):
    """Three parts of three rows; rejected rows are listed."""
    (tmp_path / "rejected").mkdir()
    for number in range(3):
        rejected = LISTS.get(number, b"").count(b"\n")
        table = pa.table({"id": [f"{number}-{row}" for row in range(3 - rejected)]})
        part_files.write_part(str(tmp_path), number, table, {"documents": 3 - rejected, "rejected": rejected})
        if rejected:
            (tmp_path / "rejected" / f"part-{number:05d}.jsonl").write_bytes(LISTS[number])
    return tmp_path


def test_parts_account_for_their_rows_and_their_lists_become_one(output):
    assert part_files.missing_parts(str(output), PARTS) == []
    assert part_files.conclude(str(output), PARTS) == {"documents": 6, "rejected": 3}
    assert (output / "rejected.jsonl").read_bytes() == LISTS[0] + LISTS[2]
    part_files.clear(str(output))
    assert not (output / "rejected").exists()
    part_files.clear(str(output))
    (output / "part-00001.parquet").unlink()
    assert part_files.missing_parts(str(output), PARTS) == [1]


@pytest.mark.parametrize("number", LISTS)
def test_a_worker_that_another_overtakes_leaves_its_list_of_rejected_rows(output, number):
    """Two workers end a run: one has merged the lists and begun to remove them when the other merges."""
    part_files.conclude(str(output), PARTS)
    (output / "rejected" / f"part-{number:05d}.jsonl").unlink()
    assert part_files.conclude(str(output), PARTS) == {"documents": 6, "rejected": 3}
    assert (output / "rejected.jsonl").read_bytes() == LISTS[0] + LISTS[2]
    (output / "rejected.jsonl").unlink()
    with pytest.raises(UserError, match=rf"rejected/part-{number:05d}.jsonl: no such file"):
        part_files.conclude(str(output), PARTS)
    assert [path.name for path in output.glob("rejected*")] == ["rejected"]


def test_many_workers_that_end_a_run_at_once(output):
    errors = []

    def finish():
        try:
            assert part_files.conclude(str(output), PARTS)["documents"] == 6
            part_files.clear(str(output))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=finish) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (output / "rejected.jsonl").read_bytes() == LISTS[0] + LISTS[2]
    assert not (output / "rejected").exists()


def test_parts_of_others_are_refused(output):
    path = output / "part-00001.parquet"
    mine = pq.read_table(path)
    pq.write_table(mine.replace_schema_metadata(None), path)
    with pytest.raises(UserError, match=r"part-00001\.parquet: not a part of this run; remove it and run again"):
        part_files.conclude(str(output), PARTS)
    pq.write_table(mine.slice(0, 2), path)
    with pytest.raises(UserError, match=r"part-00001\.parquet: holds 2 rows, not 3; remove it"):
        part_files.conclude(str(output), PARTS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a part of this run"):
        part_files.conclude(str(output), PARTS)
    pq.write_table(mine, path)
    with pytest.raises(UserError, match=r"part-00000\.parquet: accounts for 3 rows of 2; remove it"):
        part_files.conclude(str(output), Parts((9,), (0, 2, 6, 9)))


def test_one_worker_makes_the_plan_and_all_read_the_same(tmp_path):
    sizes, made = np.array([5, 3, 5, 5, 1], np.int64), []

    def make():
        made.append(1)
        return Plan(PARTS, sizes)

    plans, output = [], str(tmp_path)

    def ask():
        plans.append(part_files.shared_plan(output, make, Claims(output)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(plans), len(made)) == (4, 1)
    for plan in plans:
        assert plan.parts == PARTS
        assert plan.window_sizes.tolist() == [1, 3, 5, 5, 5]
        assert plan.window_sizes.dtype == np.int64


def test_an_input_that_cannot_be_cut_leaves_nothing(tmp_path):
    def make():
        raise UserError("a.jsonl: truncated")

    for claims in (Claims(str(tmp_path)), None):
        with pytest.raises(UserError, match="truncated"):
            part_files.shared_plan(str(tmp_path), make, claims)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a plan of this version; start again with --overwrite"),
        ('{"parts": {"rows": [1], "bounds": [0, 1]}}', "not a plan of this version"),
        ('{"parts": {"rows": [1], "bounds": [0, 2]}, "window_sizes": [[], []]}', "not a list of parts"),
        ('{"parts": {"rows": [1], "bounds": [0, 1]}, "window_sizes": [[1], ["a"]]}', "not sizes and their counts"),
        ('{"parts": {"rows": [1], "bounds": [0, 1]}, "window_sizes": [[1]]}', "not sizes and their counts"),
        ('{"parts": {"rows": [1], "bounds": [0, 1]}, "window_sizes": [[1], [-1]]}', "not sizes and their counts"),
    ],
)
def test_a_broken_plan_is_one_line(tmp_path, content, match):
    (tmp_path / "parts.json").write_text(content)
    with pytest.raises(UserError, match=rf"parts\.json: .*{match}"):
        part_files.shared_plan(str(tmp_path), lambda: Plan(PARTS, np.zeros(0, np.int64)), None)
