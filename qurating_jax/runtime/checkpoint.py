"""Training checkpoints through Orbax: asynchronous, committed atomically, restored onto any mesh."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one run: `{params, opt_state, step}` under their step number, plus a small JSON document.

    Use as a context manager: leaving it waits for the save in progress.
    """

    def __init__(self, directory: str, *, keep: int) -> None:
        """Opens (or creates) the directory; the newest `keep` checkpoints stay, and the one at `protect`."""
        self._preserve = _Preserve(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preserve, create=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(_absolute(directory), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest committed step, None where there is none."""
        return self._manager.latest_step()

    def protect(self, step: int) -> None:
        """From now on the checkpoint of this step stays, and the one named before no longer has to."""
        self._preserve.protected = step

    def save(self, step: int, state: Any, document: dict[str, Any]) -> None:
        """Starts saving in the background; nothing happens where this step is already saved."""
        if self._manager.latest_step() == step:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), document=ocp.args.JsonSave(document))
        self._manager.save(step, args=args)

    def restore(self, step: int, state: Any) -> tuple[Any, dict[str, Any]]:
        """Reads a step into the shapes and shardings of `state` (arrays, or `jax.ShapeDtypeStruct` with shardings)."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), document=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored.state, restored.document


class _Preserve:
    """Orbax's policy of what stays: the newest ones and the protected one."""

    def __init__(self, keep: int) -> None:
        self.keep, self.protected = keep, -1

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer per checkpoint, oldest first."""
        newest = len(checkpoints) - self.keep
        return [index >= newest or info.step == self.protected for index, info in enumerate(checkpoints)]


def committed_steps(directory: str) -> list[int]:
    """The steps of the committed checkpoints in a `checkpoints/` directory, increasing; none where there is none."""
    if not Path(directory).is_dir() and "://" not in directory:
        return []
    with _reader(directory) as manager:
        return sorted(manager.all_steps())


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
    """
    steps = committed_steps(directory)
    if not steps or (step is not None and step not in steps):
        raise FileNotFoundError(directory)
    step = steps[-1] if step is None else step
    with _reader(directory) as manager:
        document = manager.restore(step, args=ocp.args.Composite(document=ocp.args.JsonRestore())).document
        target = {"params": abstract(document)}
        restore = ocp.args.PyTreeRestore(
            target, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        restored = manager.restore(step, args=ocp.args.Composite(state=restore))
        return restored.state["params"], document, step


def _reader(directory: str) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    return ocp.CheckpointManager(_absolute(directory), options=options)


def _absolute(directory: str) -> str:
    return directory if "://" in directory else str(Path(directory).resolve())
