"""Validation of region trees: one clear ValueError each.

Nothing here recurses, so that bad input cannot exhaust the stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from stylefusion_hf.core.checks import closest, listed, short, shown

MAX_DEPTH = 32  # edges from the root to the deepest leaf
MAX_NODES = 1000  # leaves and inner nodes; real domains have about ten
MAX_NAME = 100  # characters
FORBIDDEN = ".(),*="  # "." separates state-dict keys, "=" command-line arguments; the others are the tree syntax


def validate_order(root: str, branches: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names in pre-order, or raise ValueError. Linear in the number of nodes."""
    _check_name(root)
    for name, children in branches.items():
        _check_name(name)
        pair = [children] if isinstance(children, str) or not isinstance(children, Sequence) else children
        if len(pair) != 2:
            raise ValueError(
                f"node {short(name)} has {len(pair)} {'child' if len(pair) == 1 else 'children'}"
                f" ({listed(islice(pair, 20))}) in the region tree: give it two, or none to make it a leaf"
            )
        for child in pair:
            _check_name(child)
    order: dict[str, None] = {}
    pending: list[tuple[str, tuple[str, ...]]] = [(root, ())]  # a node and the path that leads to it
    while pending:
        name, path = pending.pop()
        if name in path:
            circle = " > ".join(map(shown, (*path, name)))
            raise ValueError(f"the region tree has a cycle, {shown(circle, 400)}: a node may not lie below itself")
        if name in order:
            raise ValueError(f"the name {short(name)} appears twice in the region tree: give every node its own name")
        if len(path) > MAX_DEPTH:
            raise ValueError(
                f"the region tree is too deep: at most {MAX_DEPTH} levels may lie below the root {short(root)}"
            )
        if len(order) == MAX_NODES:
            raise ValueError(f"the region tree is too large: it has at most {MAX_NODES:,} nodes, leaves included")
        order[name] = None
        pending += [(child, (*path, name)) for child in reversed(branches.get(name, ()))]
    unknown = [name for name in branches if name not in order]
    if unknown:
        raise ValueError(
            f"the region tree gives children to unknown names ({listed(unknown)}): below the root {short(root)} there"
            f" are {listed(order)}"
        )
    return list(order)


def validate_fused(fused: Any, order: Sequence[str], branches: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the fused names in pre-order, or raise ValueError."""
    if not isinstance(fused, Iterable) or isinstance(fused, str):
        raise ValueError(f"the region tree's fused nodes are a list of names, not {short(fused)}")
    names, known = list(islice(fused, MAX_NODES + 1)), set(order)
    if len(names) > MAX_NODES:
        raise ValueError(f"the region tree lists more than {MAX_NODES:,} fused nodes, it has {len(order):,} nodes")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"unknown fused node {short(name)}: the tree has {listed(order)}{closest(name, order)}")
        if name not in branches:
            raise ValueError(
                f"the leaf {short(name)} cannot be fused, it has no children: fuse one of {listed(branches)}"
            )
    chosen = set(names)
    return tuple(name for name in order if name in chosen)


def _check_name(name: Any) -> None:
    text = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()
    if not text or any(mark in name for mark in FORBIDDEN):
        raise ValueError(
            f"illegal region name {short(name)}: use text, not empty, of at most {MAX_NAME} characters, on one line,"
            f" without leading or trailing spaces or any of {FORBIDDEN!r}"
        )
