"""Damaged files at random: each is read, or is one `ConversionError`; nothing runs, hangs or grows.

A short, seeded round runs with the tests. STYLEFUSION_FUZZ=20000 mutates that many copies and tells the counts.
"""

import functools
import io
import os
import pickle
import random
import sys
import time
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from stylefusion_hf.conversion.convert import Options, convert
from stylefusion_hf.conversion.direction_files import looks_like_directions
from stylefusion_hf.conversion.modules import tensor_names
from stylefusion_hf.conversion.sources import read_source
from stylefusion_hf.conversion.writing import plain_weights
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import loads
from tests import checkpoints
from tests.hostile import RUNNERS, whole
from tests.parity import parity_file

ROUNDS = int(os.environ.get("STYLEFUSION_FUZZ", "0"))
SECONDS = 15  # of the short round
PICKLES = ["nvidia-ada-tiny32.pkl", "nvidia-sg3-tiny32.pkl", "tensorflow-tiny32.pkl"]
SLOW = 30.0  # seconds that no file of a megabyte may take, on a machine that is busy

# Opcodes and their arguments that a mutation puts in: sizes, calls, memo, names of what one would like to run.
SPLICES = [
    b"\x8e\x00\x00\x00\x00\x00\x00\x00\x7f",
    b"\x8a\xff",
    b"j\xff\xff\xff\xff",
    b"r\xff\xff\xff\xff",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cbuiltins\nbytearray\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cnumpy._core.multiarray\n_reconstruct\n",
    b"R",
    b"\x81",
    b"b",
    b"Q",
    b"(",
    b"t",
    b"u",
    b"e",
    b"2",
    b"0",
    b"N",
    b"}",
    b"]",
    b"\x8f",
    b"\x94",
    b"K\xff\x85R",
    b".",
]


@functools.cache
def originals() -> dict[str, bytes]:
    """The parity pickles, and small files of every container."""
    files = {name: parity_file(name).read_bytes() for name in PICKLES}
    weights = checkpoints.rosinality_generator(checkpoints.generator())
    for name, new in (("zip.pt", True), ("legacy.pt", False)):
        out = io.BytesIO()
        torch.save({"g_ema": weights, "latent_avg": torch.zeros(9)}, out, _use_new_zipfile_serialization=new)
        files[name] = out.getvalue()
    out = io.BytesIO()
    np.savez_compressed(out, age=np.ones(512), pose=np.ones((18, 512), np.float32))
    files["directions.npz"] = out.getvalue()
    out = io.BytesIO()
    np.save(out, np.ones((1, 512)))
    files["direction.npy"] = out.getvalue()
    return files


def small_originals() -> dict[str, bytes]:
    return {name: data for name, data in originals().items() if len(data) < 100_000}


def structure(data: bytes, source: random.Random) -> int:
    """A position that is likely among opcodes rather than in a tensor's numbers."""
    for _ in range(8):
        at = source.randrange(len(data))
        if sum(32 <= byte < 127 for byte in data[at : at + 24]) > 12:
            return at
    return source.randrange(len(data))


def mutated(data: bytes, source: random.Random) -> bytes:
    """A copy with one to four changes."""
    result = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        at = structure(result, source)
        kind = source.randrange(8)
        if kind == 0:
            result[at] = source.randrange(256)
        elif kind == 1:
            result[at] ^= 1 << source.randrange(8)
        elif kind == 2:
            del result[at : at + source.choice((1, 2, 4, 8, 100))]
        elif kind == 3:
            result[at:at] = source.choice(SPLICES)
        elif kind == 4:
            piece = source.choice(SPLICES)
            result[at : at + len(piece)] = piece
        elif kind == 5:
            other = structure(result, source)
            result[at:at] = result[other : other + source.choice((1, 3, 10, 200))]
        elif kind == 6:
            result[at : at + 4] = source.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f"))
        elif at > 8:
            del result[at:]
        if len(result) < 4:
            return bytes(result)
    return bytes(result)


def examine(data: bytes) -> str:
    """What becomes of a file on the whole way to weights: "converted", or the stage at which it was refused."""
    stage, told = "read", ""
    try:
        content = loads(data, "fuzz")
        stage = "walk"
        tensor_names(content)
        stage = "directions" if looks_like_directions(content) else "networks"
        if stage == "directions":
            return "directions"
        source = read_source(content, "fuzz")
        stage = "generator"
        plain_weights(source.generator(0.7), "fuzz")
        stage = "discriminator"
        if source.discriminator is not None:
            plain_weights(source.discriminator(), "fuzz")
    except ConversionError as error:
        told = str(error)
    if told:
        assert told.startswith("fuzz: ")
        assert "\n" not in told
        assert len(told) < 1000
        return f"refused: {stage}"
    return "converted"


def test_mutated_files(capsys):
    """Copies with a few bytes changed; their seeds are their numbers, so that a failure can be repeated."""
    before, counts, slowest = set(sys.modules), Counter(), 0.0
    names = list(originals())
    start = time.monotonic()
    number = 0
    while number < ROUNDS or (not ROUNDS and time.monotonic() - start < SECONDS and number < 2000):
        source = random.Random(number)
        name = names[number % len(names)]
        begin = time.monotonic()
        try:
            counts[name, examine(mutated(originals()[name], source))] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name}") from error
        slowest = max(slowest, time.monotonic() - begin)
        number += 1
    assert slowest < SLOW
    assert set(sys.modules) == before or not {"os2emxpath", "dnnlib", "torch_utils"} & (set(sys.modules) - before)
    assert counts.total() >= 20
    if ROUNDS:
        with capsys.disabled():
            print(f"\n{number} mutated files, slowest {slowest:.2f} s, {time.monotonic() - start:.0f} s in all")
            for key, count in sorted(counts.items()):
                print(f"  {count:7d}  {key[0]:24s} {key[1]}")


FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@settings(FUZZ, max_examples=max(150, ROUNDS // 20))
@given(st.binary(max_size=200))
def test_random_bytes(data):
    for head in (b"", b"\x80\x02", b"\x80\x04\x95"):
        examine(head + data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(FUZZ, max_examples=max(100, ROUNDS // 20))
@given(PLAIN, st.integers(0, 5))
def test_plain_values_survive(value, protocol):
    assert loads(pickle.dumps([value], protocol)) == [value]


@settings(FUZZ, max_examples=max(100, ROUNDS // 20))
@given(
    st.lists(st.sampled_from(SPLICES + [bytes([i]) for i in range(0x28, 0x99)]), max_size=40), st.integers(0, 10**6)
)
def test_random_opcodes(pieces, seed):
    examine(b"\x80\x04" + b"".join(pieces) + b".")
    name, runner = list(RUNNERS.items())[seed % len(RUNNERS)]
    examine(b"\x80\x04" + b"".join(pieces[:20]) + runner("/nowhere/canary") + b"".join(pieces[20:]) + b".")
    examine(whole(runner("/nowhere/canary")) + b"".join(pieces))
    assert not os.path.exists("/nowhere/canary"), name


@settings(FUZZ, max_examples=12)
@given(st.integers(0, 10**6))
def test_whole_conversions_of_mutated_files(tmp_path_factory, number):
    """Through `convert` itself: a folder that loads, or nothing."""
    folder = tmp_path_factory.mktemp("fuzz")
    files = small_originals()
    name = sorted(files)[number % len(files)]
    (folder / name).write_bytes(mutated(files[name], random.Random(number)))
    try:
        report = convert(folder / name, folder / "out", Options(progress=False))
        assert (folder / "out" / "conversion.json").is_file()
        assert report.files
    except ConversionError:
        assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_unchanged_files_are_converted(name):
    assert examine(originals()[name]) == "converted"
