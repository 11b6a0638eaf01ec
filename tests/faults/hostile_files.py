"""Files that pass for weights: some run a text where pickles are trusted, others are torn or lie about their size."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

__all__ = ["DAMAGED", "HOSTILE"]


class Reduced:
    """Stand in a pickle for the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def text_of(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def zipped(*records: tuple[str, bytes]) -> bytes:
    """Put pickles into an archive as `torch.save` writes it."""
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(stream, "w") as archive:
        for name, content in (*records, ("archive/version", b"3\n"), ("archive/byteorder", b"little")):
            archive.writestr(name, content)
    return stream.getvalue()


def in_zip(pickled: bytes) -> bytes:
    return zipped(("archive/data.pkl", pickled))


def legacy(content: bytes, storage_keys: bytes) -> bytes:
    """Put pickles into a file as `torch.save` wrote it before it wrote archives."""
    system = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {}}
    head = (pickle.dumps(value, 2) for value in (MAGIC_NUMBER, PROTOCOL_VERSION, system))
    return b"".join((*head, content, storage_keys))


def tar(pickled: bytes) -> bytes:
    """Put a pickle into the oldest form of a file of torch."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in (("storages", pickled), ("tensors", pickled), ("pickle", pickled)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def word(text: str) -> bytes:
    """Push a text, in protocol 4."""
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def named(name: str) -> bytes:
    """Look up a name of torch._utils, in protocol 4, where dots lead into what is found."""
    return word("torch._utils") + word(name) + pickle.STACK_GLOBAL


def called(*arguments: bytes) -> bytes:
    """Call what lies on the stack."""
    return pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def of_system(marker: Path) -> bytes:
    return pickle.dumps({"weight": Reduced(os.system, f"touch '{marker}'")}, 2)


def of_eval(marker: Path) -> bytes:
    return in_zip(pickle.dumps({"state_dict": {"weight": Reduced(eval, text_of(marker))}}, 2))


def of_dotted_names(marker: Path) -> bytes:
    """Reach `eval` from an allowed function by dots alone; the detector's first reader of its own ran this."""
    of_module = named("_rebuild_tensor.__globals__.__getitem__") + called(word("__builtins__"))
    found = named("_rebuild_tensor.__globals__.__class__.get") + called(of_module, word("eval"))
    return in_zip(pickle.PROTO + b"\x04" + found + called(word(text_of(marker))) + pickle.STOP)


def of_attributes(marker: Path) -> bytes:
    """Reach `eval` from an allowed function by `getattr`, which mmdet's files name for a method."""
    own = Reduced(getattr, torch._utils._rebuild_tensor, "__globals__")
    builtins = Reduced(Reduced(getattr, own, "get"), "__builtins__")
    found = Reduced(Reduced(getattr, builtins, "get"), "eval")
    return in_zip(dumped_calls({"state_dict": Reduced(found, text_of(marker))}))


class Calling(pickle._Pickler):
    """Pickle calls of what another call returns, which the library's pickler refuses."""

    def save_reduce(self, func: Any, args: Any, *rest: Any, **options: Any) -> None:  # type: ignore[override]
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)


def dumped_calls(value: Any) -> bytes:
    stream = io.BytesIO()
    Calling(stream, 2).dump(value)
    return stream.getvalue()


def of_rebuild(marker: Path) -> bytes:
    """Let a function that rebuilds tensors call `eval`."""
    rebuilt = Reduced(torch._tensor._rebuild_from_type_v2, eval, torch.Tensor, (text_of(marker),), {})
    return in_zip(pickle.dumps({"weight": rebuilt}, 2))


def of_state(marker: Path) -> bytes:
    """Hide a call in the state that a harmless object is given."""
    hiding = OrderedDict(weight=1)
    hiding.note = Reduced(eval, text_of(marker))  # type: ignore[attr-defined]
    return in_zip(pickle.dumps({"state_dict": hiding}, 2))


def of_second_pickle(marker: Path) -> bytes:
    """Hide a call behind harmless tensors, in the pickle of what a file of the old form stores."""
    return legacy(pickle.dumps({"weight": 1}, 2), pickle.dumps([Reduced(eval, text_of(marker))], 2))


def of_second_record(marker: Path) -> bytes:
    """Hide a call in the first of two records of one name, which torch reads, while others read the last."""
    records = [pickle.dumps(Reduced(eval, text_of(marker)), 2), pickle.dumps({"weight": 1}, 2)]
    return zipped(*(("archive/data.pkl", record) for record in records))


def of_tar(marker: Path) -> bytes:
    return tar(pickle.dumps(Reduced(eval, text_of(marker)), 2))


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def of_many_numbers() -> bytes:
    """Declare 2^50 numbers of a storage of one."""
    view = torch.zeros(1).as_strided((1,), (1,))
    stream = io.BytesIO()
    torch.save({"weight": view}, stream)
    with zipfile.ZipFile(stream) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in content if name.endswith("data.pkl"))
    # The size, a tuple of one small number that follows the offset, another.
    before = pickle.BININT1 + b"\x00" + pickle.BININT1 + b"\x01" + pickle.TUPLE1
    assert content[name].count(before) == 1
    large = pickle.BININT1 + b"\x00" + pickle.LONG1 + b"\x07" + (2**50).to_bytes(7, "little") + pickle.TUPLE1
    return zipped((name, content.pop(name).replace(before, large)), *content.items())


HOSTILE: Mapping[str, Callable[[Path], bytes]] = {
    "a call of os.system": of_system,
    "a call of eval": of_eval,
    "dotted names": of_dotted_names,
    "a chain of getattr": of_attributes,
    "a function that rebuilds": of_rebuild,
    "a state": of_state,
    "a second pickle": of_second_pickle,
    "a second record": of_second_record,
    "a tar file": of_tar,
}
"""What hides a call, and the file that makes it, given the file that the call leaves."""

DAMAGED: Mapping[str, bytes] = {
    "nothing": b"",
    "a text": b"not found",
    "half an archive": saved({"weight": torch.zeros(64)})[:400],
    "a header of 2^60 bytes": (2**60).to_bytes(8, "little") + b"{}",
    "a text of 4 GiB": in_zip(pickle.PROTO + b"\x02" + pickle.BINUNICODE + b"\xff\xff\xff\xffa."),
    "a tensor of 2^50 numbers": of_many_numbers(),
}
"""Files that hold no weights, or not all of what they say."""
