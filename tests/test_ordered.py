"""Work on several threads whose results come in order."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnxprune.calibration.session import Session
from onnxprune.errors import ModelError, OptionError, TooLargeError
from onnxprune.graph.model import Model
from onnxprune.ordered import MOST_THREADS, in_order, n_threads
from onnxprune.watch import _state, new_page, read, tell, watched

HEAD = '<ir_version: 9, opset_import: ["" : 18]>'


def session(text: str, threads: int | None) -> Session:
    return Session(Model(onnx.parser.parse_model(HEAD + text)), "m", threads)


def test_results_come_in_the_order_of_the_items_and_from_several_threads() -> None:
    def slow(k: int) -> tuple[int, str]:
        time.sleep(0.02 if k % 3 == 0 else 0.0)
        return k, threading.current_thread().name

    found = list(in_order(slow, range(20), 3))
    assert [k for k, _ in found] == list(range(20))
    assert len({name for _, name in found}) == 3
    assert {name for _, name in in_order(slow, range(4), 1)} == {threading.current_thread().name}


@pytest.mark.parametrize(("ahead_bytes", "most"), [(1 << 20, 3), (2000, 2), (100, 0)])
def test_no_more_run_ahead_than_there_are_threads_or_memory(ahead_bytes: int, most: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for k in range(12):
            begun.append(k)
            yield k

    ahead = []
    for k, _ in enumerate(in_order(lambda _: [{"x": np.zeros(1000, np.int8)}], items(), 3, ahead_bytes=ahead_bytes)):
        ahead.append(len(begun) - k - 1)
    assert max(ahead) == most
    assert begun == list(range(12))


def test_an_error_comes_in_its_turn_and_nothing_more_begins() -> None:
    begun: list[int] = []

    def fails(k: int) -> int:
        begun.append(k)
        if k == 4:
            raise ValueError("at 4")
        return k

    before = threading.active_count()
    results = in_order(fails, range(100), 2)
    assert list(itertools.islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at 4"):
        next(results)
    assert max(begun) <= 6
    assert threading.active_count() == before


def test_an_interruption_of_the_caller_ends_the_threads() -> None:
    before = threading.active_count()
    results = in_order(lambda k: k, range(100), 2)
    assert next(results) == 0
    assert next(results) == 1
    assert threading.active_count() > before
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_errors_of_onnxruntime_are_typed() -> None:
    model = session(
        "g (float[n, m] x) => (float[n, 2] y) { s = Constant <value = int64[2] {-1, 2}> () y = Reshape(x, s) }", 2
    )
    feeds = [{"x": np.zeros((1, m), np.float32)} for m in (4, 3)]
    with pytest.raises(ModelError, match=r"m: onnxruntime does not run it on x \[1, 3\]"):
        list(model.each(["y"], feeds))


def test_threads() -> None:
    assert n_threads(17) == 17
    assert 1 <= n_threads(None) <= MOST_THREADS
    with pytest.raises(OptionError, match="threads must be at least 1, not 0"):
        n_threads(0)


DRAW = "y = RandomNormalLike <seed = 3.0> (x)"
THEN = f"then_branch = t () => (float[2, 3] y) {{ {DRAW} }}"
ELSE = "else_branch = e () => (float[2, 3] z) { z = Neg (x) }"
INSIDE = f"c = Constant <value = bool {{1}}> () y = If (c) <{THEN}, {ELSE}>"


@pytest.mark.parametrize("nodes", [DRAW, INSIDE])
def test_what_draws_random_numbers_runs_one_feed_after_another(nodes: str) -> None:
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ {nodes} }}"
    feeds = [{"x": np.zeros((2, 3), np.float32)}] * 9
    assert session(text, 4).threads == 1
    one, four = (np.stack([y for (y,) in session(text, n).each(["y"], feeds)]) for n in (1, 4))
    assert one.tobytes() == four.tobytes()


def test_what_is_watched_on_several_threads_ends_as_nothing() -> None:
    page = new_page()
    tell(page)
    try:
        with watched("first"):
            with watched("inner"):
                assert read(page)[1] == "inner"
            assert read(page)[1] == "first"
        began, end = threading.Event(), threading.Event()

        def other() -> None:
            with watched("other"):
                began.set()
                end.wait(10)

        with watched("mine"):
            thread = threading.Thread(target=other)
            thread.start()
            assert began.wait(10)
        assert read(page)[1] == "other"
        end.set()
        thread.join()
        assert read(page)[1] == ""
    finally:
        _state.clear()


def test_a_thread_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", full)
    with pytest.raises(TooLargeError, match="working on 2 threads: can't start new thread; memory or the number"):
        list(in_order(abs, [1, 2], 2))
