"""The roles of regions in a training, derived from the tree and the regions' names, or set by flags."""

from __future__ import annotations

from dataclasses import dataclass

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.imaging.alignment import pose_regions, static_regions


@dataclass(frozen=True)
class Roles:
    """Regions by number, back to front.

    Attributes:
        names: of the regions.
        pose: regions whose positions give the pose.
        static: regions that do not move with the pose.
        groups: (inner node, regions of its first child, regions of its second child); the pose regions replace a child
            that does not move.
    """

    names: list[str]
    pose: list[int]
    static: list[int]
    groups: list[tuple[str, list[int], list[int]]]

    @classmethod
    def of(cls, tree: RegionTree, known: list[str], pose: str | None = None, static: str | None = None) -> Roles:
        """Derive the roles from the tree and the regions `known` to the segmenter.

        Args:
            pose: comma-separated names; by default the moving leaves under the root's first child.
            static: comma-separated names; by default those that begin with bg or background.

        Raises:
            ValueError: a leaf that the segmenter does not know or that nothing is trained for, or an unknown name.
        """
        missing = [leaf for leaf in tree.leaves if leaf not in known]
        if missing:
            raise ValueError(f"the segmenter knows {', '.join(known)}, but not the tree's {', '.join(missing)}")
        inert = [leaf for leaf in tree.leaves if leaf not in tree.active]
        if inert:
            raise ValueError(
                f"nothing to train for {', '.join(inert)}: a node above has no fusion net, so their codes have no"
                f" effect; mark it with * in --tree {tree}"
            )
        names = [name for name in known if name in tree.leaves]

        def chosen(given: str | None, flag: str, default: list[str]) -> list[int]:
            wanted = default if given is None else [n.strip() for n in given.split(",") if n.strip()]
            unknown = [n for n in wanted if n not in names]
            if unknown:
                raise ValueError(f"{flag}: {unknown[0]!r} is not a region of the tree; it has {', '.join(names)}")
            if not wanted and flag == "--pose_regions":
                raise ValueError(f"{flag} names no region: the pose is measured on at least one")
            return [names.index(n) for n in wanted]

        fixed = chosen(static, "--static_regions", static_regions(names))
        moving = [n for n in names if names.index(n) not in fixed] or names
        default = pose_regions(tree, [n for n in names if n not in moving])
        posing = chosen(pose, "--pose_regions", [n for n in names if n in default])
        groups = []
        for node in tree.inner:
            if node == tree.root or node not in tree.fused:
                continue
            parts = [[names.index(n) for n in moving if n in tree.subtree(child)] for child in tree.children(node)]
            if any(parts):
                groups.append((node, parts[0] or posing, parts[1] or posing))
        return cls(names, posing, fixed, groups)
