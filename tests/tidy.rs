//! Reads the source and fails on what must not be in it: wrong arrows between modules, and what only one place may do.
//!
//! Never runs anything of the crate. A rule that is in the way is changed here, where it is seen.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by a panic"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::Source;

#[path = "tidy/source.rs"]
mod source;

/// From the top: a module uses those of the rows below its own, never one above or beside it.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["daemon"],
    &["rpc"],
    &["jobs"],
    &["app"],
    &["subjects", "evidence", "backup"],
    &["records"],
    &["audit"],
    &["keyring"],
    &["store", "objects"],
    &["durable", "telemetry"],
    &["config", "clock", "values"],
    &["error"],
];

/// What a module may use of its own row: `(from, to)`.
const BESIDE: &[(&str, &str)] = &[
    // A restore erases again, by the one selector.
    ("backup", "subjects"),
];

/// The top level of the repository; what `.gitignore` names may lie there too.
const TOP: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    ".clippy.toml",
    "config",
    "diesel.toml",
    "migrations",
    "packaging",
    ".rustfmt.toml",
    "src",
    "tests",
];

/// Names that say nothing of what is in a file.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "manager", "misc", "service", "util", "utils"];

/// What is put off, in code or in prose. In pieces, so that this file does not name them.
const PUT_OFF: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimple", "mented"), concat!("todo", "!")];

const LONGEST_FILE: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Source<'_> {
    fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        self.check_form(&mut problems);
        self.check_arrows(&mut problems);
        self.check_absent(&mut problems);
        problems
    }

    fn check_form(&self, problems: &mut Vec<String>) {
        if self.path != "src/lib.rs" && !self.text.starts_with("//! ") {
            problems
                .push(format!("{}:1: begins without `//!`: what it owns and what it never does", self.path));
        }
        let lines = self.text.lines().count();
        if lines > LONGEST_FILE {
            problems.push(format!("{}: {lines} lines are over {LONGEST_FILE}: split it", self.path));
        }
        let name = Path::new(self.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if EMPTY_NAMES.contains(&name) {
            problems.push(format!("{}: the name says nothing of what is in it", self.path));
        }
    }

    fn check_arrows(&self, problems: &mut Vec<String>) {
        let Some(from) = self.module() else { return };
        let Some(row) = row(from) else {
            problems.push(format!("{}: LAYERS in tests/tidy.rs has no row for {from}", self.path));
            return;
        };
        for (to, line) in self.uses() {
            let below = row_is_below(to, row) || to == from || BESIDE.contains(&(from, to));
            if !below {
                problems.push(format!("{}:{line}: {from} may not use {to}", self.path));
            }
        }
    }

    fn check_absent(&self, problems: &mut Vec<String>) {
        let is = |module: &str| self.module() == Some(module);
        for (at, token) in self.tokens.iter().enumerate() {
            let (text, next) = (token.text.as_str(), self.text_at(at + 1));
            let mut problem = |what: &str| problems.push(format!("{}:{}: {what}", self.path, token.line));
            if text == "#" && next == "[" && self.text_at(at + 2) == "ignore" {
                problem("a test that is not run proves nothing");
            }
            if token.test {
                continue;
            }
            if self.path != "src/rpc/error.rs"
                && (is_code(text) || text.ends_with("_CODE") || text == "ErrorCode")
            {
                problem("only rpc/error.rs knows JSON-RPC codes");
            }
            let variable = self.reads(at, &["env", "::"])
                && self.names_at(at + 2).iter().any(|name| name.contains("var"));
            let argument = text == "env" && self.reads(at + 1, &["="]);
            if (variable || argument) && !is("config") {
                problem("only config reads the environment");
            }
            if (["SystemTime", "clock_gettime"].contains(&text)
                || ["Utc", "Local"].iter().any(|zone| self.reads(at, &[zone, "::", "now"])))
                && !is("clock")
            {
                problem("only clock reads the time");
            }
            if !is("store") && self.opens_or_begins(at) {
                problem("only store opens connections and begins transactions");
            }
        }
    }

    fn opens_or_begins(&self, at: usize) -> bool {
        let beyond = |allowed: &[&str]| {
            self.text_at(at + 1) == "::" && self.names_at(at + 2).iter().any(|name| !allowed.contains(name))
        };
        match self.text_at(at) {
            "diesel_async" => beyond(&["RunQueryDsl"]),
            // The parser of URLs, which opens nothing.
            "tokio_postgres" => beyond(&["Config", "Error", "Row", "Statement", "config", "error", "types"]),
            "." => {
                let methods =
                    ["begin_test_transaction", "build_transaction", "connect", "connect_raw", "transaction"];
                methods.contains(&self.text_at(at + 1)) && self.text_at(at + 2) == "("
            }
            text => text.strip_prefix('"').is_some_and(|text| {
                let text = text.trim_start();
                ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "START TRANSACTION"]
                    .iter()
                    .any(|verb| text.strip_prefix(verb).is_some_and(|rest| rest.starts_with([' ', ';', '"'])))
            }),
        }
    }
}

fn row(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

fn row_is_below(module: &str, row_above: usize) -> bool {
    row(module).is_some_and(|row| row > row_above)
}

/// Whether a number is one of JSON-RPC's, or of those that it leaves to applications; the sign is a token of its own.
fn is_code(text: &str) -> bool {
    let digits: String = text.chars().filter(|c| *c != '_').take_while(char::is_ascii_digit).collect();
    digits.parse().is_ok_and(|number: u32| (32_000..=32_799).contains(&number))
}

/// All files below a folder, as paths from the repository's root.
fn files_below(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> Option<String> {
    String::from_utf8(std::fs::read(root().join(path)).unwrap()).ok()
}

#[test]
fn the_source_keeps_to_its_layers_and_its_habits() {
    let problems: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| files_below(folder))
        .filter(|path| path.ends_with(".rs"))
        .flat_map(|path| Source::new(&path, &read(&path).unwrap()).check())
        .collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_row_is_of_modules_that_exist() {
    let there: BTreeSet<String> = files_below("src")
        .iter()
        .filter_map(|path| Source::new(path, "").module().map(str::to_owned))
        .collect();
    let rows: BTreeSet<String> =
        LAYERS.iter().flat_map(|row| row.iter().map(|&name| name.to_owned())).collect();
    assert_eq!(there, rows);
}

#[test]
fn the_readme_shows_these_rows() {
    let shown: Vec<String> = LAYERS
        .iter()
        .map(|row| if row.len() == 1 { row.concat() } else { format!("{{{}}}", row.join(", ")) })
        .collect();
    let shown = shown.join(" › ");
    assert!(read("README.md").unwrap().lines().any(|line| line == shown), "{shown}");
}

#[test]
fn nothing_is_put_off() {
    let all = TOP.iter().filter(|name| !["LICENSE", "Cargo.lock"].contains(name));
    let files =
        all.flat_map(
            |name| if root().join(name).is_dir() { files_below(name) } else { vec![(*name).to_owned()] },
        );
    let found: Vec<String> = files
        .filter_map(|path| Some((read(&path)?, path)))
        .flat_map(|(text, path)| {
            let lines = text.lines().enumerate();
            let bad = lines.filter(|(_, line)| PUT_OFF.iter().any(|word| line.contains(word)));
            bad.map(|(at, line)| format!("{path}:{}: {}", at + 1, line.trim())).collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_top_level_holds_the_agreed_names() {
    let listed = Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output();
    let names: BTreeSet<String> = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            String::from_utf8(output.stdout)
                .unwrap()
                .split_terminator('\0')
                .filter_map(|path| path.split('/').next().map(str::to_owned))
                .collect()
        }
        // Not a repository, as an unpacked archive is not; what is ignored, or hidden, is nobody's business then.
        _ => {
            let ignored = read(".gitignore").unwrap_or_default();
            std::fs::read_dir(root())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| {
                    !name.starts_with('.') && !ignored.lines().any(|line| line.trim_matches('/') == name)
                })
                .collect()
        }
    };
    let unknown: Vec<&String> = names.iter().filter(|name| !TOP.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "not agreed on: {unknown:?}");
}

/// A file, what is in it, and what is said of it: nothing where it is right.
const EXAMPLES: &[(&str, &str, &str)] = &[
    ("src/store/pool.rs", "use crate::{config, error::Error};", ""),
    ("src/store/pool.rs", "use super::connect; use super::super::error;", ""),
    ("src/store/pool.rs", "mod tests { use super::super::super::config; use super::*; }", ""),
    ("src/rpc/http/body.rs", "pub(in super::super) fn f() { super::super::peer::of() }", ""),
    ("src/main.rs", "use sidekeep::cli::{self, Cli};", ""),
    ("src/store/pool.rs", "use crate::records::Records;", "1: store may not use records"),
    ("src/store/pool.rs", "use crate::{config, rpc::{call, error}};", "1: store may not use rpc"),
    ("src/store/pool.rs", "\nfn f() { crate::app::App::open() }", "2: store may not use app"),
    ("src/store/pool.rs", "log!(\"{}\", crate::cli::NAME);", "1: store may not use cli"),
    ("src/store/mod.rs", "use super::keyring::Kek;", "1: store may not use keyring"),
    ("src/store/pool.rs", "use super::super::keyring::Kek;", "1: store may not use keyring"),
    ("src/store/pool.rs", "mod inner { use super::super::super::rpc; }", "1: store may not use rpc"),
    ("src/store/pool.rs", "#[serde(with = \"crate::rpc::peer\")] struct S;", "1: store may not use rpc"),
    ("src/config/url.rs", "use crate::values::Json;", "1: config may not use values"),
    ("src/values/mod.rs", "use crate::nowhere::Json;", "1: values may not use nowhere"),
    ("src/unheard.rs", "", "LAYERS in tests/tidy.rs has no row for unheard"),
    ("src/rpc/util.rs", "", "the name says nothing"),
    ("src/rpc/error.rs", "const CODE: i32 = -32_020;", ""),
    ("src/rpc/call.rs", "#[cfg(test)] mod tests { const CODE: i32 = -32020; }", ""),
    ("src/rpc/call.rs", "#[cfg(test)] mod tests; const CODE: i32 = -32020;", "only rpc/error.rs knows"),
    (
        "src/rpc/call.rs",
        "#[cfg(test)] fn f(_: ()) {} const CODE: i32 = -32_020_i32;",
        "only rpc/error.rs knows",
    ),
    ("src/rpc/call.rs", "use jsonrpsee::types::error::INVALID_PARAMS_CODE;", "only rpc/error.rs knows"),
    ("src/rpc/call.rs", "const PORT: i32 = 5432; // -32020", ""),
    ("src/config/environment.rs", "fn f() { std::env::vars_os() }", ""),
    ("src/cli/dev.rs", "fn f() { std::env::args_os() }", ""),
    ("src/cli/dev.rs", "fn f() { std::env::var_os(\"HOME\") }", "only config reads the environment"),
    ("src/cli/dev.rs", "use std::env::{args, var};", "only config reads the environment"),
    (
        "src/cli/dev.rs",
        "struct S { #[arg(env = \"HOME\")] home: String }",
        "only config reads the environment",
    ),
    ("src/clock.rs", "fn now() { Utc::now() }", ""),
    ("src/rpc/call.rs", "fn f() { Instant::now() }", ""),
    ("src/rpc/call.rs", "fn f() { chrono::Utc::now() }", "only clock reads the time"),
    ("src/rpc/call.rs", "use std::time::SystemTime;", "only clock reads the time"),
    ("src/records/mod.rs", "use diesel_async::RunQueryDsl;", ""),
    ("src/records/mod.rs", "use diesel_async::{AsyncConnection, RunQueryDsl};", "only store opens"),
    ("src/records/mod.rs", "fn f() { tokio_postgres::connect(url, tls) }", "only store opens"),
    ("src/records/mod.rs", "fn f() { config.connect(tls) }", "only store opens"),
    ("src/records/mod.rs", "fn f() { connection.transaction(body) }", "only store opens"),
    ("src/records/mod.rs", "fn f() { execute(\"COMMIT\") }", "only store opens"),
    ("src/records/mod.rs", "const COMMITTED: &str = \"COMMITTED\";", ""),
    ("src/store/transact.rs", "fn f() { execute(\"BEGIN; SET LOCAL x = 1\") }", ""),
    ("tests/it/dev.rs", "#[test] #[ignore] fn f() {}", "a test that is not run"),
    (
        "src/rpc/tests/limits.rs",
        "#[ignore = \"slow\"] fn f() { assert_eq!(code, -32020) }",
        "a test that is not run",
    ),
];

#[test]
fn each_rule_is_found_broken_and_found_kept() {
    for (path, code, expected) in EXAMPLES {
        let said =
            Source::new(path, &format!("//! {code}", code = format_args!("It.\n{code}"))).check().join("\n");
        let kept = expected.is_empty() && said.is_empty();
        // The sentence in front is a line.
        let shifted = match expected.split_once(": ") {
            Some((line, rest)) => format!(":{}: {rest}", line.parse::<usize>().unwrap() + 1),
            None => (*expected).to_owned(),
        };
        assert!(
            kept || (!expected.is_empty() && said.contains(&shifted)),
            "{path}: {code}\nexpected: {expected}\nsaid: {said}"
        );
    }
}

#[test]
fn a_file_says_what_it_owns_and_is_not_long() {
    let said = |text: &str| Source::new("src/error.rs", text).check().join("\n");
    assert_eq!(said("//! Errors.\n"), "");
    assert!(said("// Errors.\n").contains("begins without `//!`"));
    assert_eq!(said(&format!("//! Errors.\n{}", "\n".repeat(LONGEST_FILE - 1))), "");
    assert!(said(&format!("//! Errors.\n{}", "\n".repeat(LONGEST_FILE))).contains("501 lines"));
}
