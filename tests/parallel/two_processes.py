"""One of two processes of test_distributed.py: `two_processes.py WHAT PORT PROCESS_ID [MODEL OUTPUT]`."""

import json
import logging
import os
import signal
import sys
import time

import jax
import numpy as np

from qurating_jax.models import hf
from qurating_jax.parallel import distributed, rendezvous
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import Distributed, MeshShape
from qurating_jax.runtime import logs, manifest
from qurating_jax.runtime.errors import EXIT_INTERRUPTED, UserError
from qurating_jax.stage import StageConfig, open_run


def fail() -> None:
    raise UserError("the disk is full")


def main() -> None:
    what, port, process_id, *places = sys.argv[1:]
    logs.setup()
    rendezvous.GRACE_SECONDS = 2.0
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    distributed.initialize(
        Distributed(
            mode="explicit",
            coordinator=f"127.0.0.1:{port}",
            num_processes=2,
            process_id=int(process_id),
            timeout_seconds=2 if what == "alone" else 60,
        )
    )
    if what == "together":
        together(*places)
    elif what == "barrier":
        barrier()
    elif what == "shares":
        shares(*places)
        return
    elif what.startswith("stage"):
        stage(what, *places)
        return
    else:
        lose(int(what[-1]))
    rendezvous.report(done=True)


def stage(what: str, output: str) -> None:
    settings = Distributed(mode="explicit", coordinator="127.0.0.1:1", num_processes=2)  # not joined again
    seed = distributed.process_index() if what == "stage-differs" else 0
    with open_run(StageConfig(output=output, seed=seed), "test", {}, distributed=settings) as run:
        logging.getLogger("qurating_jax.test").info("at work")
        distributed.barrier("work")
        if what == "stage-fails" and distributed.process_index() == 1:
            raise UserError("no shard 7 on this host")
        if what == "stage-interrupted" and distributed.process_index() == 1:
            raise KeyboardInterrupt
        distributed.any_process(False)
        manifest.finish(run, {})


def shares(output: str) -> None:
    """Each works by itself; the work of process 0 outlasts the grace."""
    with open_run(StageConfig(output=f"{output}-{distributed.process_index()}"), "test", {}) as run:
        if distributed.process_index() == 1:
            raise UserError("no shard 7 on this host")
        time.sleep(4)
        manifest.finish(run, {})


def lose(victim: int) -> None:
    distributed.barrier("both are here")
    if distributed.process_index() == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.any_process(False)
    time.sleep(60)


def barrier() -> None:
    if distributed.process_index() == 1:
        distributed.broadcast(np.int32(0))
        time.sleep(3)
        print("end")
        return
    distributed.broadcast(np.int32(0))
    try:
        distributed.barrier("export", 1)
    except UserError as error:
        print(error)


def together(model: str, output: str) -> None:
    me = distributed.process_index()
    found = {"process": me, "count": distributed.process_count(), "primary": distributed.is_primary()}
    found["broadcast"] = int(distributed.broadcast(np.int32(10 + me)))
    found["any"] = [distributed.any_process(flag) for flag in (False, me == 1, True)]
    found["from_primary"] = distributed.from_primary(lambda: {"by": me, "text": "τ"})
    try:
        distributed.from_primary(fail)
    except UserError as error:
        found["error"] = str(error)
    # fsdp lies across the processes: nobody holds a whole matrix
    params = hf.load(model, make_mesh(MeshShape(data=1, fsdp=4)))
    query = params["blocks"]["attention"]["query"]
    found["addressable"] = [query.is_fully_addressable, len(query.addressable_shards)]
    found["sum"] = float(np.sum(distributed.to_host(query), dtype=np.float64))
    distributed.barrier("before the export")
    hf.save(output, params, hf.read_config(model)[0])
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
