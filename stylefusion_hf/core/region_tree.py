"""Region trees: which regions a domain has, how they nest, and which inner nodes own a fusion net.

A tree is binary. Every node has a code, inner nodes included: a leaf's code sets the appearance of its region, an
inner node's code sets what its two children share (StyleFusion, arXiv 2107.07437, section 3). A tree is written as

    all*(face*(mouth, skin), hair)          `*` = the node has a fusion net

or as the dict of `RegionTree.to_dict`, which a fusion hierarchy keeps in its config.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from stylefusion_hf.core.checks import closest, listed, short, shown
from stylefusion_hf.core.json_files import parse_json, read_json
from stylefusion_hf.core.tree_checks import MAX_DEPTH, MAX_NODES, validate_fused, validate_order

__all__ = ["LARGEST_TREE", "MAX_DEPTH", "MAX_NODES", "PRESETS", "RegionTree"]

T = TypeVar("T")

LARGEST_TREE = 2**20  # bytes of a tree as text or as JSON


PRESETS = {
    "avatar": "all*(face*(skin_mouth*(mouth, skin), eyes), bg_hair_clothes*(bg_clothes*(clothes, background), hair))",
    "ffhq": "all*(face*(skin_mouth*(mouth, skin), eyes), bg_hair_clothes*(bg_clothes*(clothes, bg), hair))",
    "car": "all*(car*(car_body, wheels), background*(background_top, background_bottom))",
    "church": "all*(church, background)",
}


@dataclass(frozen=True)
class RegionTree:
    """A validated binary tree of region names.

    Args:
        root: name of the topmost node.
        branches: inner node -> its two children. Treat as read-only.
        fused: the inner nodes that own a fusion net.

    Raises:
        ValueError: not a binary tree of distinct, legal names.
    """

    root: str
    branches: dict[str, tuple[str, str]]
    fused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        order = validate_order(self.root, self.branches)
        fused = validate_fused(self.fused, order, self.branches)
        branches = {name: tuple(self.branches[name]) for name in order if name in self.branches}
        object.__setattr__(self, "branches", branches)
        object.__setattr__(self, "fused", fused)
        # Now, and not at first use: that may be in torch.compile, which cannot trace the lock of cached_property.
        for name, member in vars(type(self)).items():
            if isinstance(member, cached_property):
                getattr(self, name)

    def __hash__(self) -> int:
        return hash(str(self))

    # ------------------------------------------------------------------------------------------------
    # Conversion from and to presets, text, dicts and JSON.

    @classmethod
    def preset(cls, name: str) -> RegionTree:
        """Return the tree of a known domain: avatar, ffhq, car or church."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {short(name)}: there are {', '.join(PRESETS)}{closest(name, PRESETS)}")
        return cls.parse(PRESETS[name])

    @classmethod
    def of(cls, tree: RegionTree | Mapping[str, Any] | str) -> RegionTree:
        """Make a tree from a tree, the dict of `to_dict`, a preset's name, or text.

        File names are accepted only by `from_argument`: a model's config must not name files.
        """
        if isinstance(tree, RegionTree):
            return tree
        if isinstance(tree, Mapping):
            return cls.from_dict(tree)
        if isinstance(tree, str):
            return cls.preset(tree) if tree in PRESETS else cls.parse(tree)
        raise ValueError(f"a region tree is a RegionTree, a dict or text, not {type(tree).__name__}")

    @classmethod
    def from_argument(cls, text: str) -> RegionTree:
        """Make a tree from a command-line argument: a preset's name, text, or a .json file with either form.

        Raises:
            ValueError: not a tree; names the file where there is one. OSError: a file that cannot be read.
        """
        if not text.lower().endswith(".json"):
            return cls.of(text)
        try:
            data = read_json(text, "the file", LARGEST_TREE)
            if not isinstance(data, (str, Mapping)):
                raise ValueError(f"a region tree is an object with root, children and fused, not {short(data)}")
            return cls.of(data)
        except ValueError as error:  # not JSON, not text, or not a tree
            raise ValueError(f"the region tree in {shown(text, 400)}: {error}") from error
        except OSError as error:
            raise OSError(f"the region tree {shown(text, 400)} cannot be read: {error.strerror or error}") from error

    @classmethod
    def parse(cls, text: str) -> RegionTree:
        """Parse the text of `str(tree)`: ``name*(child, child)``, where `*` marks a fused node."""

        def fail(problem: str) -> ValueError:
            return ValueError(
                f"{problem} in the region tree {short(text)}; expected text like 'all*(face*(mouth, skin), hair)'"
            )

        if len(text) > LARGEST_TREE:
            raise ValueError(f"a region tree's text has at most {LARGEST_TREE:,} characters, got {len(text):,}")

        branches: dict[str, list[str]] = {}
        names: dict[str, None] = {}
        fused: dict[str, None] = {}
        enclosing: list[str] = []  # nodes whose "(" is open
        expects_name, latest = True, ""  # latest: the name that a following "*" or "(" belongs to
        for token in (match[0].strip() for match in re.finditer(r"[(),*]|[^(),*]+", text)):
            if not token:
                continue
            if token == "*" and latest and latest not in fused:
                fused[latest] = None
            elif token == "(" and latest:
                enclosing.append(latest)
                branches[latest] = []
                expects_name, latest = True, ""
            elif token == ")" and enclosing and not expects_name:
                enclosing.pop()
                latest = ""
            elif token == "," and enclosing and not expects_name:
                expects_name, latest = True, ""
            elif token not in "(),*" and expects_name:
                if token in names:
                    raise fail(f"the name {short(token)} appears twice")
                names[token] = None
                if enclosing:
                    branches[enclosing[-1]].append(token)
                expects_name, latest = False, token
            else:
                raise fail(f"unexpected {short(token)}")
        if enclosing or expects_name:
            raise fail(
                "a name is missing" if expects_name else f"the bracket of {short(enclosing[-1])} is not closed,"
            )
        return cls(next(iter(names)), branches, tuple(fused))  # type: ignore[arg-type]  # validated in __post_init__

    def __str__(self) -> str:
        return self._text(self.root)

    def _text(self, name: str) -> str:
        star = "*" if name in self._fused else ""
        children = self.children(name)
        return f"{name}{star}" + (f"({', '.join(map(self._text, children))})" if children else "")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RegionTree:
        """Make a tree from the dict of `to_dict`."""
        keys = {"root", "children", "fused"}
        if not isinstance(data, Mapping) or set(data) != keys or not isinstance(data["children"], Mapping):
            given = short(sorted(map(str, islice(data, 20)))) if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"a region tree's dict has root, children (name -> two names) and fused; given: {given}")
        return cls(data["root"], dict(data["children"]), data["fused"])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict ``{"root": name, "children": {name: [name, name]}, "fused": [name]}``."""
        children = {name: list(pair) for name, pair in self.branches.items()}
        return {"root": self.root, "children": children, "fused": list(self.fused)}

    @classmethod
    def from_json(cls, text: str) -> RegionTree:
        """Make a tree from the text of `to_json`."""
        try:
            data = parse_json(text, "the text", LARGEST_TREE)
        except ValueError as error:
            raise ValueError(f"a region tree's JSON does not parse: {error}") from None
        return cls.from_dict(data)

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    # ------------------------------------------------------------------------------------------------
    # Queries.

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Every name, in pre-order (a node before its children, the first child's subtree first)."""
        return self.subtree(self.root)

    @cached_property
    def inner(self) -> tuple[str, ...]:
        """Nodes with children, in pre-order."""
        return tuple(self.branches)

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """Nodes without children, in pre-order."""
        return tuple(name for name in self.nodes if name not in self.branches)

    @cached_property
    def active(self) -> tuple[str, ...]:
        """The nodes whose codes affect the picture: reached from the root through fusion nets only, in pre-order."""
        return tuple(name for name in self.nodes if self._fused.issuperset(self.ancestors(name)))

    @cached_property
    def swappable(self) -> tuple[str, ...]:
        """The active nodes without a fusion net, in pre-order: each is a region with a code of its own."""
        return tuple(name for name in self.active if name not in self._fused)

    @cached_property
    def depth(self) -> int:
        """Edges from the root to the deepest leaf; 0 for a single node."""
        return max(len(self.ancestors(name)) for name in self.leaves)

    @cached_property
    def _fused(self) -> frozenset[str]:
        return frozenset(self.fused)

    @cached_property
    def _parents(self) -> dict[str, str | None]:
        """Node -> parent. Cached: looked up for every code of every call."""
        return {self.root: None} | {child: above for above, pair in self.branches.items() for child in pair}

    def children(self, name: str) -> tuple[str, ...]:
        """Return the two children, or () for a leaf."""
        return self.branches.get(self.resolve(name), ())

    def parent(self, name: str) -> str | None:
        """Return the parent, or None for the root."""
        return self._parents[self.resolve(name)]

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Return the ancestors, from the parent up to the root."""
        above = self.parent(name)
        return () if above is None else (above, *self.ancestors(above))

    def subtree(self, name: str) -> tuple[str, ...]:
        """Return the node and everything below it, in pre-order."""
        return (name, *(below for child in self.children(name) for below in self.subtree(child)))

    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Return the inner nodes in levels, bottom-up.

        A level depends only on leaves and earlier levels, so its nodes can be evaluated in one batch.
        """
        height: dict[str, int] = {}
        for name in reversed(self.nodes):  # children come before their parent
            height[name] = 1 + max((height[child] for child in self.children(name)), default=-1)
        return tuple(tuple(n for n in self.inner if height[n] == h) for h in range(1, height[self.root] + 1))

    def resolve(self, name: str) -> str:
        """Return `name` if the tree has it.

        Raises:
            ValueError: unknown name; lists the tree's names and the closest match.
        """
        if not isinstance(name, str) or name not in self._parents:
            hint = closest(name, self._parents)
            raise ValueError(f"unknown region {short(name)}: the tree has {listed(self.nodes)}{hint}")
        return name

    # ------------------------------------------------------------------------------------------------
    # Codes for every node.

    def assign(
        self,
        base: T,
        regions: Mapping[str, T] | None = None,
        global_code: T | None = None,
        nodes: Mapping[str, T] | None = None,
    ) -> dict[str, T]:
        """Return a code for every node, given codes for some of them. Codes are opaque.

        Args:
            base: the default code.
            regions: node -> code of its whole subtree; the more specific name wins.
            global_code: the code of all inner nodes that `regions` sets neither by name nor through an ancestor.
            nodes: node -> code of exactly this node; overrides the others.

        Raises:
            ValueError: an unknown name, or `global_code` together with the root in `regions` or `nodes`.
        """
        regions, nodes = regions or {}, nodes or {}
        for argument, given in (("regions", regions), ("nodes", nodes)):
            if not isinstance(given, Mapping):
                raise ValueError(f"{argument} is a dict, node -> code, not {type(given).__name__}")
            for name in given:
                self.resolve(name)
        if global_code is not None and (self.root in regions or self.root in nodes):
            where = "regions" if self.root in regions else "nodes"
            raise ValueError(
                f"global_code and {where}[{self.root!r}] both set the root's code: give one of the two"
                f" (regions[{self.root!r}] sets every region, global_code only what the regions share)"
            )
        codes: dict[str, T] = {}
        inherited: dict[str, T] = {}  # what `regions` sets, by name or through an ancestor
        for name in self.nodes:
            above = self.parent(name)
            if name in regions:
                inherited[name] = regions[name]
            elif above in inherited:
                inherited[name] = inherited[above]
            if name in nodes:
                codes[name] = nodes[name]
            elif name in inherited:
                codes[name] = inherited[name]
            else:
                codes[name] = global_code if global_code is not None and name in self.branches else base
        return codes
