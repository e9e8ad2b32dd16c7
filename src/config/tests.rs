//! Configurations as operators write them, right and wrong: what is said, and where.
#![expect(clippy::disallowed_methods, reason = "the tests need no power-safe files")]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::environment::Environment;
use super::load::{load_with, socket_path_with};
use super::{ConfigError, Loaded, LogLevel, NameOrId, Origin, Tls, migrate_url, source};

/// What every configuration must say.
const DATABASE: &str = "[database]\nurl = \"postgresql://a@localhost/x\"\n";

fn directory(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sidekeep.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn variables(of: &[(&str, &str)]) -> Environment {
    let overrides = of.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(*value))).collect();
    Environment { file: None, overrides }
}

/// Loads `text` as the one file; what is said has the file as `F`.
fn said(text: &str, environment: &Environment) -> Result<Loaded, Vec<String>> {
    let (_dir, path) = directory(text);
    load_with(Some(&path), environment).map_err(|error| lines(&error, &path))
}

fn lines(error: &ConfigError, path: &Path) -> Vec<String> {
    error.to_string().lines().map(|line| line.replace(&*path.to_string_lossy(), "F")).collect()
}

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
        "F:1:1: limits.calls_per_connection: is 64, more than limits.calls (10) allows over all connections",
    ),
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

/// A URL that is refused, and what the message says.
const URLS: &[(&str, &str)] = &[
    ("postgresql://a:hunter2@localhost/x", "holds a password; put the whole URL into a file"),
    ("postgresql://a@localhost/x?password=hunter2", "holds a password; put the whole URL into a file"),
    ("postgresql://a@db/x?sslmode=disable", "in clear"),
    ("postgresql://a@db/x?sslmode=prefer", "sslmode=verify-full"),
    ("postgresql://a@db/x?sslmode=verify-full&sslrootcert=/ca.pem", "database.ca_file"),
    ("postgresql://a@db/x?service=x", "service is not taken from a URL"),
    ("host=db user=a", "must be a URL"),
    ("postgresql:///x", "names no host"),
];

#[test]
fn a_database_url_is_checked_and_never_shown() {
    for (url, expected) in URLS {
        let error = said(&format!("[database]\nurl = \"{url}\"\n"), &Environment::default()).unwrap_err();
        let [line] = error.as_slice() else { panic!("{error:?}") };
        assert!(line.starts_with("F:2:7: database.url: ") && line.contains(expected), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    let error = said("", &Environment::default()).unwrap_err();
    assert!(error.concat().starts_with("F:1:1: database.url: no database is configured"), "{error:?}");
    let error = said("[database]\npool = 1\n", &Environment::default()).unwrap_err();
    assert!(error.concat().starts_with("F:1:1: database.url: no database is configured"), "{error:?}");
    let error = said("[databse]\nurl = \"x\"\n", &Environment::default()).unwrap_err();
    assert_eq!(error, ["F:1:2: databse: unknown key; did you mean database?"]);
    let error = said(&format!("{DATABASE}url_file = \"/x\"\n"), &Environment::default()).unwrap_err();
    assert!(error.concat().starts_with("F:3:12: database.url_file: database.url is set too"), "{error:?}");
}

#[test]
fn sslmode_in_a_url_sets_tls_where_nothing_else_does() {
    let local = "[database]\nurl = \"postgresql://a@localhost/x?sslmode=disable\"\n";
    let loaded = said(local, &Environment::default()).unwrap();
    assert_eq!(loaded.config.database.tls, Tls::Off);
    assert_eq!(loaded.origin.get("database.tls"), loaded.origin.get("database.url"));
    assert!(super::database_url(&loaded.config).unwrap().ends_with("sslmode=disable"));
    let error = said(&format!("{local}tls = \"verify-full\"\n"), &Environment::default()).unwrap_err();
    assert!(error.concat().contains("contradicts database.tls"), "{error:?}");
}

#[test]
fn everything_wrong_is_said_at_once_in_the_order_of_the_files() {
    let text = "[limits]\ncalls = \"x\"\nbatch = 3\n[socket]\npath = \"a\"\n[databse]\n";
    let (dir, path) = directory(text);
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(dir.path().join("conf.d/10.toml"), "[log]\nlevel = 1\nformat = \n[log]\nx = 1").unwrap();
    let error = load_with(Some(&path), &variables(&[("SIDEKEEP__LOG__FORMAT", "x")])).unwrap_err();
    let said: Vec<_> = lines(&error, &path)
        .iter()
        .map(|line| {
            let line = line.replace(&*dir.path().to_string_lossy(), "D");
            line.split(": ").take(2).collect::<Vec<_>>().join(" ")
        })
        .collect();
    assert_eq!(
        said,
        [
            "F:2:9 limits.calls",
            "F:3:1 limits.batch",
            "F:6:2 databse",
            "D/conf.d/10.toml:2:9 log.level",
            "D/conf.d/10.toml:3:10 is not TOML",
            "D/conf.d/10.toml:4:2 is not TOML",
            "environment variable SIDEKEEP__LOG__FORMAT log.format",
            "F:5:8 socket.path",
        ]
    );
}

#[test]
fn conf_d_is_read_in_name_order_and_variables_come_last() {
    let (dir, path) = directory(&format!(
        "[log]\nlevel = \"error\"\n[limits]\ncalls = 100\n[access]\npurposes = [\"a\", \"b\"]\n{DATABASE}"
    ));
    let conf_d = dir.path().join("conf.d");
    std::fs::create_dir(&conf_d).unwrap();
    let fragments = [
        ("20.toml", "log.level = \"debug\"\naccess.purposes = [\"c\"]"),
        ("10.toml", "log.level = \"warn\"\nlimits.max_batch = 5"),
        (".30.toml", "log.level = \"trace\""),
        ("40.toml~", "log.level = \"trace\""),
    ];
    for (name, text) in fragments {
        std::fs::write(conf_d.join(name), text).unwrap();
    }
    let loaded = load_with(Some(&path), &variables(&[("SIDEKEEP__LIMITS__MAX_BATCH", "7")])).unwrap();
    assert_eq!(loaded.sources, [path.clone(), conf_d.join("10.toml"), conf_d.join("20.toml")]);
    assert_eq!((loaded.config.log.level, loaded.config.limits.max_batch), (LogLevel::Debug, 7));
    assert_eq!(
        (loaded.config.limits.calls, loaded.config.access.purposes.as_slice()),
        (100, &["c".into()][..])
    );
    let settings = loaded.settings();
    let origin = |key: &str| settings.iter().find(|setting| setting.key == key).unwrap().origin.to_string();
    assert_eq!(origin("log.level"), format!("{}:1:13", conf_d.join("20.toml").display()));
    assert_eq!(origin("limits.calls"), format!("{}:4:9", path.display()));
    assert_eq!(origin("limits.max_batch"), "environment variable SIDEKEEP__LIMITS__MAX_BATCH");
    assert_eq!(origin("socket.mode"), "default");
    assert!(!loaded.origin.contains_key("access.purposes[1]"));
    let value = |key: &str| settings.iter().find(|setting| setting.key == key).unwrap().value.clone();
    assert_eq!(value("socket.mode").as_deref(), Some("\"0660\""));
    assert_eq!(value("database.url_file"), None);
}

#[test]
fn a_variable_is_read_as_what_its_key_takes() {
    let loaded = said(
        "",
        &variables(&[
            ("SIDEKEEP__ACCESS__PURPOSES", "billing, support"),
            ("SIDEKEEP__ACCESS__REQUIRE_PURPOSE", "true"),
            ("SIDEKEEP__ACCESS__RULES", "[{ user = 7, role = \"app\" }]"),
            ("SIDEKEEP__DATABASE__POOL", " 3 "),
            ("SIDEKEEP__DATABASE__URL", "postgresql://a@localhost/x"),
            ("SIDEKEEP__DEPLOYMENT__NAME", "7"),
            ("SIDEKEEP__KEYRING__KEY_FILES", "[\"/a\", \"/b,c\"]"),
        ]),
    )
    .unwrap()
    .config;
    assert_eq!(loaded.access.purposes, ["billing", "support"]);
    assert_eq!(loaded.access.rules[0].user, Some(NameOrId::Id(7)));
    assert_eq!((loaded.access.require_purpose, loaded.database.pool), (true, 3));
    assert_eq!((loaded.deployment.name.as_str(), loaded.keyring.key_files.len()), ("7", 2));
}

#[test]
fn a_wrong_variable_is_named() {
    let cases = [
        ("SIDEKEEP__LIMITS__CALS", "1", "limits.cals: unknown key; did you mean limits.calls?"),
        ("SIDEKEEP__LIMITS__CALLS", "many", "limits.calls: must be a whole number, not text"),
        ("SIDEKEEP__LIMITS__CALLS", "1\nx = 2", "limits.calls: must be a whole number, not text"),
        (
            "SIDEKEEP__ACCESS__REQUIRE_PURPOSE",
            "yes",
            "access.require_purpose: must be true or false, not text",
        ),
        ("SIDEKEEP__LOG", "debug", "log: must be a table of keys, not text"),
        ("SIDEKEEP__ACCESS__PURPOSES", "[\"a\"", "access.purposes: must be a list, as in"),
        ("SIDEKEEP__KEYRING__KEY_FILES", "a", "keyring.key_files[0]: must be an absolute path"),
        ("SIDEKEEP__", "a", "\"\": unknown key; "),
    ];
    for (name, value, expected) in cases {
        let error = said(DATABASE, &variables(&[(name, value)])).unwrap_err();
        let expected = format!("environment variable {name}: {expected}");
        assert!(error.len() == 1 && error[0].starts_with(&expected), "{error:?} is not {expected}");
    }
    let binary = ("SIDEKEEP__LOG__LEVEL".to_owned(), OsString::from_vec(vec![0xff]));
    let error = said(DATABASE, &Environment { file: None, overrides: vec![binary] }).unwrap_err();
    assert_eq!(error, ["environment variable SIDEKEEP__LOG__LEVEL: log.level: must be UTF-8"]);
}

#[test]
fn a_file_that_cannot_be_used_says_why_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let cases = [
        (dir.path().join("none"), "F: there is no such file; `sidekeep setup` writes one"),
        (dir.path().to_owned(), "F: is a directory"),
        (put("latin1", b"[log]\n# caf\xe9\n"), "F:2:6: is not UTF-8"),
        (put("large", &[b'#'; 1024 * 1024 + 1]), "F: is over 1 MiB"),
        (put("nul", b"[log]\n\0"), "F:2:1: is not TOML"),
    ];
    for (path, expected) in cases {
        let chosen = Environment { file: Some(path.clone().into()), overrides: Vec::new() };
        for loaded in [load_with(Some(&path), &Environment::default()), load_with(None, &chosen)] {
            let error = lines(&loaded.unwrap_err(), &path);
            assert!(error.len() == 1 && error[0].starts_with(expected), "{error:?} is not {expected}");
        }
    }
}

#[test]
fn a_client_finds_the_socket_whatever_else_is_wrong() {
    let elsewhere = variables(&[("SIDEKEEP__SOCKET__PATH", "/run/other")]);
    let none = Environment::default();
    let cases = [
        ("", &none, "/run/sidekeep/sidekeep.sock"),
        ("[socket]\npath = \"/run/x\"\n[limits]\nmax_batch = 0\nnonsense = 1\n", &none, "/run/x"),
        ("[socket]\npath = \"/run/x\"\n", &elsewhere, "/run/other"),
    ];
    for (text, environment, expected) in cases {
        let (_dir, path) = directory(text);
        assert_eq!(socket_path_with(Some(&path), environment).unwrap(), Path::new(expected), "{text}");
    }
    // Where it cannot be told, another deployment's daemon might be meant.
    for text in [
        "[socket]\npth = \"/run/x\"\n",
        "[socket]\npath = 1\n",
        "[socket\npath = \"/run/x\"\n",
        "socket = 1\n",
    ] {
        let (_dir, path) = directory(text);
        assert!(socket_path_with(Some(&path), &none).is_err(), "{text}");
    }
    let missing = socket_path_with(Some(Path::new("/nonexistent/sidekeep.toml")), &none);
    assert!(missing.unwrap_err().to_string().contains("there is no such file"));
}

#[test]
fn only_a_missing_database_is_left_to_setup() {
    for (text, lacking) in [
        ("", true),
        ("[log]\nlevel = \"warn\"\n", true),
        ("[log]\nlevel = 1\n", false),
        ("[database]\nurl = \"x\"\n", false),
    ] {
        let (_dir, path) = directory(text);
        let error = load_with(Some(&path), &Environment::default()).unwrap_err();
        assert_eq!(error.lacks_only_a_database(), lacking, "{text}");
    }
}

#[test]
fn the_owners_url_is_the_daemons_unless_it_has_its_own() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, path) = directory(DATABASE);
    let mut config = load_with(Some(&path), &Environment::default()).unwrap().config;
    assert_eq!(*migrate_url(&config).unwrap(), "postgresql://a@localhost/x?sslmode=require");
    let file = dir.path().join("owner");
    std::fs::write(&file, "postgresql://o:hunter2@localhost/x\n").unwrap();
    config.database.migrate_url_file = Some(super::SecretFile::new(file.to_string_lossy()));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(migrate_url(&config).unwrap_err().to_string().contains("chmod 0640"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(*migrate_url(&config).unwrap(), "postgresql://o:hunter2@localhost/x?sslmode=require");
    std::fs::write(&file, "postgresql://o:hunter2@localhost:x/x\n").unwrap();
    let error = migrate_url(&config).unwrap_err().to_string();
    assert!(error.starts_with("database.migrate_url_file: ") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_job_keeps_its_own_defaults_for_what_is_not_said() {
    let text =
        format!("jobs.verify.time_zone = \"Europe/Berlin\"\njobs.checkpoint.enabled = false\n{DATABASE}");
    let jobs = said(&text, &variables(&[("SIDEKEEP__JOBS__PARTITIONS__SCHEDULE", "0 30 4 * * 0")]))
        .unwrap()
        .config
        .jobs;
    let shown = |job: &super::Job| format!("{} {} {}", job.schedule, job.enabled, job.time_zone);
    assert_eq!(shown(&jobs.verify), "0 * * * * true Europe/Berlin");
    assert_eq!(shown(&jobs.checkpoint), "* * * * * false UTC");
    assert_eq!(shown(&jobs.partitions), "0 30 4 * * 0 true UTC");
}

#[test]
fn an_origin_is_shown_as_an_operator_can_use_it() {
    assert_eq!(Origin::Variable("X".into()).to_string(), "environment variable X");
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in r#"(\[{0,2}(limits|access\.rules|database|x)\]{0,2}|[a-z_.]{1,12}|"| = |\n|[0-9{}\[\],#'é-]|true|.){0,60}"#) {
        let parsed = source::parse(Path::new("F"), &text);
        for problem in &parsed.checked.problems {
            prop_assert!(!problem.message.is_empty());
        }
        prop_assert!(!parsed.partial || !parsed.checked.problems.is_empty());
    }

    #[test]
    fn no_url_makes_it_panic(text in r"postgresql://[a-z:@/?&=%\[\],.é]{0,40}") {
        let config = said(&format!("[database]\nurl = '{text}'\n"), &Environment::default());
        prop_assert!(config.is_ok() || config.is_err_and(|error| error.len() == 1));
    }

    #[test]
    fn a_length_of_time_is_read_back_as_it_is_shown(nanos in 0u64..u64::MAX) {
        let period: super::Period = format!("{nanos}ns").parse().map_err(TestCaseError::fail)?;
        prop_assert_eq!(period.to_string().parse(), Ok(period));
    }
}
