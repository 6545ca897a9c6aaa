"""Decide: which units go, what becomes of their constants, and why the others stay.

A unit may go where every reader of it finds it zero, ignores it, or finds a constant that a bias can take over. What
no bias can say, such as a constant that zeros of a padding surround, is taken over by other dead units, the carriers:
their columns grow by those of units that go, and they stay.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..axes.analysis import Analysis, Keep
from ..axes.groups import Group
from ..axes.labels import Labels
from .carriers import MAX_RATIO, Moves, Transfer, View, choose_carriers, parts, view
from .facts import Facts
from .known import Array
from .readers import Reader, Status, readers
from .sums import blocked_roots, mixed_roots

ZERO, CONSTANT, IGNORED, DUPLICATE = "zero", "constant", "ignored", "duplicate"
HOWS = (ZERO, CONSTANT, IGNORED, DUPLICATE)


@dataclass
class Decision:
    """What was decided, by group index: `removed[g]` maps units to how they go, `kept[g]` dead units to why they stay.

    `readers` are those of the model, `alive` the state that results, `transfers` the columns that move.
    """

    removed: dict[int, dict[int, str]]
    kept: dict[int, dict[int, str]]
    readers: list[Reader]
    alive: Keep
    transfers: list[Transfer] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Say whether nothing goes."""
        return not any(self.removed.values())


def decide(facts: Facts, left_out: Mapping[str, str | None]) -> Decision:
    """Decide for all groups but those with a reason in `left_out`. Deterministic: ties go to the lower index."""
    return _Decider(facts, left_out).run()


@dataclass(frozen=True)
class _Look:
    """Where one group meets one reader: `index[k]` of the data is of unit `unit[k]`, for each of its `layer`s."""

    reader: int
    group: int
    index: Labels
    unit: Labels
    live: Array


def signatures(facts: Facts, group: Group) -> list[bytes] | None:
    """Digest, per unit, everything that makes its value: rows of weights and parameters, not the columns that read it.

    None where units are made up differently.
    """
    digests = [hashlib.sha256() for _ in range(group.size)]
    for member in group.members:
        # A weight that is read in several places may produce in one of them what it reads in another.
        if member.role == "input" and facts.n_uses(member.initializer) == 1:
            continue
        known = facts.known(member.initializer)
        on = np.flatnonzero(member.unit >= 0)
        counts = np.bincount(member.unit[on], minlength=group.size)
        if known is None or (counts != counts[0]).any():
            return None
        order = on[np.argsort(member.unit[on], kind="stable")]
        rows = np.moveaxis(known.value, member.axis, 0)[order].reshape(group.size, -1)
        for digest, row in zip(digests, rows, strict=True):
            digest.update(row.tobytes())
    return [digest.digest() for digest in digests]


class _Decider:
    def __init__(self, facts: Facts, left_out: Mapping[str, str | None]) -> None:
        self.facts = facts
        self.analysis: Analysis = facts.analysis
        self.groups: Sequence[Group] = self.analysis.groups
        self.readers = readers(facts)
        n = len(self.analysis.labeling.root)
        self.group_of = np.full(n, -1, dtype=np.int64)
        self.unit_of = np.zeros(n, dtype=np.int64)
        for g, group in enumerate(self.groups):
            self.group_of[group.roots] = g
            self.unit_of[group.roots] = np.arange(group.size)
        mixed, blocked = mixed_roots(self.analysis), blocked_roots(facts, self.readers)
        self.barrier: list[dict[int, str]] = []
        for group in self.groups:
            rows = {}
            for u, root in enumerate(group.roots.tolist()):
                why = left_out.get(group.id) or mixed.get(root) or blocked.get(root)
                if why:
                    rows[u] = why
            self.barrier.append(rows)
        self.removed: dict[int, dict[int, str]] = {g: {} for g in range(len(self.groups))}
        self.kept: dict[int, dict[int, str]] = {g: {} for g in range(len(self.groups))}
        self.carriers: dict[int, dict[int, int]] = {g: {} for g in range(len(self.groups))}
        self.transfers: list[Transfer] = []
        self.alive = self.analysis.all_alive()
        self.touches = [reader.touches for reader in self.readers]
        self._silent = [self._silent_rows(group) for group in self.groups]

    def run(self) -> Decision:
        while self._find_dead() or self._find_duplicates():
            pass
        for g, group in enumerate(self.groups):
            gone = self._gone_with_others(group) if self.kept[g] else ()
            self.kept[g] = {u: why for u, why in self.kept[g].items() if u not in gone}
        return Decision(self.removed, self.kept, self.readers, self.alive, self.transfers)

    def _find_dead(self) -> bool:
        """Take out what is dead now; say whether there was any."""
        before = self._n_removed()
        self.kept = {g: {} for g in range(len(self.groups))}
        looks = self._looks()
        for g in range(len(self.groups)):
            self._choose(g, [look for look in looks if look.group == g])
        return self._n_removed() > before

    def _find_duplicates(self) -> bool:
        """Merge what is the same twice now; say whether there was any."""
        before = self._n_removed()
        looks = self._looks()
        for g in range(len(self.groups)):
            self._merge(g, [look for look in looks if look.group == g])
        return self._n_removed() > before

    def _n_removed(self) -> int:
        return sum(map(len, self.removed.values()))

    def _gone_with_others(self, group: Group) -> set[int]:
        """List the units all of whose slices go with units of other groups: head dims of a head that goes."""
        without = self.alive.copy()
        without[group.roots] = True
        left = np.zeros(group.size, dtype=bool)
        for member in group.members:
            stays = self.analysis.keep(member.axis_id, without) & (member.unit >= 0)
            left[member.unit[stays]] = True
        return set(np.flatnonzero(~left).tolist())

    # --- looking ---

    def _looks(self) -> list[_Look]:
        """Look at every group through every reader, with the sums that are still there."""
        found = []
        for k, reader in enumerate(self.readers):
            kept = reader.kept_sums(self.analysis, self.alive)
            touches = self.touches[k] & kept
            outputs = [np.concatenate([r[j] for r in rows]) for rows, j in _layers(self.analysis, reader)]
            for roots in self.analysis.roots(reader.axis.id):
                groups = np.where(roots >= 0, self.group_of[np.maximum(roots, 0)], -1)
                for g in np.unique(groups[groups >= 0]).tolist():
                    index = np.flatnonzero(groups == g)
                    mine = roots[index]
                    # A sum that goes together with the unit needs nothing of it.
                    reached = touches[index]
                    for out in outputs:
                        if np.isin(mine, out).any():
                            reached = reached & (mine[:, None] != out[None, :])
                    live = reached.any(axis=1)
                    found.append(_Look(k, g, index, self.unit_of[mine], np.asarray(live)))
        return found

    # --- choosing ---

    def _choose(self, g: int, looks: list[_Look]) -> None:
        group = self.groups[g]
        worst = np.zeros(group.size, dtype=np.int64)
        ignored = np.zeros(group.size, dtype=bool)
        steady = np.zeros(group.size, dtype=bool)
        where: dict[int, str] = {}
        for look in looks:
            reader = self.readers[look.reader]
            status = np.where(look.live, reader.status[look.index], int(Status.ZERO))
            for i in np.flatnonzero(status == int(Status.ALIVE)).tolist():
                where.setdefault(int(look.unit[i]), f"{self._label(reader)} {reader.why_alive}")
            np.maximum.at(worst, look.unit, status)
            np.logical_or.at(ignored, look.unit, ~look.live & (reader.status[look.index] != int(Status.ZERO)))
            np.logical_or.at(steady, look.unit, reader.status[look.index] < int(Status.ALIVE))
        taken = self.removed[g]
        silent = self._silent[g]
        candidates: list[int] = []
        pinned = {u for t in self.transfers if t.group == g for u in t.targets}
        for u in range(group.size):
            if u in taken:
                continue
            suspicious = bool(silent[u] or steady[u] or (worst[u] < int(Status.ALIVE) and looks))
            if u in pinned:
                if u in self.carriers[g]:
                    self.kept[g][u] = self._carrier_reason(g, u)
            elif u in self.barrier[g]:
                if suspicious:
                    self.kept[g][u] = self.barrier[g][u]
            elif worst[u] < int(Status.ALIVE):
                candidates.append(u)
            elif suspicious:
                self.kept[g][u] = where[u]
        shaped = [u for u in candidates if worst[u] == int(Status.SHAPED)]
        carried = self._carry(g, shaped, looks)
        going = [u for u in candidates if u not in set(shaped) or u in carried]
        going = self._leave_one(g, going)
        going = self._balance(g, going)
        for u in going:
            how = CONSTANT if worst[u] > int(Status.ZERO) else IGNORED if ignored[u] else ZERO
            taken[u] = how
            self.transfers += carried.get(u, [])
        if going:
            self.alive[group.roots[going]] = False

    def _label(self, reader: Reader) -> str:
        return self.analysis.collection.node_label(reader.op.index)

    def _silent_rows(self, group: Group) -> Array:
        """Say which units have nothing but zeros in every weight that produces them."""
        silent = np.ones(group.size, dtype=bool)
        produced = False
        for member in group.members:
            if member.role != "output":
                continue
            produced = True
            known = self.facts.known(member.initializer)
            if known is None:
                return np.zeros(group.size, dtype=bool)
            rows = np.moveaxis(known.value, member.axis, 0).reshape(len(member.unit), -1)
            on = member.unit >= 0
            np.logical_and.at(silent, member.unit[on], ~(rows[on] != self._zero(member.initializer)).any(axis=1))
        return silent & produced

    def _zero(self, name: str) -> float:
        """Give what stands for zero in a weight: its zero point where it holds codes that have one in common."""
        codes = self.analysis.collection.codes.get(name)
        if codes is None or not codes.zero_point:
            return 0 if codes is None else codes.default
        points = self.analysis.model.array(codes.zero_point)
        return float(points.ravel()[0]) if (points == points.ravel()[0]).all() else np.nan

    def _leave_one(self, g: int, going: list[int]) -> list[int]:
        """Keep one unit of a group that would go altogether: one that stays anyway, else the first."""
        group = self.groups[g]
        taken = self.removed[g]
        if len(going) + len(taken) < group.size or not going:
            return going
        self.kept[g][going[0]] = "one unit of a group always stays"
        return going[1:]

    def _balance(self, g: int, going: list[int]) -> list[int]:
        """Take equally many from every block."""
        group = self.groups[g]
        if group.blocks == 1 or not going:
            return going
        by_block: list[list[int]] = [[] for _ in range(group.blocks)]
        for u in going:
            by_block[int(group.block[u])].append(u)
        already = np.bincount(group.block[list(self.removed[g])], minlength=group.blocks) if self.removed[g] else None
        room = group.width - 1 - (int(already[0]) if already is not None else 0)
        least = min(room, *map(len, by_block))
        for rows in by_block:
            for u in rows[least:]:
                self.kept[g][u] = f"every one of its {group.blocks} blocks loses equally many"
        return sorted(u for rows in by_block for u in rows[:least])

    def _carrier_reason(self, g: int, u: int) -> str:
        others = len({t.source for t in self.transfers if t.group == g and u in t.targets})
        carries = f"; it carries {others} more" if others else ""
        reader = self.readers[self.carriers[g][u]]
        return f"{self._label(reader)} {reader.why}{carries}"

    # --- duplicates ---

    def _merge(self, g: int, looks: list[_Look]) -> None:
        """Let the first of equal units take over the columns of the others."""
        group = self.groups[g]
        if group.blocks > 1 or not looks:
            return
        fixed = {u for t in self.transfers if t.group == g for u in t.targets}
        for look in looks:
            if not self.readers[look.reader].can_edit:
                fixed |= set(look.unit[look.live].tolist())
        free = [u for u in range(group.size) if u not in self.removed[g] and u not in self.barrier[g]]
        first: dict[bytes, int] = {}
        same = signatures(self.facts, group)
        for u in free if same is not None else ():
            assert same is not None
            kept = first.setdefault(same[u], u)
            if kept == u or u in fixed or kept in self.kept[g]:
                continue
            for look in looks:
                if (look.live & (look.unit == u)).any():
                    source, target = (look.index[look.unit == k].tolist() for k in (u, kept))
                    moves: Moves = {i: ((j, 1.0),) for i, j in zip(source, target, strict=True)}
                    self.transfers.append(Transfer(look.reader, g, u, frozenset((kept,)), moves, {}))
            self.removed[g][u] = DUPLICATE
            self.alive[group.roots[u]] = False

    # --- carriers ---

    def _carry(self, g: int, shaped: list[int], looks: list[_Look]) -> dict[int, list[Transfer]]:
        """Choose carriers among the shaped units; give the transfers of all others."""
        shaped = [u for u in shaped if not self._barred(g, u, looks)]
        views = self._views(shaped, looks)
        carriers = choose_carriers(len(shaped), views)
        if self._is_map_smaller(g, shaped, carriers, views):
            return {u: self._mapped(g, u, k, views) for k, u in enumerate(shaped)}
        shares = [parts(v, carriers) for v in views]
        result: dict[int, list[Transfer]] = {}
        for k, u in enumerate(shaped):
            seen = [(v, share[k]) for v, share in zip(views, shares, strict=True) if v.needs[k]]
            if k in carriers:
                self.carriers[g][u] = seen[0][0].reader
                self.kept[g][u] = self._carrier_reason(g, u)
            elif any(np.abs(share).max(initial=0.0) > MAX_RATIO for _, share in seen):
                self.kept[g][u] = "its constant is too large for any other unit to carry"
            else:
                result[u] = [self._transfer(g, shaped, carriers, k, v, share) for v, share in seen]
        return result

    def _is_map_smaller(self, g: int, units: list[int], carriers: list[int], views: list[View]) -> bool:
        """Say whether a map behind the only reader takes fewer numbers than the carriers do."""
        if len({v.reader for v in views}) != 1:
            return False
        reader = self.readers[views[0].reader]
        y, known = reader.op.y(), self.facts.known(reader.data.name)
        if not reader.is_padded or known is None or known.shape[0] > 1:
            return False
        if not all(self.facts.is_fixed(y.name, k) for k in range(2, y.ndim)):
            return False
        roots = self.groups[g].roots
        alive = self.alive.copy()
        alive[roots[[u for k, u in enumerate(units) if k not in carriers]]] = False
        with_carriers = self.analysis.costs(alive).params
        alive[roots[[units[c] for c in carriers]]] = False
        n_sums = int(reader.kept_sums(self.analysis, alive).sum())
        return with_carriers - self.analysis.costs(alive).params > n_sums * math.prod(y.shape[2:])

    @staticmethod
    def _mapped(g: int, u: int, k: int, views: list[View]) -> list[Transfer]:
        """Say that a map gives what the k-th of the units gave."""
        seen = [(v.reader, v.index[k]) for v in views if v.needs[k]]
        return [Transfer(reader, g, u, frozenset(), {i: ()}, {}, frozenset((i,))) for reader, i in seen]

    def _barred(self, g: int, u: int, looks: list[_Look]) -> bool:
        """Say whether columns of a unit cannot move, and keep the reason."""
        for look in looks:
            reader = self.readers[look.reader]
            mine = look.live & (look.unit == u) & (reader.status[look.index] == int(Status.SHAPED))
            if mine.any() and not reader.can_edit:
                self.kept[g][u] = f"the weight of {self._label(reader)} is computed, so no other unit can take it over"
                return True
        return False

    def _views(self, units: list[int], looks: list[_Look]) -> list[View]:
        """List what units give their readers: one view for each index that a unit has in the data of one."""
        found = []
        for look in looks:
            reader = self.readers[look.reader]
            if reader.table is None or not (look.live & (reader.status[look.index] == int(Status.SHAPED))).any():
                continue
            places = [np.flatnonzero(look.unit == u) for u in units]
            for slot in range(max(map(len, places), default=0)):
                at = [int(p[slot]) if slot < len(p) else -1 for p in places]
                index = [int(look.index[a]) if a >= 0 else -1 for a in at]
                live = np.array([a >= 0 and bool(look.live[a]) for a in at])
                found.append(view(look.reader, reader, index, live))
        return [v for v in found if v.needs.any()]

    def _transfer(self, g: int, units: list[int], carriers: list[int], k: int, seen: View, share: Array) -> Transfer:
        """Say what becomes of one unit's columns at one reader."""
        moves = tuple((seen.index[c], float(part)) for c, part in zip(carriers, share, strict=True) if part)
        rest = float(seen.constant[k] - share @ seen.constant[carriers])
        targets = frozenset(units[c] for c, part in zip(carriers, share, strict=True) if part)
        return Transfer(seen.reader, g, units[k], targets, {seen.index[k]: moves}, {seen.index[k]: rest})


def _layers(analysis: Analysis, reader: Reader) -> list[tuple[list[list[Labels]], int]]:
    """Give the layers of a reader's sums: for each, the roots along every one of its axes."""
    rows = [analysis.roots(a.id) for a in reader.outputs]
    return [(rows, j) for j in range(len(rows[0]))] if rows else []
