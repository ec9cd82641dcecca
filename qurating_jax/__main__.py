"""The command `qurating STAGE --config FILE [--a.b value]`.

The table of stages is all that `qurating --help` needs; a stage's module, and with it JAX, is imported when it runs.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from qurating_jax import __version__
from qurating_jax.runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, Incomplete, UsageError, UserError
from qurating_jax.runtime.terminal import plain
from qurating_jax.stages import STAGES, load


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one stage; returns the process's exit code (see `runtime.errors`)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(usage())
            return EXIT_OK
        if argv[0] == "--version":
            print(__version__)
            return EXIT_OK
        name, rest = _split(argv)
        return _run(name, rest)
    except UserError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a lost mount, missing rights: the system's own words are the best ones
        if isinstance(error, BrokenPipeError):  # `qurating ... | head`: the reader has seen enough
            sys.stderr.close()
            return EXIT_OK
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return EXIT_INTERRUPTED


def usage() -> str:
    """The help text of the command itself."""
    width = max(map(len, STAGES)) + 2
    rows = "\n".join(f"  {name:<{width}}{stage.summary}" for name, stage in STAGES.items())
    return (
        "usage: qurating STAGE [--config FILE] [--option value ...]\n\n"
        "QuRating in JAX: choose the pre-training data that makes language models better.\n\n"
        f"stages:\n{rows}\n\n"
        "Options are dotted paths into the stage's config; `qurating STAGE --help` lists them.\n"
        "Exit codes: 0 ok, 1 error, 2 usage, 3 unresolved items, 4 stopped at a limit, 130 interrupted and resumable."
    )


def _split(argv: list[str]) -> tuple[str, list[str]]:
    for words in (3, 2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in STAGES:
            return name, argv[words:]
    given = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), argv[:3])) or argv[0]
    longer = [name for name in STAGES if name.startswith(argv[0] + " ")]
    close = get_close_matches(given, STAGES, n=1, cutoff=0.75)
    if longer and not close:
        raise UsageError(f"no stage `{given}`; there are {', '.join(f'`{name}`' for name in longer)}")
    close = close or get_close_matches(argv[0], STAGES, n=1)
    hint = f"did you mean `qurating {close[0]}`?" if close else "`qurating --help` lists the stages"
    raise UsageError(f"no stage `{given}`; {hint}")


def _run(name: str, argv: list[str]) -> int:
    from qurating_jax import config as configs
    from qurating_jax.runtime import logs

    module = load(name)
    config = configs.parse(module.Config, argv, prog=f"qurating {name}", description=module.__doc__ or "")
    logs.setup()
    counts = None
    try:
        counts = module.main(config)
    except Incomplete as error:
        counts = error.counts
        raise
    finally:
        if config.json and counts is not None:
            print(json.dumps(counts, sort_keys=True), flush=True)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
