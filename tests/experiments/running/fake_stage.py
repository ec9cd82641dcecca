"""Stands in for a launcher: `STAGE --config FILE` leaves the manifest that the stage would, and nothing else.

`FAKES` (JSON) says by stage what happens: `code` to end with (after it has `begun`), `seconds` to take, `deaf` to
signals, `polite`: ends with 0 at one, `later`: the manifest comes from a process of its own, after this one has ended
(`lasts` so many seconds). `EVENTS` gets a line for each start and end.
"""

import json
import os
import signal
import subprocess
import sys
import time

from qurating_jax import config as configs
from qurating_jax.runtime import manifest
from qurating_jax.stages import load


def event(what):
    with open(os.environ["EVENTS"], "a") as stream:
        stream.write(f"{what} {os.path.basename(os.environ['OUTPUT'])}\n")


def fail(plan):
    print("error: as planned", file=sys.stderr)
    return plan["code"]


def main():
    at = sys.argv.index("--config")
    stage, overwrite = " ".join(sys.argv[1:at]), "--overwrite" in sys.argv
    plan = json.loads(os.environ.get("FAKES", "{}")).get(stage, {})
    code = 0 if plan.get("polite") else 130
    stopped = signal.SIG_IGN if plan.get("deaf") else (lambda number, frame: sys.exit(code))
    signal.signal(signal.SIGTERM, stopped)
    event("start" if not overwrite else "anew")
    config = configs.load(load(stage).Config, sys.argv[at + 1])
    assert config.output == os.environ["OUTPUT"]
    if plan.get("later"):
        fakes = json.dumps({stage: {"seconds": plan.get("lasts", 0.5)}})
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {"FAKES": fakes}, start_new_session=True)
        return 0
    time.sleep(plan.get("seconds", 0))
    if plan.get("code") and not plan.get("begun"):
        return fail(plan)
    run = manifest.begin(
        config.output,
        stage=stage,
        config=configs.resolved(config),
        identity=configs.identity(config),
        inputs={"reads": {name: list(values) for name, values in configs.reads(config).items()}},
        overwrite=overwrite,
    )
    if plan.get("code"):
        return fail(plan)
    manifest.finish(run, {"time": time.time_ns()})  # so that no two are equal
    event("end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
