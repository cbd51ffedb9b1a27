"""Files made to run code or to exhaust the machine, as bytes; shared by the tests of the reader."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TERABYTE = 10**12


class Call:
    """Pickles as a call: of a name that need not exist here, with arguments, then perhaps state."""

    def __init__(self, name: str, *args: Any, state: Any = None, new: bool = False):
        self.name, self.args, self.state, self.new = name, args, state, new


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def dump(value: Any) -> bytes:
    """A pickle's body (without PROTO and STOP), with calls written as opcodes by hand."""
    if isinstance(value, Call):
        module, _, name = value.name.rpartition(".")
        body = b"c" + module.encode() + b"\n" + name.encode() + b"\n"
        body += b"(" + b"".join(dump(arg) for arg in value.args) + b"t" + (b"\x81" if value.new else b"R")
        return body + (dump(value.state) + b"b" if value.state is not None else b"")
    if isinstance(value, dict):
        return b"}(" + b"".join(dump(k) + dump(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(dump, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(dump, value)) + b"t"
    return pickle.dumps(value, protocol=3)[2:-1]


def whole(body: bytes) -> bytes:
    return b"\x80\x03" + body + b"."


def torch_zip(pickled: bytes, files: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, data in (files or {}).items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def torch_legacy(pickled: bytes, keys: list[str], data: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, system)]
    return b"".join(head) + pickled + pickle.dumps(keys, protocol=2) + data


def storage(key: str, numel: int, kind: str = "FloatStorage") -> bytes:
    """A persistent id of torch's, as the opcodes that push it."""
    return b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + dump(numel) + b"tQ"


def tensor(key: str, numel: int, size: tuple, stride: tuple, offset: int = 0) -> bytes:
    """A tensor over a storage, as opcodes."""
    rest = dump(offset) + dump(size) + dump(stride) + dump(False) + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, numel) + rest + b"tR"


def array(shape: tuple, data: bytes, code: str = "f4", core: str = "_core") -> bytes:
    """A numpy array, as opcodes."""
    kind = b"cnumpy\ndtype\n" + dump((code, False, True)) + b"R" + dump((3, "<", None, None, None, -1, -1, 0)) + b"b"
    empty = (
        f"cnumpy.{core}.multiarray\n_reconstruct\n".encode()
        + b"cnumpy\nndarray\n"
        + dump((0,))
        + dump(b"b")
        + b"\x87R"
    )
    return empty + b"(" + dump(1) + dump(shape) + kind + dump(False) + dump(data) + b"tb"


# ----------------------------------------------------------------------------------------------------
# Code. {canary} is a file that appears if anything of this runs.

RUNNERS: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda c: dump(Call("os.system", f"touch {c}")),
    "posix.system": lambda c: dump(Call("posix.system", f"touch {c}")),
    "eval": lambda c: dump(Call("builtins.eval", f"open({c!r}, 'w')")),
    "python 2 eval": lambda c: dump(Call("__builtin__.eval", f"open({c!r}, 'w')")),
    "exec": lambda c: dump(Call("builtins.exec", f"open({c!r}, 'w')")),
    "open": lambda c: dump(Call("io.open", c, "w")),
    "subprocess": lambda c: dump(Call("subprocess.Popen", ["touch", c])),
    "as a class": lambda c: dump(Call("subprocess.Popen", ["touch", c], new=True)),
    "runpy": lambda c: dump(Call("runpy._run_code", f"open({c!r}, 'w')", {})),
    "an import": lambda c: b"cstylefusion_canary\nanything\n",
    "an import by name": lambda c: dump(Call("importlib.import_module", "stylefusion_canary")),
    "getattr": lambda c: dump(Call("builtins.getattr", Call("builtins.__import__", "os"), "system")),
    "a call of a call": lambda c: (
        dump(Call("builtins.getattr", Call("builtins.__import__", "os"), "system")) + dump((f"touch {c}",)) + b"R"
    ),
    "torch.load": lambda c: dump(Call("torch.load", c)),
    "torch's bytes": lambda c: dump(
        Call("torch.storage._load_from_bytes", whole(dump(Call("os.system", f"touch {c}"))))
    ),
    "numpy.load": lambda c: dump(Call("numpy.load", c, None, True)),
    "pickle.loads": lambda c: dump(Call("pickle.loads", whole(dump(Call("os.system", f"touch {c}"))))),
    "state": lambda c: dump(
        Call("code.InteractiveInterpreter", state={"__class__": 1, "runcode": f"open({c!r}, 'w')"})
    ),
    "state of a dict": lambda c: (
        b"}" + dump({"__class__": "x", "__getattr__": Call("os.system", f"touch {c}")}) + b"b"
    ),
    "tensor of a type": lambda c: dump(
        Call("torch._tensor._rebuild_from_type_v2", Call("os.system", f"touch {c}"), 1, (1,), None)
    ),
    "ordered dict": lambda c: dump(Call("collections.OrderedDict", [("a", Call("os.system", f"touch {c}"))])),
    "persistent id": lambda c: dump(Call("os.system", f"touch {c}")) + b"Q",
    "an old instance": lambda c: b"(" + text(f"touch {c}") + b"ios\nsystem\n",
    "an old object": lambda c: b"(cos\nsystem\n" + text(f"touch {c}") + b"o",
    "a protocol 4 name": lambda c: text("os") + text("system") + b"\x93" + dump((f"touch {c}",)) + b"R",
    "keywords": lambda c: text("os") + text("system") + b"\x93)" + dump({"command": f"touch {c}"}) + b"\x92",
    "extension registry": lambda c: b"\x82\x01)R",
    "lambda source": lambda c: dump(
        Call(
            "torch_utils.persistence._reconstruct_persistent_obj", {"module_src": f"open({c!r}, 'w')", "type": "class"}
        )
    ),
}

# ----------------------------------------------------------------------------------------------------
# Exhaustion. Each must be refused, in little time and memory.


def laughs(levels: int, opener: bytes, closer: bytes) -> bytes:
    """Containers of ten references to the one before: 10 ** levels when walked naively."""
    body = b"]q\x00"
    for i in range(levels):
        body += opener + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + closer + b"q" + bytes([i + 1])
    return body


def key_laughs(levels: int) -> bytes:
    """A dictionary key whose hash takes 2 ** levels steps."""
    body = b")q\x000"
    for i in range(levels):
        body += b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0"
    return b"}" + body + b"h" + bytes([levels]) + b"Ns"


def colliding_keys(count: int) -> bytes:
    """Integers of one hash."""
    numbers = ((2**61 - 1) * i for i in range(1, count + 1))
    entries = b"".join(b"\x8a\x0c" + n.to_bytes(12, "little") + b"N" for n in numbers)
    return b"}(" + entries + b"u"


def nested_zips(count: int, numbers: int) -> bytes:
    """torch.save bytes in a pickle, again and again: each file inflates to no more than one file may, all to much."""
    zeros = {"data/0": bytes(2**20)}
    inner = torch_zip(whole(tensor("0", 2**18, (numbers,), (1,))), zeros, zipfile.ZIP_DEFLATED)
    one = b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(inner)) + inner + b"tR"
    return whole(b"](" + one * count + b"e")


def nested_text(count: int) -> bytes:
    """The same file as a text that is stored once, and made into bytes of its own each time."""
    inner = torch_zip(whole(tensor("0", 2**18, (4,), (1,))), {"data/0": bytes(2**20)}, zipfile.ZIP_DEFLATED)
    letters = text(inner.decode("latin-1")) + b"q\x000ctorch.storage\n_load_from_bytes\nq\x010"
    one = b"h\x01(c_codecs\nencode\n(h\x00" + text("latin1") + b"tRtR"
    return whole(letters + b"](" + one * count + b"e")


def memoised(value: bytes, use: bytes, count: int) -> bytes:
    """A value that is stored under 1 and used any number of times."""
    return whole(value + b"q\x010](" + use * count + b"e")


def large_tuple(count: int) -> bytes:
    return b"(" + b"N" * count + b"t"


BOMBS: dict[str, Callable[[], bytes]] = {
    "nested zips": lambda: nested_zips(2000, 4),
    "nested zips of large tensors": lambda: nested_zips(2000, 2**18),
    "nested zips of one text": lambda: nested_text(20_000),
    "names of memoised texts": lambda: memoised(text("\U0001f600" * 500), b"h\x01h\x01\x93", 600_000),
    "names of long names": lambda: memoised(text("m" * 2000), b"h\x01h\x01\x93", 1_900_000),
    "calls of memoised names": lambda: memoised(text("m" * 500), b"h\x01h\x01\x93)R)R", 300_000),
    "encoded texts": lambda: memoised(
        text("m" * 200_000), b"c_codecs\nencode\n(h\x01" + text("latin1") + b"tR", 5_000
    ),
    "bytes of a long text": lambda: memoised(text("m" * 300_000), b"cbuiltins\nbytes\n(h\x01tR", 5_000),
    "arrays of small bytes": lambda: memoised(dump(bytes(4096)), array((1024,), b"")[:-6] + b"h\x01tb", 20_000),
    "long integers": lambda: whole(b"](" + (b"\x8a\xff" + b"\x01" * 255) * 400_000 + b"e"),
    "lists of a large tuple": lambda: memoised(large_tuple(100_000), b"cbuiltins\nlist\n(h\x01tR", 10_000),
    "dictionaries of a large dictionary": lambda: memoised(
        b"}(" + b"".join(text(str(i)) + b"N" for i in range(50_000)) + b"u", b"cbuiltins\ndict\n(h\x01tR", 10_000
    ),
    "sets of a large tuple": lambda: memoised(
        b"(" + b"".join(text(str(i)) for i in range(50_000)) + b"t", b"cbuiltins\nfrozenset\n(h\x01tR", 10_000
    ),
    "terabyte of bytes": lambda: whole(b"\x8e" + struct.pack("<Q", TERABYTE) + b"x"),
    "terabyte of text": lambda: whole(b"\x8d" + struct.pack("<Q", TERABYTE) + b"x"),
    "terabyte of bytearray": lambda: whole(b"\x96" + struct.pack("<Q", TERABYTE) + b"x"),
    "four gigabytes": lambda: whole(b"B" + b"\xff" * 4 + b"x"),
    "negative length": lambda: whole(b"T" + b"\xff" * 4 + b"x"),
    "huge frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", TERABYTE) + b"N.",
    "huge integer": lambda: whole(b"\x8b" + struct.pack("<i", 2**30) + b"\x01" * 64),
    "long integer": lambda: whole(b"\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6),
    "many digits": lambda: whole(b"I" + b"9" * 60_000 + b"\n"),
    "bytearray by size": lambda: whole(dump(Call("builtins.bytearray", TERABYTE))),
    "bytes by size": lambda: whole(dump(Call("builtins.bytes", TERABYTE))),
    "tensor of a terabyte": lambda: torch_zip(whole(tensor("0", 4, (TERABYTE,), (0,))), {"data/0": bytes(16)}),
    "tensor beyond": lambda: torch_zip(whole(tensor("0", 4, (4,), (1,), 1)), {"data/0": bytes(16)}),
    "tensor of negative strides": lambda: torch_zip(whole(tensor("0", 4, (4,), (-1,), 3)), {"data/0": bytes(16)}),
    "tensor of negative size": lambda: torch_zip(whole(tensor("0", 4, (-4,), (1,))), {"data/0": bytes(16)}),
    "tensor of many dimensions": lambda: torch_zip(whole(tensor("0", 4, (1,) * 99, (1,) * 99)), {"data/0": bytes(16)}),
    "storage of a terabyte": lambda: torch_zip(whole(tensor("0", TERABYTE, (4,), (1,))), {"data/0": bytes(16)}),
    "legacy storage of a terabyte": lambda: torch_legacy(
        whole(tensor("0", TERABYTE, (4,), (1,))), ["0"], struct.pack("<q", TERABYTE) + bytes(16)
    ),
    "legacy storage of another size": lambda: torch_legacy(
        whole(tensor("0", 4, (4,), (1,))), ["0"], struct.pack("<q", TERABYTE) + bytes(16)
    ),
    "missing storage": lambda: torch_zip(whole(tensor("7", 4, (4,), (1,))), {"data/0": bytes(16)}),
    "two types of a storage": lambda: torch_zip(
        whole(b"(" + storage("0", 4) + storage("0", 2, "DoubleStorage") + b"t"), {"data/0": bytes(16)}
    ),
    "views of views": lambda: torch_zip(
        whole(b"(" + tensor("0", 10**6, (10**6,), (1,)) * 40 + b"t"), {"data/0": bytes(4 * 10**6)}
    ),
    "array of a terabyte": lambda: whole(array((TERABYTE,), bytes(16))),
    "array of a negative size": lambda: whole(array((-4,), bytes(16))),
    "array of overflow": lambda: whole(array((2**32, 2**32, 2**32), bytes(16))),
    "zip bomb": lambda: torch_zip(
        whole(tensor("0", 2**25, (4,), (1,))), {"data/0": bytes(2**27)}, zipfile.ZIP_DEFLATED
    ),
    "zip that lies": lambda: torch_zip(
        whole(tensor("0", 25, (4,), (1,))), {"data/0": bytes(2**22)}, zipfile.ZIP_DEFLATED
    ).replace(struct.pack("<I", 2**22), struct.pack("<I", 100)),
    "zip of many entries": lambda: (
        b"PK\x03\x04" + bytes(50) + b"PK\x05\x06" + bytes(4) + b"\xfe\xff" * 2 + b"\xff\xff\xff\x7f" + bytes(6)
    ),
    "zip without an end": lambda: torch_zip(whole(b"N"))[:-30],
    "key that hashes for ever": lambda: whole(key_laughs(60)),
    "colliding keys": lambda: whole(colliding_keys(20_000)),
    "sets": lambda: whole(b"\x8f" * 3_000_000 + b"N"),
    "lists": lambda: whole(b"]" * 4_000_000),
    "memo": lambda: whole(b"N" + b"\x94" * 4_000_000),
    "marks": lambda: whole(b"(" * 4_000_000),
    "copies": lambda: whole(b"](" + b"N" * 1000 + b"eq\x00" + (b"cbuiltins\nset\nh\x00\x85R" * 200_000)),
    "empty stack": lambda: whole(b"0000R"),
    "no mark": lambda: whole(b"t"),
    "unknown opcode": lambda: whole(b"\xff"),
    "unknown protocol": lambda: b"\x80\x7fN.",
    "unknown memo": lambda: whole(b"h\x07"),
    "no end": lambda: b"\x80\x03N",
    "out of band": lambda: b"\x80\x05\x97.",
    "html": lambda: b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>",
    "html after a byte order mark": lambda: b"\xef\xbb\xbf\r\n <!DocType HTML><HTML>",
    "an error of a server": lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "lfs": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(30),
    "png": lambda: b"\x89PNG\r\n\x1a\n" + bytes(30),
    "nothing": lambda: b"",
    "zeros": lambda: bytes(1000),
    "prose": lambda: b"hello there, this is no checkpoint at all",
    "npy of objects": lambda: npy("|O", "(1,)") + pickle.dumps([1]),
    "npy of a terabyte": lambda: npy("<f4", f"({TERABYTE},)") + bytes(16),
    "npy of a negative size": lambda: npy("<f4", "(-1,)") + bytes(16),
    "npy of code": lambda: npy("<f4", "__import__('os')") + bytes(16),
    "safetensors of a terabyte": lambda: safetensors_header(
        '{"a":{"dtype":"F32","shape":[250000000000],"data_offsets":[0,1000000000000]}}'
    ),
    "safetensors of nonsense": lambda: safetensors_header('{"a":{"dtype":"F32","shape":[2]}}'),
}


def npy(descr: str, shape: str) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def safetensors_header(header: str) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + bytes(16)


# Strange but harmless: read without an error, in little time, and walked without end.
ODDITIES: dict[str, Callable[[], bytes]] = {
    "lists of lists": lambda: whole(laughs(60, b"](", b"e")),
    "tuples of tuples": lambda: whole(laughs(60, b"(", b"t")),
    "a list in itself": lambda: whole(b"]q\x00h\x00a"),
    "a dict in itself": lambda: whole(b"}q\x00" + text("a") + b"h\x00s"),
    "deep lists": lambda: whole(b"](" * 100_000 + b"N" + b"e" * 100_000),
    "deep calls": lambda: whole(b"cos\nsystem\n" * 100_000 + b"N" + b"\x85R" * 100_000),
    "a shell that is built again and again": lambda: whole(
        dump((3, "<", None, None, None, -1, -1, 0))
        + b"r\xff\xff\xff\x7f0cnumpy\ndtype\n"
        + dump(("f4",))
        + b"R"
        + b"\x94" * 100_000
        + b"2" * 100_000
        + b"j\xff\xff\xff\x7fb0" * 100_000
    ),
    "calls with a million arguments": lambda: memoised(
        large_tuple(300_000), b"cnumpy._core.multiarray\n_reconstruct\nh\x01R", 40_000
    ),
    "long number formats": lambda: memoised(text("<" * 200_000), b"cnumpy\ndtype\n(h\x01tR", 50_000),
    "lines without end": lambda: whole(b"](" + b"V\n" * 300_000 + b"e"),
    "objects that share a state": lambda: memoised(
        b"}(" + b"".join(text(str(i)) + b"]" for i in range(50_000)) + b"u", b"cmine\nX\n)\x81h\x01bK\x01Ns", 5_000
    ),
    "objects that share arguments": lambda: memoised(large_tuple(300_000), b"cmine\nX\nh\x01R", 50_000),
    "modules that share a state": lambda: memoised(
        b"}("
        + text("_modules")
        + b"}"
        + text("_parameters")
        + b"}("
        + b"".join(text(str(i)) + b"]" for i in range(50_000))
        + b"uu",
        b"cmine\nX\n)\x81h\x01bK\x01Ns",
        100,
    ),
    "a high memo index": lambda: whole(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff"),
}


# Those that take a second or more each until they are refused or read: `make test-all` tries them.
AT_LARGE = {
    "nested zips", "nested zips of large tensors", "nested zips of one text", "names of memoised texts",
    "names of long names", "calls of memoised names", "encoded texts", "bytes of a long text", "arrays of small bytes",
    "long integers", "lists of a large tuple", "dictionaries of a large dictionary", "sets of a large tuple", "sets",
    "lists", "memo", "marks", "copies", "views of views", "zip bomb", "calls with a million arguments",
    "long number formats", "objects that share a state", "objects that share arguments",
}  # fmt: skip


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fails where a bomb takes long; generous, as the machine may be busy."""
    import time

    start = time.monotonic()
    yield
    taken = time.monotonic() - start
    assert taken < seconds, f"took {taken:.1f} s"
