"""The reader of strangers' files: it reads what is honest exactly, runs nothing, and cannot be exhausted."""

import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from stylefusion_hf.conversion.modules import read_modules, tensor_names
from stylefusion_hf.core.untrusted.inert import ConversionError, Global, LazyArray, Record
from stylefusion_hf.core.untrusted.safe_pickle import load, loads
from tests.hostile import (
    AT_LARGE,
    BOMBS,
    ODDITIES,
    RUNNERS,
    Call,
    array,
    dump,
    tensor,
    text,
    time_limit,
    torch_legacy,
    torch_zip,
    whole,
)
from tests.parity import parity_file

PICKLES = ["nvidia-ada-tiny32.pkl", "nvidia-sg3-tiny32.pkl", "tensorflow-tiny32.pkl"]


# ----------------------------------------------------------------------------------------------------
# Honest files.


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_pickle_reads_them(protocol):
    value = {
        "numbers": [0, 1, -1, 255, 256, 65536, 2**31, -(2**31), 2**63, 2**200, -(2**200), 1.5, -0.0, float("inf")],
        "text": ["", "a", "ä€😀", "x" * 300, "line\nbreak"],
        "bytes": [b"", b"\x00\xff", b"y" * 5000, bytearray(b"z")],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, {1: 2, (3, "a"): None}],
        "sets": [set(), {1, 2}, frozenset({3}), frozenset()],
        "flags": [True, False, None],
        "shared": [[1]] * 3,
        "ordered": OrderedDict(a=1, b=[2]),
        "default": defaultdict(list, {"k": [1]}),
    }
    given = loads(pickle.dumps(value, protocol=protocol))
    assert given["shared"][0] is given["shared"][2]
    given["bytes"] = [bytes(x) for x in given["bytes"]]
    assert given == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays(protocol, core):
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">i4"),
        np.zeros((0, 3), np.float16),
        np.array(7.5),
        np.array([True, False]),
        np.random.RandomState(0).randn(40, 1000).astype(np.float32),
        np.arange(3, dtype=np.complex64),
    ]
    scalars = [np.float32(1.5), np.int64(-3), np.bool_(True)]
    data = pickle.dumps([arrays, scalars], protocol=protocol)
    names = (b"numpy._core", b"numpy.core")
    if core == "core" and protocol < 4:  # as older numpy wrote them; from protocol 4 on the name's length is stored
        data = data.replace(*names)
    given, numbers = loads(data)
    for array_, expected in zip(given, arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(array_), expected)
        assert np.asarray(array_).dtype == expected.dtype
    assert numbers == [1.5, -3, True]


def test_long_text_arrays_are_decoded_when_used():
    expected = np.random.RandomState(0).randn(400, 400).astype(np.float32)
    given = loads(pickle.dumps(expected, protocol=2))
    assert isinstance(given, LazyArray)
    assert given.shape == (400, 400)
    np.testing.assert_array_equal(np.asarray(given), expected)


def test_python_2_strings():
    assert loads(b"(lp0\nS'a\\x00\\xffb'\np1\naI5\naI01\naL7L\naF1.5\naVu\\u00e4\na.") == [
        "a\x00\xffb",
        5,
        True,
        7,
        1.5,
        "uä",
    ]
    old = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\n"
    old += b"dtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
    given = loads(old + np.array([1.5, -2], "<f4").tobytes() + b"tb.")
    np.testing.assert_array_equal(given, np.array([1.5, -2], np.float32))


TENSORS = {
    "weights": {str(d): torch.arange(12).reshape(3, 4).to(d) for d in (torch.float32, torch.float64, torch.float16)},
    "whole": {
        str(d): torch.arange(12).to(d) for d in (torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    },
    "bytes": torch.arange(12, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "complex": torch.arange(3).to(torch.complex64),
    "empty": torch.zeros(0, 3),
    "number": torch.tensor(2.5),
    "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    "strided": torch.arange(24.0).reshape(4, 6).t()[1:, ::2],
    "size": torch.Size([1, 2]),
    "state": torch.nn.Linear(2, 2).state_dict(),
    "args": {"lr": 0.1, "n": None},
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_torch_files_are_read_as_torch_reads_them(tmp_path, new):
    path = tmp_path / "x.pt"
    shared = torch.randn(5, 5)
    content = {**TENSORS, "shared": [shared, shared[1:3], shared.t()]}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    given, expected = load(path), torch.load(path, weights_only=True)

    def same(a, b):
        assert type(a) is type(b) or {type(a), type(b)} <= {
            torch.nn.Parameter,
            torch.Tensor,
            dict,
            OrderedDict,
            tuple,
            torch.Size,
        }
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.stride() == b.stride() or not a.numel()
            assert torch.equal(a, b.detach())
        elif isinstance(b, dict):
            assert list(a) == list(b)
            for key in b:
                same(a[key], b[key])
        elif isinstance(b, (list, tuple)):
            for x, y in zip(a, b, strict=True):
                same(x, y)
        else:
            assert a == b

    same(given, expected)


def test_tensors_inside_plain_pickles():
    value = {"t": torch.randn(3, 4), "p": torch.nn.Parameter(torch.randn(50, 50)), "h": torch.randn(4).half()}
    with warnings.catch_warnings(action="ignore"):
        given = loads(pickle.dumps(value))
    for key, expected in value.items():
        assert torch.equal(given[key], expected.detach())


def test_reading_copies_no_tensor(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(torch.zeros(10**6), path)
    given = load(path)
    given[0] = 1  # copy-on-write: the file stays as it was
    assert float(load(path)[0]) == 0


def test_unknown_objects_are_records(tmp_path):
    data = dump({"a": Call("nowhere.Thing", 1, "x", state={"y": [2]}), "b": Call("nowhere.Kind", new=True)})
    given = loads(whole(data + text_name()))
    record = given["a"]
    assert isinstance(record, Record)
    assert (record.name, record.args, record.state) == ("nowhere.Thing", (1, "x"), {"y": [2]})
    assert given["b"].name == "nowhere.Kind"
    assert given["c"] == Global("nowhere.name")
    assert "nowhere" not in sys.modules


def text_name() -> bytes:
    return dump("c") + b"cnowhere\nname\ns"


def test_subclasses_of_containers_keep_their_entries():
    given = loads(b"\x80\x02cdnnlib.util\nEasyDict\n)\x81(X\x01\x00\x00\x00aK\x01u.")
    assert given.name == "dnnlib.util.EasyDict"
    assert given.entries() == {"a": 1}
    assert loads(b"\x80\x02cmine\nList\n)\x81(K\x01K\x02e.").elements == [1, 2]


@pytest.mark.parametrize("name", PICKLES)
def test_parity_pickles(name):
    before = set(sys.modules)
    given = load(parity_file(name))
    assert set(sys.modules) == before
    if isinstance(given, dict):
        meta = given["G_ema"].args[0]
        assert meta["class_name"] == "Generator"
        assert isinstance(meta["module_src"], str)
        assert len(tensor_names(given["G_ema"])) > 40
    else:
        assert [network.name for network in given] == ["dnnlib.tflib.network.Network"] * 3
        assert all(
            isinstance(v, (np.ndarray, float)) for _, v in given[2].state["components"]["synthesis"].state["variables"]
        )


# ----------------------------------------------------------------------------------------------------
# Hostile files.


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that must not appear, and a module that makes it when it is imported."""
    file = tmp_path / "canary"
    (tmp_path / "stylefusion_canary.py").write_text(f"open({str(file)!r}, 'w').close()\nanything = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    assert not file.exists(), "something in the file was executed"
    assert "stylefusion_canary" not in sys.modules


@pytest.mark.parametrize("wrapping", ["plain", "zip", "legacy", "nested"])
@pytest.mark.parametrize("name", RUNNERS)
def test_nothing_is_executed(canary, name, wrapping):
    data = whole(RUNNERS[name](str(canary)))
    if wrapping == "zip":
        data = torch_zip(data)
    elif wrapping == "legacy":
        data = torch_legacy(data, [], b"")
    elif wrapping == "nested":
        data = whole(dump(Call("torch.storage._load_from_bytes", torch_legacy(data, [], b""))))
    try:
        given = loads(data)
    except ConversionError:
        return
    assert isinstance(given, (Record, Global, dict))
    tensor_names(given)


@pytest.mark.parametrize("name", ["os.system", "eval", "an import", "a call of a call", "a protocol 4 name"])
def test_the_canaries_are_alive(tmp_path, monkeypatch, name):
    """The same files do run where they are unpickled in earnest: else the test above shows nothing."""
    file = tmp_path / "canary"
    (tmp_path / "stylefusion_canary.py").write_text(f"open({str(file)!r}, 'w').close()\nanything = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pickle.loads(whole(RUNNERS[name](str(file))))
    sys.modules.pop("stylefusion_canary", None)
    assert file.exists()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in AT_LARGE else []) for name in ODDITIES]
)
def test_oddities_are_read_and_walked(name):
    with time_limit(20):
        tensor_names(loads(ODDITIES[name](), "odd.pkl"))


@pytest.mark.parametrize("cut", ["some", "start"])
@pytest.mark.parametrize("name", PICKLES)
def test_truncated(name, cut):
    data = parity_file(name).read_bytes()
    ends = range(400) if cut == "start" else np.random.RandomState(0).randint(0, len(data), 25)
    for end in map(int, ends):
        with pytest.raises(ConversionError, match=r"^some\.pkl: ."):
            loads(data[:end], "some.pkl")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_truncated_torch_files(new):
    out = io.BytesIO()
    torch.save({"a": torch.randn(100), "b": [torch.randn(3)]}, out, _use_new_zipfile_serialization=new)
    data = out.getvalue()
    for end in range(0, len(data), 7):
        with pytest.raises(ConversionError, match=r"^some\.pt: ."):
            loads(data[:end], "some.pt")


def test_stored_shapes_are_held_to_the_data():
    good = torch_zip(whole(tensor("0", 4, (2, 2), (2, 1))), {"data/0": np.arange(4, dtype="<f4").tobytes()})
    assert loads(good).tolist() == [[0, 1], [2, 3]]
    assert loads(whole(array((2, 2), np.arange(4, dtype="<f4").tobytes()))).tolist() == [[0, 1], [2, 3]]


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConversionError, match=r"none\.pkl: cannot be read"):
        load(tmp_path / "none.pkl")
    with pytest.raises(ConversionError, match="is a folder"):
        load(tmp_path)


# Bombs, in one process that may take only a gigabyte beyond what it has after its imports.
BOMB_SQUAD = """
import json, resource, sys, time
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import load
from tests.hostile import AT_LARGE, BOMBS
from pathlib import Path
size = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
path, told = Path(sys.argv[1]), {}
for name, make in BOMBS.items():
    if (name in AT_LARGE) != (sys.argv[2] == "True"):
        continue
    path.write_bytes(make())
    start = time.monotonic()
    try:
        load(path)
        told[name] = "no error"
    except ConversionError as error:
        told[name] = str(error)
    except BaseException as error:
        told[name] = f"no ConversionError but {error!r}"
    if time.monotonic() - start > 60:
        told[name] = "took too long"
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set and measured by Linux's means")
@pytest.mark.parametrize("at_large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bombs_are_refused_in_bounded_memory(tmp_path, at_large):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BOMB_SQUAD, str(tmp_path / "bomb.pkl"), str(at_large)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert set(told) == {name for name in BOMBS if (name in AT_LARGE) == at_large}
    wrong = {name: line for name, line in told.items() if not line.startswith(f"{tmp_path / 'bomb.pkl'}: ")}
    assert not wrong
    assert all("\n" not in line and len(line) < 400 + len(str(tmp_path)) for line in told.values())


def test_names_of_tensors_are_bounded():
    """A pickle may list one tensor a million times, below keys as long as it likes."""
    tensors: object = [torch.zeros(1)] * 300_000
    for _ in range(6):
        tensors = {"x" * 80: tensors}
    with time_limit(20), pytest.raises(ConversionError, match="refers to more tensors than any has"):
        tensor_names(tensors)


def test_modules_may_not_share_what_makes_them_endless():
    shared = {f"w{i}": torch.zeros(1) for i in range(20_000)}
    leaf = Record("torch.nn.Module", state={"_modules": {}, "_parameters": shared})
    network = Record("torch.nn.Module", state={"_modules": {str(i): leaf for i in range(1000)}})
    with time_limit(20), pytest.raises(ConversionError, match="more modules than any StyleGAN2"):
        read_modules(network, "x.pkl")
    branch = Record("torch.nn.Module", state={"_modules": {}})
    for _ in range(30):
        branch = Record("torch.nn.Module", state={"_modules": {"a": branch, "b": branch}})
    with time_limit(20), pytest.raises(ConversionError, match="more modules than any StyleGAN2"):
        read_modules(branch, "x.pkl")


def test_errors_are_one_printable_line():
    for body in (
        b"c\x1b[2Jtorch\nX\x07\n" + text_name() + b"s",
        b"(" + text("storage") + b"c\x1b[31m\n\xe2\x80\xae\n" + text("0") * 3 + b"tQ",
    ):
        with pytest.raises(ConversionError) as caught:
            loads(torch_zip(whole(body)), "x\x1b\n.pt")
        assert str(caught.value).isprintable()
