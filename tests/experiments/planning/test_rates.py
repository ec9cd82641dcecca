"""Files of rates: what is in them, what is refused, how entries are added, and which one a plan takes."""

import multiprocessing
from pathlib import Path

import pytest

from qurating_jax.experiments.planning import rates
from qurating_jax.experiments.planning.rates import Measured, Rate, append, find_speed, load_rates
from qurating_jax.models.config import PRESETS
from qurating_jax.models.flops import forward_flops, training_flops
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stages import STAGES

ENTRY = (
    "rates: [{{stage: select, device: cpu, unit: {unit}, per_second: 1, work: w, cores: 1, "
    "measured: {{date: '2026-11-28'}}}}]"
)
NOW = Measured(date="2026-11-28", commit="abc", command="bench")


def rate(**changes):
    facts = {
        "stage": "train-lm",
        "cores": 2,
        "work": "a test",
        "per_second": 100.0,
        "flops_per_unit": 1e6,
        "measured": NOW,
    }
    return Rate(**(facts | changes))


def speed(entries, stage="train-lm", unit="tokens", device="cpu", number=2, flops=1e6):
    return find_speed(entries, stage, unit, device=device, number=number, flops_per_unit=flops)


def test_what_ships_is_sound_and_says_where_it_was_measured():
    found = load_rates([rates.SHIPPED], stages=STAGES)
    assert {one.device for one in found} == {"cpu"}  # nothing has been run on an accelerator
    assert all(one.measured.command for one in found)
    model = PRESETS["debug"]
    wide = {"embed_dim": 512, "mlp_dim": 1376, "num_layers": 8, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64}
    model = type(model)(**(vars(model) | wide))
    by_work = {(one.stage, one.per_second): one.flops_per_unit for one in found}
    assert by_work["train-lm", 576] == pytest.approx(training_flops(model, 512.0) / 512)
    assert by_work["train-rater", 937] == pytest.approx(training_flops(model.with_head(4), 512.0) / 512)
    assert by_work["annotate", 3294] == pytest.approx(forward_flops(model.with_head(4), 512.0) / 512)
    # docs/annotate.md measured the same as 0.180 TFLOP/s.
    assert 3294 * by_work["annotate", 3294] == pytest.approx(0.180e12, rel=0.005)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rates: {a: 1}", "a list of entries"),
        ("rate: []", "unknown key `rate`"),
        ("rates: [7]", "rates[0]: a group"),
        ("rates: [{stage: select}]", "without device"),
        (ENTRY.format(unit="words"), "unit"),
        (ENTRY.format(unit="tokens").replace("'2026-11-28'", "soon"), "no day"),
        (ENTRY.format(unit="tokens").replace("per_second: 1", "per_second: 0"), "positive"),
        (ENTRY.format(unit="tokens").replace("cores: 1, ", ""), "has cores"),
        (ENTRY.format(unit="tokens").replace("cpu", "B300").replace("cores", "num_devices"), "B300"),
        (ENTRY.format(unit="tokens").replace("cores: 1", "cores: 1, speed: 2"), "speed"),
        (ENTRY.format(unit="tokens").replace("per_second: 1", "per_second: 1.0e-300"), "not the speed of a machine"),
        (ENTRY.format(unit="tokens").replace("per_second: 1", "per_second: 1.0e+300"), "not the speed of a machine"),
        (ENTRY.format(unit="tokens").replace("cores: 1", "cores: 1, flops_per_unit: 1.0e+300"), "speed of a machine"),
        (ENTRY.format(unit="tokens").replace("cores: 1", "cores: 1, startup_seconds: 1.0e+300"), "are years"),
        (ENTRY.format(unit="tokens").replace("select", "tokenise"), "rates[0]: no stage `tokenise` (did you mean `tok"),
        ("rates: [", "not valid YAML"),
    ],
)
def test_files_that_are_refused_in_one_line(text, words, tmp_path):
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        load_rates([str(path)], stages=STAGES)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("indent", ["", "  "])
def test_an_entry_goes_behind_the_others_and_what_was_there_stays(tmp_path, indent):
    path = tmp_path / "rates.yaml"
    append(str(path), rate())
    own = path.read_text().replace("rates:\n", "# mine\nrates:  # all\n").rstrip("\n") + "  # the first"
    head, *entries = own.partition("# all\n")[::2]
    own = head + "# all\n" + "".join(f"{indent}{line}\n" for line in entries[0].splitlines())
    path.write_text(own)
    second = rate(stage="tokenize", cores=None, num_devices=4, device="H100", flops_per_unit=None, work="ünï: 'q'")
    append(str(path), second)
    assert path.read_text().startswith(own.rstrip("\n"))
    assert load_rates([str(path)]) == [rate(), second]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rates.yaml"]


@pytest.mark.parametrize("text", ["rates: [] # none\n", "rates: {}\n", "other: 1\n"])
def test_a_file_to_which_nothing_can_be_added_stays_as_it_is(tmp_path, text):
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        append(str(path), rate())
    assert path.read_text() == text
    with pytest.raises(UsageError, match="a local file"):
        append("gs://bucket/rates.yaml", rate())


def _append(path, number):
    append(path, rate(per_second=float(number)))


def test_entries_of_several_processes_are_all_there(tmp_path):
    path = str(tmp_path / "rates.yaml")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(path, number)) for number in range(1, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(one.per_second for one in load_rates([path])) == [1.0, 2.0, 3.0, 4.0]


def test_the_same_work_is_measured_and_other_work_is_scaled():
    entries = [rate(), rate(per_second=10.0, flops_per_unit=1e7, startup_seconds=5.0)]
    same = speed(entries, flops=1.005e6)
    assert (same.per_second, same.basis, same.startup_seconds) == (100.0, "measured", 0.0)
    near = speed(entries, flops=8e6)
    assert (near.per_second, near.basis, near.startup_seconds) == (pytest.approx(10 * 1e7 / 8e6), "scaled", 5.0)
    more = speed(entries, number=8)
    assert (more.per_second, more.basis) == (400.0, "scaled")
    assert speed([rate(), rate(per_second=200.0)]).per_second == 200.0  # what stands last
    assert speed([rate(cores=8, per_second=350.0), rate()], number=8).basis == "measured"


def test_a_sister_stage_helps_where_the_stage_was_not_measured():
    reading = [rate(stage="annotate")]
    assert speed(reading, stage="eval-lm").basis == "scaled"
    assert speed(reading, stage="train-lm") is None
    assert speed([*reading, rate(stage="eval-lm", flops_per_unit=1e9)], stage="eval-lm").rate.stage == "eval-lm"
    words = [rate(stage="annotate", unit="bytes", flops_per_unit=None)]
    assert speed(words, stage="annotate") is None
    assert speed(words, stage="annotate", unit="bytes", flops=None).per_second == 100.0
    assert speed(words, stage="eval-lm", unit="bytes", flops=None) is None


def test_devices_are_told_by_their_names():
    entries = [rate(device="NVIDIA H100 80GB HBM3", cores=None, num_devices=1)]
    assert speed(entries, device="H100", number=1).basis == "measured"
    assert speed(entries, device="H100", number=8).per_second == 800.0
    assert speed(entries, device="TPU v5e", number=1) is None
    assert speed(entries, device="cpu") is None


def test_where_and_when_a_rate_is_measured():
    found = rates.now("qurating bench train-lm")
    assert len(found.date) == 10
    assert found.command == "qurating bench train-lm"
    assert Path(rates.SHIPPED).name == "rates.yaml"
