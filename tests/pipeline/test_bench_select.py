import json

import numpy as np
import pytest

from qurating_jax import config as configs
from qurating_jax.__main__ import main as command
from qurating_jax.pipeline import bench_select
from qurating_jax.runtime.errors import UsageError
from qurating_jax.selection.benching import draws


def test_both_sides_draw_about_the_same_tokens(tmp_path):
    draws.write(str(tmp_path), 20_000, 4)
    for num_domains in (1, 4):
        setting = draws.Setting(str(tmp_path), 20_000, num_domains, 0.1, 2.0, 1 << 30, 2)
        wanted = round(0.1 * int(setting.column("tokens").sum()))
        assert wanted <= draws.ours(setting) < wanted + 1024
        assert wanted - 4 <= draws.original(setting) < wanted + 1024 * num_domains


def test_parts_are_rows_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(draws, "_PART_ROWS", 3_000)
    draws.write(str(tmp_path), 10_000, 4)
    setting = draws.Setting(str(tmp_path), 10_000, 4, 0.1, 2.0, 1 << 30, 1)
    blocks = [setting.block(number) for number in range(len(setting))]
    assert [len(block) for block in blocks] == [setting.num_rows(number) for number in range(4)] == [3000] * 3 + [1000]
    assert np.array_equal(np.concatenate([block.hashes for block in blocks]), setting.column("hashes"))
    assert blocks[0].domains.max() == 3


def test_the_command_measures_and_prints(tmp_path, capsys):
    arguments = [
        "bench",
        "select",
        "--parts",
        "draw",
        "growth",
        "--num_documents",
        "20000",
        "--sizes",
        "10000",
        "20000",
    ]
    assert command([*arguments, "--rounds", "1", "--num_workers", "1", "--directory", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert [entry["domains"] for entry in found["draw"]] == [1, 16]
    assert all(entry["ratios"]["wall_seconds"] > 0 and entry["ours"]["tokens"] > 0 for entry in found["draw"])
    assert [entry["documents"] for entry in found["growth"]] == [10_000, 20_000]
    assert "original" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--parts", "dsir"], "needs --documents"), (["--share", "0"], "share"), (["--rounds", "0"], "at least 1")],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        configs.parse(bench_select.Config, options, prog="qurating bench select")
