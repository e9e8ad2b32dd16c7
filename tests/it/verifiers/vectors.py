"""Checks the published vectors with Python's standard library. Reads the files as one JSON object, prints how many there are."""
import base64
import hashlib
import json
import sys

sha256 = lambda data: hashlib.sha256(data).digest()
P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P
L = 2**252 + 27742317777372353535851937790883648493
I = pow(2, (P - 1) // 4, P)


def check(condition, what):
    if not condition:
        raise SystemExit(f"wrong: {what}")


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def root(leaves):
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"")
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + root(leaves[:split]) + root(leaves[split:]))


def inclusion(leaf, leaves):
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if leaf < split:
        return inclusion(leaf, leaves[:split]) + [root(leaves[split:])]
    return inclusion(leaf - split, leaves[split:]) + [root(leaves[:split])]


def consistency(old, leaves, whole=True):
    if old == len(leaves):
        return [] if whole else [root(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= split:
        return consistency(old, leaves[:split], whole) + [root(leaves[split:])]
    return consistency(old - split, leaves[split:], False) + [root(leaves[:split])]


def add(p, q):
    """On the curve of Ed25519 (RFC 8032 section 5.1), in affine coordinates."""
    t = D * p[0] * q[0] * p[1] * q[1]
    x = (p[0] * q[1] + q[0] * p[1]) * pow(1 + t, P - 2, P) % P
    y = (p[1] * q[1] + p[0] * q[0]) * pow(1 - t, P - 2, P) % P
    return x, y


def multiply(p, scalar):
    product = (0, 1)
    while scalar:
        if scalar & 1:
            product = add(product, p)
        p, scalar = add(p, p), scalar >> 1
    return product


def point(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * I % P
    if (x * x - square) % P:
        return None
    return (P - x if x & 1 != sign else x), y


def signed(key, message, signature):
    base = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    a, r, s = point(key), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    return multiply(base, s) == add(r, multiply(a, k))


def opened(note, name, key):
    text, _, signatures = note.partition("\n\n")
    text += "\n"
    key_id = sha256(name.encode() + b"\n\1" + key)[:4]
    for line in signatures.splitlines():
        dash, signer, signature = line.split(" ")
        signature = base64.b64decode(signature)
        if (dash, signer, signature[:4]) == ("\u2014", name, key_id) and signed(key, text.encode(), signature[4:]):
            origin, size, hashed = text.splitlines()[:3]
            if origin == name and str(int(size)) == size:
                return {"size": int(size), "root": base64.b64decode(hashed).hex()}
    return None


files = json.load(sys.stdin)
count = 0
for vector in files["canonical"]["vectors"]:
    value = dict(vector["columns"])
    for part in ["client_sealed", "metadata_sealed"]:
        sealed = value.pop(part)
        value[part + "_sha256"] = None if sealed is None else sha256(bytes.fromhex(sealed)).hex()
    check(canonical(value).hex() == vector["canonical"], vector["name"])
    check(sha256(b"\0" + canonical(value)).hex() == vector["leaf_hash"], vector["name"])
    count += 1
for vector in files["heads"]["vectors"]:
    check(canonical(vector["head"]).hex() == vector["canonical"], vector["head"])
    check(sha256(b"\0" + canonical(vector["head"])).hex() == vector["leaf_hash"], vector["head"])
    count += 1
merkle = files["merkle"]
leaves = [sha256(b"\0" + bytes.fromhex(leaf)) for leaf in merkle["leaves"]]
for size, told in enumerate(merkle["roots"]):
    check(root(leaves[:size]).hex() == told, f"root of {size}")
    count += 1
for proof in merkle["inclusion"]:
    check([step.hex() for step in inclusion(proof["leaf"], leaves[: proof["size"]])] == proof["path"], proof)
    count += 1
for proof in merkle["consistency"]:
    check([step.hex() for step in consistency(proof["old"], leaves[: proof["size"]])] == proof["path"], proof)
    count += 1
name, key_id, key = files["note"]["key"].split("+", 2)
key = base64.b64decode(key)[1:]
check(sha256(name.encode() + b"\n\1" + key)[:4].hex() == key_id, "id of the key")
for vector in files["note"]["vectors"]:
    check(opened(vector["note"], name, key) == vector["checkpoint"], vector["name"])
    count += 1
print(f"{count} vectors")
