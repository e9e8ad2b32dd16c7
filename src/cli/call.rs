//! `sidekeep call`: one call to the running daemon.

use std::io::Read as _;

use serde_json::value::RawValue;

use super::client::Answer;
use super::exit::{Code, coded};
use super::{Global, json, output, socket};

/// Call a method of the running daemon and print its result
///
/// The result is indented on a terminal, else as it came.
///
/// Exits with 1 when the daemon answers with an error, and with 2 when it is not reached or the parameters are no JSON object.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The method, as in profile.get; `sidekeep openrpc` describes all of them
    method: String,
    /// The parameters, a JSON object; `-` reads it from standard input
    #[arg(value_name = "JSON", default_value = "{}")]
    params: String,
    #[command(flatten)]
    socket: socket::Socket,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let text = if args.params == "-" { read_input()? } else { args.params };
    let params = object(&text).map_err(|problem| coded(Code::Usage, problem))?;
    match args.socket.ask(global, &args.method, &params)? {
        Answer::Error(refusal) => Err(refusal.into()),
        Answer::Result(result) if output::is_terminal() && !global.json => {
            Ok(output::line(&json::indented(result.get()))?)
        }
        Answer::Result(result) => Ok(output::line(result.get())?),
    }
}

fn read_input() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map(|_| text).map_err(|error| coded(Code::Usage, format!("standard input: {error}")))
}

/// The text, when it is one JSON object; else what is wrong with it.
fn object(text: &str) -> Result<Box<RawValue>, String> {
    const FORM: &str = r#"the parameters must be a JSON object, as in '{"user_id":"u1"}'"#;
    let value = serde_json::from_str::<&RawValue>(text).map_err(|error| format!("{FORM}: {error}"))?;
    let found = match value.get().as_bytes().first() {
        Some(b'{') => return Ok(value.to_owned()),
        Some(b'[') => "an array; parameters are by name only",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    };
    Err(format!("{FORM}; this is {found}"))
}

#[cfg(test)]
mod tests {
    use super::object;

    #[test]
    fn parameters_are_one_object_and_stay_as_they_are() {
        for text in ["{}", r#"{"n":1.50, "big":12345678901234567890}"#] {
            assert_eq!(object(&format!(" {text}\n")).unwrap().get(), text);
        }
        for (text, named) in [
            ("[1]", "array"),
            ("\"x\"", "string"),
            ("1", "number"),
            ("null", "null"),
            ("true", "boolean"),
            ("", "EOF"),
            ("{} {}", "trailing"),
            ("{a:1}", "key"),
        ] {
            let problem = object(text).unwrap_err();
            assert!(problem.contains(named), "{text}: {problem}");
        }
    }
}
