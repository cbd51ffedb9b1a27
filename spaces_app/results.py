"""What the page offers for a picture: the exact PNG with its recipe, a link, and Python code that reproduces it."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stylefusion_hf.core.code_arguments import MAGIC
from stylefusion_hf.core.files import RECIPE_KEY
from stylefusion_hf.core.foreign_codes import choose_code
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.region_names import spell_out
from stylefusion_hf.core.untrusted.safe_pickle import loads
from stylefusion_hf.spaces_app import EMBEDDED
from stylefusion_hf.spaces_app.bounds import TooLarge, read_json
from stylefusion_hf.spaces_app.changes import places
from stylefusion_hf.spaces_app.models import Model, Picture, digest
from stylefusion_hf.spaces_app.pictures import open_checked
from stylefusion_hf.spaces_app.uploads import read_file

MAX_RECIPE = 2**21  # bytes of a recipe file
CODE_FILE = "the file of codes"  # how errors call it, which show no path
MAX_PIXELS = 2**24  # pixels of a picture with a recipe
SMOOTH = 128  # pixels: larger pictures are scaled smoothly by the browser, smaller ones show their pixels
VIEW_QUALITY = 88  # of a WebP
MAX_LINK = 4000  # characters of a link's query: twenty regions with seeds and strengths of any length


def encode_png(image: Image.Image, recipe: Mapping[str, Any] | None = None) -> bytes:
    """Encode a picture as PNG, with the recipe in the chunk that `stylefusion fuse --from-recipe` reads."""
    info, buffer = PngInfo(), io.BytesIO()
    if recipe is not None:
        info.add_text(RECIPE_KEY, json.dumps(recipe))
    # Higher levels take half a second of a picture of 1024 px, more than rendering its preview, and save a tenth.
    # Filtered rows have runs of zeros and few repeats: looking for runs alone is quicker, and no larger.
    image.save(buffer, format="PNG", pnginfo=info, compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def data_uri(image: Image.Image, recipe: Mapping[str, Any] | None = None) -> str:
    """Return the PNG as a data URI, so that no file is written for a picture."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image, recipe)).decode("ascii")


def view_uri(model: Model, image: Image.Image) -> str:
    """Return a picture that is looked at and not kept as a data URI: as WebP, a tenth of a PNG's bytes.

    It is exact for models of few pixels, which are seen enlarged.
    """
    if model.resolution <= SMOOTH:
        return data_uri(image)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=VIEW_QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def outline_uri(picture: Picture) -> str | None:
    """Return a picture's map of regions as a data URI; None where it has not been found."""
    return None if picture.labels is None else data_uri(picture.labels)


def dial_ids(model: Model) -> list[str]:
    """Return the ends of the ids of a model's dials on the page."""
    return [{0: "base", 1: "global"}.get(place, str(place - 2)) for place in places(model)]


def result(model: Model, picture: Picture, caption: str) -> dict[str, Any]:
    """Return the value of a `stage`: everything that is shown and offered for a picture.

    A draft is replaced by the full picture when the dials rest: the stage then fires `submit`.
    """
    return {
        "png": view_uri(model, picture.image) if picture.draft else data_uri(picture.image, picture.recipe),
        "key": digest(picture.recipe),
        "labels": outline_uri(picture),
        "outlined": model.has_segmenter,
        "cutout": model.has_segmenter and bool(model.background),
        "regions": [title(name) for name in model.regions],
        "dials": dial_ids(model),
        "caption": caption,
        "draft": picture.draft,
        "smooth": model.resolution > SMOOTH,
        "aspect": model.size[1] / model.size[0],
        "recipe": json.dumps(picture.recipe, indent=2),
        "query": link_query(model, picture.recipe),
        "code": snippet(model, picture.recipe),
        "model": model.name,
    }


def read_recipe(path: str) -> str:
    """Read the text of a recipe from a JSON file, from a PNG that contains one, or make one of another tool's code.

    Raises:
        ValueError, OSError: there is neither a recipe nor one code in the file, or it is too large.
    """
    data = read_file(path)
    if data.startswith(MAGIC):
        return json.dumps(Recipe(choose_code(loads(data, CODE_FILE), CODE_FILE).rows(), 1).to_dict())
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        if len(data) > MAX_RECIPE:
            raise ValueError(f"this is not a recipe: it has more than {MAX_RECIPE // 2**20} MB")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("this is not a recipe: open a .json or .png that was downloaded here") from error
    try:
        with open_checked(data, "the picture", ("PNG",), MAX_PIXELS) as picture:
            picture.load()  # text chunks may follow the pixels
            text = picture.info.get(RECIPE_KEY)
    except ValueError as error:
        if type(error) is ValueError:
            raise
        raise ValueError("the picture is damaged: download it again") from error
    except Exception as error:  # decoders may raise anything for a truncated or forged file
        raise ValueError("the picture is damaged: download it again") from error
    if isinstance(text, str) and len(text) > MAX_RECIPE:
        raise ValueError(f"this is not a recipe: it has more than {MAX_RECIPE // 2**20} MB")
    if not isinstance(text, str):
        raise ValueError("this picture carries no recipe: it was not made here, or another program removed it")
    return text


def check_recipe_text(text: str) -> str:
    """Return a text that is a recipe by its form, or raise a ValueError: `Model.check` reads its content."""
    try:
        data = read_json(text)
    except TooLarge as error:
        raise ValueError(f"the recipe cannot be read: {error}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or not {"version", "base"} <= data.keys():
        raise ValueError("this is not a recipe of this app: open a .json or .png that was downloaded here")
    return text


def title(name: str) -> str:
    """Format a name of a region or direction for display."""
    words = spell_out(name)
    return words[:1].upper() + words[1:]


def has_only_seeds(recipe: Mapping[str, Any]) -> bool:
    """Return whether all codes of a recipe are seeds."""
    groups = [recipe.get("regions", {}), recipe.get("nodes", {}), recipe.get("edits", {})]
    codes = [recipe["base"], recipe.get("global_code"), *(code for group in groups for code in group.values())]
    return all(code is None or isinstance(code, int) for code in codes)


def link_query(model: Model, recipe: Mapping[str, Any]) -> str:
    """Return the part of a link after "?"; "" for a recipe that does not fit into a link."""
    if not has_only_seeds(recipe):
        return ""
    short = {name: value for name, value in recipe.items() if name not in ("model", "num_images")}
    text = urlencode({"model": model.name, "recipe": json.dumps(short, separators=(",", ":"))})
    return text if len(text) <= MAX_LINK else ""


def snippet(model: Model, recipe: Mapping[str, Any]) -> str:
    """Return Python code that makes the picture with the library."""
    lines = ["from stylefusion_hf import StyleFusionPipeline", "", load_line(model)]
    if has_only_seeds(recipe):
        skipped = ("version", "num_images", "model", "base", "noise_seeds")
        given = {name: value for name, value in recipe.items() if name not in skipped and value is not None}
        if given.get("noise_mode") == "const":
            del given["noise_mode"]
        arguments = "".join(f",\n    {name}={value!r}" for name, value in given.items())
        lines.append(f"out = pipe(\n    base={recipe['base']!r}{arguments},\n)")
    if not has_only_seeds(recipe) or recipe.get("noise_mode") == "random":
        lines[3:] = ['out = pipe.from_recipe(open("stylefusion.json").read())  # "Recipe" above downloads it']
    lines.append('out.images[0].save("stylefusion.png")')
    return "\n".join(lines)


def load_line(model: Model, pipeline: str = "StyleFusionPipeline") -> str:
    """Return the line of code that loads a model; for a local folder with its name only, not its path."""
    load = "from_embedded()" if model.name == EMBEDDED else f"from_pretrained({model.name!r})"
    return f"pipe = {pipeline}.{load}"
