"""Which files beside it an ONNX graph names, read from its bytes: a runtime would open them unhashed.

Follows the protocol buffers' wire format and the field numbers of onnx.proto, so that base needs no library
for it. Knows nothing else of a graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from samdistill.errors import BundleError

# Message -> number of a field -> what message is in it: every way from a model to a tensor.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
    "external data": {},
}
_KEY, _VALUE = 1, 2  # of external data
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


def external_files(content: bytes) -> set[str]:
    """Names of the files in which a graph says that weights of its lie.

    Raises
    ------
    BundleError
        When the bytes are no ONNX file.
    """
    found: set[str] = set()
    waiting = [("model", memoryview(content))]
    try:
        while waiting:
            kind, message = waiting.pop()
            fields = list(_fields(message))
            waiting += [(_INSIDE[kind][number], one) for number, one in fields if number in _INSIDE[kind]]
            if kind == "external data":
                last = {number: bytes(one) for number, one in fields}
                if last.get(_KEY) == b"location":
                    found.add(last.get(_VALUE, b"").decode())
    except (IndexError, ValueError) as error:
        raise BundleError("cannot open the network: it is no ONNX file, or damaged.") from error
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that may hold a message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, place = _varint(message, place)
        elif wire == _BYTES:
            size, place = _varint(message, place)
            yield number, message[place : place + size]
            place += size
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            place += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire}")
    if place > len(message):
        raise ValueError("cut short")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number is too long")
