"""Verifies published checkpoints with Python's standard library: each note's root over all heads up to it. Takes their directory."""
import base64
import hashlib
import json
import pathlib
import sys


def root(leaves):
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


leaves, objects, sizes = [], 0, {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("checkpoint-*.json")):
    published = json.loads(path.read_bytes())
    origin, size, note_root = published["checkpoint"].split("\n")[:3]
    assert published["format"] == 1 and origin == "sidekeep/test", path
    assert path.name == f"checkpoint-{int(size):016}.json", path
    assert published["from"] == len(leaves), f"{path}: heads from {published['from']} on, after {len(leaves)}"
    for head in published["heads"]:
        leaves.append(hashlib.sha256(b"\0" + head.encode()).digest())
        head = json.loads(head)
        sizes[head["stream"]] = head["size"]
    assert len(leaves) == int(size) and root(leaves) == base64.b64decode(note_root), f"root of {path}"
    objects += 1
print(f"intact: {len(leaves)} heads in {objects} objects, {sum(sizes.values())} entries")
