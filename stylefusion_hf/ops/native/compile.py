"""Compile and test the native operators. build.py runs this file as a program in a separate process.

Its argument is a JSON object with `folder`, the working folder, `device`, `sources`, `cflags`, `cuda_cflags` and
`ldflags`.
"""

import json
import runpy
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension


def main() -> None:
    spec = json.loads(sys.argv[1])
    registration = runpy.run_path(str(Path(__file__).with_name("registration.py")))
    library = registration["define"]()
    cpp_extension.load(
        name="stylefusion_ops",
        sources=spec["sources"],
        extra_cflags=spec["cflags"],
        extra_cuda_cflags=spec["cuda_cflags"],
        extra_ldflags=spec["ldflags"],
        build_directory=spec["folder"],
        with_cuda=spec["device"] == "cuda",
        is_python_module=False,
        verbose=True,
    )
    # The library compiles and loads. Compute a test case, in case this machine lacks some of its instructions.
    x, taps = torch.ones(1, 1, 8, 8, device=spec["device"]), torch.full((4,), 0.25, device=spec["device"])
    y = torch.ops.stylefusion.upfirdn2d(x, taps, 1, 1, [0, 0, 0, 0], 1.0, False)
    y = torch.ops.stylefusion.bias_act(y, None, None, None, True, 2.0, None)
    if y.shape != (1, 1, 5, 5) or not torch.equal(y, torch.full_like(y, 2.0)):
        raise RuntimeError("error: the native operators compute wrong numbers on this machine")
    del library


if __name__ == "__main__":
    main()
