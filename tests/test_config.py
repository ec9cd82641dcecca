import contextlib
import dataclasses
import io
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Judge:
    kind: Literal["offline", "openai"] = option("offline", "which judge")
    max_cost: float | None = option(None, "stop at this many dollars")
    num_workers: int = option(4, "requests in flight", runtime=True)


JUDGE = Judge()


@dataclass(frozen=True, kw_only=True)
class Config:
    input: tuple[str, ...] = option((), "documents", runtime=True)
    sizes: tuple[int, ...] = option((1, 2), "sizes")
    name: str = option("x", "a name")
    revision: str | None = option(None, "revision")
    num_pairs: int = option(100, "how many, 50 % of them swapped")
    temperature: float = option(2.0, "tau")
    inverse: bool = option(False, "lowest first")
    normalize: bool = option(True, "mean 0, std 1")
    judge: Judge = option(JUDGE, "the judge")

    def __post_init__(self):
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs is at least 1, not {self.num_pairs}")


def parse(*argv):
    return configs.parse(Config, argv, prog="qurating test")


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults():
    assert parse() == Config()


def test_a_file(yaml_file):
    path = yaml_file(
        "num_pairs: 7\ntemperature: 1\ninput: [a, b]\nrevision: null\njudge: {kind: openai, max_cost: 1.5}\n"
    )
    expected = Config(num_pairs=7, temperature=1.0, input=("a", "b"), judge=Judge(kind="openai", max_cost=1.5))
    assert parse("--config", path) == expected == configs.load(Config, path)
    assert isinstance(parse("--config", path).temperature, float)
    assert parse("--config", yaml_file("# nothing\n")) == Config()


def test_the_command_line_goes_before_the_file_before_the_defaults(yaml_file):
    path = yaml_file("num_pairs: 7\nname: file\njudge:\n  kind: openai\n  num_workers: 2\ninput: [a, b]\n")
    found = parse("--num_pairs", "8", "--config", path, "--judge.num_workers", "9", "--input", "c")
    assert found == Config(num_pairs=8, name="file", judge=Judge(kind="openai", num_workers=9), input=("c",))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--inverse"], {"inverse": True}),
        (["--inverse", "--normalize", "false"], {"inverse": True, "normalize": False}),
        (["--inverse", "false"], {"inverse": False}),
        (["--normalize=false", "--name", "n"], {"normalize": False, "name": "n"}),
        (["--input", "a", "b*", "--num_pairs", "3"], {"input": ("a", "b*"), "num_pairs": 3}),
        (["--sizes", "-1", "5"], {"sizes": (-1, 5)}),
        (["--temperature", "-1.5"], {"temperature": -1.5}),
        (["--name", "007"], {"name": "007"}),
        (["--name", "yes"], {"name": "yes"}),
        (["--name", ""], {"name": ""}),
        (["--name=--dashes"], {"name": "--dashes"}),
        (["--temperature=-1.5e-3"], {"temperature": -1.5e-3}),
        (["--revision", "1e5"], {"revision": "1e5"}),
        (["--revision", "null"], {"revision": None}),
        (["--judge.max_cost", "2"], {"judge": Judge(max_cost=2.0)}),
        (["--num_pairs", "1", "--num_pairs", "2"], {"num_pairs": 2}),
        (["--input", "a", "b*", "--name", "n", "--input", "c"], {"input": ("a", "b*", "c"), "name": "n"}),
        (["--sizes", "3", "--sizes", "4"], {"sizes": (3, 4)}),
    ],
)
def test_command_line_values(argv, expected):
    assert parse(*argv) == Config(**expected)


def test_null_on_the_command_line_takes_a_value_of_the_file_away(yaml_file):
    path = yaml_file("revision: main\njudge: {max_cost: 3}\n")
    assert parse("--config", path, "--revision", "null", "--judge.max_cost", "null") == Config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("num_pair: 3", r"unknown key `num_pair` \(did you mean `num_pairs`\?\)"),
        ("judge: {knd: openai}", r"unknown key `judge.knd` \(did you mean `judge.kind`\?\)"),
        ("zzz: 3", r"unknown key `zzz` \(known keys: input, "),
        ("3: x", "unknown key `3`"),
        ("judge.kind: openai", "unknown key `judge.kind`"),
        ("num_pairs: many", "`num_pairs` is a whole number, not 'many'"),
        ("num_pairs: 1.5", "`num_pairs` is a whole number, not 1.5"),
        ("num_pairs: 1e3", "`num_pairs` is a whole number, not '1e3'"),
        ("num_pairs: yes", "`num_pairs` is a whole number, not True"),
        ("num_pairs: [3]", "`num_pairs` is a whole number"),
        ("num_pairs:", "`num_pairs` has no value"),
        ("num_pairs: 0", "num_pairs is at least 1, not 0"),
        (f"num_pairs: {'9' * 400}", "`num_pairs` is a whole number of 64 bits, not 9999"),
        (f"num_pairs: {'9' * 5000}", "not valid YAML"),
        ("num_pairs: 9223372036854775808", "`num_pairs` is a whole number of 64 bits"),
        (f"temperature: {'9' * 400}", "`temperature` is a finite number, not 9999"),
        ("input: &a [*a]", "more than 100,000 entries with what its anchors stand for"),
        ("input: " + "[" * 3000, "nested too deeply"),
        ("temperature: on", "`temperature` is a finite number, not True"),
        ("temperature: .nan", "`temperature` is a finite number"),
        ("temperature: .inf", "`temperature` is a finite number"),
        ("temperature: {a: 1}", "`temperature` is a finite number"),
        ("judge: {max_cost: true}", "`judge.max_cost` is a finite number, not True"),
        ("judge: {kind: human}", "kind.*offline, openai"),
        ("judge: openai", "`judge` is a group of settings, not 'openai'"),
        ("judge:", "`judge` is a group of settings, not None"),
        ("name: 7", "`name` is text .put it in quotes., not 7"),
        ("name: no", "`name` is text .put it in quotes., not False"),
        ("name: [a]", "`name` is text"),
        ("revision: 0123", "`revision` is text .put it in quotes., not 83"),
        ("revision: 2024-01-01", "`revision` is text .put it in quotes., not datetime"),
        ("input: corpus.jsonl", r"`input` is a list \(\[a, b\] in YAML\), not 'corpus.jsonl'"),
        ("input: {a: b}", "`input` is a list"),
        ("input: [a, null]", "`input` is a list where each value is text"),
        ("sizes: [1, true]", "`sizes` is a list where each value is a whole number"),
        ("sizes: '12'", "`sizes` is a list"),
        ("inverse: 1", "inverse.*bool"),
        ("inverse: maybe", "inverse.*bool"),
        ("inverse:", "`inverse` has no value"),
        ("- a\n- b", "a config file is a mapping of keys to values, not a list"),
        ("just text", "not a str"),
        ("name: a\nname: b", "key `name` stands twice"),
        ("judge: {kind: openai, kind: offline}", "key `kind` stands twice"),
        ("judge: {kind: [", "not valid YAML"),
        ("name: !!python/object/apply:os.system [id]", "not valid YAML.*could not determine a constructor"),
        ("? [a, b]\n: c", "keys are plain words"),
        ("name: \x07", "not valid YAML"),
    ],
)
def test_files_that_are_refused(yaml_file, text, problem):
    path = yaml_file(text)
    with pytest.raises(UsageError, match=problem) as refusal:
        parse("--config", path)
    assert str(refusal.value).startswith(path)
    assert "\n" not in str(refusal.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.yaml: no such config file"):
        parse("--config", str(tmp_path / "missing.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        parse("--config", str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(UsageError, match="not valid YAML"):
        parse("--config", str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--num_pair", "3"], r"--num_pair 3 \(did you mean --num_pairs\?\)"),
        (["--judge.knd=x"], r"did you mean --judge.kind\?"),
        (["--qqqqq"], r"qurating test --help lists the options"),
        (["--num"], "unrecognized arguments: --num"),  # no abbreviations: a later option must not change their meaning
        (["stray"], "unrecognized arguments: stray"),
        (["--num_pairs"], "expected one argument"),
        (
            ["--temperature", "-1e-3"],
            r"expected one argument \(a value that begins with a dash is given as --option=-value\)",
        ),
        (["--input"], "expected at least one argument"),
        (["--num_pairs", "1.0"], "command line: `num_pairs` is a whole number"),
        (["--num_pairs", "true"], "`num_pairs` is a whole number"),
        (["--num_pairs", "null"], "`num_pairs` has no value"),
        (["--temperature", "hot"], "`temperature` is a finite number, not 'hot'"),
        (["--temperature", "nan"], "`temperature` is a finite number"),
        (["--inverse", "maybe"], "inverse"),
        (["--sizes", "1", "x"], "`sizes` is a list where each value is a whole number"),
        (["--judge.kind", "human"], "kind.*offline, openai"),
        (["--judge", "openai"], "unrecognized arguments: --judge"),
    ],
)
def test_command_lines_that_are_refused(argv, problem):
    with pytest.raises(UsageError, match=problem) as refusal:
        parse(*argv)
    assert refusal.value.exit_code == 2
    assert "\n" not in str(refusal.value)


def test_a_group_that_the_file_made_a_value(yaml_file):
    with pytest.raises(UsageError, match=r"--judge\.kind: `judge` is not a group of settings"):
        parse("--config", yaml_file("judge: openai"), "--judge.kind", "offline")


def test_identity_leaves_out_what_cannot_change_a_result():
    config = Config(input=("a",), judge=Judge(num_workers=9))
    assert configs.identity(config) == {
        "sizes": [1, 2],
        "name": "x",
        "revision": None,
        "num_pairs": 100,
        "temperature": 2.0,
        "inverse": False,
        "normalize": True,
        "judge": {"kind": "offline", "max_cost": None},
    }
    assert configs.resolved(config)["judge"]["num_workers"] == 9


def test_a_resolved_config_is_a_config_file(yaml_file):
    import yaml

    config = Config(input=("a: b", "007", "no"), name="null", revision="1e5", judge=Judge(max_cost=1e-7))
    assert configs.load(Config, yaml_file(yaml.safe_dump(configs.resolved(config)))) == config


def test_help_names_every_option_with_its_default_and_text():
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as leaving:
        configs.parse(Config, ["--help"], prog="qurating test", description="What it does.")
    assert leaving.value.code == 0
    text = " ".join(stream.getvalue().split())
    assert "What it does." in text
    for expected in (
        "--config FILE",
        "--input STR [STR ...] documents",
        "--sizes INT [INT ...] sizes [1 2]",
        "--num_pairs INT how many, 50 % of them swapped [100]",
        "--inverse [BOOL] lowest first [False]",
        "--revision STR revision",
        "--judge.kind offline|openai which judge [offline]",
        "--judge.max_cost FLOAT stop",
    ):
        assert expected in text
    names = [field.name for field in dataclasses.fields(Config) if field.name != "judge"]
    assert all(f"--{name} " in text for name in names)


def test_an_unexpected_percent_sign_in_a_default_does_not_break_help():
    @dataclass(frozen=True, kw_only=True)
    class Percent:
        parts: tuple[str, ...] = option(("50%s", "%(prog)d"), "parts")

    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), pytest.raises(SystemExit):
        configs.parse(Percent, ["--help"], prog="p")
    assert "[50%s %(prog)d]" in stream.getvalue()


def test_the_command_answers_help_without_jax_and_usage_errors_with_exit_2():
    code = "import sys; from qurating_jax.__main__ import main; sys.exit(main(['--help']) + 5 * ('jax' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "train-rater" in done.stdout
    done = subprocess.run([sys.executable, "-m", "qurating_jax", "selct"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: no stage `selct`; did you mean `qurating select`?\n"
