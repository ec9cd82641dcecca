"""Training checkpoints through Orbax: asynchronous, committed atomically, restored onto any mesh.

A save runs in the background. What goes wrong there (a full disk, a lost mount) is raised by the next `check`, `save`
or the end of the `with` block, as one line; a directory is a checkpoint only once it is whole, so the ones before stay.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import jax
import orbax.checkpoint as ocp

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

log = logging.getLogger(__name__)
_print_unraisable = sys.unraisablehook
_TAKE_ANOTHER = "take another step's"


class Checkpoints:
    """The checkpoints of one run: `{params, opt_state, step}` under their step number, plus a small JSON document.

    Use as a context manager: leaving it waits for the save in progress.
    """

    def __init__(self, directory: str, *, keep: int, keep_every: int = 0) -> None:
        """Opens (or creates) the directory.

        The newest `keep` checkpoints stay, multiples of `keep_every` steps (0: none), and what `protect` names.
        """
        logging.getLogger("absl").addFilter(_worth_saying)
        sys.unraisablehook = _except_late_callbacks
        self._directory, self._saving, self._failed = directory, 0, False
        self._preserve = _Preserve(keep, keep_every)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preserve,
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # a killed or failed save's: they would fill the disk
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "document": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(_absolute(directory), options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self._wait()
        except UserError as error:
            if kind is None:
                raise
            log.warning("%s", error)  # what ended the block is the error to report
        finally:
            # Of a failed save Orbax may raise a second part here; the first has been told.
            with contextlib.suppress(*([OSError, ValueError, RuntimeError] if self._failed else [])):
                self._manager.close()

    def latest_step(self) -> int | None:
        """The newest committed step, None where there is none."""
        return self._manager.latest_step()

    def protect(self, step: int) -> None:
        """From now on the checkpoint of this step stays, and the one named before no longer has to."""
        self._preserve.protected = step

    def save(self, step: int, state: Any, document: dict[str, Any]) -> None:
        """Starts saving in the background; nothing happens where this step is already saved.

        Raises:
            UserError: this save or the one before it failed.
        """
        self._wait()
        if self._manager.latest_step() == step:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), document=ocp.args.JsonSave(document))
        self._saving = step
        try:
            self._manager.save(step, args=args)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from None

    def check(self) -> None:
        """Raises `UserError` where the save in the background has failed; does not wait, so it costs nothing."""
        if self._saving and not self._manager.is_saving_in_progress():
            self._wait()

    def restore(self, step: int, state: Any, *, same: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a step into the shapes and shardings of `state` (arrays, or `jax.ShapeDtypeStruct` with shardings).

        Args:
            step: a committed step.
            state: what to read.
            same: entries that the stored document must have.

        Raises:
            UserError: the checkpoint is of another model (its document or the shapes of its arrays differ), or files of
                it are broken.
        """
        where = f"{self._directory}: the checkpoint of step {step}"
        with _readable(where, "remove its folder: the same command then goes on from the one before it"):
            return self._restore(step, state, same or {}, where)

    def _restore(self, step: int, state: Any, same: dict[str, Any], where: str) -> tuple[Any, dict[str, Any]]:
        document = self._manager.restore(step, args=ocp.args.Composite(document=ocp.args.JsonRestore())).document
        if difference := _difference({key: document.get(key) for key in same}, same):
            raise UserError(f"{where} is of another model ({difference}); choose another --output")
        stored = self._manager.item_metadata(step).state.tree
        if difference := _difference(_shapes(stored), _shapes(state)):
            raise UserError(f"{where} is of another model ({difference}); choose another --output")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        return restored.state, document

    def _wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from None
        self._saving = 0

    def _failure(self, error: Exception) -> UserError:
        step, self._saving, self._failed = self._saving, 0, True
        _hush_what_is_left()
        # From the disk: the manager has already struck off what the failed save was to push out.
        on_disk = ocp.utils.checkpoint_steps(_absolute(self._directory))
        good = max((saved for saved in on_disk if saved != step), default=None)
        stands = "none stands before it" if good is None else f"the one of step {good} stands"
        reason = str(error).splitlines()[0]
        reason = "No space left on device" if "No space left" in reason else reason[:200]
        return UserError(
            f"{self._directory}: the checkpoint of step {step} cannot be saved ({reason}); {stands}: mend that and "
            "give the same command again"
        )


class _Preserve:
    """Orbax's policy of what stays: the newest ones, the round ones and the protected one."""

    def __init__(self, keep: int, keep_every: int) -> None:
        self.keep, self.keep_every, self.protected = keep, keep_every, -1

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer per checkpoint, oldest first."""
        newest = len(checkpoints) - self.keep
        return [
            index >= newest or info.step == self.protected or (self.keep_every > 0 and info.step % self.keep_every == 0)
            for index, info in enumerate(checkpoints)
        ]


def committed_steps(directory: str) -> list[int]:
    """The steps of the committed checkpoints in a `checkpoints/` directory, increasing; none where there is none."""
    if not storage.is_dir(directory):
        return []
    with _reader(directory) as manager:
        return sorted(manager.all_steps())


def read_document(directory: str, step: int) -> dict[str, Any]:
    """The JSON document of a committed checkpoint; raises `UserError` where its files are broken."""
    with _readable(f"{directory}: the checkpoint of step {step}", _TAKE_ANOTHER), _reader(directory) as manager:
        return manager.restore(step, args=ocp.args.Composite(document=ocp.args.JsonRestore())).document


def restore_params(
    directory: str, abstract: Callable[[dict[str, Any]], Any], step: int | None = None
) -> tuple[Any, dict[str, Any], int]:
    """Only the parameters of a checkpoint: params, document, step.

    Args:
        directory: a `checkpoints/` directory.
        abstract: the stored document -> shapes, dtypes and shardings of the parameters.
        step: a committed step; None: the newest.

    Raises:
        FileNotFoundError: no committed checkpoint (of that step).
        UserError: its files are broken.
    """
    steps = committed_steps(directory)
    if not steps or (step is not None and step not in steps):
        raise FileNotFoundError(directory)
    step = steps[-1] if step is None else step
    document = read_document(directory, step)
    target = {"params": abstract(document)}
    with _readable(f"{directory}: the checkpoint of step {step}", _TAKE_ANOTHER), _reader(directory) as manager:
        restore = ocp.args.PyTreeRestore(
            target, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        restored = manager.restore(step, args=ocp.args.Composite(state=restore))
        return restored.state["params"], document, step


@contextlib.contextmanager
def _readable(where: str, advice: str) -> Iterator[None]:
    """Raises `UserError` for what Orbax raises of broken files: of a broken chunk nothing narrower than `Exception`."""
    try:
        yield
    except (UserError, jax.errors.JaxRuntimeError):  # the latter: a device without room, say
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be read ({reason}); if that stays so, {advice}") from None


def _reader(directory: str) -> ocp.CheckpointManager:
    logging.getLogger("absl").addFilter(_worth_saying)
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    return ocp.CheckpointManager(_absolute(directory), options=options)


def _absolute(directory: str) -> str:
    if not storage.is_remote(directory):
        return str(Path(directory).resolve())
    if not directory.startswith(storage.CHECKPOINT_STORE):
        raise UserError(f"{directory}: Orbax keeps checkpoints on a local disk or on {storage.CHECKPOINT_STORE}")
    storage.exists(directory)  # says what is missing, if anything is
    # The client that Orbax makes is not to remember listings: other processes write there too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return directory


def _shapes(tree: Any) -> dict[str, str]:
    """Dotted path -> shape of every array of a state, or of its metadata in a checkpoint."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): str(tuple(leaf.shape))
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _difference(stored: Any, wanted: Any, name: str = "") -> str:
    """The first entry that two nested dicts do not share, in words; empty where they are equal."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        keys = sorted(wanted.keys() | stored.keys())
        return next(filter(None, (_difference(stored.get(key), wanted.get(key), f"{name}.{key}") for key in keys)), "")
    return "" if stored == wanted else f"{name.lstrip('.')} is {stored} there and {wanted} here"


def _worth_saying(record: logging.LogRecord) -> bool:
    """False for the tracebacks that Orbax logs of errors which it raises as well, and for its word on reading only."""
    if "orbax" not in record.pathname:
        return True
    return record.levelno < logging.ERROR and "read only" not in record.getMessage()


def _except_late_callbacks(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints an exception that nobody can catch, but for those of TensorStore's threads after a failed save.

    Each of its other writes still calls back into the event loop that Orbax has closed by then.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        _print_unraisable(unraisable)


def _hush_what_is_left() -> None:
    """After a failed save: what Orbax left in its event loop says so once more when the process ends."""
    logging.getLogger("asyncio").addFilter(_retrieved)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _retrieved(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()
