"""Who measures: this process, or several of joblib's, here or on a Ray or Dask cluster.

Results are those of one bench whoever measures. A worker that dies costs the cells it was at; they are given out again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import re
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NotMetError, OptionError, unknown_name
from ..graph.session import one_line
from .bench import Bench, Figures
from .cells import Cell
from .setup import Setup, register_rules

BACKENDS = ("loky", "ray", "dask")
# Rounds in a row in which workers die before any cell is done.
MAX_VAIN_ROUNDS = 3
_NEEDS = {"loky": ("joblib", "parallel"), "ray": ("ray", "ray"), "dask": ("distributed", "dask")}


@dataclass(frozen=True)
class Workers:
    """How many, and where.

    `jobs` None stands for all cores, or all workers of a cluster; one job of "loky" is this process itself. `address`
    is that of a running Ray or Dask cluster; without it one is started here and ended afterwards.
    """

    jobs: int | None = 1
    backend: str = "loky"
    address: str | None = None

    def check(self) -> None:
        """Raise `OptionError` for values that do not fit, or a package that is missing."""
        if self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.jobs is not None and self.jobs < 1:
            raise OptionError(f"jobs must be at least 1, not {self.jobs}")
        if self.address is not None and self.backend == "loky":
            raise OptionError("an address is that of a cluster: give backend ray or dask as well")
        module, extra = _NEEDS[self.backend]
        missing = [name for name in ("joblib", module) if importlib.util.find_spec(name) is None]
        if missing and not self.in_process:
            raise OptionError(f"{self.backend} workers need {missing[0]}: pip install 'onnxprune[{extra}]'")

    @property
    def in_process(self) -> bool:
        """Say whether this process measures itself: one job is wanted, or joblib is not there to start more."""
        no_joblib = self.jobs is None and importlib.util.find_spec("joblib") is None
        return self.backend == "loky" and (self.jobs == 1 or no_joblib)


@dataclass(frozen=True)
class Task:
    """What is sent with every cell: small, and enough to build a bench in a process that has none yet.

    `where` is the path of the setup, a reference to it in Ray's store, or None where it comes as an argument.
    """

    digest: str
    metric: Any
    rules: Mapping[str, Callable[..., Any]]
    where: Any = None

    def fetch(self, setup: Setup | None) -> Setup:
        """Get the setup; its arrays are shared by all processes of a machine where they lie in a file or in Ray."""
        if setup is not None:
            return setup
        if isinstance(self.where, str):
            import joblib

            loaded: Setup = joblib.load(self.where, mmap_mode="r")
            return loaded
        import ray

        fetched: Setup = ray.get(self.where)
        return fetched


@dataclass(frozen=True)
class Outcome:
    """A measured cell."""

    cell: Cell
    figures: Figures


@dataclass(frozen=True)
class Defect:
    """A cell at which something nobody foresaw came up: the traceback in the worker."""

    cell: Cell
    trace: str


_bench: tuple[str, Bench] | None = None
_building = threading.Lock()


def measure_cell(task: Task, cell: Cell, setup: Setup | None = None) -> Outcome | Defect:
    """Measure a cell in a worker, whose bench is built for the first cell of a run and kept for the others."""
    global _bench  # noqa: PLW0603  one bench per process
    try:
        with _building:
            if _bench is None or _bench[0] != task.digest:
                _bench = None
                register_rules(task.rules)
                _bench = task.digest, Bench(task.fetch(setup), task.metric)
            bench = _bench[1]
        return Outcome(cell, bench(cell))
    except Exception:  # noqa: BLE001  raised again by the caller
        return Defect(cell, traceback.format_exc())


def outcomes(
    setup: Setup, metric: Any, rules: Mapping[str, Callable[..., Any]], cells: Sequence[Cell], workers: Workers
) -> Iterator[Outcome]:
    """Give out cells until every one is measured, and give what comes back, in any order.

    Raises `OptionError` for a metric or a rule that cannot be sent, `NotMetError` when workers die again and again
    before any cell is done.
    """
    task = Task(f"{setup.digest}/{metric!r}", metric, rules)
    _check_sendable(task)
    pending = {cell.key: cell for cell in cells}
    n_vain = 0
    with _CREWS[workers.backend](setup, task, workers) as crew:
        while pending:
            n_before = len(pending)
            lost: Exception | None = None
            with contextlib.closing(crew.round(list(pending.values()))) as done:
                while True:
                    try:
                        outcome = next(done, None)
                    except Exception as error:  # noqa: BLE001  what a worker meets comes as a value, so one was lost
                        lost = error
                        break
                    if outcome is None:
                        break
                    if isinstance(outcome, Defect):
                        raise RuntimeError(  # noqa: TRY004  a defect of ours
                            f"a worker failed at {outcome.cell.key}:\n{outcome.trace}"
                        )
                    del pending[outcome.cell.key]
                    yield outcome
            n_vain = n_vain + 1 if len(pending) == n_before else 0
            if lost is not None and n_vain == MAX_VAIN_ROUNDS:
                raise NotMetError(_lost(pending, lost)) from lost


def _lost(pending: Mapping[str, Cell], error: Exception) -> str:
    first = next(iter(pending.values()))
    return (
        f"workers died {MAX_VAIN_ROUNDS} times before any of {len(pending)} cells was done; the next is "
        f"{len(first.removed)} units of group {first.group!r} ({type(error).__name__}: {one_line(error)}). "
        "Is there memory for as many? Try fewer --jobs"
    )


def _check_sendable(task: Task) -> None:
    import joblib

    try:
        pickle.dumps(joblib.wrap_non_picklable_objects(task))
    except Exception as error:
        raise OptionError(
            f"the metric or an operator rule cannot be sent to workers ({type(error).__name__}: {one_line(error)}); "
            "name it as FILE.py:FUNCTION, or use one job"
        ) from error


class _Crew:
    """Workers of one kind."""

    backend = "loky"

    def __init__(self, setup: Setup, task: Task, workers: Workers) -> None:
        self.setup, self.task, self.workers = setup, task, workers

    @property
    def jobs(self) -> int:
        return self.workers.jobs or -1

    def round(self, cells: Sequence[Cell]) -> Generator[Outcome | Defect, None, None]:
        """Measure cells, giving each as it is done; ends in an exception when a worker dies."""
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(backend=self.backend, **self.settings()):
            calls = (delayed(measure_cell)(self.task, cell, *self.extra()) for cell in cells)
            yield from Parallel(n_jobs=self.jobs, batch_size=1, return_as="generator_unordered")(calls)

    def settings(self) -> dict[str, Any]:
        return {}

    def extra(self) -> tuple[Any, ...]:
        return ()


@contextlib.contextmanager
def _loky(setup: Setup, task: Task, workers: Workers) -> Iterator[_Crew]:
    """Start processes here; they map model and samples from one file."""
    import joblib

    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        path = str(Path(folder, "setup"))
        joblib.dump(setup, path)
        yield _LokyCrew(setup, Task(task.digest, task.metric, task.rules, path), workers)


class _LokyCrew(_Crew):
    def settings(self) -> dict[str, Any]:
        return {"inner_max_num_threads": 1}


@contextlib.contextmanager
def _dask(setup: Setup, task: Task, workers: Workers) -> Iterator[_Crew]:
    """Use a Dask cluster; model and samples are sent to every worker once."""
    from distributed import Client

    local = {"n_workers": workers.jobs, "threads_per_worker": 1, "dashboard_address": None}
    with _reaching("Dask", workers.address):
        client = Client(workers.address) if workers.address is not None else Client(**local)
    with client:
        yield _DaskCrew(setup, task, workers)


@contextlib.contextmanager
def _reaching(kind: str, address: str | None) -> Iterator[None]:
    """Turn what goes wrong on the way to a cluster into `OptionError`, at once where nobody listens at the address."""
    try:
        place = re.fullmatch(r"(?:\w+://)?([^:/]+):(\d+)", address or "")
        if place is not None:
            socket.create_connection((place[1], int(place[2])), timeout=CONNECT_SECONDS).close()
        yield
    except Exception as error:
        what = (
            f"the {kind} cluster at {address} cannot be reached"
            if address
            else f"no {kind} cluster can be started here"
        )
        raise OptionError(f"{what} ({type(error).__name__}: {one_line(error)})") from error


CONNECT_SECONDS = 10.0


class _DaskCrew(_Crew):
    backend = "dask"

    @property
    def jobs(self) -> int:
        return -1

    def settings(self) -> dict[str, Any]:
        return {"scatter": [self.setup]}

    def extra(self) -> tuple[Any, ...]:
        return (self.setup,)


@contextlib.contextmanager
def _ray(setup: Setup, task: Task, workers: Workers) -> Iterator[_Crew]:
    """Use a Ray cluster; model and samples lie in its object store."""
    import ray
    from ray.util.joblib import register_ray

    ours = not ray.is_initialized()
    if ours:
        local = {"num_cpus": workers.jobs, "include_dashboard": False} if workers.address is None else {}
        with _reaching("Ray", workers.address):
            ray.init(address=workers.address or "local", log_to_driver=False, logging_level="error", **local)
    try:
        register_ray()
        yield _RayCrew(setup, Task(task.digest, task.metric, task.rules, ray.put(setup)), workers)
    finally:
        if ours:
            ray.shutdown()


class _RayCrew(_Crew):
    """joblib's backend for Ray gives results all at once, so cells are given out a few at a time."""

    backend = "ray"

    def round(self, cells: Sequence[Cell]) -> Generator[Outcome | Defect, None, None]:
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(backend=self.backend), Parallel(n_jobs=self.jobs, batch_size=1) as parallel:
            share = PER_WORKER * max(1, parallel._effective_n_jobs())  # noqa: SLF001  joblib has no public name
            for start in range(0, len(cells), share):
                yield from parallel(delayed(measure_cell)(self.task, cell) for cell in cells[start : start + share])


PER_WORKER = 4
_CREWS: dict[str, Callable[[Setup, Task, Workers], contextlib.AbstractContextManager[_Crew]]] = {
    "loky": _loky,
    "ray": _ray,
    "dask": _dask,
}
