"""Codes in files of other tools, wherever a code is taken: .npz, .npy, latents.pt, of any shape that makes sense."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stylefusion_hf import Code, Direction, StyleFusionInterpolationPipeline
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.code_arguments import names_codes
from stylefusion_hf.core.code_files import pick_code, save_codes
from stylefusion_hf.core.edits import save_directions
from stylefusion_hf.imaging.sheets import contact_sheet
from tests.command_line import fails
from tests.parity import case_file
from tests.tiny import NUM_WS, W_DIM, tiny_generator, tiny_pipeline

pytestmark = pytest.mark.usefixtures("elsewhere")
RANDOM = np.random.RandomState(0)
ONE = RANDOM.randn(1, NUM_WS, W_DIM).astype(np.float32)  # a code in w+, as projector.py saves it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(segmenter=True).save_pretrained(folder)
    return str(folder)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ----------------------------------------------------------------------------------------------------
# Shapes, containers and names.


@pytest.mark.parametrize(
    ("shape", "number", "space", "chosen"),
    [
        ((9,), "", "w", ...),
        ((1, 9), "", "w", 0),
        ((1, 1, 9), "", "w", (0, 0)),
        ((4, 9), "", "w+", ...),
        ((1, 4, 9), "", "w+", 0),
        ((1, 1, 4, 9), ":0", "w+", (0, 0)),
        ((3, 4, 9), ":2", "w+", 2),
        ((3, 1, 4, 9), ":1", "w+", (1, 0)),
        ((3, 1, 9), ":1", "w", (1, 0)),
        ((5, 9), ":4", "w", 4),
    ],
)
def test_shapes(shape: tuple[int, ...], number: str, space: str, chosen: Any) -> None:
    array = RANDOM.randn(*shape)
    np.save("face.npy", array)
    code = pick_code(f"face.npy{number}")
    assert (code.space, len(code)) == (space, 1)
    np.testing.assert_array_equal(code.tensor[0].numpy(), array[chosen].astype(np.float32))


def test_containers() -> None:
    tensor = torch.from_numpy(ONE)
    np.savez("a.npz", w=ONE)
    np.savez_compressed("b.npz", w=ONE)
    np.save("c.npy", ONE.astype(">f8"))
    torch.save(tensor, "d.pt")
    torch.save(tensor.bfloat16(), "e.pth")
    torch.save(torch.nn.Parameter(tensor), "f.pt", _use_new_zipfile_serialization=False)
    Path("g.pkl").write_bytes(pickle.dumps({"latent": ONE, "loss": 0.5}))
    torch.save([tensor], "h.pt")
    torch.save(tensor[:, :1].expand(-1, NUM_WS, -1), "i.pt")  # stride 0
    save_file({"latents": tensor, "loss": torch.ones(2)}, "j.safetensors")
    save_file({"w": tensor}, "k.safetensors", metadata={"format": "pt"})
    Path("no suffix").write_bytes(Path("a.npz").read_bytes())
    for file in (*sorted(Path().glob("?.*")), Path("no suffix")):
        assert names_codes(str(file))
        code = pick_code(file)
        expected = {"e.pth": tensor.bfloat16().float(), "i.pt": tensor[:, :1].expand(-1, NUM_WS, -1)}
        assert torch.equal(code.tensor, expected.get(file.name, tensor)), file
    assert not names_codes("me.png")
    assert not names_codes("face")


def test_safetensors_of_this_package_are_what_they_say() -> None:
    save_directions("d.safetensors", [Direction("x", "w", torch.ones(W_DIM))])
    with pytest.raises(ValueError, match="is not a file of codes"):
        pick_code("d.safetensors")
    save_file({"g.weight": torch.ones(2), "g.bias": torch.ones(2)}, "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds a network's weights, not codes"):
        pick_code("model.safetensors")


def test_names_and_numbers() -> None:
    codes = {name: RANDOM.randn(NUM_WS, W_DIM) for name in ("me.jpg", "you.jpg")}
    torch.save({name: torch.from_numpy(code) for name, code in codes.items()}, "latents.pt")
    assert np.allclose(pick_code("latents.pt:you.jpg").tensor[0], codes["you.jpg"])
    noise = [torch.zeros(1, 1, 4, 4)]
    torch.save({"latents": {name: torch.from_numpy(code) for name, code in codes.items()}}, "nested.pt")
    assert np.allclose(pick_code("nested.pt:me.jpg").tensor[0], codes["me.jpg"])
    torch.save({r"C:\me.jpg": torch.from_numpy(codes["me.jpg"]), "a:b:c": torch.ones(3, W_DIM)}, "colons.pt")
    assert np.allclose(pick_code(r"colons.pt:C:\me.jpg").tensor[0], codes["me.jpg"])
    assert pick_code("colons.pt:a:b:c:2").space == "w"
    with pytest.raises(ValueError, match="has no code 'a:b': it has"):
        pick_code("colons.pt:a:b:7")
    torch.save({"me.jpg": {"img": torch.ones(3, 8, 8), "latent": torch.ones(W_DIM), "noise": noise}}, "projected.pt")
    assert pick_code("projected.pt").space == "w"
    np.savez("both.npz", w=RANDOM.randn(2, 1, W_DIM), noise=RANDOM.randn(4, 4))
    assert pick_code("both.npz:w:1").space == pick_code("both.npz:1").space == "w"
    np.savez("z.npz", z=RANDOM.randn(2, 7))
    np.save("z.npy", RANDOM.randn(7))
    assert pick_code("z.npz:1").space == pick_code("z.npy").space == "z"
    np.save("a:b.npy", ONE)
    assert pick_code("a:b.npy:0").space == "w+"


def huge() -> bytes:
    """A zip of a few kilobytes that inflates to a gigabyte."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**22,)})
        archive.writestr("w.npy", head.getvalue() + bytes(2**24))
    return data.getvalue()


def refusals() -> dict[str, tuple[Any, str]]:
    """File -> (its content, what the error says)."""
    packed = io.BytesIO()
    np.savez(packed, w=ONE)
    plain = io.BytesIO()
    np.save(plain, ONE)
    objects = io.BytesIO()
    np.save(objects, np.array({"me": ONE}, dtype=object), allow_pickle=True)
    weights = {"g_ema": {"conv1.conv.weight": torch.ones(2), "conv1.conv.bias": torch.ones(2)}}
    return {
        "nan.npy": (np.full((1, 9), np.nan), "not finite"),
        "large.npy": (np.full((1, 9), 1e300), "not finite"),
        "whole.npy": (np.ones((1, 9), dtype=np.int64), "floating-point numbers, this array int64"),
        "complex.npy": (np.ones((1, 9), dtype=complex), "floating-point numbers"),
        "none.npy": (np.ones((0, 9)), "is not a code"),
        "number.npy": (np.ones(()), "is not a code"),
        "deep.npy": (np.ones((2, 2, 2, 9)), "is not a code"),
        "several.npy": (np.ones((3, 4, 9)), "holds 3 codes: name one by its number, FILE:0 to FILE:2"),
        "several.npy:3": (None, "holds 3 codes, 0 to 2: there is no 3"),
        "several.npy:me": (None, "its codes have no names but numbers"),
        "several.npy:1:1": (None, "its codes have no names but numbers"),
        "named.pt": ({"a": torch.ones(9), "b": torch.ones(9)}, "holds several codes, name one of a, b"),
        "named.pt:c": (None, "has no code 'c': it has a, b"),
        "named.pt:a:b": (None, "comes the number of a code, got 'b'"),
        "objects.npy": (objects.getvalue(), "not a plain array of numbers|not plain numbers"),
        "cut.npz": (packed.getvalue()[:-40], "truncated"),
        "cut.npy": (plain.getvalue()[:-40], "truncated"),
        "bomb.npz": (huge(), "zip bomb"),
        "text.pt": (b"just a text", "is not a checkpoint"),
        "empty.pt": (b"", "the file is empty"),
        "weights.pt": (weights, "holds a network's weights, not codes"),
        "factor.pt": ({"ckpt": "x", "eigvec": torch.eye(9)}, "holds directions, not codes"),
        "list.pt": (["a", "b"], "holds a list, not codes"),
        "words.pt": ({"a": "b"}, "holds no codes.*its keys are a"),
    }


def test_what_is_no_code_is_one_line() -> None:
    for argument, (content, message) in refusals().items():
        file = argument.split(":")[0]
        if isinstance(content, bytes):
            Path(file).write_bytes(content)
        elif isinstance(content, np.ndarray):
            np.save(file, content)
        elif content is not None:
            torch.save(content, file)
        with pytest.raises(ValueError, match=message) as error:
            pick_code(argument)
        assert file in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        pick_code("missing.npz:w")


def test_nothing_in_a_file_is_run() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, ("sprung",)

    Path("trap.pkl").write_bytes(pickle.dumps({"w": Trap()}))
    with pytest.raises(ValueError, match="holds no codes"):
        pick_code("trap.pkl")
    assert not os.path.exists("sprung")


# ----------------------------------------------------------------------------------------------------
# Where codes are taken.


def test_pipelines_take_paths() -> None:
    pipe = tiny_pipeline()
    np.savez("projected_w.npz", w=ONE)
    code = Code(torch.from_numpy(ONE), "w+")
    for path in ("projected_w.npz", Path("projected_w.npz")):
        given = pipe(base=path, regions={"hair": path, "eyes": 3}, output_type="pt")
        assert torch.equal(given.images, pipe(base=code, regions={"hair": code, "eyes": 3}, output_type="pt").images)
        assert pipe.from_recipe(given.recipe, output_type="pt").images.equal(given.images)
    walk = StyleFusionInterpolationPipeline.from_pipe(pipe)
    assert len(walk(base=["projected_w.npz", 3], frames=3).frames) == 3
    np.save("other.npy", RANDOM.randn(NUM_WS + 2, W_DIM))
    with pytest.raises(ValueError, match=r"base has the shape .* name one: FILE:0"):
        pipe(base="other.npy")
    assert len(pipe(base="other.npy:1").images) == 1
    np.save("wide.npy", RANDOM.randn(1, NUM_WS, W_DIM + 1))
    with pytest.raises(ValueError, match="base has the shape"):
        pipe(base="wide.npy")


def test_commands_take_files(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("projected_w.npz", w=ONE)
    torch.save(torch.from_numpy(np.concatenate([ONE, -ONE])), "latents.pt")
    save_codes("codes.safetensors", {"a": Code(torch.from_numpy(ONE), "w+")})
    argv = ["--model", model, "--region", "hair=latents.pt:1"]
    assert main(["fuse", *argv, "--base", "projected_w.npz", "--out", "a.png"]) == 0
    assert main(["fuse", *argv, "--base", "codes.safetensors:a", "--out", "b.png"]) == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert main(["fuse", "--model", model, "--from-recipe", "a.png", "--out", "again.png"]) == 0
    assert np.array_equal(pixels("a.png"), pixels("again.png"))
    walk = ["--base", "3", "--region", "hair=projected_w.npz,latents.pt:1", "--frames", "3", "--out", "walk"]
    assert main(["interpolate", "--model", model, *walk]) == 0
    rows = ["--bases", "1,projected_w.npz", "--sources", "latents.pt:0,4", "--out", "sheet.png"]
    assert main(["sheet", "--model", model, *rows]) == 0
    code = Code(torch.from_numpy(ONE), "w+")
    expected = contact_sheet(tiny_pipeline(), [1, code], [code, 4])
    assert np.array_equal(pixels("sheet.png")[..., :3], np.asarray(expected))
    assert main(["directions", "discover", "--model", model, "--count", "1", "--out", "d.safetensors"]) == 0
    edit = ["--edit", "hair=d.safetensors:sefa-0=2", "--base", "projected_w.npz", "--out", "edit.png"]
    assert main(["edit", "--model", model, *edit]) == 0
    sheet = ["directions", "sheet", "--model", model, "--file", "d.safetensors", "--base", "projected_w.npz"]
    assert main(sheet) == 0
    torch.save({"me and you.jpg": torch.from_numpy(ONE), "you.PNG": torch.from_numpy(-ONE)}, "pictures.pt")
    named = ["--model", model, "--region", "hair=pictures.pt:you.PNG", "--base", "pictures.pt:me and you.jpg"]
    assert main(["fuse", *named, "--out", "named.png"]) == 0
    assert np.array_equal(pixels("named.png"), pixels("a.png"))
    capsys.readouterr()
    for value, message in (
        ("latents.pt", "holds 2 codes"),
        ("pictures.pt:us.jpg", "has no code 'us.jpg'"),
        ("none.npz", "there is no file of codes none.npz"),
    ):
        assert message in fails(capsys, "fuse", "--model", model, "--base", value)
        assert message in fails(capsys, "sheet", "--model", model, "--bases", value, "--sources", "1")


def test_the_space_opens_files(model: str) -> None:
    pytest.importorskip("gradio", reason="the Space needs the extra `space`")
    from stylefusion_hf.spaces_app import results
    from stylefusion_hf.spaces_app.models import Model

    space = Model(tiny_pipeline(segmenter=True))
    np.savez("projected_w.npz", w=ONE)
    recipe = space.check(results.read_recipe("projected_w.npz"))
    expected = tiny_pipeline()(base="projected_w.npz").images[0]
    assert np.array_equal(np.asarray(space.render(recipe).image), np.asarray(expected))
    np.save("two.npy", np.concatenate([ONE, ONE]))
    Path("cut.npz").write_bytes(Path("projected_w.npz").read_bytes()[:-30])
    for file, message in (("two.npy", "the file of codes: holds 2 codes"), ("cut.npz", "the file of codes: trunc")):
        with pytest.raises(ValueError, match=message):
            results.read_recipe(file)


# ----------------------------------------------------------------------------------------------------
# Never a direction by mistake.


@pytest.mark.parametrize("file", ["projected_w.npz", "w.npy", "latents.pt"])
def test_the_shared_files(file: str) -> None:
    path = case_file("codes-of-other-tools", file)
    assert pick_code(path).space == "w+"
    with pytest.raises(ValueError, match=f"holds codes, which are used as they are: --base {file}"):
        convert(path, "out", progress=False)


def test_converting_a_code_is_refused() -> None:
    np.savez("projected_w.npz", w=ONE)
    np.savez("out_w.npz", w=ONE[0, 0])
    np.save("face.npy", ONE)
    np.save("latent.npy", ONE[0, 0])
    torch.save([torch.from_numpy(ONE)] * 2, "pivots.pt")
    torch.save({"me.jpg": {"latent": torch.ones(9), "noise": [torch.ones(1, 1, 4, 4)]}}, "projected.pt")
    os.makedirs("folder")
    np.save("folder/w.npy", ONE)
    torch.save({"me.jpg": torch.from_numpy(ONE[0]), "you.png": torch.from_numpy(-ONE[0])}, "x.pt")
    torch.save({"latents": {"me": torch.from_numpy(ONE[0]), "you": torch.from_numpy(ONE[0])}}, "y.pt")
    for source in (
        "x.pt",
        "y.pt",
        "projected_w.npz",
        "out_w.npz",
        "face.npy",
        "latent.npy",
        "pivots.pt",
        "projected.pt",
        "folder",
    ):
        with pytest.raises(ValueError, match="holds codes"):
            convert(source, "out", progress=False)
        assert not os.path.exists("out")
    report = convert("latent.npy", "out", kind="directions", progress=False)  # who says so, knows
    assert report.kind == "directions"


UNTOLD = {
    "thing.npy": RANDOM.randn(18, 512),
    "me.npy": RANDOM.randn(1, 512),
    "hair.npy": RANDOM.randn(512),
    "seed7.npy": np.repeat(RANDOM.randn(1, 512), 16, axis=0),  # one row for each layer
    "several.npy": RANDOM.randn(3, 512),
    "styles.npy": RANDOM.randn(6048),
    "people.npz": {"anna": RANDOM.randn(512), "ben": RANDOM.randn(512)},
    "half.npz": {"smile": RANDOM.randn(512), "ben": RANDOM.randn(512)},
    "one.pt": {"x": torch.randn(512)},
    "image.pickle.pkl": [RANDOM.randn(8), RANDOM.randn(8), RANDOM.randn(8)],
}


def write_arrays(file: str, content: Any) -> None:
    if file.endswith(".npy"):
        np.save(file, content)
    elif file.endswith(".npz"):
        np.savez(file, **content)
    elif file.endswith(".pt"):
        torch.save(content, file)
    else:
        Path(file).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("file", UNTOLD)
def test_what_nothing_tells_from_a_code_is_asked_for(file: str) -> None:
    write_arrays(file, UNTOLD[file])
    os.makedirs("all of them")
    write_arrays(f"all of them/{file}", UNTOLD[file])
    for source in (file, "all of them"):
        with pytest.raises(
            ValueError, match=r"may be a direction or a code, .* --kind directions .* --base "
        ) as error:
            convert(source, "out", progress=False)
        assert "\n" not in str(error.value)
        assert not os.path.exists("out")
    assert convert(file, "out", kind="directions", progress=False).kind == "directions"


@pytest.mark.parametrize("options", [{"space": "w"}, {"layers": [0, 1]}, {"space": "w+"}])
def test_who_says_more_of_a_direction_means_one(options: dict[str, Any]) -> None:
    np.save("thing.npy", RANDOM.randn(8, 512))
    assert convert("thing.npy", "out", progress=False, **options).kind == "directions"


def test_names_keys_and_numbers_tell_directions() -> None:
    unit = RANDOM.randn(18, 512)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    some = np.where(np.arange(18)[:, None] < 4, unit, 0)
    files = {
        "rows.npy": unit,
        "rows4.npy": some,
        "whole.npy": unit / np.linalg.norm(unit),
        "a.npy": unit[:1],
        "stylegan2_ffhq_Smiling.npy": RANDOM.randn(512),
        "yaw+.npy": RANDOM.randn(18, 512),
        "named.npz": {"Age": RANDOM.randn(512), "eyeglasses": RANDOM.randn(18, 512)},
        "x.npz": {"direction": RANDOM.randn(512)},
        "my_directions.npz": {"ben": RANDOM.randn(512)},
        "parts.npz": {"lat_comp": RANDOM.randn(3, 512)},
        "factor.pt": {"eigvec": torch.randn(8, 8)},
    }
    for file, content in files.items():
        write_arrays(file, content)
        assert convert(file, f"{file} out", progress=False).kind == "directions", file
    os.makedirs("Boundaries")
    write_arrays("Boundaries/thing.npy", RANDOM.randn(512))
    assert convert("Boundaries", "out", progress=False).kind == "directions"


@pytest.mark.parametrize("file", ["stylegan_ffhq_x_boundary.npy", "directions.npz", "my_direction.pt"])
def test_directions_are_no_codes(file: str) -> None:
    write_arrays(file, {"a": RANDOM.randn(512)} if file.endswith("z") else torch.randn(512).numpy())
    with pytest.raises(ValueError, match="holds directions, not codes: `stylefusion convert`"):
        pick_code(file)


def test_a_generator_with_a_mean_per_row_is_no_code() -> None:
    from tests import checkpoints

    g = tiny_generator()
    weights = checkpoints.rosinality_generator(g)
    torch.save({"g_ema": weights, "latent_avg": g.w_avg.expand(1, NUM_WS, -1).clone()}, "x.pt")
    assert convert("x.pt", "out", progress=False).kind == "rosinality"
