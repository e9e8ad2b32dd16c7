//! How an error is told: a line on standard error for people, and with `--json` one object on standard output for programs, unless
//! there is a result already that tells it. Knows no command.

use serde_json::{Value, json};

use super::client::Refusal;
use super::exit::{exit_code, message};
use super::output;

/// Tells why a command has failed. Answers the exit code.
pub(super) fn tell(error: &anyhow::Error, as_json: bool) -> u8 {
    let code = exit_code(error);
    // Whoever closed standard output has had enough.
    if code != 0 {
        let told = match error.downcast_ref::<Refusal>() {
            // As the daemon said it.
            Some(refusal) => json!({ "error": refusal }),
            None => object(&message(error), code),
        };
        both(&message(error), &told, as_json);
    }
    code
}

/// Tells what is wrong with a command line, or the help that was asked for. Answers the exit code.
pub(super) fn misused(refused: &clap::Error, as_json: bool) -> u8 {
    let code = u8::try_from(refused.exit_code()).unwrap_or(2);
    // Where it cannot be written there is nobody left to tell.
    drop(refused.print());
    if as_json && code != 0 {
        drop(output::line(&object(&first(&refused.to_string()), code).to_string()));
    }
    code
}

fn both(text: &str, told: &Value, as_json: bool) {
    output::note(&format!("sidekeep: {text}"));
    if as_json && !output::is_written() {
        drop(output::line(&told.to_string()));
    }
}

fn object(message: &str, code: u8) -> Value {
    json!({ "error": { "message": message, "exit_code": code } })
}

/// What is wrong, without the usage that comes below it.
fn first(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join(" ");
    text.strip_prefix("error: ").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::first;

    #[test]
    fn what_is_wrong_with_a_command_line_is_one_line() {
        let text = "error: the following required arguments were not provided:\n  <METHOD>\n\nUsage: sidekeep call <METHOD>\n";
        assert_eq!(first(text), "the following required arguments were not provided: <METHOD>");
        assert_eq!(first("about it"), "about it");
    }
}
