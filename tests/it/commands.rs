//! The commands, from outside: what they print and how they end.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::discover;
use crate::support::{Cluster, Daemon, World, sidekeep};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command that finds this daemon by its configuration.
fn with(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut all = vec!["--config", daemon.config.to_str().unwrap()];
    all.extend(arguments);
    sidekeep(&all)
}

fn with_input(daemon: &Daemon, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidekeep"))
        .args(["--config", daemon.config.to_str().unwrap()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn call_prints_the_result_as_it_came() {
    let world = World::new();
    let daemon = world.start();
    let params =
        r#"{"user_id":"u","username":"u","email":"e","metadata":{"n":1.50,"big":12345678901234567890123}}"#;
    let done = with(&daemon, &["call", "profile.create", params]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let printed = text(&done.stdout);
    assert!(printed.ends_with("}\n") && printed.lines().count() == 1, "{printed}");
    assert!(printed.contains(r#""metadata":{"n":1.50,"big":12345678901234567890123}"#), "{printed}");
    assert!(done.stderr.is_empty());

    let read = with_input(&daemon, &["call", "profile.get", "-"], b"{\"user_id\":\n \"u\"}\n");
    assert_eq!((read.status.code(), text(&read.stdout)), (Some(0), printed));
    assert_eq!(with(&daemon, &["call", "system.health"]).status.code(), Some(0));
    let by_socket = sidekeep(&["call", "system.health", "--socket", daemon.socket.to_str().unwrap()]);
    assert_eq!(by_socket.status.code(), Some(0), "{by_socket:?}");

    let refused = with(&daemon, &["call", "profile.get", r#"{"user_id":"nobody"}"#]);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    assert!(text(&refused.stderr).contains("not_found"), "{refused:?}");
    let refused = with(&daemon, &["--json", "call", "profile.get", r#"{"user_id":"nobody"}"#]);
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((refused.status.code(), &told["error"]["data"]["kind"]), (Some(1), &json!("not_found")));
    let to_dash = with(&daemon, &["export", "u", "--out", "-"]);
    assert_eq!(to_dash.status.code(), Some(2), "{to_dash:?}");
    assert_eq!(with(&daemon, &["subject", "erase", "u", "--reason", "bored"]).status.code(), Some(2));
    let wrong = with(&daemon, &["call", "profile.get", r#"{"user_id":5}"#]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("user_id"), "{wrong:?}");
    assert_eq!(with(&daemon, &["call", "no.such.method"]).status.code(), Some(1));
    for bad in ["[1]", "5", "nonsense", "{\"a\":1", "", "{} {}"] {
        let refused = with(&daemon, &["call", "profile.get", bad]);
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0), "{bad}: {refused:?}");
    }
    assert_eq!(with_input(&daemon, &["call", "profile.get", "-"], b"\xff").status.code(), Some(2));
    for usage in
        [&["call"][..], &["call", "a", "{}", "more"], &["cal"], &["call", "--timeout", "soon", "a"], &[]]
    {
        assert_eq!(with(&daemon, usage).status.code(), Some(2), "{usage:?}");
    }
}

#[test]
fn who_is_not_reached_is_not_reached() {
    let world = World::new();
    let (file, socket) = world.configure("");
    let config = ["--config", file.to_str().unwrap()];
    let run = |arguments: &[&str]| sidekeep(&[&config[..], arguments].concat());
    for command in [
        &["call", "system.health"][..],
        &["status"],
        &["health"],
        &["health", "--live"],
        &["health", "--ready"],
    ] {
        let done = run(command);
        assert_eq!(done.status.code(), Some(2), "{command:?}: {done:?}");
        assert!(text(&done.stderr).contains("not reached"), "{done:?}");
    }
    // A daemon that is frozen takes the connection and says nothing.
    let _frozen = UnixListener::bind(&socket).unwrap();
    let done = run(&["health", "--live", "--timeout", "200ms"]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(text(&done.stderr).contains("200ms"), "{done:?}");
}

#[test]
fn health_and_status_are_for_people_and_probes() {
    let world = World::new();
    let daemon = world.start();
    let code = |output: &Output| output.status.code();
    let live = with(&daemon, &["health", "--live"]);
    assert_eq!((code(&live), text(&live.stdout).as_str()), (Some(0), "live\n"));
    let ready = with(&daemon, &["health", "--ready"]);
    assert_eq!((code(&ready), text(&ready.stdout).as_str()), (Some(0), "ok\n"));
    let shown = with(&daemon, &["health"]);
    assert!(code(&shown) == Some(0) && text(&shown.stdout).contains("database"), "{shown:?}");
    let machine: Value = serde_json::from_slice(&with(&daemon, &["--json", "health"]).stdout).unwrap();
    assert_eq!(machine["status"], "ok");
    let machine: Value = serde_json::from_slice(&with(&daemon, &["status", "--json"]).stdout).unwrap();
    assert_eq!(machine["version"], env!("CARGO_PKG_VERSION"));
    let shown = text(&with(&daemon, &["status"]).stdout);
    assert!(shown.contains("version") && shown.contains("uptime"), "{shown}");

    let away = world.spawn("database.url = \"postgresql://sidekeep_app@/none?host=/nonexistent\"\n");
    away.wait_listening();
    let ready = with(&away, &["health", "--ready"]);
    assert_eq!((code(&ready), text(&ready.stdout).as_str()), (Some(1), "unavailable\n"));
    assert_eq!(code(&with(&away, &["health", "--live"])), Some(0), "liveness never depends on PostgreSQL");
    let shown = with(&away, &["health"]);
    assert!(code(&shown) == Some(1) && text(&shown.stdout).contains("PostgreSQL"), "{shown:?}");
}

/// A file with one mistake, where it is, and what the message must name.
const BROKEN: [(&str, &str, &str); 26] = [
    ("[socket]\npaht = \"/x\"\n", ":2:1", "path"),
    ("[sockets]\npath = \"/x\"\n", ":1:2", "socket"),
    ("[limits]\ncalls = \"many\"\n", ":2:9", "limits.calls"),
    ("[limits]\ncalls = -1\n", ":2:9", "limits.calls"),
    ("[limits]\ncalls = 0\n", ":2:9", "limits.calls"),
    ("[limits]\ncall_timeout = \"30\"\n", ":2:16", "limits.call_timeout"),
    ("[limits]\ncall_timeout = 30\n", ":2:16", "limits.call_timeout"),
    ("[limits]\nmax_record_bytes = \"1 potato\"\n", ":2:20", "limits.max_record_bytes"),
    ("[limits]\nmax_record_bytes = \"1GiB\"\n", ":2:20", "limits.max_record_bytes"),
    ("[socket]\nmode = \"0999\"\n", ":2:8", "socket.mode"),
    ("[socket]\nmode = 660\n", ":2:8", "socket.mode"),
    ("[socket]\npath = \"relative.sock\"\n", ":2:8", "socket.path"),
    ("[deployment]\nname = \"Not Allowed\"\n", ":2:8", "deployment.name"),
    ("[database]\nurl = \"postgresql://u:secret@localhost/x\"\n", ":2:7", "url_file"),
    ("[database]\nurl = \"postgresql://u@db.example/x?sslmode=prefer\"\n", ":2:7", "sslmode"),
    ("[database]\nurl = \"mysql://u@localhost/x\"\n", ":2:7", "database.url"),
    ("[database]\nurl = \"postgresql://u@db.example/x\"\ntls = \"off\"\n", ":2:7", "tls"),
    ("[database]\ntls = \"prefer\"\n", ":2:7", "database.tls"),
    (
        "[database]\nurl = \"postgresql://u@/x?host=/run\"\nreplica_url = \"postgresql://u:secret@localhost/x\"\n",
        ":3:15",
        "database.replica_url",
    ),
    ("[backup]\ndrill_url = \"postgresql://u:secret@localhost/x\"\n", ":2:13", "backup.drill_url"),
    ("[log]\nlevel = \"loud\"\n", ":2:9", "log.level"),
    ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", ":3:1", "duplicate"),
    ("[[access.rules]]\nrole = \"app\"\n", ":1:1", "access.rules[0]"),
    ("[[access.rules]]\nuser = \"root\"\nrole = \"king\"\n", ":3:8", "access.rules[0].role"),
    ("[metrics]\nlisten = \"everywhere\"\n", ":2:10", "metrics.listen"),
    ("[socket\n", ":1:8", ""),
];

#[test]
fn config_check_names_file_line_column_and_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sidekeep.toml");
    let check = |file: &Path| sidekeep(&["--config", file.to_str().unwrap(), "config", "check"]);
    for (wrong, place, named) in BROKEN {
        let url = "[database]\nurl = \"postgresql://u@/x?host=/run/postgresql\"\n";
        let content = if wrong.contains("[database]") { wrong.to_owned() } else { format!("{wrong}{url}") };
        std::fs::write(&file, content).unwrap();
        let refused = check(&file);
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(78), 0), "{wrong}: {refused:?}");
        let said = text(&refused.stderr);
        let place = format!("{}{place}", file.display());
        assert!(said.contains(&place), "{wrong}: {place} is not in {said}");
        assert!(said.contains(named), "{wrong}: {named} is not in {said}");
        assert!(!said.contains("secret"), "{said}");
        let serve = sidekeep(&["--config", file.to_str().unwrap(), "serve"]);
        assert_eq!(serve.status.code(), Some(78), "{wrong}: {serve:?}");
    }
    let missing = check(&directory.path().join("none.toml"));
    assert_eq!(missing.status.code(), Some(78), "{missing:?}");

    std::fs::write(&file, "[database]\nurl = \"postgresql://u@/x?host=/run/postgresql\"\n").unwrap();
    assert_eq!(check(&file).status.code(), Some(0));
    std::fs::create_dir(directory.path().join("conf.d")).unwrap();
    let part = directory.path().join("conf.d/10-part.toml");
    std::fs::write(&part, "\n[limits]\ncals = 1\n").unwrap();
    let said = text(&check(&file).stderr);
    assert!(said.contains(&format!("{}:3:1", part.display())) && said.contains("calls"), "{said}");
    std::fs::remove_file(&part).unwrap();
    let environment = Command::new(env!("CARGO_BIN_EXE_sidekeep"))
        .args(["--config", file.to_str().unwrap(), "config", "check"])
        .env("SIDEKEEP__LIMITS__CALS", "7")
        .output()
        .unwrap();
    assert_eq!(environment.status.code(), Some(78));
    assert!(text(&environment.stderr).contains("SIDEKEEP__LIMITS__CALS"), "{environment:?}");
}

#[test]
fn what_a_host_lacks_is_told_by_config_check_and_ends_serve_with_its_place() {
    let world = World::new();
    let run = |file: &Path, arguments: &[&str]| {
        sidekeep(&[&["--config", file.to_str().unwrap()], arguments].concat())
    };
    for (more, place, named) in [
        ("keyring.key_files = [\"/nonexistent/kek\"]\n", ":7:21", "keyring generate"),
        ("signing.key_files = [\"/nonexistent/signing\"]\n", ":7:21", "signing generate"),
        ("socket.group = \"no-such-group\"\n", ":7:16", "groupadd"),
        ("[[access.rules]]\nuser = \"no-such-user\"\nrole = \"app\"\n", ":8:1", "no-such-user"),
    ] {
        let (file, _) = world.configure(more);
        let place = format!("{}{place}", file.display());
        let key = more.split(' ').next().unwrap().trim_start_matches('[').split(']').next().unwrap();
        let check = run(&file, &["config", "check"]);
        let said = text(&check.stderr);
        assert_eq!(check.status.code(), Some(0), "{said}");
        assert!(said.contains(&place) && said.contains(key) && said.contains(named), "{said}");
        let lacking: Value =
            serde_json::from_slice(&run(&file, &["--json", "config", "check"]).stdout).unwrap();
        assert!(lacking["lacking"][0].as_str().unwrap().contains(named), "{lacking}");
        let serve = run(&file, &["serve"]);
        let said = text(&serve.stderr);
        assert_eq!(serve.status.code(), Some(78), "{said}");
        assert!(said.contains(&place) && said.contains(key) && said.contains(named), "{said}");
    }
    // What stands for no method does so on every host.
    let (file, _) = world.configure("[[access.rules]]\nuser = 1\nallow = [\"profil.*\"]\n");
    for command in [&["config", "check"][..], &["serve"]] {
        let refused = run(&file, command);
        assert_eq!(refused.status.code(), Some(78), "{refused:?}");
        assert!(text(&refused.stderr).contains(":10:9: access.rules[0].allow: \"profil.*\""), "{refused:?}");
    }
}

#[test]
fn json_is_given_wherever_it_is_asked_for() {
    let world = World::new();
    let daemon = world.start();
    let kek = daemon.config.with_extension("kek");
    let signing = daemon.config.with_extension("signing");
    for (arguments, member) in [
        (&["health", "--live"][..], "live"),
        (&["health", "--ready"], "status"),
        (&["signing", "public-key"], "keys"),
        (&["keyring", "generate", "--out", kek.to_str().unwrap()], "file"),
        (&["signing", "generate", "--out", signing.to_str().unwrap()], "file"),
        (&["config", "check"], "ok"),
        (&["migrate", "--check"], "pending"),
        (&["data-map"], "tables"),
        (&["verify"], "verdict"),
        (&["keyring", "status"], "active"),
        (&["request", "list"], "items"),
        (&["subject", "holds"], "items"),
        (&["backup", "list"], "items"),
    ] {
        let done = with(&daemon, &[&["--json"], arguments].concat());
        let told: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
        assert!(done.status.success() && told.get(member).is_some(), "{arguments:?}: {told}");
    }
}

#[test]
fn setup_tells_what_it_made_and_kept_as_json_too() {
    let cluster = Cluster::own(&[]);
    let dir = tempfile::tempdir().unwrap();
    let (admin, prefix) = (dir.path().join("admin-url"), dir.path().join("root"));
    std::fs::write(&admin, cluster.owner_url("postgres")).unwrap();
    std::fs::set_permissions(&admin, std::fs::Permissions::from_mode(0o600)).unwrap();
    let setup = |json: &[&str]| {
        let (admin, prefix) = (admin.to_str().unwrap(), prefix.to_str().unwrap());
        sidekeep(&[json, &["setup", "--admin-url-file", admin, "--prefix", prefix]].concat())
    };
    let first = setup(&["--json"]);
    let told = only(&first);
    assert!(first.status.success() && told["changed"] == json!(true), "{first:?}");
    // The role of the daemon is there already, in the clusters of the tests.
    let steps = |told: &Value, made: bool| -> Vec<String> {
        let steps = told["steps"].as_array().unwrap().iter();
        steps.filter(|step| step["made"] == made).map(|step| step["what"].as_str().unwrap().into()).collect()
    };
    assert_eq!(steps(&told, false), ["role sidekeep_app"]);
    let made = steps(&told, true);
    assert_eq!(made[..2], ["role sidekeep_owner", "database sidekeep"]);
    assert!(told["next"].as_array().unwrap().iter().any(|next| next.to_string().contains("systemctl")));
    let again = only(&setup(&["--json"]));
    assert_eq!((&again["changed"], steps(&again, true).len()), (&json!(false), 0), "{again}");
    assert_eq!(steps(&again, false).len(), made.len() + 1, "{again}");
    // People are told the same.
    let plain = text(&setup(&[]).stdout);
    assert!(plain.starts_with("kept  role sidekeep_owner\nkept  role sidekeep_app\n"), "{plain}");
    assert!(plain.contains("nothing was changed"), "{plain}");
}

/// What a command prints that was asked for JSON: one value, and nothing else.
fn only(done: &Output) -> Value {
    serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

#[test]
fn an_error_is_one_json_object_where_json_is_asked_for() {
    // No daemon, no database, and nothing of what is named.
    let mut world = World::new();
    let none = world.path("none").display().to_string();
    world.app_url = format!("postgresql://sidekeep_app@/none?host={none}");
    let (file, _) = world.configure(&format!("backup.destination = \"file://{none}\"\n"));
    let bare = world.path("bare.toml");
    std::fs::write(&bare, "database.pol = 3\n").unwrap();
    let (file, bare) = (file.to_str().unwrap(), bare.to_str().unwrap());
    let archive = format!("file://{none}");
    let mut others = Vec::new();
    for (config, arguments, code) in [
        (file, &["call", "system.health"][..], 2),
        (file, &["call", "profile.get", "[1]"], 2),
        (file, &["call"], 2),
        (file, &["no-such-command"], 2),
        (file, &["--no-such-option", "status"], 2),
        (file, &["health"], 2),
        (file, &["health", "--live"], 2),
        (file, &["status"], 2),
        (file, &["subject", "status", "u"], 2),
        (file, &["subject", "erase", "u", "--reason", "no such reason"], 2),
        (file, &["subject", "holds"], 2),
        (file, &["subject", "accesses", "u"], 2),
        (file, &["subject", "find", "--email", "e"], 2),
        (file, &["request", "list"], 2),
        (file, &["backup"], 2),
        (file, &["backup", "list"], 2),
        (file, &["backup", "verify", "20200101T000000Z-00000000"], 1),
        (file, &["backup", "verify", "20200101T000000Z-00000000", "--identity", &none], 2),
        (file, &["restore", &none, "--into", "postgresql://u@/none"], 2),
        (file, &["restore", &none], 2),
        (file, &["recover"], 1),
        (file, &["keyring", "status"], 2),
        (file, &["keyring", "rotate"], 2),
        (file, &["keyring", "generate", "--out", file], 2),
        (file, &["signing", "generate", "--out", file], 2),
        (file, &["certificate", "verify", &none], 2),
        (file, &["data-map"], 2),
        (file, &["export", "u", "--out", &none, "--purpose", "p"], 2),
        (file, &["migrate"], 2),
        (file, &["migrate", "--check"], 2),
        (file, &["verify", "--full"], 2),
        (file, &["verify", "--archive", &archive], 2),
        (file, &["verify", "--proof", &none, "--key", &none], 2),
        (bare, &["config", "check"], 78),
        (bare, &["config", "show"], 78),
        (bare, &["verify"], 78),
        (&none, &["signing", "public-key"], 78),
        (&none, &["backup", "verify", "x"], 78),
    ] {
        let done = sidekeep(&[&["--config", config, "--json"], arguments].concat());
        let told = only(&done);
        let message = told["error"]["message"].as_str().unwrap_or_else(|| panic!("{arguments:?}: {told}"));
        assert!(!message.is_empty() && !message.starts_with("error:"), "{arguments:?}: {told}");
        if (done.status.code(), &told["error"]["exit_code"]) != (Some(code), &json!(code)) {
            others.push(format!("{arguments:?}: {code}: {told}"));
            continue;
        }
        // For people the same is told beside it.
        let words = message.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        assert!(text(&done.stderr).contains(&words), "{arguments:?}: {words:?}: {done:?}");
        // Whoever has not asked for it gets none.
        let plain = sidekeep(&[&["--config", config], arguments].concat());
        assert_eq!((plain.status.code(), plain.stdout.len()), (Some(code), 0), "{arguments:?}: {plain:?}");
    }
    assert!(others.is_empty(), "{others:#?}");
    // What has told its findings already tells them once.
    let done = sidekeep(&["--config", file, "--json", "doctor"]);
    assert_eq!((done.status.code(), &only(&done)["status"]), (Some(2), &json!("fail")));
    // Help is no error.
    let help = sidekeep(&["--json", "--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Usage"), "{help:?}");
}

#[test]
fn config_show_says_what_is_in_force() {
    let world = World::new();
    let (file, socket) = world.configure("limits.calls = 77\n");
    let run = |arguments: &[&str]| sidekeep(&[&["--config", file.to_str().unwrap()], arguments].concat());
    let shown = text(&run(&["config", "show"]).stdout);
    let line = |key: &str| {
        shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {shown}"))
    };
    assert!(line("limits.calls = 77").contains(file.to_str().unwrap()), "{shown}");
    assert!(line("limits.max_batch = 1000").contains("default"), "{shown}");
    assert!(line("socket.path").contains(socket.to_str().unwrap()), "{shown}");
    let machine: Value = serde_json::from_slice(&run(&["--json", "config", "show"]).stdout).unwrap();
    assert_eq!((&machine["limits"]["calls"], &machine["limits"]["max_batch"]), (&json!(77), &json!(1000)));
    let checked: Value = serde_json::from_slice(&run(&["--json", "config", "check"]).stdout).unwrap();
    assert_eq!(checked["ok"], true);
}

#[test]
fn a_key_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("kek");
    let generate = || sidekeep(&["keyring", "generate", "--out", path.to_str().unwrap()]);
    let first = generate();
    assert_eq!(first.status.code(), Some(0));
    assert!(text(&first.stderr).contains("Losing it loses everything"), "{first:?}");
    let key = std::fs::read(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = generate();
    assert_eq!(second.status.code(), Some(2), "{second:?}");
    assert_eq!(std::fs::read(&path).unwrap(), key);
    let printed = sidekeep(&["keyring", "generate"]);
    assert_eq!(printed.status.code(), Some(0));
    assert!(!printed.stdout.is_empty() && printed.stdout != sidekeep(&["keyring", "generate"]).stdout);
}

#[test]
fn what_is_printed_for_packages_is_right() {
    for shell in ["bash", "zsh", "fish"] {
        let done = sidekeep(&["completions", shell]);
        assert!(done.status.success() && text(&done.stdout).contains("keyring"), "{shell}");
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&sidekeep(&["completions", "bash"]).stdout).unwrap();
    assert!(bash.wait().unwrap().success());
    let man = text(&sidekeep(&["man"]).stdout);
    assert!(man.contains(".TH") && man.contains("keyring"), "{man}");
    assert_eq!(discover::document()["info"]["version"], env!("CARGO_PKG_VERSION"));
    for help in [&["--help"][..], &["serve", "--help"], &["call", "--help"], &["--version"]] {
        let done = sidekeep(help);
        assert_eq!((done.status.code(), done.stderr.len()), (Some(0), 0), "{help:?}");
    }
    assert!(text(&sidekeep(&["--help"]).stdout).contains("78"), "the exit codes are told");
}
