// Checks the published vectors with Node's standard library. Reads the files as one JSON object, prints how many there are.
import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();
const [zero, one] = [Buffer.from([0]), Buffer.from([1])];

// RFC 8785: JSON.stringify with the members in order; every number here is an integer below 2^53.
const canonical = (value) =>
  value === null || typeof value !== "object"
    ? JSON.stringify(value)
    : "{" + Object.keys(value).sort().map((key) => JSON.stringify(key) + ":" + canonical(value[key])).join(",") + "}";

function check(condition, what) {
  if (!condition) throw new Error("wrong: " + what);
}

function split(count) {
  let power = 1;
  while (power * 2 < count) power *= 2;
  return power;
}

function root(leaves) {
  if (leaves.length < 2) return leaves[0] ?? sha256();
  const middle = split(leaves.length);
  return sha256(one, root(leaves.slice(0, middle)), root(leaves.slice(middle)));
}

function inclusion(leaf, leaves) {
  if (leaves.length === 1) return [];
  const middle = split(leaves.length);
  const [left, right] = [leaves.slice(0, middle), leaves.slice(middle)];
  return leaf < middle ? [...inclusion(leaf, left), root(right)] : [...inclusion(leaf - middle, right), root(left)];
}

function consistency(old, leaves, whole = true) {
  if (old === leaves.length) return whole ? [] : [root(leaves)];
  const middle = split(leaves.length);
  const [left, right] = [leaves.slice(0, middle), leaves.slice(middle)];
  return old <= middle
    ? [...consistency(old, left, whole), root(right)]
    : [...consistency(old - middle, right, false), root(left)];
}

const keyId = (name, key) => sha256(name + "\n", one, key).subarray(0, 4);

function opened(note, name, key) {
  const end = note.indexOf("\n\n");
  if (end < 0) return null;
  const text = note.slice(0, end + 1);
  const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), key]);
  const publicKey = createPublicKey({ key: der, format: "der", type: "spki" });
  for (const line of note.slice(end + 2).split("\n").filter(Boolean)) {
    const [dash, signer, encoded] = line.split(" ");
    const signature = Buffer.from(encoded, "base64");
    const ours = dash === "\u2014" && signer === name && signature.subarray(0, 4).equals(keyId(name, key));
    if (!ours || !verify(null, Buffer.from(text), publicKey, signature.subarray(4))) continue;
    const [origin, size, hashed] = text.split("\n");
    if (origin === name && String(Number(size)) === size) {
      return { size: Number(size), root: Buffer.from(hashed, "base64").toString("hex") };
    }
  }
  return null;
}

const files = JSON.parse(readFileSync(0, "utf8"));
let count = 0;
for (const { name, columns, canonical: told, leaf_hash } of files.canonical.vectors) {
  const { client_sealed, metadata_sealed, ...value } = columns;
  const digest = (sealed) => (sealed === null ? null : sha256(Buffer.from(sealed, "hex")).toString("hex"));
  value.client_sealed_sha256 = digest(client_sealed);
  value.metadata_sealed_sha256 = digest(metadata_sealed);
  const bytes = Buffer.from(canonical(value));
  check(bytes.toString("hex") === told, name);
  check(sha256(zero, bytes).toString("hex") === leaf_hash, name);
  count += 1;
}
for (const { head, canonical: told, leaf_hash } of files.heads.vectors) {
  const bytes = Buffer.from(canonical(head));
  check(bytes.toString("hex") === told, told);
  check(sha256(zero, bytes).toString("hex") === leaf_hash, told);
  count += 1;
}
const leaves = files.merkle.leaves.map((leaf) => sha256(zero, Buffer.from(leaf, "hex")));
const hex = (path) => path.map((step) => step.toString("hex")).join();
files.merkle.roots.forEach((told, size) => {
  check(root(leaves.slice(0, size)).toString("hex") === told, "root of " + size);
  count += 1;
});
for (const { leaf, size, path } of files.merkle.inclusion) {
  check(hex(inclusion(leaf, leaves.slice(0, size))) === path.join(), `inclusion of ${leaf} in ${size}`);
  count += 1;
}
for (const { old, size, path } of files.merkle.consistency) {
  check(hex(consistency(old, leaves.slice(0, size))) === path.join(), `consistency of ${old} and ${size}`);
  count += 1;
}
const [name, id, encoded] = files.note.key.split("+");
const key = Buffer.from(files.note.key.slice(name.length + id.length + 2), "base64").subarray(1);
check(encoded !== undefined && keyId(name, key).toString("hex") === id, "id of the key");
for (const { name: what, note, checkpoint } of files.note.vectors) {
  const found = opened(note, name, key);
  check(found?.size === checkpoint?.size && found?.root === checkpoint?.root, what);
  count += 1;
}
console.log(`${count} vectors`);
