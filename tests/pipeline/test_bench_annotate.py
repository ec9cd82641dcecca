"""`qurating bench annotate` on tiny sizes: what is measured is what the label says, and the command itself."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny

from qurating_jax.__main__ import main as command
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import forward_flops
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.pipeline import bench_annotate as bench
from qurating_jax.runtime import turns
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.runtime.turns import Amount, Side
from qurating_jax.scoring.benching import contest, device, host, peer, samples, scaling
from qurating_jax.scoring.benching import setting as module
from qurating_jax.scoring.benching.setting import CRITERIA, Setting, numbered_tokenizer, padding, score
from qurating_jax.scoring.part_source import AnnotationInput
from qurating_jax.scoring.shapes import Shapes

pytestmark = pytest.mark.usefixtures("hurried_turns", "quick_compiling")
WINDOW = 32
TINY = DecoderConfig(vocab_size=384, max_positions=WINDOW, num_criteria=len(CRITERIA))


def setting_of(**changed):
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1])
    fields = {"batch_tokens": 128, "num_shapes": 3, "rounds": 2, "turn_tokens": 256, "compute": ComputeConfig()}
    return Setting(model=TINY, mesh=mesh, window_tokens=WINDOW, **(fields | changed))


@pytest.fixture(scope="module")
def setting():
    return setting_of()


@pytest.fixture(scope="module")
def params(setting):
    return setting.params()


@pytest.fixture(scope="module")
def mixture():
    return samples.sample_of(np.array([1, 70, 9, 0, 33, 20, 64, 31] * 20), WINDOW, TINY.vocab_size)


# --- turns ------------------------------------------------------------------------------------------------------------


def test_sides_take_turns_in_changing_order_each_after_a_warm_up():
    calls = []

    def side(name):
        def run(number):
            calls.append((name, number))
            return Amount(10, 20)

        return Side(lambda: calls.append((name, "warm")), run)

    found = turns.in_turns({"a": side("a"), "b": side("b")}, 3)
    order = [call for call in calls if call[1] != "warm"]
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert calls[::2] == [(name, "warm") for name, _ in order]
    assert {name: len(of_side) for name, of_side in found.items()} == {"a": 3, "b": 3}
    assert turns.summary(found["a"])["padding"] == 0.5


def test_a_turn_that_compiles_is_done_again_and_what_it_compiled_is_told():
    function = jax.jit(lambda x: x * jnp.float32(3) + jnp.float32(number_of_this_test))
    seen = []

    def run(number):
        seen.append(number)
        function(jnp.zeros(number + 3, jnp.float32)).block_until_ready()
        return Amount(1)

    number_of_this_test = 17.25
    jnp.zeros(3, jnp.float32), jnp.zeros(4, jnp.float32)  # programs of their own
    (found,) = turns.in_turns({"ours": Side(lambda: None, run)}, 2).values()
    assert seen == [0, 0, 1, 1]
    told = turns.compiled([turn.compiling for turn in found])
    assert told["programs"] == 2
    assert told["compiler_seconds"] > 0
    with turns.Compiling() as again:
        function(jnp.zeros(3, jnp.float32)).block_until_ready()
    assert again.programs == 0


def test_seconds_are_those_of_the_work_alone():
    def busy():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    def idle():
        time.sleep(0.1)

    (found,) = turns.in_turns({"a": Side(busy, lambda _: [idle(), busy(), Amount(7)][-1])}, 1)["a"]
    assert found.wall >= 0.15
    assert 0.05 <= found.cpu < 0.1


def test_ratios_are_of_medians_and_medians_of_rounds():
    def side(walls, cpus, tokens):
        values = zip(walls, cpus, tokens, strict=True)
        return [turns.Turn(Amount(t), wall, cpu, turns.Compiling()) for wall, cpu, t in values]

    ours, theirs = side([1, 2, 4], [1, 1, 1], [8, 8, 8]), side([4, 1, 8], [4, 2, 2], [4, 4, 4])
    found = turns.ratios(ours, theirs)
    # Ours 8, 4, 2 tokens a second and theirs 1, 4, 0.5: 4 / 1 of medians, 8, 1, 4 in the rounds. CPU: 8 and 1, 2, 2.
    assert found["wall"] == {"of_medians": 4.0, "median_of_rounds": 4.0}
    assert found["cpu"] == {"of_medians": 4.0, "median_of_rounds": 4.0}
    assert turns.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_has_the_windows_of_its_documents_and_never_token_0(mixture):
    assert mixture.sizes[:5].tolist() == [1, 32, 32, 6, 9]
    assert mixture.starts[:5].tolist() == [0, 1, 33, 65, 71]
    assert mixture.documents[:5].tolist() == [0, 1, 1, 1, 2]
    assert 3 not in mixture.documents
    assert mixture.values.dtype == np.int32
    assert (int(mixture.values.min()), int(mixture.values.max())) == (1, TINY.vocab_size - 1)


def test_shares_are_spread_over_the_whole_and_differ():
    hands = samples.deal(list(range(100)), [10] * 100, turn_tokens=50, rounds=4)
    assert [len(hand) for hand in hands] == [5, 5, 5, 5]
    assert len({item for hand in hands for item in hand}) == 20
    for hand in hands:
        assert np.diff(hand).tolist() == [20] * 4
    assert samples.deal([1, 2], [1, 1], turn_tokens=100, rounds=3) == [[1, 2]] * 3
    assert samples.deal([5, 6, 7], [90, 90, 90], turn_tokens=1, rounds=2) == [[5], [7]]


def test_texts_come_from_all_over_the_input(tmp_path):
    for file in range(3):
        lines = [json.dumps({"text": f"{file} {row}" if row % 7 else ""}) for row in range(400)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join([*lines, "no row"]) + "\n")
    texts = samples.read_texts([str(tmp_path / "*.jsonl")], "text", 640)
    assert 500 < len(texts) < 640
    assert len(set(texts)) == len(texts)
    files = [int(text.split()[0]) for text in texts]
    assert np.bincount(files).min() > 100
    assert files != sorted(files)
    everything = samples.read_texts([str(tmp_path / "*.jsonl")], "text", 10_000)
    assert sorted(everything) == sorted(f"{f} {row}" for f in range(3) for row in range(400) if row % 7)
    with pytest.raises(UserError, match="no texts"):
        samples.read_texts([str(tmp_path / "*.jsonl")], "other", 10)


# --- the scorer against transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_sorted", [False, True])
def test_batches_of_the_other_side(is_sorted):
    lengths = np.random.default_rng(0).integers(0, 90, 1500)
    sample = samples.sample_of(lengths, WINDOW, 50)
    batches = peer.batches_of(sample, 16, is_sorted=is_sorted)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(sample)))
    expected = []
    for first in range(0, 1500, 512):
        windows = [w for w in range(len(sample)) if first <= sample.documents[w] < first + 512]
        if is_sorted:
            windows.sort(key=lambda w: -sample.sizes[w])
        expected += [windows[start : start + 16] for start in range(0, len(windows), 16)]
    assert [batch.tolist() for batch in batches] == expected
    assert peer.places(sample, batches[0]) == len(batches[0]) * max(sample.sizes[w] for w in batches[0])


@pytest.mark.torch
def test_both_sides_score_the_same_windows_alike(setting, params, mixture):
    pytest.importorskip("torch", reason="torch is installed by .ci/run")
    sides, reason = contest.peers(setting, params, ["eager"])
    assert reason is None
    found = contest.Contest(setting, params, ["auto", "xla"], sides, 4).mixture(mixture)
    assert set(found["sides"]) == {"ours (auto)", "torch (eager), sorted", "torch (eager), unsorted"}
    assert found["score_differences"].keys() == {"torch (eager)"}
    assert found["score_differences"]["torch (eager)"] < 1e-6 < found["score_std"]
    ours = found["sides"]["ours (auto)"]
    assert ours["padding_of_all"] == padding(setting.rater(params).suited_to(mixture.sizes, 3), mixture.sizes)
    assert found["sides"]["torch (eager), sorted"]["padding_of_all"] < 0.1
    assert found["sides"]["torch (eager), unsorted"]["padding_of_all"] > 0.2
    assert set(found["ratios"]["ours (auto)"]) == {"torch (eager), sorted", "torch (eager), unsorted"}
    windows = np.array([3, 0, 7, 2])
    theirs = sides["torch (eager)"].score(mixture, [windows[:3], windows[3:]])
    np.testing.assert_allclose(theirs, score(setting.rater(params), mixture, windows), atol=1e-6)


def test_ours_alone_with_every_attention(setting, params):
    found = contest.Contest(setting, params, ["auto", "xla"], {}, 4).full()
    assert set(found["sides"]) == {"ours (auto)", "ours (xla)"}
    assert found["score_differences"] == {"ours (xla)": 0.0}
    for side in found["sides"].values():
        assert side["padding"] == 0.0
        assert side["shapes"] == 1
    assert set(found["ratios"]) == {"ours (auto)", "ours (xla)"}
    assert set(found["ratios"]["ours (auto)"]) == {"ours (xla)"}


def test_sides_that_differ_are_an_error():
    scores = {"ours": np.zeros((3, 4), np.float32), "torch": np.full((3, 4), 2e-4, np.float32)}
    with pytest.raises(UserError, match="do not compute the same"):
        contest.agreement(scores, "float32")
    with pytest.raises(UserError, match="do not compute the same"):
        contest.agreement({"ours": scores["ours"], "torch": scores["ours"] * np.float32("nan")}, "float32")
    assert contest.agreement(scores, "bfloat16")["score_differences"] == {"torch": pytest.approx(2e-4)}


def test_without_torch_it_says_so(monkeypatch, setting, params):
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    assert contest.peers(setting, params, ["eager"]) == (
        {},
        "torch and transformers not installed: ours is measured alone",
    )
    assert contest.peers(setting, params, []) == ({}, None)


def test_compared_windows_have_all_lengths(mixture):
    windows = contest.spread_windows(mixture, 12)
    sizes = mixture.sizes[windows].tolist()
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1], len(windows)) == (1, WINDOW, 12)


def test_operations_and_mfu_are_those_of_the_windows_that_were_scored(monkeypatch, setting, params, mixture):
    windows = np.array([0, 1, 3])
    amount = module.our_side(setting.rater(params), mixture, [windows]).run(0)
    flops = sum(forward_flops(TINY, float(mixture.sizes[window])) for window in windows)
    assert amount == Amount(39, amount.places, pytest.approx(flops, rel=1e-12))
    rater = peer.TorchRater(None, "cpu", False)
    monkeypatch.setattr(peer.TorchRater, "score", lambda *_: None)
    assert rater.side(mixture, [[windows[:2], windows[2:]]], TINY).run(0) == Amount(39, 70, amount.flops)
    found = turns.summary([turns.Turn(amount, wall, 1.0, turns.Compiling()) for wall in (2.0, 4.0, 8.0)])
    assert found["flops_per_second"] == pytest.approx(flops / 4, rel=1e-12)
    assert module.mfu(1e9, 2) is None
    monkeypatch.setattr(module, "peak_flops", lambda kind: 1e9)
    assert module.mfu(1e9, 2) == 0.5


# --- host -------------------------------------------------------------------------------------------------------------


def test_the_pipeline_without_a_model_writes_what_annotate_writes(tmp_path):
    tokenizer = tiny.make_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.TEXTS))
    source = AnnotationInput((str(tmp_path / "in.jsonl"),), "text", "id", None, None, 4, 1 << 20)
    parts = source.open(source.find_files(), None).parts
    (tmp_path / "out").mkdir()
    host.rate(source, parts, host.StandIn(CRITERIA, tokenizer), tokenizer, 48, str(tmp_path / "out"))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").iterdir())]
    assert [len(table) for table in tables] == [4, 2]
    expected = [len(ids) for ids in tokenizer.encode(tiny.TEXTS)]
    assert [row for table in tables for row in table["length"].to_pylist()] == expected
    averages = [row for table in tables for row in table["writing_style_average"].to_pylist()]
    assert averages == [0.0 if length else None for length in expected]


def test_speeds_of_the_host(tmp_path, mixture):
    tokenizer = tiny.make_tokenizer(tmp_path / "tokenizer")
    texts = [text for text in tiny.TEXTS if text] * 20
    found = host.pipeline_speed(texts, tokenizer, 48, 2)
    assert found["tokens"] == sum(len(ids) for ids in tokenizer.encode(texts))
    assert found["bytes"] == sum(len(text.encode()) for text in texts)
    assert set(found["sides"]) == {"ours", "tokenizer alone"}
    for side in found["sides"].values():
        bytes_per_token = 1e6 * side["megabytes_per_second"]["median"] / side["tokens_per_second"]["median"]
        assert bytes_per_token == pytest.approx(found["bytes"] / found["tokens"], rel=1e-9)
    assert host._chunks(["a"] * 3) == [["a"] * 3]
    laid = host.layout_speed(mixture, Shapes.powers_of_two(WINDOW), 2)
    assert laid["tokens"] == mixture.sizes.sum()
    assert laid["lay_out_tokens_per_second"]["low"] > 0


# --- the device -------------------------------------------------------------------------------------------------------


def test_ceilings_count_operations_and_bytes(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(device.time, "perf_counter", lambda: float(next(clock)))  # every measurement takes a second
    found = device.ceilings(64, 4000, "float32", 3)
    assert found["matmul_flops_per_second"] == turns.spread([device._CALLS * 2.0 * 64**3] * 3)
    assert found["copied_bytes"] == 4000
    assert found["copy_bytes_per_second"] == turns.spread([device._CALLS * 2.0 * 4000] * 3)


def test_rounding_compares_the_same_windows(params, mixture):
    setting = setting_of(compute=ComputeConfig(attention="xla"))
    found = device.rounding(setting, params, mixture)
    assert found["windows"] == np.searchsorted(np.cumsum(mixture.sizes), 256)
    assert set(found["criteria"]) == set(CRITERIA)
    for row in found["criteria"].values():
        assert 0.99 < row["spearman"] <= 1
        assert row["distinct_float32"] == found["windows"]
    assert 0 < found["largest_difference"] < 0.05


def test_end_to_end_rates_the_windows_that_the_scorer_alone_rates(setting, params, mixture):
    found = device.end_to_end(setting, params, mixture, tokens=600, rows_per_part=10, rounds=2)
    assert found["documents"] == np.searchsorted(mixture.offsets, 600, side="right") - 1
    assert found["parts"] == -(-found["documents"] // 10)
    assert set(found["sides"]) == {"Parquet to Parquet", "scorer alone"}
    for side in found["sides"].values():
        assert 0 <= side["padding"] < 0.5


def test_token_ids_stand_for_themselves():
    tokenizer = numbered_tokenizer(50)
    assert tokenizer.vocab_size == 50
    assert tokenizer.encode(["7", "49"])[1].tolist() == [49]


# --- devices ----------------------------------------------------------------------------------------------------------


def test_scaling_on_the_devices_of_this_process(monkeypatch):
    monkeypatch.setattr(scaling, "_WINDOW_TOKENS", 32)
    monkeypatch.setattr(scaling, "_DEVICE_TOKENS", 64)
    monkeypatch.setattr(scaling, "_BATCHES", 2)
    found = scaling.measure([1, 4], 1)
    assert set(found) == {"1", "4"}
    four = found["4"]
    assert four["host_seconds_per_batch_and_device"]["low"] == four["host_seconds_per_batch"]["low"] / 4
    assert four["tokens_per_second"]["low"] > 0


def test_scaling_in_a_process_with_as_many_devices():
    found = scaling.scaling(3, 1)
    assert set(found) == {"1", "2"}
    assert all(row["tokens_per_second"]["low"] > 0 for row in found.values())


def test_a_process_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(scaling, "__name__", "qurating_jax.no_such_module")
    with pytest.raises(UserError, match="scaling: the process with 2 devices ended with 1"):
        scaling.scaling(3, 1)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    tiny.make_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.TEXTS * 10))
    code = command(
        [
            "bench", "annotate", "--parts", "scorer", "host", "ceilings", "rounding", "end_to_end",
            "--documents", str(tmp_path / "in.jsonl"), "--tokenizer", str(tmp_path / "tokenizer"),
            "--architecture.num_layers", "1", "--window_tokens", "32", "--turn_tokens", "256", "--rounds", "1",
            "--batch_tokens", "128", "--num_shapes", "1", "--matmul_size", "32", "--copy_bytes", "4000",
            "--file_tokens", "400", "--file_rounds", "1", "--against", "none", "--num_documents", "64",
            "--json",
        ]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    found = json.loads(printed.splitlines()[-1])
    assert {"machine", "scorer", "host", "ceilings", "rounding", "end_to_end"} <= set(found)
    assert found["scorer"]["lengths"] == "documents"
    for title in ("full windows", "windows of documents", "tokenizer alone", "ceilings of one device", "Spearman"):
        assert title in printed
    assert "of the matrix product's FLOP/s" in printed


def test_options_that_do_not_fit(capsys):
    with pytest.raises(ValueError, match="go together"):
        bench.Config(documents=("a",))
    with pytest.raises(ValueError, match="rounds is 0"):
        bench.Config(rounds=0)
    with pytest.raises(ValueError, match="none of"):
        bench.Config(model="large")
    with pytest.raises(ValueError, match="at least one"):
        bench.Config(parts=())
    assert command(["bench", "annotate", "--parts", "speed"]) == UsageError.exit_code
    assert "speed" in capsys.readouterr().err
