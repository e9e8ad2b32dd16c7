//! Mistakes in a file, and the one line that is said about each; and that nothing is taken without bounds.

use super::{DATABASE, said};
use crate::config::environment::Environment;
use crate::config::keys;

/// A file, and the one line that is said about it.
const BROKEN: &[(&str, &str)] = &[
    (
        "[limits]\ncall_timout = \"1s\"\n",
        "F:2:1: limits.call_timout: unknown key; did you mean limits.call_timeout?",
    ),
    ("[limts]\ncalls = 1\n", "F:1:2: limts: unknown key; did you mean limits?"),
    ("level = \"info\"\n", "F:1:1: level: unknown key; did you mean log.level?"),
    ("limits.cals = 1\n", "F:1:8: limits.cals: unknown key; did you mean limits.calls?"),
    (
        "[[access.rules]]\nuser = \"x\"\nrole = \"app\"\n[[access.rules]]\nuser = \"y\"\n  rol = \"app\"\nrole = \"app\"\n",
        "F:6:3: access.rules[1].rol: unknown key; did you mean access.rules[1].role?",
    ),
    (
        "access = { rules = [{ usr = 5, user = 5, role = \"app\" }] }\n",
        "F:1:23: access.rules[0].usr: unknown key; did you mean access.rules[0].user?",
    ),
    ("[socket]\nurl = \"x\"\n", "F:2:1: socket.url: unknown key; did you mean database.url?"),
    ("[limits]\nconnections = \"many\"\n", "F:2:15: limits.connections: must be a whole number, not text"),
    (
        "[limits]\n  connections = -1\n",
        "F:2:17: limits.connections: must be a whole number, not a negative one",
    ),
    ("[limits]\nconnections = 99999999999999999999\n", "F:2:15: limits.connections: is too large a number"),
    ("[limits]\nconnections = 0\n", "F:2:15: limits.connections: must be from 1 to 1000000, and is 0"),
    ("[limits]\ncalls = 2.5\n", "F:2:9: limits.calls: must be a whole number, not a number with a point"),
    ("[limits]\ncall_timeout = 30\n", "F:2:16: limits.call_timeout: must be text in quotes, not a number"),
    (
        "[limits]\ncall_timeout = \"soon\"\n",
        "F:2:16: limits.call_timeout: must be a length of time, as in \"500ms\", \"30s\", \"15m\" or \"90d\"",
    ),
    ("[limits]\ncall_timeout = \"0s\"\n", "F:2:16: limits.call_timeout: must be from 1ms to 1h, and is 0s"),
    (
        "[limits]\nmax_record_bytes = \"big\"\n",
        "F:2:20: limits.max_record_bytes: must be a size, as in \"64KiB\" or \"4MiB\"",
    ),
    (
        "[socket]\nmax_message_bytes = \"1MiB\"\n",
        "F:2:21: socket.max_message_bytes: is 1MiB, too little for a record of limits.max_record_bytes (1MiB) and 4KiB around it",
    ),
    (
        "[socket]\nmax_message_bytes = \"2GiB\"\n[limits]\nbuffered_bytes = \"4GiB\"\n",
        "F:2:21: socket.max_message_bytes: must be from 1KiB to 1GiB, and is 2GiB",
    ),
    (
        "[limits]\nbuffered_bytes = \"2MiB\"\n",
        "F:2:18: limits.buffered_bytes: is 2MiB, less than the largest message or answer (4MiB), which could then never pass",
    ),
    (
        "[limits]\ncalls = 10\n",
        "F:2:9: limits.calls: limits.calls_per_connection, at its default, is 64, more than limits.calls (10) allows over all connections",
    ),
    (
        "[limits]\ncalls = 10\ncalls_per_connection = 11\n",
        "F:3:24: limits.calls_per_connection: is 11, more than limits.calls (10) allows over all connections",
    ),
    (
        "[limits]\nmax_answer_bytes = \"512MiB\"\n",
        "F:2:20: limits.max_answer_bytes: limits.buffered_bytes, at its default, is 256MiB, less than the largest message or answer (512MiB), which could then never pass",
    ),
    (
        "[limits]\nmax_answer_bytes = \"8MiB\"\nmax_record_bytes = \"4MiB\"\n",
        "F:3:20: limits.max_record_bytes: socket.max_message_bytes, at its default, is 4MiB, too little for a record of limits.max_record_bytes (4MiB) and 4KiB around it",
    ),
    (
        "[retention]\naudit_logs = \"30d\"\n",
        "F:2:14: retention.audit_logs: archive.after, at its default, is 90d, longer than retention.audit_logs (30d): a month is archived before it goes",
    ),
    ("[audit]\nstreams = 0\n", "F:2:11: audit.streams: must be from 1 to 64, and is 0"),
    ("[audit]\nidempotency = \"0s\"\n", "F:2:15: audit.idempotency: must be from 1s to 1y, and is 0s"),
    ("[audit]\nmax_wait = \"0s\"\n", "F:2:12: audit.max_wait: must be from 1ms to 1h, and is 0s"),
    ("[socket]\nmode = \"0888\"\n", "F:2:8: socket.mode: must be octal permission bits, as in \"0660\""),
    (
        "[socket]\nmode = \"0060\"\n",
        "F:2:8: socket.mode: must let its owner read and write, as \"0660\" does",
    ),
    ("[socket]\npath = \"sidekeep.sock\"\n", "F:2:8: socket.path: must be an absolute path, from / on"),
    (
        "[deployment]\nname = \"Side Keep\"\n",
        "F:2:8: deployment.name: must be 1 to 64 of a-z, 0-9, full stop and hyphen",
    ),
    (
        "[log]\nlevel = \"inof\"\n",
        "F:2:9: log.level: must be one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"; did you mean \"info\"?",
    ),
    (
        "[log]\nlevel = true\n",
        "F:2:9: log.level: must be one of \"error\", \"warn\", \"info\", \"debug\", \"trace\", not true or false",
    ),
    ("log = \"info\"\n", "F:1:7: log: must be a table of keys, not text"),
    (
        "[keyring]\nkey_files = \"/k\"\n",
        "F:2:13: keyring.key_files: must be a list in square brackets, not text",
    ),
    (
        "[keyring]\nkey_files = [\"/k\", 7]\n",
        "F:2:20: keyring.key_files[1]: must be text in quotes, not a number",
    ),
    ("[keyring]\nkey_files = [\"/k\", \"/k\"]\n", "F:2:20: keyring.key_files[1]: is in the list already"),
    (
        "[keyring]\nkey_files = []\n",
        "F:2:13: keyring.key_files: must name a key; make one with `sidekeep keyring generate`",
    ),
    (
        "[keyring]\nkey_files = [\"credential:\"]\n",
        "F:2:14: keyring.key_files[0]: must be credential:NAME, where NAME is that of LoadCredential=",
    ),
    (
        "[keyring]\nrefuse_again = \"0s\"\n",
        "F:2:16: keyring.refuse_again: must be from 1s to 100y, and is 0s; leave it out for none",
    ),
    ("[erasure]\nconsents = \"forget\"\n", "F:2:12: erasure.consents: must be one of \"delete\", \"keep\""),
    (
        "[access]\nrequire_purpose = \"yes\"\n",
        "F:2:19: access.require_purpose: must be true or false, not text",
    ),
    (
        "[[access.rules]]\nrole = \"app\"\n",
        "F:1:1: access.rules[0]: names nobody; set user or group to a name or a number",
    ),
    (
        "[[access.rules]]\nuser = \"a\"\ngroup = 5\nrole = \"app\"\n",
        "F:1:1: access.rules[0]: has both user and group; write a rule for each",
    ),
    (
        "[[access.rules]]\nuser = \"a\"\n",
        "F:1:1: access.rules[0]: allows nothing; set role, or allow = [\"method.*\"]",
    ),
    (
        "[[access.rules]]\nuser = 5000000000\nrole = \"app\"\n",
        "F:2:8: access.rules[0].user: must be a name in quotes, or a number from 0 to 4294967295",
    ),
    (
        "[metrics]\nlisten = \"9464\"\n",
        "F:2:10: metrics.listen: must be an IP address and a port, as in \"127.0.0.1:9464\"",
    ),
    ("[metrics]\nlisten = 2026-11-20\n", "F:2:10: metrics.listen: must be text in quotes, not a date"),
    (
        "[jobs.chekpoint]\nenabled = true\n",
        "F:1:7: jobs.chekpoint: unknown key; did you mean jobs.checkpoint?",
    ),
    (
        "[jobs.verify]\nschedule = \"hourly\"\n",
        "F:2:12: jobs.verify.schedule: must be five fields of cron (minute, hour, day, month, weekday) or six with seconds first, as in \"30 2 * * *\"",
    ),
    (
        "[jobs.verify]\nschedule = \"61 * * * *\"\n",
        "F:2:12: jobs.verify.schedule: must be five fields of cron (minute, hour, day, month, weekday) or six with seconds first, as in \"30 2 * * *\": Component error: Number out of bounds.",
    ),
    (
        "[jobs.verify]\nschedule = \"0 0 30 2 *\"\n",
        "F:2:12: jobs.verify.schedule: names a day that never comes",
    ),
    (
        "[jobs.verify]\ntime_zone = \"Berlin\"\n",
        "F:2:13: jobs.verify.time_zone: must be the name of a time zone, as in \"UTC\" or \"Europe/Berlin\"",
    ),
    ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "F:3:1: is not TOML: duplicate key"),
    ("[log]\nlevel = info\n", "F:2:9: is not TOML: a value is text in quotes, a number, true or false"),
    ("[log\nlevel = \"info\"\n", "F:1:5: is not TOML: unclosed table, expected `]`"),
    ("# é\n[log]\n\"lével\" = 1\n", "F:3:1: log.\"lével\": unknown key; did you mean log.level?"),
    (
        "[log]\n\"a\\u001bb\" = 1\n",
        "F:2:1: log.\"a\\u{1b}b\": unknown key; the nearest known key is log.level; [log] has format, level",
    ),
];

#[test]
fn a_mistake_is_named_with_its_place_its_key_and_what_would_be_right() {
    for (text, expected) in BROKEN {
        // The database comes last, so that the lines before it keep their numbers.
        let text = format!("{text}{DATABASE}");
        assert_eq!(
            said(&text, &Environment::default()).map(|_| ()),
            Err(vec![(*expected).to_owned()]),
            "{text}"
        );
    }
}

#[test]
fn no_number_size_or_length_of_time_is_without_bounds() {
    let said = |key: &str, value: &str| {
        let text = format!("{key} = {value}\n{DATABASE}");
        said(&text, &Environment::default()).map_or_else(|lines| lines.concat(), |_| String::new())
    };
    let greatest = [
        ("must be a whole number", "9223372036854775807"),
        ("must be a size", "\"1000000TiB\""),
        ("must be a length of time", "\"99999999999d\""),
    ];
    let mut bounded = 0;
    for key in keys::ROOT.leaves().into_iter().filter(|key| !key.contains("[]")) {
        // What a key takes is what it says of a word that is none.
        let wanted = said(&key, "\"soon\"");
        let Some((_, greatest)) = greatest.iter().find(|(kind, _)| wanted.contains(kind)) else { continue };
        bounded += 1;
        let refused = said(&key, greatest);
        assert!(refused.contains(&format!(": {key}: must be from ")), "{key} = {greatest}: {refused:?}");
    }
    assert!(bounded > 25, "{bounded} keys were tried");
}
