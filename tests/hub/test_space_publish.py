"""`stylefusion publish --space`: the Space's files and the package's wheel, on the local Hub."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stylefusion_hf.cli import main
from stylefusion_hf.hub import space_publishing
from stylefusion_hf.hub.space_publishing import build_wheel, publish_space, space_files
from tests.command_line import fails
from tests.hub_server import READER, WRITER, HubServer
from tests.tiny import tiny_pipeline

ROOM, WHEEL = "me/room", "stylefusion_hf-0.1.0-py3-none-any.whl"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's LFS uploads


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / WHEEL
    return make_wheel(path)


def make_wheel(path: Path, *foreign: str) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        names = ["__init__.py", "py.typed", "models/fusion.py", "assets/generator/config.json"]
        for name in [*(f"stylefusion_hf/{name}" for name in names), "stylefusion_hf-0.1.0.dist-info/RECORD", *foreign]:
            wheel.writestr(name, "")
    return path


def test_a_space_is_one_commit_with_its_wheel(hub: HubServer, wheel: Path) -> None:
    address = publish_space(ROOM, model="me/avatars", wheel=wheel)
    files = hub.files(f"spaces/{ROOM}")
    assert address.startswith(hub.endpoint)
    assert files[WHEEL] == wheel.read_bytes()
    required = files["requirements.txt"].decode().splitlines()
    assert required[-1] == f"stylefusion-hf @ {hub.endpoint}/spaces/{ROOM}/resolve/main/{WHEEL}"
    assert sum("stylefusion" in line for line in required) == 1
    about = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert about["sdk"] == "gradio" and about["models"] == ["me/avatars"]
    assert about["app_file"] in files
    assert hub.variables == {(f"spaces/{ROOM}", "STYLEFUSION_MODEL"): "me/avatars"}
    assert not [path for path in files if "__pycache__" in path]


def test_what_others_put_there_stays_and_old_wheels_go(hub: HubServer, wheel: Path) -> None:
    publish_space(ROOM, wheel=wheel)
    old = "stylefusion_hf-0.0.9-py3-none-any.whl"
    hub.add(f"spaces/{ROOM}", hub.files(f"spaces/{ROOM}") | {"mine.txt": b"mine", old: b"old"})
    publish_space(ROOM, wheel=wheel)
    files = hub.files(f"spaces/{ROOM}")
    assert files["mine.txt"] == b"mine" and WHEEL in files and old not in files
    assert not hub.variables


@pytest.mark.parametrize(("token", "message"), [(READER, "rights|token"), ("hf_wrong", "hf auth login")])
def test_who_may_not_write_is_told_so(
    hub: HubServer, wheel: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=f"cannot publish to the Space '{ROOM}'.*({message})") as caught:
        publish_space(ROOM, wheel=wheel)
    assert token not in str(caught.value)
    assert f"spaces/{ROOM}" not in hub.repositories


def test_only_a_wheel_of_this_package_is_taken(tmp_path: Path) -> None:
    for name in ("other-1.0-py3-none-any.whl", WHEEL):  # the second does not exist
        with pytest.raises(ValueError, match="is not a wheel of stylefusion-hf"):
            space_files(ROOM, tmp_path / name, "https://hub")


@pytest.mark.parametrize(
    "foreign",
    [
        "stylefusion_hf/assets/.env",
        "stylefusion_hf/token.json",
        "stylefusion_hf/assets/generator/wandb/run.json",
        "stylefusion_hf/__pycache__/cli.cpython-311.pyc",
        "credentials.json",
        "stylefusion_hf/assets/optimizer.pt",
    ],
)
def test_a_wheel_with_anything_else_is_refused(tmp_path: Path, foreign: str) -> None:
    wheel = make_wheel(tmp_path / WHEEL, foreign)
    with pytest.raises(ValueError, match=f"has files that are not part of this package: {foreign}; build a clean one"):
        space_files(ROOM, wheel, "https://hub")
    wheel.write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        space_files(ROOM, wheel, "https://hub")


def test_a_space_is_published_without_what_lies_beside_it(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = shutil.copytree(space_publishing.SPACE, tmp_path / "space")
    before = space_files(ROOM, wheel, "https://hub")
    for name in (".env", "token.json", "notes.txt", "gradio_cached/x.png", "samples/x.jpg", "app.py.orig", "a.pem"):
        (space / name).parent.mkdir(exist_ok=True)
        (space / name).write_text("private")
    (space / "link.py").symlink_to("/etc/hostname")
    (space / "samples" / "link.png").symlink_to("/etc/hostname")
    sample = next((space / "samples").glob("1*.png"))
    info = PngInfo()
    info.add_text("Software", "/home/jane/draw.py")
    Image.open(sample).save(sample, pnginfo=info)
    monkeypatch.setattr(space_publishing, "SPACE", space)
    after = space_files(ROOM, wheel, "https://hub")
    assert set(after) == set(before)
    assert b"jane" not in b"".join(after.values())


def test_a_wheel_is_built_from_a_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        seen.append(command)
        (tmp_path / WHEEL).write_bytes(b"built")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(space_publishing.subprocess, "run", run)
    assert build_wheel(tmp_path).name == WHEEL
    assert seen[0][:4] == [sys.executable, "-m", "pip", "wheel"]
    monkeypatch.setattr(
        space_publishing.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no\nsetuptools")
    )
    (tmp_path / WHEEL).unlink()
    with pytest.raises(OSError, match="the wheel could not be built \\(no setuptools\\)"):
        build_wheel(tmp_path)
    monkeypatch.setattr(space_publishing, "INSTALLED", tmp_path / "site" / "stylefusion_hf")
    with pytest.raises(ValueError, match="is not a checkout of stylefusion-hf"):
        build_wheel(tmp_path)


@pytest.mark.usefixtures("elsewhere")
def test_the_command_publishes_both(hub: HubServer, wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline(segmenter=True).save_pretrained("model")
    call = ["publish", "model", "me/avatars", "--license", "mit", "--space", ROOM, "--wheel", str(wheel)]
    assert main([*call, "--dry-run"]) == 0
    assert f"would publish the Space {ROOM}" in capsys.readouterr().out and not hub.repositories
    assert main(call) == 0
    said = capsys.readouterr()
    assert "published the Space: " in said.out and WRITER not in said.out + said.err
    assert {"me/avatars", f"spaces/{ROOM}"} == set(hub.repositories)
    assert "is not the name of a Space" in fails(capsys, "publish", "model", "me/avatars", "--space", "a/b/c")
    assert "give --space USER/SPACE too" in fails(capsys, "publish", "model", "me/avatars", "--wheel", str(wheel))
