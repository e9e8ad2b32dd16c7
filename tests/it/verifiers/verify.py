"""Verifies an audit log from its tables alone, with Python's standard library. Reads JSON, prints a verdict."""
import base64
import hashlib
import json
import sys


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def leaf(value):
    return hashlib.sha256(b"\0" + canonical(value)).digest()


def root(leaves):
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def verify(log):
    streams = {}
    for entry in log["entries"]:
        stored = entry.pop("leaf_hash")
        leaves = streams.setdefault(entry["stream"], [])
        assert entry["position"] == len(leaves), f"gap in stream {entry['stream']} at {entry['position']}"
        leaves.append(leaf(entry))
        assert leaves[-1].hex() == stored, f"leaf of stream {entry['stream']} position {entry['position']}"
    for head in log["heads"]:
        leaves = streams[head["stream"]][: head["size"]]
        assert root(leaves).hex() == head["root"], f"root of stream {head['stream']} at size {head['size']}"
    text, size, note_root = log["checkpoint"].split("\n")[:3]
    assert text == "sidekeep/" + log["deployment"]
    heads = [leaf(head) for head in log["heads"][: int(size)]]
    assert root(heads) == base64.b64decode(note_root), "root of the checkpoint"
    return f"intact: {sum(map(len, streams.values()))} entries, {len(heads)} heads"


print(verify(json.load(sys.stdin)))
