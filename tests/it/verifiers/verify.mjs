// Verifies an audit log from its tables alone, with Node's standard library. Reads JSON, prints a verdict.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();

// RFC 8785: JSON.stringify with the members in order; every number here is an integer below 2^53.
const canonical = (value) =>
  value === null || typeof value !== "object"
    ? JSON.stringify(value)
    : "{" + Object.keys(value).sort().map((key) => JSON.stringify(key) + ":" + canonical(value[key])).join(",") + "}";

const leaf = (value) => sha256(Buffer.from([0]), Buffer.from(canonical(value)));

function root(leaves) {
  if (leaves.length === 0) return sha256();
  if (leaves.length === 1) return leaves[0];
  let split = 1;
  while (split * 2 < leaves.length) split *= 2;
  return sha256(Buffer.from([1]), root(leaves.slice(0, split)), root(leaves.slice(split)));
}

function check(condition, what) {
  if (!condition) throw new Error(what);
}

const log = JSON.parse(readFileSync(0, "utf8"));
const streams = new Map();
for (const { leaf_hash: stored, ...entry } of log.entries) {
  if (!streams.has(entry.stream)) streams.set(entry.stream, []);
  const leaves = streams.get(entry.stream);
  check(entry.position === leaves.length, `gap in stream ${entry.stream} at ${entry.position}`);
  leaves.push(leaf(entry));
  check(leaves.at(-1).toString("hex") === stored, `leaf of stream ${entry.stream} position ${entry.position}`);
}
for (const head of log.heads) {
  const leaves = streams.get(head.stream).slice(0, head.size);
  check(root(leaves).toString("hex") === head.root, `root of stream ${head.stream} at size ${head.size}`);
}
const [origin, size, noteRoot] = log.checkpoint.split("\n");
check(origin === "sidekeep/" + log.deployment, "origin");
const heads = log.heads.slice(0, Number(size)).map(leaf);
check(root(heads).equals(Buffer.from(noteRoot, "base64")), "root of the checkpoint");
console.log(`intact: ${[...streams.values()].reduce((sum, leaves) => sum + leaves.length, 0)} entries, ${heads.length} heads`);
