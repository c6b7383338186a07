"""Bank: where many calls forecast the same run of sublayers, a filling call adds its share to all their sums at once.

A run is h + g_1 f_1 + g_2 f_2 + .., where every f is a forecast with the same coefficients from the same calls.  A call that
reads it then adds one tensor, which it takes out of a slot of the bank, and reads no value of a sublayer.  Which sums there
are, from which calls and with which coefficients is data of the calls, so that all filling calls are one graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ...ir.graph import BANK, CACHE, PROLOGUE, WINDOW, Body, Graph, Node, Value, live, producers
from ...ir.names import at
from ...models import bank as models
from ...models.tape import body
from ..plan import Add, BankUse, Derivation, Plan
from .place import Life, assign
from .weigh import Forecast, named

LEAST = 3  # sublayers of a run that is worth a bank


class Member(NamedTuple):
    """A sublayer's value and its gate, if it has one."""

    value: str
    gate: str


class Run(NamedTuple):
    """What one call adds to a stream."""

    members: tuple[Member, ...]
    sources: tuple[int, ...]  # which of the earlier calls it reads from
    numbers: tuple[str, ...]  # with which coefficients
    before: str  # the stream before,
    behind: str  # and behind it

    @property
    def bank(self) -> str:
        """The name of the bank of all runs of these members."""
        return f"bank.{self.members[0].value}..{self.members[-1].value}"


class Bank(NamedTuple):
    """Its members, and its sums over all programs."""

    members: tuple[Member, ...]
    sums: int
    calls: int  # so many calls after a filling one may read what it adds


class Banked(NamedTuple):
    """Plans that know of banks."""

    plans: tuple[Plan, ...]
    banks: Mapping[str, Bank]
    runs: Mapping[Derivation, tuple[Run, ...]]  # which runs a call takes from banks


NO_BANKS = Banked((), {}, {})


def with_banks(plans: Sequence[Plan], readers: Mapping[Derivation, tuple[Graph, set[str]]]) -> Banked:
    """Find the runs that many calls forecast, and give every sum its slot.

    `readers` are those calls, pruned, with what they compute for later ones.
    """
    runs = {own: tuple(_runs(graph, wanted)) for own, (graph, wanted) in readers.items()}
    members = {run.bank: run.members for own_runs in runs.values() for run in own_runs}
    runs = {own: tuple(run for run in own_runs if members[run.bank] == run.members) for own, own_runs in runs.items()}
    used = [_uses(plan, runs) for plan in plans]
    reaches = [add.calls for uses in used for of_call in uses for use in of_call.values() for add in use.adds]
    banks = {
        name: Bank(
            group, max(use.sums for uses in used for of_call in uses for n, use in of_call.items() if n == name), max(reaches)
        )
        for name, group in members.items()
        if any(name in of_call for uses in used for of_call in uses)
    }
    return Banked(tuple(_linked(plan, uses) for plan, uses in zip(plans, used, strict=True)), banks, runs)


def _runs(reader: Graph, wanted: set[str]) -> Iterator[Run]:
    """The longest runs of a call, in order."""
    maker = producers(reader.nodes)
    uses = Counter(name for node in reader.nodes for name in node.inputs) + Counter(reader.outputs)
    open_: dict[str, Run] = {}  # by the stream behind it
    for node in reader.nodes:
        step = _step(reader, maker, uses, node, wanted)
        if step is None:
            continue
        before = open_.pop(node.inputs[0], None)
        if before and uses[node.inputs[0]] == 1 and (before.sources, before.numbers) == (step.sources, step.numbers):
            step = step._replace(members=before.members + step.members, before=before.before)
        elif before:
            open_[before.behind] = before
        open_[step.behind] = step
    yield from (run for run in open_.values() if len(run.members) >= LEAST)


def _step(reader: Graph, maker: Mapping[str, Node], uses: Mapping[str, int], node: Node, wanted: set[str]) -> Run | None:
    """An addition to the stream as a run of one, if it can be of a bank."""
    if node.op != "Add" or node.outputs[0] in wanted:
        return None
    addend = maker.get(node.inputs[1])
    gate = addend.inputs[0] if addend and addend.op == "Mul" else ""
    source = addend.inputs[1] if addend and gate else node.inputs[1]
    forecast = Forecast.of(maker.get(source), reader.bodies)
    if forecast is None or uses[source] > 1 or uses[node.inputs[1]] > 1:
        return None
    names = [reader_name.rpartition("@-") for reader_name in forecast.terms]
    value = names[0][0]
    shape, gated = reader.values[source].shape, reader.values[gate] if gate else None
    fits = len(shape) == 3 and shape[0] == "R" and all(reader.kind(term) == CACHE for term in forecast.terms)
    if not fits or (gated and (gated.kind != PROLOGUE or gated.shape != ("R", 1, shape[2]))):
        return None
    return Run((Member(value, gate),), tuple(int(n) for _, _, n in names), forecast.numbers, node.inputs[0], node.outputs[0])


def _uses(plan: Plan, runs: Mapping[Derivation, tuple[Run, ...]]) -> list[dict[str, BankUse]]:
    """What every call of a program does with every bank."""
    adds: dict[str, dict[int, list[tuple[int, float]]]] = {}  # bank -> filling call -> (reading call, coefficient)
    reads: dict[str, dict[int, int]] = {}  # bank -> reading call -> its first filling call
    for n, key in enumerate(plan.keys):
        for run in runs.get(key.own, ()):
            fillings = [n - plan.earlier[n][source - 1] for source in run.sources]
            reads.setdefault(run.bank, {})[n] = min(fillings)
            for filling, number in zip(fillings, run.numbers, strict=True):
                adds.setdefault(run.bank, {}).setdefault(filling, []).append((n, plan.coefficients[n][number]))
    uses: list[dict[str, BankUse]] = [{} for _ in plan.keys]
    for bank, of_calls in adds.items():
        slots, sizes = assign({n: Life(first, n, 1) for n, first in reads[bank].items()})
        for filling, of_readers in of_calls.items():
            alive = (n for n, first in reads[bank].items() if first < filling < n)
            terms = tuple(Add(slots[n], n - filling, c) for n, c in of_readers)
            uses[filling][bank] = BankUse(len(sizes), kept=tuple(sorted(slots[n] for n in alive)), adds=terms)
        for n in reads[bank]:
            uses[n][bank] = BankUse(len(sizes), slot=slots[n])
    return uses


def _linked(plan: Plan, uses: Sequence[Mapping[str, BankUse]]) -> Plan:
    """The plan in which every filling call also reads the bank that the one before it left."""
    keys, earlier, later = list(plan.keys), list(plan.earlier), list(plan.later)
    last: dict[str, int] = {}
    for n, of_call in enumerate(uses):
        fills = []
        for bank in (bank for bank, use in of_call.items() if use.adds):
            which = 0
            if bank in last:
                age = n - last[bank]
                earlier[n] = earlier[n] if age in earlier[n] else (*earlier[n], age)
                later[n - age] = later[n - age] if age in later[n - age] else (*later[n - age], age)
                which = earlier[n].index(age) + 1
            fills.append((bank, which))
            last[bank] = n
        keys[n] = keys[n]._replace(fills=tuple(fills))
    return plan._replace(keys=tuple(keys), earlier=tuple(earlier), later=tuple(later), banks=tuple(uses))


def take(reader: Graph, runs: Sequence[Run], banks: Mapping[str, Bank], wanted: set[str]) -> Graph:
    """The reading side: one tensor of the bank in place of every run."""
    nodes, values, bodies = list(reader.nodes), dict(reader.values), dict(reader.bodies)
    for run in runs:
        sums, slot, total = at(run.bank, -min(run.sources)), f"{run.bank}.slot", f"{run.bank}.sum"
        stream = values[run.members[0].value] if run.members[0].value in values else values[run.before]
        values[sums] = msgspec.structs.replace(_sums(banks[run.bank], values[run.before].shape), kind=CACHE)
        values[slot] = Value((1,), "int32", BANK)
        dtype = stream.dtype
        op, definition = named(
            body("banked", lambda s, i, d=dtype: models.banked(s, i, dtype=d), [values[sums], values[slot]]), "banked"
        )
        values[total], bodies[op] = Value(values[run.before].shape, dtype), definition
        place = next(i for i, node in enumerate(nodes) if run.behind in node.outputs)
        nodes[place : place + 1] = [
            Node(op, total, (sums, slot), (total,)),
            Node("Add", run.behind, (run.before, total), (run.behind,)),
        ]
    return live(msgspec.structs.replace(reader, nodes=tuple(nodes), values=values, bodies=bodies), wanted)


def deposit(filling: Graph, fills: Sequence[tuple[str, int]], banks: Mapping[str, Bank], call: Graph) -> Graph:
    """The filling side: the call that also adds to banks, after those of its earlier calls."""
    nodes, values, bodies, outputs = list(filling.nodes), dict(filling.values), dict(filling.bodies), list(filling.outputs)
    for name, which in fills:
        bank = banks[name]
        values.update((member.value, call.values[member.value]) for member in bank.members if member.value not in values)
        gates = [member.gate for member in bank.members if member.gate]
        windows = {gate: f"window.{gate}" for gate in gates}
        values.update(
            (new, Value((bank.calls, *call.values[gate].shape), call.values[gate].dtype, WINDOW))
            for gate, new in windows.items()
        )
        weights, keep = f"{name}.weights", f"{name}.keep"
        values[weights] = Value((bank.sums, bank.calls), "float32", BANK)
        inputs = [weights, *(member.value for member in bank.members), *(windows[gate] for gate in gates)]
        values[name] = _sums(bank, values[bank.members[0].value].shape)
        if which:
            values[keep], values[at(name, -which)] = (
                Value((bank.sums,), "float32", BANK),
                msgspec.structs.replace(values[name], kind=CACHE),
            )
            inputs += [keep, at(name, -which)]
        op, definition = named(_body(bank, [values[i] for i in inputs]), "bank")
        bodies[op] = definition
        nodes.append(Node(op, name, tuple(inputs), (name,)))
        outputs.append(name)
    return msgspec.structs.replace(
        filling, nodes=tuple(nodes), values=values, bodies=bodies, outputs=tuple(dict.fromkeys(outputs))
    )


def _sums(bank: Bank, stream: tuple[int | str, ...]) -> Value:
    rows, tokens, width = stream
    return Value((rows, width, bank.sums, tokens), "float32")


def _body(bank: Bank, inputs: Sequence[Value]) -> Body:
    gated = tuple(int(bool(member.gate)) for member in bank.members)
    return body("bank", lambda *tensors: models.bank(*tensors, gated=gated), inputs)
