"""docs/guides/from-zero.md is followed from its first command to the upload, with tiny networks, a step a training."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.cli import main
from tests.hub_server import HubServer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "from-zero.md"
STEPS = "--max_train_steps 1 --train_batch_size 4 --validation_steps 0"
# What makes each command tiny: said again at its end, where it goes before what was said.
TINY = {
    "data avatars": "--count 12 --size 32 --workers 1",
    "train generator": f"{STEPS} --resolution 32 --channels 8,8,8,8 --latent_dim 16 --mapping_layers 2",
    "train segmenter": f"{STEPS} --resolution 32 --channels 8,16 --eval_avatars 0",
    "train fusion": f"{STEPS} --pool_size 16 --hidden_width 8 --hidden_layers 1 --validation_pairs 0",
    "train encoder": f"{STEPS} --channels 8,8 --eval_images 0",
    "train judges": f"{STEPS} --resolution 32 --segmenter_channels 8,16 --discriminator_channels 8,8,8,8",
    "evaluate": "--sections swaps --pairs 4 --real none",
}


def test_the_page_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    pytest.importorskip("resvg_py", reason="avatars need the extra `train`")
    pytest.importorskip("scipy", reason="the evaluation needs the extra `evaluation`")
    monkeypatch.chdir(tmp_path)
    ran = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        if language == "python":
            exec(block, {})
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[0] == "cp":
                shutil.copytree(words[2], Path(words[3]) / Path(words[2]).name)
            elif words[0] == "stylefusion":
                name = next((name for name in TINY if line.startswith(f"stylefusion {name} ")), words[1])
                assert main([*words[1:], *TINY.get(name, "").split()]) == 0, line
                ran.append(name)
    assert set(TINY) <= set(ran)
    assert ran[-1] == "publish"
    assert "sheet.png" in {path.name for path in Path("preview").iterdir()}
    pipe = StyleFusionPipeline.from_pretrained("user/repo")
    assert pipe.encoder is not None
    assert pipe(base=1, regions={"hair": 7}).images[0].size == (32, 32)
