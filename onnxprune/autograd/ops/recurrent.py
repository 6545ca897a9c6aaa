"""LSTM, GRU and RNN, one step after another: peepholes, clips, lengths and both directions as ONNX has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from ..call import Call, Tensor, UnsupportedError, torch_op

_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
    "hardsigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _activations(call: Call, direction: int, default: tuple[str, ...]) -> list[Callable[..., Any]]:
    named = [n.decode() if isinstance(n, bytes) else n for n in call.get("activations") or ()]
    names = named[direction * len(default) : (direction + 1) * len(default)] or list(default)
    if call.get("activation_alpha") or call.get("activation_beta"):
        raise UnsupportedError("activations with alpha or beta")
    unknown = [n for n in names if n.lower() not in _ACTIVATIONS]
    if unknown:
        raise UnsupportedError(f"activation {unknown[0]!r}")
    return [_ACTIVATIONS[n.lower()] for n in names]


def _scan(
    call: Call, x: Tensor, lengths: Tensor | None, first: tuple[Tensor, ...], steps: list[Step]
) -> tuple[Tensor, ...]:
    """Run `steps`, one per direction, over x (time, batch, ...) from `first` states (directions, batch, hidden).

    Give Y (time, directions, batch, hidden) and the last states. Beyond its length a sequence keeps its state, and
    Y is zero.
    """
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
    n_steps, backward = x.shape[0], call.get("direction", "forward")
    ys, lasts = [], []
    for k, step in enumerate(steps):
        state = tuple(s[k] for s in first)
        order = range(n_steps)
        if backward == "reverse" or k == 1:
            order = range(n_steps - 1, -1, -1)
        rows: list[Tensor] = [None] * n_steps
        for t in order:
            new = step(x[t], state)
            y = new[0]
            if lengths is not None:
                live = (t < lengths)[:, None]
                new = tuple(torch.where(live, a, b) for a, b in zip(new, state, strict=True))
                y = torch.where(live, y, torch.zeros_like(y))
            state, rows[t] = new, y
        ys.append(torch.stack(rows))
        lasts.append(state)
    y = torch.stack(ys, dim=1)
    ends = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    if batch_first:
        y, ends = y.permute(2, 0, 1, 3), [e.transpose(0, 1) for e in ends]
    return (y, *ends)


def _states(call: Call, x: Tensor, w: Tensor, hidden: int, *given: Tensor | None) -> tuple[Tensor, ...]:
    batch = x.shape[0 if call.get("layout", 0) else 1]
    found = []
    for state in given:
        if state is None:
            found.append(torch.zeros(w.shape[0], batch, hidden, dtype=x.dtype))
        else:
            found.append(state.transpose(0, 1) if call.get("layout", 0) else state)
    return tuple(found)


def _clipped(call: Call, z: Tensor) -> Tensor:
    clip = call.get("clip")
    return z if not clip else torch.clamp(z, -clip, clip)


@torch_op("LSTM")
def lstm(  # noqa: PLR0913, PLR0917  the operator's inputs
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Any = None, lens: Any = None, h: Any = None, c: Any = None,
    p: Any = None,
) -> Any:  # fmt: skip
    """Gates in the order i, o, f, c. Source: ONNX LSTM-14."""
    hidden = r.shape[-1]
    couple = bool(call.get("input_forget", 0))

    def step_of(k: int) -> Step:
        f, g, act = _activations(call, k, ("Sigmoid", "Tanh", "Tanh"))
        bias = 0 if b is None else b[k, : 4 * hidden] + b[k, 4 * hidden :]
        wk, rk = w[k].T, r[k].T
        peep = [0.0] * 3 if p is None else p[k].chunk(3)

        def step(xt: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            ht, ct = state
            i, o, q, z = (xt @ wk + ht @ rk + bias).chunk(4, dim=-1)
            i = f(_clipped(call, i + peep[0] * ct))
            q = 1 - i if couple else f(_clipped(call, q + peep[2] * ct))
            ct = q * ct + i * g(_clipped(call, z))
            o = f(_clipped(call, o + peep[1] * ct))
            return o * act(ct), ct

        return step

    steps = [step_of(k) for k in range(w.shape[0])]
    return _scan(call, x, lens, _states(call, x, w, hidden, h, c), steps)


@torch_op("GRU")
def gru(call: Call, x: Tensor, w: Tensor, r: Tensor, b: Any = None, lens: Any = None, h: Any = None) -> Any:
    """Gates in the order z, r, h. Source: ONNX GRU-14."""
    n = r.shape[-1]
    after = bool(call.get("linear_before_reset", 0))

    def step_of(k: int) -> Step:
        f, g = _activations(call, k, ("Sigmoid", "Tanh"))
        bw, br = (torch.zeros(6 * n) if b is None else b[k]).chunk(2)
        wk, rk = w[k].T, r[k].T
        rh, bh = rk[:, 2 * n :], br[2 * n :]

        def step(xt: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (ht,) = state
            xz, xr, xh = (xt @ wk + bw).chunk(3, dim=-1)
            hz, hr = (ht @ rk[:, : 2 * n] + br[: 2 * n]).chunk(2, dim=-1)
            z, reset = f(_clipped(call, xz + hz)), f(_clipped(call, xr + hr))
            inner = reset * (ht @ rh + bh) if after else (reset * ht) @ rh + bh
            return ((1 - z) * g(_clipped(call, xh + inner)) + z * ht,)

        return step

    return _scan(call, x, lens, _states(call, x, w, n, h), [step_of(k) for k in range(w.shape[0])])


@torch_op("RNN")
def rnn(call: Call, x: Tensor, w: Tensor, r: Tensor, b: Any = None, lens: Any = None, h: Any = None) -> Any:
    """One gate. Source: ONNX RNN-14."""
    n = r.shape[-1]

    def step_of(k: int) -> Step:
        (f,) = _activations(call, k, ("Tanh",))
        bias = 0 if b is None else b[k, :n] + b[k, n:]

        def step(xt: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (f(_clipped(call, xt @ w[k].T + state[0] @ r[k].T + bias)),)

        return step

    return _scan(call, x, lens, _states(call, x, w, n, h), [step_of(k) for k in range(w.shape[0])])
