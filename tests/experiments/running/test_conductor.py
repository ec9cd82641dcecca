"""The loop over processes, with a launcher that stands in for the stages (`fake_stage.py`)."""

import errno
import fnmatch
import functools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import experiment_runs as runs
import graphs
import pytest
from graphs import node_of

from qurating_jax.experiments.running.conductor import Conductor, Settings
from qurating_jax.experiments.running.external import Digests
from qurating_jax.experiments.running.stage_processes import Launch, StageProcess, last_line
from qurating_jax.experiments.running.states import look
from qurating_jax.pipeline.run import _config_path, _write
from qurating_jax.runtime.claims import Claims
from qurating_jax.stages import STAGES

FAKE = shlex.join([sys.executable, str(pathlib.Path(__file__).with_name("fake_stage.py"))])
BOTH = ("uniform.yaml", "sample.yaml")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def conductor(graph, launch=FAKE, *, keys=None, fakes=None, **settings):
    _write(graph)
    environment = runs.environment(EVENTS=os.path.abspath("events"), FAKES=json.dumps(fakes or {}))
    return Conductor(
        graph,
        list(graph.nodes) if keys is None else keys,
        Digests(),
        Settings(
            processes=lambda stage: STAGES[stage].processes,
            launch=Launch(single=launch, shards=launch, hosts=launch),
            environment=environment,
            config_path=lambda node: _config_path(graph.output, node),
            log_path=lambda node: f"out/logs/{node.name}.txt",
            **settings,
        ),
    )


def events(kind=None):
    lines = [line.split() for line in pathlib.Path("events").read_text().splitlines()]
    return [name for what, name in lines if kind in (None, what)]


def states(graph, results):
    return [results[key].state if key in results else None for key in graph.nodes]


def test_the_first_experiment_is_finished_first_and_what_is_shared_runs_once(tmp_path):
    graph = graphs.make_graph(tmp_path, *BOTH)
    results = conductor(graph).run()
    assert states(graph, results) == ["ran"] * 7
    assert events("start") == [node.name for node in graph.nodes.values()]
    first = set(graph.runs[0].steps.values())
    assert {name.rsplit("-", 1)[1] for name in events("end")[:4]} == first
    record = json.loads(pathlib.Path(f"out/records/{node_of(graph, 'select').name}.json").read_text())
    assert record["device"] is None  # where a launcher ran it is not known here
    again = conductor(graph).run()
    assert states(graph, again) == ["done"] * 7
    assert again[node_of(graph, "select").key].seconds == record["seconds"]


def test_a_failure_leaves_out_what_depends_on_it_and_nothing_else(tmp_path):
    graph = graphs.make_graph(tmp_path, *BOTH)
    results = conductor(graph, fakes={"select": {"code": 3}}).run()
    found = {graph.nodes[key].steps[0]: result for key, result in results.items()}
    assert {step: result.state for step, result in found.items()} == {
        "tokenizer": "ran", "select": "failed", "tokenize": "left out", "train_lm": "left out",
    }  # fmt: skip
    assert (found["select"].code, found["select"].why) == (3, "as planned")
    assert states(graph, conductor(graph).run()).count("ran") == 6  # the same command goes on


@pytest.mark.parametrize("parallel", [1, 2])
def test_so_many_processes_at_a_time(tmp_path, parallel):
    graph = graphs.make_graph(tmp_path, *BOTH)
    work = conductor(graph, max_parallel=parallel, fakes={"select": {"seconds": 1.5}})
    assert states(graph, work.run()) == ["ran"] * 7
    running = most = 0
    for line in pathlib.Path("events").read_text().splitlines():
        running += 1 if line.startswith("start") else -1
        most = max(most, running)
    assert most == parallel


def test_a_launcher_that_does_not_wait_is_waited_for(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    results = conductor(graph, fakes={"select": {"later": True}}).run()
    assert states(graph, results) == ["ran"] * 4
    assert results[node_of(graph, "select").key].seconds > 0.5


def test_what_another_runner_has_comes_last(tmp_path, caplog):
    caplog.set_level("INFO")
    graph = graphs.make_graph(tmp_path, *BOTH)
    held = node_of(graph, "select")
    descriptor = Claims("out").hold(held.name)
    assert Claims("out").hold(held.name) is None

    def release():
        runs.wait_for(lambda: len(events("end")) == 4, "the other steps")
        os.close(descriptor)

    pathlib.Path("events").touch()
    other = threading.Thread(target=release)
    other.start()
    results = conductor(graph).run()
    other.join()
    assert states(graph, results) == ["ran"] * 7
    assert events("start").index(held.name) == 4  # after the tokenizer and all of the other experiment
    assert caplog.text.count("a process is at work there; waiting for it") == 1


def test_what_the_other_runner_has_done_is_not_done_again(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    held = node_of(graph, "select")
    descriptor = Claims("out").hold(held.name)

    def work():
        runs.wait_for(lambda: len(events("end")) == 1, "the tokenizer")
        graphs.complete(graph, held)
        os.close(descriptor)

    pathlib.Path("events").touch()
    other = threading.Thread(target=work)
    other.start()
    results = conductor(graph).run()
    other.join()
    assert results[held.key].state == "done"
    assert held.name not in events()


def signal_when(condition, *numbers):
    def send():
        runs.wait_for(condition, "a stage at work")
        for number in numbers:
            time.sleep(0.5)
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    return sender


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_the_same_command_goes_on(tmp_path, request, number):
    ours = lambda number, frame: None  # noqa: E731  # where nobody else handles it, the test fails and does not die
    request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, ours)))
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    pathlib.Path("events").touch()
    sender = signal_when(lambda: events("start")[1:], number)
    work = conductor(graph, fakes={"train-tokenizer": {"seconds": 20}})
    results = work.run()
    sender.join()
    assert work.interrupted
    assert signal.getsignal(number) is ours
    assert states(graph, results) == ["ran", "interrupted", None, None]
    assert states(graph, conductor(graph).run()) == ["done", "ran", "ran", "ran"]


def test_a_second_signal_ends_a_stage_that_does_not_listen(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    pathlib.Path("events").touch()
    sender = signal_when(lambda: events("start"), signal.SIGINT, signal.SIGINT)
    began = time.monotonic()
    work = conductor(graph, fakes={"select": {"seconds": 60, "deaf": True}})
    results = work.run()
    sender.join()
    assert time.monotonic() - began < 30
    assert states(graph, results) == ["interrupted", None, None, None]


def test_only_what_has_changed_is_made_anew(tmp_path):
    graph = graphs.make_graph(tmp_path, *BOTH)
    conductor(graph).run()
    runs.write_documents("docs.jsonl", seed=9)
    tokenizer = node_of(graph, "tokenizer")
    assert conductor(graph).run()[tokenizer.key].why.startswith("docs.jsonl was")
    pathlib.Path("events").unlink()
    results = conductor(graph, rebuild=True).run()
    ran = {graph.nodes[key].steps[0] for key, result in results.items() if result.state == "ran"}
    assert ran == {"tokenizer", "tokenize", "train_lm"}
    assert len(events("anew")) == 5
    assert events("start") == []


def test_an_unfinished_step_whose_input_has_changed_is_not_resumed(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    select = node_of(graph, "select")
    conductor(graph, keys=[select.key], fakes={"select": {"code": 1, "begun": True}}).run()
    runs.write_documents("rated.jsonl", seed=9)
    assert conductor(graph, keys=[select.key]).run()[select.key].why.startswith("rated.jsonl was 1 file(s) ")
    assert conductor(graph, keys=[select.key], rebuild=True).run()[select.key].state == "ran"
    assert events("anew") == [select.name]


@pytest.mark.parametrize("before", ["unfinished", "unrecorded"])
def test_what_was_to_be_made_anew_and_was_not_is_made_anew(tmp_path, before):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    select = node_of(graph, "select")
    fakes = {"select": {"code": 1, "begun": True}} if before == "unfinished" else {}
    conductor(graph, keys=[select.key], fakes=fakes).run()
    pathlib.Path(f"out/records/{select.name}.json").unlink(missing_ok=True)
    assert look(select, graph, Digests()).kind == before
    runs.write_documents("rated.jsonl", seed=9)
    dies = {"select": {"code": 1}}  # before it has replaced anything
    assert conductor(graph, keys=[select.key], rebuild=True, fakes=dies).run()[select.key].state == "failed"
    assert look(select, graph, Digests()).why == "was to be made anew, and is still what it was"
    assert conductor(graph, keys=[select.key], rebuild=True).run()[select.key].state == "ran"
    assert events("anew") == [select.name] * 2
    assert look(select, graph, Digests()).kind == "done"


def test_what_a_rebuild_has_begun_is_resumed(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    select = node_of(graph, "select")
    conductor(graph, keys=[select.key]).run()
    runs.write_documents("rated.jsonl", seed=9)
    dies = {"select": {"code": 1, "begun": True}}
    assert conductor(graph, keys=[select.key], rebuild=True, fakes=dies).run()[select.key].state == "failed"
    assert look(select, graph, Digests()).kind == "unfinished"
    assert conductor(graph, keys=[select.key], rebuild=True).run()[select.key].state == "ran"
    said = [line.split()[0] for line in pathlib.Path("events").read_text().splitlines()]
    assert said == ["start", "end", "anew", "start", "end"]


@pytest.mark.parametrize(("folder", "why"), [
    ("starts", "out/starts/{name}.json: cannot be written (File exists)"),
    ("records", "it is finished, but its record was not written: out/records/{name}.json: cannot be written (File *"),
    ("claims", "out/claims: nothing can be claimed there (File exists)"),
    ("logs", "out/logs: File exists"),
])  # fmt: skip
def test_what_cannot_be_written_down_is_a_failure_of_the_step_alone(tmp_path, monkeypatch, folder, why):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    work = conductor(graph)
    monkeypatch.setattr(work._claims, "obstacle", lambda: None)  # as where the disk is full only later
    pathlib.Path("out", folder).write_text("in the way")
    results = work.run()
    assert states(graph, results) == ["failed", "failed", "left out", "left out"]
    for key in (node_of(graph, "select").key, node_of(graph, "tokenizer").key):
        assert fnmatch.fnmatch(results[key].why, why.format(name=graph.nodes[key].name))
    os.unlink(f"out/{folder}")
    assert states(graph, conductor(graph).run()) == ["ran"] * 4  # the same command goes on


def test_a_full_disk_has_no_name_in_its_error(tmp_path, monkeypatch):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qurating_jax.experiments.running.conductor.write_step", full)
    results = conductor(graph).run()
    why = "it is finished, but its record was not written: out: No space left on device"
    assert results[node_of(graph, "select").key].why == why


def test_a_signal_ends_waiting_for_others(tmp_path, caplog):
    caplog.set_level("INFO")
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    sender = signal_when(lambda: "waiting for the manifest" in caplog.text, signal.SIGTERM)
    work = conductor(graph, fakes={"select": {"later": True, "lasts": 15}})
    results = work.run()
    sender.join()
    assert events("end") == []
    assert states(graph, results) == ["interrupted", None, None, None]


def test_a_launcher_that_ends_well_at_a_signal_is_not_waited_for(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    pathlib.Path("events").touch()
    sender = signal_when(lambda: events("start"), signal.SIGINT)
    work = conductor(graph, fakes={"select": {"seconds": 60, "polite": True}})
    results = work.run()
    sender.join()
    assert states(graph, results) == ["interrupted", None, None, None]


def test_a_launcher_that_is_not_there_is_a_failure_of_its_steps(tmp_path):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    results = conductor(graph, launch="no-such-command now").run()
    assert states(graph, results) == ["failed", "failed", "left out", "left out"]
    assert results[node_of(graph, "select").key].why == (
        "--launch: no-such-command cannot be started (No such file or directory)"
    )


def test_a_stage_that_leaves_nothing_has_failed(tmp_path, monkeypatch):
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    monkeypatch.setattr("qurating_jax.experiments.running.stage_processes.own_command", lambda: ["true"])
    key = node_of(graph, "tokenizer").key
    assert conductor(graph, "", keys=[key]).run()[key].why == "ended without an error and left no manifest.json"


def test_the_last_line_of_a_log(tmp_path):
    path = tmp_path / "log"
    path.write_text("a\nerror: it\x1b[1m broke\nafter\n\n")
    assert last_line(str(path)) == "it?[1m broke"
    assert last_line(str(path), start=len("a\nerror: it\x1b[1m broke\n")) == "after"
    assert last_line(str(tmp_path / "none")) == ""


LAUNCHES = {
    "cpu.sh": ({"PROCESSES": "2", "CORES": "4"}, "taskset --cpu-list 4-7 qurating train-lm --config {config} "
               "--distributed.mode explicit --distributed.coordinator 127.0.0.1:8476 --distributed.num_processes 2 "
               "--distributed.process_id 1"),
    "gpu_host.sh": ({}, "qurating train-lm --config {config}"),
    "slurm.sbatch": ({}, "srun --kill-on-bad-exit=1 --distribution=block --output=slurm-logs/%j-%t.txt "
                     "--open-mode=append qurating train-lm --config {config} --distributed.mode auto"),
    "gke_xpk.sh run": (
        {"CLUSTER": "tpus", "PROJECT": "me", "ZONE": "us-east5-b", "RUN_ID": "lm"},
        "xpk workload create --cluster=tpus --project=me --zone=us-east5-b --workload=lm "
        "--docker-image=gcr.io/me/qurating:lm --tpu-type=v5litepod-16 --num-slices=1 --max-restarts=20 "
        "--termination-grace-period-seconds=120 --command=qurating\\ train-lm\\ --config\\ {config}\\ --output\\ "
        "{output}\\ --distributed.mode\\ auto",
    ),
    "tpu_pod.sh run": (
        {"TPU_NAME": "pod", "ZONE": "us-east5-b"},
        "gcloud compute tpus tpu-vm ssh pod --zone=us-east5-b --worker=all --output-directory=logs/pod "
        "--command=cd\\ qurating\\ \\&\\&\\ export\\ PATH=\\$HOME/qurating/.venv/bin:\\$HOME/.local/bin:\\$PATH\\ "
        "\\&\\&\\ qurating\\ train-lm\\ --config\\ {config}\\ --output\\ {output}\\ --distributed.mode\\ auto",
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", LAUNCHES)
def test_what_a_launch_script_would_run(tmp_path, monkeypatch, script):
    settings, expected = LAUNCHES[script]
    graph = graphs.make_graph(tmp_path, "uniform.yaml")
    monkeypatch.chdir(runs.REPOSITORY)
    node, log = node_of(graph, "train_lm"), str(tmp_path / "log.txt")
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "DRY_RUN": "1", **settings}
    config = f"out/configs/{node.name}.yaml"
    launcher = Launch(hosts=f"bash launch/{script}").words(STAGES[node.stage].processes)
    process = StageProcess(node, config, launcher, log, environment, overwrite=False, claim=None)
    ended = runs.wait_for(process.poll, script)
    assert ended.code == 0, pathlib.Path(log).read_text()
    assert last_line(log) == expected.format(config=config, output=node.directory)


def test_the_claim_lasts_as_long_as_the_stage(tmp_path):
    """Also when whoever took it is gone."""
    taker = (
        "import subprocess, sys\n"
        "from qurating_jax.runtime.claims import Claims\n"
        "held = Claims('out').hold('step')\n"
        "print(subprocess.Popen(['sleep', '60'], pass_fds=[held]).pid)\n"
    )
    with open("pid", "w") as stream:
        subprocess.run([sys.executable, "-c", taker], env=runs.environment(), stdout=stream, check=True)
    stage = int(pathlib.Path("pid").read_text())
    try:
        assert Claims("out").hold("step") is None
    finally:
        os.kill(stage, signal.SIGKILL)
    os.close(runs.wait_for(lambda: Claims("out").hold("step"), "the end of the stage"))
