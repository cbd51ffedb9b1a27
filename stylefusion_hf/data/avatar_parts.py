"""The parts of an avatar as SVG templates, rewritten from python-avatars' files.

The drawings are the "Avataaars" by Pablo Stanley (free for personal and commercial use), as packaged by python-avatars
(MIT). Each part becomes a `Part` with two templates of SVG text: `image`, whose colors are placeholders such as
``{hair}``, and `labels`, in which every paint is the gray whose value is the region's id. Both come from one traversal
of the same groups, so the label map is exact by construction.

What the traversal changes, and why:

- A base shape under a mask under a colored rectangle (Sketch's way to color a shape) becomes one plain path. This is
  several times faster, and the base's light color no longer shines through the anti-aliased border.
- The remaining masks are all plain white shapes, so they become clip paths.
- The filters are all drop shadows without blur, so they become translated, translucent copies.
- Mouths, eyes and brows are translucent black in the original, which mixes the skin's color into their regions. Here
  they are opaque with colors of their own, so that the appearance of a region depends on its own attributes only.
- In `labels`, translucent paint (a shadow, a highlight) does not change the region below it: a shadow on skin is skin.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib import util
from pathlib import Path
from xml.etree import ElementTree

from stylefusion_hf.core.installing import install_command

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
BLUSH = "{http://design.blush}color"

# Region ids as painted into the label map; the order is the public one of `avatars.REGIONS`.
BACKGROUND, SKIN, CLOTHES, MOUTH, EYES, HAIR = range(6)

# kind -> (folder of python_avatars, region id, fill and fill-opacity inherited from the canvas)
KINDS: dict[str, tuple[str, int, str, float]] = {
    "style": ("styles", SKIN, "none", 1.0),
    "nose": ("nose", SKIN, "#000000", 0.16),
    "clothes": ("clothes", CLOTHES, "none", 1.0),
    "mouth": ("mouth", MOUTH, "#000000", 1.0),
    "facial_hair": ("facial_hair", MOUTH, "none", 1.0),
    "eyes": ("eyes", EYES, "#000000", 1.0),
    "eyebrows": ("eyebrows", EYES, "#000000", 1.0),
    "glasses": ("accessories", EYES, "none", 1.0),
    "top": ("top", HAIR, "none", 1.0),
}

# ids of the groups that python-avatars recolors -> placeholder
COLOR_GROUPS = {
    "Skin-Color": "{skin}",
    "Hair-Color": "{hair}",
    "Facial-Hair-Color": "{facial_hair}",
    "Fabric-Color": "{fabric}",
}
# ids of empty groups that receive another part -> name of the slot
SLOTS = {
    "Clothing": "clothes",
    "Mouth": "mouth",
    "Nose": "nose",
    "Eyes": "eyes",
    "Eyebrow": "eyebrows",
    "Top": "top",
    "Facial-Hair": "facial_hair",
    "Accessory": "glasses",
}
# drawn in one fixed color, which python-avatars does not change, although it is hair
FIXED_HAIR = {"hair/straight_2", "hair/shaved_sides"}
SHAPES = {"path", "circle", "ellipse", "rect", "polygon", "polyline"}
GEOMETRY = ("d", "cx", "cy", "r", "rx", "ry", "x", "y", "width", "height", "points")
SHADOW_BELOW = 0.5  # paint with less opacity is a shadow or a highlight on another region


def parts_folder() -> Path:
    """Return the folder `avatar_parts` of python-avatars; ImportError, saying what to install, without it."""
    # find_spec does not import the package: we only read its files.
    spec = util.find_spec("python_avatars")
    if spec is None or spec.origin is None or util.find_spec("resvg_py") is None:
        raise ImportError(f"drawing avatars needs python-avatars and resvg-py: {install_command('train')}")
    return Path(spec.origin).parent / "avatar_parts"


@dataclass(frozen=True)
class Part:
    """One SVG part as text: `image` with color placeholders, `labels` in flat grays; slots as ``{slot:name}``."""

    image: str
    labels: str
    slots: frozenset[str]


@dataclass(frozen=True)
class _Paint:
    """The presentation attributes that a node inherits."""

    fill: str = "none"
    fill_opacity: float = 1.0
    fill_rule: str = "nonzero"
    stroke: str = "none"
    stroke_width: str = "1"
    opacity: float = 1.0


@dataclass
class _Traversal:
    """The state of a traversal of one part's XML tree."""

    kind: str
    name: str
    region: int
    ids: dict[str, ElementTree.Element]
    slots: set[str] = field(default_factory=set)
    clips: int = 0

    def __post_init__(self) -> None:
        self.grey = "#" + f"{self.region:02x}" * 3

    # --- Attributes --------------------------------------------------------------------------------------------------
    def paint(self, node: ElementTree.Element, inherited: _Paint) -> _Paint:
        attributes = dict(node.attrib)
        for item in attributes.get("style", "").split(";"):
            if ":" in item:
                key, value = item.split(":", 1)
                attributes[key.strip()] = value.strip()
        fill = attributes.get("fill") or inherited.fill
        role = COLOR_GROUPS.get(node.get("id", ""))
        if role is None and node.get(BLUSH, "").startswith("Hair"):
            role = "{facial_hair}" if self.kind == "facial_hair" else "{hair}"
        elif role is None and node.get(BLUSH, "").startswith("Top"):
            role = "{fabric}"
        return _Paint(
            fill=role or _hex(fill),
            fill_opacity=float(attributes.get("fill-opacity", inherited.fill_opacity)),
            fill_rule=attributes.get("fill-rule", inherited.fill_rule),
            stroke=_hex(attributes.get("stroke", inherited.stroke)),
            stroke_width=attributes.get("stroke-width", inherited.stroke_width),
            opacity=inherited.opacity * float(attributes.get("opacity", 1)),
        )

    def colour(self, colour: str, alpha: float) -> tuple[str, float]:
        """Return the placeholder (or fixed color) and opacity that replace an original color in this kind of part."""
        dark = colour.startswith("#") and sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) < 200
        if self.kind in ("eyes", "eyebrows") and colour == "#000000":
            return ("{eyes}" if self.kind == "eyes" else "{brows}"), 1.0
        if self.kind == "mouth" and colour == "#000000":
            return "{mouth}", 1.0
        if self.kind == "mouth" and colour.upper() == "#FF4F6D":
            return "{tongue}", alpha
        if self.kind == "glasses" and dark:
            return "{glasses}", 1.0 if alpha >= SHADOW_BELOW else alpha
        if self.kind in ("top", "clothes") and alpha >= 0.99 and not dark and colour.startswith("#"):
            if self.name in FIXED_HAIR:
                return "{hair}", alpha
            return ("{trim}" if self.kind == "top" else "{clothes_trim}"), alpha
        return colour, alpha

    # --- Shapes ------------------------------------------------------------------------------------------------------
    def geometry(self, node: ElementTree.Element) -> str:
        tag = node.tag.removeprefix(SVG)
        values = " ".join(f'{key}="{_short(node.get(key, ""))}"' for key in GEOMETRY if node.get(key))
        return f"<{tag} {values}"

    def shape(self, node: ElementTree.Element, paint: _Paint) -> tuple[str, str]:
        """Return a leaf for both templates; translucent paint is omitted from the labels (see the module)."""
        open_tag = self.geometry(node)
        rule = f' fill-rule="{paint.fill_rule}"' if paint.fill_rule != "nonzero" else ""
        if node.get("transform"):
            rule += f' transform="{_short(node.get("transform", ""))}"'
        image = labels = ""
        if paint.fill != "none" and not paint.fill.startswith("url"):
            colour, alpha = self.colour(paint.fill, paint.fill_opacity * paint.opacity)
            opacity = f' fill-opacity="{alpha:.3g}"' if alpha < 0.995 else ""
            image += f'{open_tag} fill="{colour}"{opacity}{rule}/>'
            if alpha >= SHADOW_BELOW and self.kind != "nose":
                labels += f'{open_tag} fill="{self.grey}"{rule}/>'
        if paint.stroke != "none":
            colour, alpha = self.colour(paint.stroke, paint.opacity)
            stroke = f' fill="none" stroke-width="{paint.stroke_width}"'
            image += f'{open_tag} stroke="{colour}"{stroke}{rule}/>'
            labels += f'{open_tag} stroke="{self.grey}"{stroke}{rule}/>'
        return image, labels

    def reference(self, node: ElementTree.Element) -> ElementTree.Element:
        return self.ids[node.get(HREF, node.get("href", "")).removeprefix("#")]

    def mask_shapes(self, mask: ElementTree.Element) -> list[ElementTree.Element]:
        return [
            self.reference(child) if child.tag == SVG + "use" else child
            for child in mask.iter()
            if child.tag == SVG + "use" or child.tag.removeprefix(SVG) in SHAPES
        ]

    # --- Traversal ---------------------------------------------------------------------------------------------------
    def children(self, node: ElementTree.Element, paint: _Paint) -> tuple[str, str]:
        images: list[str] = []
        labels: list[str] = []
        base: ElementTree.Element | None = None  # the previous shape, in case a mask of the same shape recolors it
        for child in node:
            flood = self.flood(child, paint)
            if flood is not None:
                shapes, image, label = flood
                if base is not None and len(shapes) == 1 and base is shapes[0]:
                    images.pop()
                    labels.pop()
                base = None
            else:
                image, label = self.node(child, paint)
                if child.tag == SVG + "use":
                    base = self.reference(child)
                elif child.tag != SVG + "mask":
                    base = None
                if not image and not label:
                    continue
            images.append(image)
            labels.append(label)
        return "".join(images), "".join(labels)

    def flood(self, node: ElementTree.Element, inherited: _Paint) -> tuple[list[ElementTree.Element], str, str] | None:
        """Rewrite a masked group of covering rectangles as the mask's shapes in the group's color; None for others."""
        leaves = [leaf for leaf in node.iter() if leaf.tag.removeprefix(SVG) in SHAPES | {"use"}]
        if not node.get("mask") or not leaves or any(leaf.tag != SVG + "rect" for leaf in leaves):
            return None
        if COLOR_GROUPS.get(node.get("id", "")) is None:
            return None
        paint = self.paint(node, inherited)
        shapes = self.mask_shapes(self.ids[_url(node.get("mask", ""))])
        pieces = [self.shape(shape, paint) for shape in shapes]
        image, labels = ("".join(column) for column in zip(*pieces, strict=True))
        return shapes, *_group(image, labels, node.get("transform"))

    def node(self, node: ElementTree.Element, inherited: _Paint) -> tuple[str, str]:
        tag = node.tag.removeprefix(SVG) if isinstance(node.tag, str) else ""
        slot = SLOTS.get(node.get("id", ""))
        if tag == "g" and slot is not None and len(node) == 0 and self.kind in ("style", "top"):
            self.slots.add(slot)
            return _group(f"{{slot:{slot}}}", f"{{slot:{slot}}}", node.get("transform"))
        if "mix-blend-mode" in node.get("style", ""):
            return "", ""  # the reflection in a lens, which only blurs at these sizes
        paint = self.paint(node, inherited)
        if tag == "g" or tag == "svg":
            image, labels = self.children(node, paint)
            transform = node.get("transform")
        elif tag == "use":
            image, labels = self.shape(self.reference(node), paint)
            transform = node.get("transform")
        elif tag in SHAPES:
            image, labels = self.shape(node, paint)
            transform = None  # already on the shape
        else:
            return "", ""
        if node.get("filter"):
            image, labels = self.shadow(node, image, labels)
        clip = node.get("mask") or node.get("clip-path")
        if clip:
            image, labels = self.clip(self.ids[_url(clip)], image, labels)
        return _group(image, labels, transform)

    def shadow(self, node: ElementTree.Element, image: str, labels: str) -> tuple[str, str]:
        """Rewrite a drop-shadow filter as a translated, translucent copy below; ignore other filters."""
        effect = self.ids[_url(node.get("filter", ""))]
        offset = effect.find(SVG + "feOffset")
        matrix = effect.find(SVG + "feColorMatrix")
        if offset is None or matrix is None or effect.find(SVG + "feComposite") is not None:
            return ("", "") if effect.find(SVG + "feComposite") is not None else (image, labels)
        alpha = matrix.get("values", "").split()[18]
        dark = re.sub(r' fill="[^"]*"( fill-opacity="[^"]*")?', f' fill="#000000" fill-opacity="{alpha}"', image)
        dark = re.sub(r' stroke="[^"]*"', "", dark)
        dark = f'<g transform="translate({offset.get("dx")} {offset.get("dy")})">{dark}</g>'
        if effect.find(SVG + "feMerge") is None:
            return dark, ""
        return dark + image, labels

    def clip(self, mask: ElementTree.Element, image: str, labels: str) -> tuple[str, str]:
        self.clips += 1
        name = f"{self.kind}{self.clips}"
        inside = "".join(f'{self.geometry(shape)} clip-rule="evenodd"/>' for shape in self.mask_shapes(mask))
        head = f'<clipPath id="{name}">{inside}</clipPath><g clip-path="url(#{name})">'
        return head + image + "</g>", (head + labels + "</g>" if labels else "")


def _group(image: str, labels: str, transform: str | None) -> tuple[str, str]:
    if not transform:
        return image, labels
    head = f'<g transform="{_short(transform)}">'
    return (head + image + "</g>" if image else ""), (head + labels + "</g>" if labels else "")


def _short(text: str) -> str:
    """Round numbers to two decimals, precise enough on a canvas of 264 units, to save 3/4 of the text to parse."""
    return re.sub(r"-?\d*\.\d+(?:e-?\d+)?", lambda m: f"{float(m.group()):.2f}".rstrip("0").rstrip("."), text)


def _hex(colour: str) -> str:
    """Normalize a color to #rrggbb; "none", "url(..)" and placeholders do not change."""
    colour = {"black": "#000000", "white": "#ffffff"}.get(colour, colour)
    return "#" + "".join(2 * digit for digit in colour[1:]) if re.fullmatch("#[0-9a-fA-F]{3}", colour) else colour


def _url(text: str) -> str:
    match = re.search(r"#(.+?)\)", text)
    return match.group(1) if match else ""


@cache
def load_part(kind: str, name: str) -> Part:
    """Read part `name` of `kind` (a key of `KINDS`), once per process. ValueError for an unknown name."""
    folder, region, fill, opacity = KINDS[kind]
    path = parts_folder() / folder / f"{name}.svg"
    if not path.is_file():
        raise ValueError(f"python-avatars has no {kind} named {name!r}: {path} does not exist")
    root = ElementTree.parse(path).getroot()
    ids = {node.get("id", ""): node for node in root.iter()}
    traversal = _Traversal(kind, name, region, ids)
    image, labels = traversal.children(root, _Paint(fill=fill, fill_opacity=opacity))
    return Part(image, labels, frozenset(traversal.slots))
