"""Tensors as one flat piece of memory that is a safetensors file already, header and all.

Format: https://github.com/huggingface/safetensors, "Format": the header's length (8 bytes, little endian), the header
(JSON: name to dtype, shape and place), the tensors without gaps. Any tool that knows it can read a checkpoint.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from launcher.runtime.checkpoint.copying import Copier

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_LENGTH_BYTES = 8
_ALIGN = 64
"""The tensors begin at a multiple of it, so that each is aligned however it is read."""


class Image:
    """A reused copy of tensors of one layout. ``memory`` is the file, byte for byte."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Lay out ``tensors``, the largest elements first, each after the other; copies nothing yet.

        Raises:
            TypeError: a tensor is sparse or of a dtype that the format has not.
        """
        self._layout = _layout(tensors)
        self._names = sorted(tensors, key=lambda name: -tensors[name].element_size())
        header = _header({name: tensors[name] for name in self._names})
        size = len(header) + sum(t.numel() * t.element_size() for t in tensors.values())
        self.memory = _memory(size, pinned=any(t.is_cuda for t in tensors.values()))
        self.memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        self._views: list[torch.Tensor] = []
        place = len(header)
        for name in self._names:
            tensor = tensors[name]
            end = place + tensor.numel() * tensor.element_size()
            self._views.append(self.memory[place:end].view(tensor.dtype).view(tensor.shape))
            place = end
        self._copied: torch.cuda.Event | None = None

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether ``tensors`` have this layout."""
        return self._layout == _layout(tensors)

    def copy(self, tensors: Mapping[str, torch.Tensor], copier: Copier) -> None:
        """Copy ``tensors`` in; those on a GPU are copied in the order of its stream, and ``wait`` knows when."""
        sources = [tensors[name] for name in self._names]
        copier.copy(self._views, sources)
        if self.memory.is_pinned() and any(source.is_cuda for source in sources):
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> None:
        """Return when all has arrived; from any thread."""
        if self._copied is not None:
            self._copied.synchronize()

    def first_not_finite(self, names: Iterable[str]) -> str | None:
        """The first of the floating point and complex tensors ``names`` that holds a value that is not finite."""
        wanted = set(names)
        pairs = zip(self._names, self._views, strict=True)
        return next((name for name, values in pairs if name in wanted and not _is_finite(values)), None)


def read_header(memory: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file that lies in ``memory`` (uint8, flat), as views of it, by name.

    Raises:
        ValueError: it is no such file.
    """
    data = memory.numpy().data
    length = int.from_bytes(bytes(data[:_LENGTH_BYTES]), "little")
    begin = _LENGTH_BYTES + length
    if len(data) < begin:
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    tensors = {}
    for name, entry in json.loads(bytes(data[_LENGTH_BYTES:begin])).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            tensors[name] = memory[begin + first : begin + end].view(_BY_NAME[entry["dtype"]]).view(entry["shape"])
    return tensors


def _memory(size: int, *, pinned: bool) -> torch.Tensor:
    """``size`` bytes that begin with a page, as writing past the page cache wants them; touched now, not in a copy."""
    if pinned:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    memory = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    memory[:: mmap.PAGESIZE] = 0
    return memory


def _is_finite(values: torch.Tensor) -> bool:
    """Whether all of them are. Their sum is finite only then; it may overflow, and then each is looked at."""
    if not (values.is_floating_point() or values.is_complex()):
        return True
    if values.dtype in (torch.float32, torch.float64):  # numpy takes one thread: the others belong to the training
        with np.errstate(all="ignore"):
            return bool(np.isfinite(np.add.reduce(values.flatten().numpy()))) or bool(torch.isfinite(values).all())
    if values.element_size() == 1:  # torch adds no numbers of 8 bits, and does not look at them either
        values = values.float()
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _layout(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.dtype, torch.Size, bool]]:
    return [(name, tensor.dtype, tensor.shape, tensor.is_cuda) for name, tensor in tensors.items()]


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
            raise TypeError(
                f"tensor {name}: {tensor.layout} of {tensor.dtype} cannot be saved; make it dense and plain"
            )
        end = place + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGN)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
