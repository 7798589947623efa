"""A training run: every step of it, in a folder or an object store."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from deltaloom import _lib
from deltaloom._files import Preset, checkpoint_of, framework_named, framework_of, read
from deltaloom._inputs import Path, path_of, texts_of
from deltaloom._open import Container, FrameworkName
from deltaloom._program import main
from deltaloom._progress import Progress, reporting
from deltaloom._ranks import is_first
from deltaloom._reports import Report, UnpackReport, VerifyReport

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["AsyncSaver", "Series", "Step"]

Part: TypeAlias = Literal["model", "optimizer", "all"]


class Step(Report):
    """A step of a series, as it was when it was listed. It can be a base.

    Attributes:
        step: Its number.
        stored_bytes: Size of its container.
        original_bytes: Size of its files.
        ratio: Original over stored.
        reference: The step that it was packed against; None for a keyframe.
        meta: Texts by name.
        metrics: Those that are numbers.
    """

    _title = "step"
    _series: Series | None = None
    step: int
    stored_bytes: int
    original_bytes: int
    ratio: float
    reference: int | None = None
    added_unix: int
    seconds: float

    @property
    def meta(self) -> dict[str, str]:
        return dict(self._data.get("meta", {}))

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self._data.get("metrics", {}))

    @property
    def is_keyframe(self) -> bool:
        return self.reference is None

    def __init__(self, data: dict[str, Any], series: Series | None = None) -> None:
        super().__init__({key: value for key, value in data.items() if key not in ("meta", "metrics")})
        self.__dict__["_data"] = data
        self.__dict__["_series"] = series

    def _as_base(self) -> _lib.Reader:
        if self._series is None:
            raise ValueError("the step has no series any more; list it again")
        return self._series._handle.reader(self.step, "model", 0)


class Series:
    """A training run in a folder, or at s3://, gs:// or az://.

    Each step is packed against an earlier one. Any number of processes may read and add at once,
    and one that is killed loses only the step that it was adding.
    """

    def __init__(self, handle: _lib.Series) -> None:
        self._handle = handle

    @classmethod
    def init(cls, location: Path, *, keyframe_every: int = 64, max_chain: int = 16) -> Series:
        """Creates an empty series.

        Args:
            location: A folder or URL.
            keyframe_every: At most this many steps between those that need no other.
            max_chain: At most this many steps to decode on top of one.

        Raises:
            ExistsError: There is one already.
        """
        return cls(_lib.Series.init(path_of(location), keyframe_every, max_chain))

    @classmethod
    def open(cls, location: Path, *, branch: str | None = None) -> Series:
        """Opens a series, or the closed branch of one.

        Raises:
            NotASeriesError: There is none.
        """
        return cls(_lib.Series.open(path_of(location), branch))

    @property
    def location(self) -> str:
        """Its folder or URL."""
        return self._handle.location

    def __repr__(self) -> str:
        return f"Series({self.location!r})"

    def add(
        self,
        model: Path | Mapping[str, Any],
        *,
        step: int | None = None,
        optimizer: Path | Mapping[str, Any] | None = None,
        previous: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        keyframe: bool = False,
        force: bool = False,
        rewind: bool = False,
        preset: Preset = "default",
        threads: int = 0,
        progress: bool | Progress | None = None,
    ) -> Step:
        """Adds a checkpoint. When it returns, the step is stored.

        Args:
            model: A file, a folder, or tensors by name, which nothing may change until it returns.
            step: Its number; None for the one after the newest.
            optimizer: The optimizer's state, given in the same forms.
            previous: The tensors of an earlier step, as they were given when that was added. If this
                step is stored against that one, they are read instead of decoding it into a temporary
                file. They are compared with its digests: others only cost the time for that.
            meta: Texts and numbers that are stored with it, such as the loss.
            keyframe: Store it without the help of another step.
            force: Add it even if its tensors are not those of the step before.
            rewind: If it does not follow the newest step: later ones become a branch.
            preset: "max" takes longer and is smaller.
            threads: How many; 0 means one per core.
            progress: True for a bar, or a function of the bytes that are done and their total.

        Raises:
            StepTakenError: The series has this step with other content.
            OutOfOrderError: It is before the newest step.
            SeriesError: Its tensors are not those of the step before.
        """
        weights = _part(model, "model.safetensors")
        state = None if optimizer is None else _part(optimizer, "optimizer.safetensors")
        held = None if previous is None else _tensors(previous, "model.safetensors")
        with reporting(progress, "adding") as report:
            json_text = self._handle.add(
                weights, step, state, held, texts_of(meta), keyframe, force, rewind, preset, threads, report
            )
        added = json.loads(json_text)
        return self.find(added["step"]) or Step(added, self)

    def get(
        self,
        step: int | Step,
        target: Path,
        *,
        part: Part = "model",
        threads: int = 0,
        overwrite: bool = False,
        progress: bool | Progress | None = None,
    ) -> UnpackReport:
        """Restores the files of a step byte for byte.

        Args:
            step: Its number.
            target: The file or folder to write.
            part: "model", "optimizer", or "all".
            threads: How many; 0 means one per core.
            overwrite: Replace existing files.
            progress: True for a bar, or a function of the bytes that are done and their total.

        Raises:
            StepNotFoundError: There is no such step, or it has no such part.
            ExistsError: The target exists.
        """
        with reporting(progress, "restoring") as report:
            json_text = self._handle.get(_number(step), path_of(target), part, threads, overwrite, report)
        return UnpackReport.from_json(json_text)

    def load(
        self,
        step: int | Step,
        *,
        framework: FrameworkName = "pt",
        device: Any = "cpu",
        names: Iterable[str] | None = None,
        part: Literal["model", "optimizer"] = "model",
        verify: bool = True,
        threads: int = 0,
        progress: bool | Progress | None = None,
    ) -> dict[str, Any]:
        """Loads the tensors of a step, without files. See `deltaloom.torch.load_file`."""
        reader = self._handle.reader(_number(step), part, threads)
        return read(
            framework_named(framework),
            reader,
            device=device,
            names=names,
            verify=verify,
            threads=threads,
            progress=progress,
        )

    def open_step(
        self,
        step: int | Step,
        framework: FrameworkName = "pt",
        device: Any = "cpu",
        *,
        part: Literal["model", "optimizer"] = "model",
        threads: int = 0,
    ) -> Container:
        """Opens a step, to read some of its tensors."""
        return Container(self._handle.reader(_number(step), part, threads), framework, device, threads)

    def steps(self, last: int | None = None) -> list[Step]:
        """The newest `last` steps, oldest first, or all."""
        if last is not None and last < 0:
            raise ValueError("a number of steps is not negative")
        return [Step(data, self) for data in json.loads(self._handle.steps(last))]

    def find(self, step: int) -> Step | None:
        """The step with a number, if there is one."""
        found = self._handle.find(step)
        return None if found is None else Step(json.loads(found), self)

    @property
    def newest(self) -> Step | None:
        """The last step."""
        return next(iter(self.steps(1)), None)

    def summary(self) -> Report:
        """Sums over the steps, and the branches."""
        return Report.from_json(self._handle.summary())

    def verify(
        self, deep: bool = False, *, threads: int = 0, progress: bool | Progress | None = None
    ) -> VerifyReport:
        """Checks that every object is there and, if `deep`, that every step is restored as it was."""
        with reporting(progress, "verifying") as report:
            return VerifyReport.from_json(self._handle.verify(deep, threads, report))

    def prune(
        self,
        keep: str,
        *,
        dry_run: bool = False,
        threads: int = 0,
        progress: bool | Progress | None = None,
    ) -> Report:
        """Drops all steps that no rule keeps, as "last 20, every 1000, best loss 3"."""
        with reporting(progress, "pruning") as report:
            return Report.from_json(self._handle.prune(keep, dry_run, threads, report))

    def repack(
        self,
        *,
        keyframe_every: int | None = None,
        max_chain: int | None = None,
        preset: Preset = "default",
        threads: int = 0,
        progress: bool | Progress | None = None,
    ) -> Report:
        """Packs all steps again, with other distances of keyframes if they are given."""
        options = None
        if keyframe_every is not None or max_chain is not None:
            now = json.loads(self._handle.summary())["options"]
            options = (keyframe_every or now["keyframe_every"], max_chain or now["max_chain"])
        with reporting(progress, "packing") as report:
            return Report.from_json(self._handle.repack(options, preset, threads, report))

    def gc(self, grace: timedelta = timedelta(days=1), *, dry_run: bool = False) -> Report:
        """Removes objects that no step needs and that are older than `grace`."""
        return Report.from_json(self._handle.gc(max(0, int(grace.total_seconds())), dry_run))

    def plot(self, target: Path | None = None) -> Page:
        """A page with ratios, changes per layer and frozen layers, for a notebook or a file."""
        if target is not None:
            return self._plot(path_of(target))
        import tempfile

        with tempfile.TemporaryDirectory(prefix="deltaloom-") as folder:
            return self._plot(os.path.join(folder, "run.html"))

    def _plot(self, file: str) -> Page:
        code = main(["--quiet", "series", "plot", self.location, "-o", file])
        if code != 0:
            raise RuntimeError(f"series plot ended with code {code}")
        with open(file, encoding="utf-8") as page:
            return Page(page.read())


class Page:
    """A page of HTML. Notebooks show it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        import html

        style = "width:100%;height:60em;border:0"
        return f'<iframe style="{style}" srcdoc="{html.escape(self.text)}"></iframe>'


def _cancelled() -> Future[Step]:
    """The future of a step that is not added."""
    from concurrent.futures import Future

    skipped: Future[Step] = Future()
    skipped.cancel()
    return skipped


def _number(step: int | Step) -> int:
    return step.step if isinstance(step, Step) else step


def _part(part: Path | Mapping[str, Any], name: str) -> str | _lib.Tensors:
    """A part of a step: a path, or a file of tensors in memory."""
    return _tensors(part, name) if isinstance(part, Mapping) else path_of(part)


def _tensors(tensors: Mapping[str, Any], name: str) -> _lib.Tensors:
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors by name are needed, not {type(tensors).__name__}")
    return checkpoint_of(framework_of(tensors), tensors, name, None)


class AsyncSaver:
    """Adds tensors to a series in the background.

    ```python
    with AsyncSaver("runs/7b") as saver:
        for step, batch in enumerate(batches):
            train(batch)
            saver.save(model.state_dict(), step=step)
    ```

    `save` returns when the tensors are copied to memory of the host; one thread adds them in order.
    An error of that thread is raised by the next `save`, by `wait` and by `close`. When the
    interpreter ends, steps that wait are still added. A forked process has no thread to add them.

    Where torch.distributed runs, only rank 0 adds: on the others, `save` gives a future that is
    cancelled, and nothing is copied. They need not wait, unless they read the step afterwards.

    Args:
        series: The series, or where it is.
        max_pending: Steps that may wait or be in work, each with a copy of its tensors.
        on_full: What `save` does then: "wait", "skip" (a future that is cancelled), or "error".
        preset: "max" takes longer and is smaller.
        threads: How many work on a step; 0 means one per core.
        every_rank: Add on every rank of torch.distributed, each to a series of its own.
    """

    def __init__(
        self,
        series: Series | Path,
        *,
        max_pending: int = 1,
        on_full: Literal["wait", "skip", "error"] = "wait",
        preset: Preset = "default",
        threads: int = 0,
        every_rank: bool = False,
    ) -> None:
        if max_pending < 1:
            raise ValueError("max_pending is at least 1")
        if on_full not in ("wait", "skip", "error"):
            raise ValueError(f'on_full {on_full!r} does not exist: "wait", "skip" and "error" do')
        # None on ranks that do not add.
        self._series: Series | None = None
        if every_rank or is_first():
            self._series = series if isinstance(series, Series) else Series.open(series)
        self._on_full = on_full
        self._preset: Preset = preset
        self._threads = threads
        self._room = threading.BoundedSemaphore(max_pending)
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1, thread_name_prefix="deltaloom-saver")
        self._lock = threading.Lock()
        self._futures: list[Future[Step]] = []
        self._errors: list[BaseException] = []

    def save(
        self, tensors: Mapping[str, Any], *, step: int, meta: Mapping[str, Any] | None = None
    ) -> Future[Step]:
        """Copies the tensors and has them added as a step.

        Raises:
            RuntimeError: Too many steps wait, and `on_full` is "error"; the saver is closed.
        """
        self._raise_errors()
        texts = texts_of(meta)
        series = self._series
        if series is None:
            return _cancelled()
        if not self._room.acquire(blocking=self._on_full == "wait"):
            if self._on_full == "error":
                raise RuntimeError("too many steps wait to be added")
            return _cancelled()
        try:
            framework, items = framework_of(tensors), list(tensors.items())
            framework.check(items)
            copied = {name: framework.copied(tensor) for name, tensor in items}
            future = self._pool.submit(self._add, series, copied, step, texts)
        except BaseException:
            self._room.release()
            raise
        with self._lock:
            self._futures = [other for other in self._futures if not other.done()] + [future]
        return future

    def _add(self, series: Series, tensors: Mapping[str, Any], step: int, meta: Mapping[str, str]) -> Step:
        try:
            return series.add(
                tensors, step=step, meta=meta, preset=self._preset, threads=self._threads
            )
        except BaseException as error:
            with self._lock:
                self._errors.append(error)
            raise
        finally:
            self._room.release()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until every step that was given is stored.

        Raises:
            TimeoutError: They are not within `timeout` seconds.
        """
        from concurrent.futures import wait

        with self._lock:
            waiting = list(self._futures)
        _, unfinished = wait(waiting, timeout)
        if unfinished:
            raise TimeoutError(f"{len(unfinished)} steps are not stored after {timeout} s")
        self._raise_errors()

    def close(self) -> None:
        """Waits for all steps, and ends the thread."""
        self._pool.shutdown(wait=True)
        self._raise_errors()

    def _raise_errors(self) -> None:
        with self._lock:
            errors, self._errors = self._errors, []
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("steps could not be added", errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        # The error of the block comes out; those of the thread go with it.
        self._pool.shutdown(wait=True)
        for other in self._errors:
            error.add_note(f"and a step could not be added: {other}")
