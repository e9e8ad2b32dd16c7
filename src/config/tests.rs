//! Configurations as operators write them, right and wrong: what is said, and where.
#![expect(clippy::disallowed_methods, reason = "the tests need no power-safe files")]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::environment::Environment;
use super::load::{load_with, socket_path_with};
use super::{ConfigError, Loaded, LogLevel, NameOrId, Origin, Tls, migrate_url, source};

mod mistakes;

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
