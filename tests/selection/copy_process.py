"""A copying pass as a process of its own: `python copy_process.py INPUT OUTPUT ORDER [n=v ...] [kill=when:name]`.

`kill=before:spill/rows-00001.arrow` ends the process by SIGKILL just before (`after`: after) that file gets its name;
`slow=seconds` makes every commit take so long.
"""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

TIMEOUT = 120


def start(source, output, order, **options):
    words = [f"{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    command = [sys.executable, "-W", "error", __file__, str(source), str(output), order, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def end(process, code=0):
    output, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, error
    return output.strip()


def change_renames(output, *, kill="", slow=0.0):
    """Makes every commit slow, or the one of a file deadly."""
    rename = os.replace

    def replace(source, target):
        time.sleep(slow)
        when, _, name = kill.partition(":")
        here = name and str(target) == f"{output}/{name}"
        if here and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def open_slowly(source, output, slow):
    """Opens the inputs in a worker process, and makes its commits slow."""
    import copy_samples as samples

    change_renames(output, slow=slow)
    return samples.open_parts(source)


def main(source, output, order, *words):
    import copy_samples as samples

    from qurating_jax.selection.copying.copier import CopyJob, copy_selection

    options = dict(word.split("=", 1) for word in words)
    slow, workers = float(options.pop("slow", 0)), int(options.pop("num_workers", 1))
    if workers == 1:
        change_renames(output, kill=options.pop("kill", ""), slow=slow)
        opener = functools.partial(samples.open_parts, source)
    else:
        opener = functools.partial(open_slowly, source, output, slow)
    if "share" in options:
        options["share"] = tuple(map(int, options["share"].split("/")))
    copied = copy_selection(
        CopyJob(
            output=output, open_inputs=opener, ranking=samples.RANKINGS[order], rows_per_shard=37,
            num_workers=workers, **options,
        )
    )  # fmt: skip
    print(copied.finished)


if __name__ == "__main__":
    main(*sys.argv[1:])
