//! What README.md tells its reader to do, done: taken from the page itself, so that the page cannot fall behind.

use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use sidekeep::clock::Timestamp;
use sidekeep::rpc::methods::Methods;

use crate::dev::Dev;

const README: &str = include_str!("../../README.md");

/// What runs a block, and the package of Debian's that has it.
const PROGRAMS: [(&str, &str); 4] =
    [("socat", "socat"), ("curl", "curl"), ("python3", "python3"), ("node", "nodejs")];

/// A fenced block.
#[derive(Debug)]
struct Block {
    language: &'static str,
    text: String,
}

/// The fenced blocks of a section, in their order.
fn blocks(section: &str) -> Vec<Block> {
    let heading = format!("## {section}");
    let lines = README.lines().skip_while(|line| *line != heading).skip(1);
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in lines {
        match (&mut open, line.strip_prefix("```")) {
            (None, None) if line.starts_with("## ") => break,
            (None, None) => {}
            (None, Some(language)) => open = Some(Block { language, text: String::new() }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    assert!(!blocks.is_empty(), "README.md has no section {section:?} with blocks");
    blocks
}

/// The command that starts, and the one that tests.
fn commands() -> [String; 2] {
    let lines: Vec<String> =
        blocks("Start").into_iter().map(|block| block.text.trim_end().to_owned()).collect();
    lines.try_into().expect("two commands")
}

/// What the block prints, run in the folder.
fn run(block: &Block, folder: &Path) -> String {
    let (program, arguments): (&str, &[&str]) = match block.language {
        "sh" => ("sh", &["-eu"]),
        "python" => ("python3", &["-"]),
        "js" => ("node", &["-"]),
        other => panic!("nothing runs {other}: {block:?}"),
    };
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(block.text.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{}: {said}\n{}", done.status, block.text);
    assert_eq!(said, "", "{}", block.text);
    String::from_utf8(done.stdout).unwrap()
}

/// With each time replaced, since the page was written at another.
fn timeless(value: Value) -> Value {
    match value {
        Value::String(text) if Timestamp::parse(&text).is_ok() => "a time".into(),
        Value::Array(items) => items.into_iter().map(timeless).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, timeless(value))).collect(),
        other => other,
    }
}

fn assert_shown(expected: &Block, printed: &str) {
    match expected.language {
        "text" => assert_eq!(printed, expected.text),
        "json" => {
            let read =
                |text: &str| timeless(serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")));
            assert_eq!(read(printed), read(&expected.text));
        }
        other => panic!("{other} shows nothing that is printed: {expected:?}"),
    }
}

#[test]
fn each_call_prints_what_the_page_shows() {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| Command::new(program).arg("--version").output().is_err())
        .map(|(_, package)| *package)
        .collect();
    assert!(missing.is_empty(), "some programs are missing: apt-get install {}", missing.join(" "));
    let calls = blocks("Call");
    let languages: Vec<&str> = calls.iter().map(|block| block.language).collect();
    assert_eq!(languages, ["sh", "json", "sh", "json", "python", "text", "js", "text", "text"]);

    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(&directory.path().join(".sidekeep-dev"));
    for pair in calls.chunks_exact(2) {
        assert_shown(&pair[1], &run(&pair[0], directory.path()));
    }
    assert_eq!(dev.end(Signal::SIGTERM), Some(0));
}

#[test]
fn the_methods_are_all_on_the_page() {
    let calls = blocks("Call");
    let listed: Vec<String> = calls
        .last()
        .unwrap()
        .text
        .lines()
        .flat_map(|line| {
            let (noun, verbs) = line.split_once(' ').unwrap();
            verbs.split_whitespace().map(|verb| format!("{noun}{verb}")).collect::<Vec<_>>()
        })
        .collect();
    let mut listed: Vec<&str> = listed.iter().map(String::as_str).collect();
    let methods = Methods::all();
    let mut known: Vec<&str> = methods.names().collect();
    listed.sort_unstable();
    known.sort_unstable();
    assert_eq!(listed, known);
}

#[test]
fn the_two_commands_are_a_line_each_and_stop_where_something_fails() {
    let directory = tempfile::tempdir().unwrap();
    // In the place of the real ones, `cargo`, `apt-get` and `sudo` say what they were asked for.
    let script = directory.path().join("say");
    std::fs::write(&script, "#!/bin/sh\necho \"${0##*/} $*\"\n[ \"${0##*/}\" != \"$FAILS\" ]\n").unwrap();
    Command::new("chmod").arg("755").arg(&script).status().unwrap();
    for program in ["cargo", "apt-get"] {
        symlink(&script, directory.path().join(program)).unwrap();
    }
    for program in ["sh", "which", "echo"] {
        symlink(format!("/bin/{program}"), directory.path().join(program)).unwrap();
    }
    let said = |command: &str, fails: &str| {
        let done = Command::new("/bin/sh")
            .args(["-c", command])
            .env_clear()
            .env("PATH", directory.path())
            .env("FAILS", fails)
            .output()
            .unwrap();
        (done.status.success(), String::from_utf8(done.stdout).unwrap())
    };
    for (command, ends) in commands().iter().zip(["cargo run --release -- dev\n", "cargo test\n"]) {
        assert!(!command.contains('\n'), "{command}");
        let (done, asked) = said(command, "");
        assert!(done, "{asked}");
        let asked: Vec<&str> = asked.split_inclusive('\n').collect();
        assert_eq!(asked[0], "apt-get update\n");
        assert!(asked[1].starts_with("apt-get install -y --no-install-recommends "), "{asked:?}");
        assert_eq!(asked[2..], [ends]);
        assert_eq!(said(command, "apt-get"), (false, "apt-get update\n".into()));
        assert!(!said(command, "cargo").0);
    }
    symlink(&script, directory.path().join("sudo")).unwrap();
    for command in commands() {
        assert_eq!(said(&command, "sudo"), (false, "sudo apt-get update\n".into()));
    }
}

#[test]
fn ci_runs_the_command_of_the_page() {
    let script = include_str!("../../.ci/run");
    let [_, test] = commands();
    assert!(script.lines().any(|line| line == format!("{test} || exit 1")), "{script}");
}

#[test]
fn the_page_is_short_enough_to_be_read() {
    assert!(README.lines().count() <= 200);
}
