//! Who may call what, by what the kernel says of the peer: real processes of other users and groups.

use serde_json::{Value, json};

use crate::discover;
use crate::support::peer::{Somebody, can_be_others};
use crate::support::{Daemon, World};

/// Numbers that no user and no group of a host has.
const NOBODY_KNOWN: u32 = 54_321;
const GROUP: u32 = 54_322;
const OTHER_GROUP: u32 = 54_323;

fn stranger() -> Somebody {
    Somebody::new(NOBODY_KNOWN, NOBODY_KNOWN, &[])
}

/// A daemon whose socket anybody may open, so that its rules alone decide.
fn serve(world: &World, rules: &str) -> Daemon {
    world.open();
    world.start_with(&format!("socket.mode = \"0666\"\n{rules}"))
}

/// The methods that this peer may call. Nothing else is looked at: the parameters are wrong, and access comes first.
fn allowed(daemon: &Daemon, peer: &Somebody) -> Vec<String> {
    let document = discover::document();
    let calls: Vec<Value> = discover::methods(&document)
        .map(|method| json!({ "jsonrpc": "2.0", "id": method["name"], "method": method["name"], "params": { "no": 1 } }))
        .collect();
    let printed = peer.sends(&daemon.socket, json!(calls).to_string().as_bytes());
    let answers: Vec<Value> =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    assert_eq!(answers.len(), calls.len());
    answers
        .into_iter()
        .filter(|answer| {
            let code = answer["error"]["code"].as_i64().unwrap();
            assert!(code == -32022 || code == -32602, "{answer}");
            code == -32602
        })
        .map(|answer| answer["id"].as_str().unwrap().to_owned())
        .collect()
}

/// The methods whose names begin with one of these.
fn named(beginnings: &[&str]) -> Vec<String> {
    let document = discover::document();
    discover::methods(&document)
        .map(|method| method["name"].as_str().unwrap().to_owned())
        .filter(|name| beginnings.iter().any(|beginning| name.starts_with(beginning)))
        .collect()
}

const RECORDS: [&str; 4] = ["profile.", "preferences.", "consent.", "conversation."];

fn app() -> Vec<String> {
    named(&[RECORDS[0], RECORDS[1], RECORDS[2], RECORDS[3], "audit.append", "rpc.discover", "system.health"])
}

fn operator() -> Vec<String> {
    named(&["system.", "job.", "backup.", "keyring.", "audit.checkpoint", "audit.verify", "rpc.discover"])
}

#[test]
fn a_stranger_may_nothing_and_root_everything() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    let daemon = serve(&world, "");
    assert_eq!(allowed(&daemon, &stranger()), Vec::<String>::new());
    let error = stranger().calls(&daemon.socket, "profile.get", &json!({ "user_id": "u" })).unwrap_err();
    assert_eq!((error.code, error.kind()), (-32022, "forbidden"), "{error:?}");
    assert_eq!(error.data["retryable"], false);
    assert!(error.message.contains("54321") && error.message.contains("profile.get"), "{error:?}");
    assert_eq!(allowed(&daemon, &Somebody::new(0, 0, &[])), named(&[""]));
    assert_eq!(allowed(&daemon, &Somebody::new(0, NOBODY_KNOWN, &[])), named(&[""]));
    let unknown = stranger().calls(&daemon.socket, "no.such.method", &json!({})).unwrap_err();
    assert_eq!(unknown.code, -32601);
    daemon.assert_well();
}

#[test]
fn without_rules_two_groups_have_their_roles() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    world.open();
    let groups = "sidekeep-users:x:54322:\nsidekeep-admin:x:54323:\n";
    let Some(daemon) = world.start_with_groups(groups, "socket.mode = \"0666\"\n") else {
        eprintln!("not run: there are no mount namespaces here");
        return;
    };
    let mut users = allowed(&daemon, &Somebody::new(99_999, 99_999, &[GROUP]));
    let mut expected = app();
    users.sort();
    expected.sort();
    assert_eq!(users, expected);
    assert_eq!(allowed(&daemon, &Somebody::new(99_999, OTHER_GROUP, &[])), named(&[""]));
    assert_eq!(allowed(&daemon, &stranger()), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn a_rule_is_for_a_user_or_a_group_by_name_or_number() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    let daemon = serve(
        &world,
        "[[access.rules]]\nuser = \"daemon\"\nrole = \"app\"\n\
         [[access.rules]]\nuser = 54321\nallow = [\"profile.get\"]\n\
         [[access.rules]]\ngroup = 54322\nallow = [\"consent.*\", \"system.health\"]\n\
         [[access.rules]]\ngroup = \"users\"\nrole = \"operator\"\n",
    );
    let users = nix::unistd::Group::from_name("users").unwrap().expect("Debian has it").gid.as_raw();
    let daemons = nix::unistd::User::from_name("daemon").unwrap().expect("Debian has it").uid.as_raw();
    let health_and_consents = named(&["consent.", "system.health"]);
    let cases = [
        ("user by name", Somebody::new(daemons, NOBODY_KNOWN, &[]), app()),
        ("user by number", stranger(), named(&["profile.get"])),
        ("primary group by number", Somebody::new(99_999, GROUP, &[]), health_and_consents.clone()),
        (
            "supplementary group",
            Somebody::new(99_999, 99_999, &[OTHER_GROUP, GROUP]),
            health_and_consents.clone(),
        ),
        ("primary group by name", Somebody::new(99_999, users, &[]), operator()),
        ("supplementary group by name", Somebody::new(99_999, 99_999, &[users]), operator()),
        (
            "several rules",
            Somebody::new(NOBODY_KNOWN, GROUP, &[]),
            named(&["profile.get", "consent.", "system.health"]),
        ),
        ("another group", Somebody::new(99_999, OTHER_GROUP, &[99_998]), Vec::new()),
        ("a group's number is no user's", Somebody::new(GROUP, 99_999, &[]), Vec::new()),
        ("a user's number is no group's", Somebody::new(99_999, NOBODY_KNOWN, &[NOBODY_KNOWN]), Vec::new()),
    ];
    for (case, peer, expected) in cases {
        let mut allowed = allowed(&daemon, &peer);
        let mut expected = expected;
        allowed.sort();
        expected.sort();
        assert_eq!(allowed, expected, "{case}");
    }
    let many: Vec<u32> = (60_000..60_100).chain([GROUP]).collect();
    let mut of_many = allowed(&daemon, &Somebody::new(99_999, 99_999, &many));
    of_many.sort();
    let mut expected = health_and_consents;
    expected.sort();
    assert_eq!(of_many, expected, "more groups than one question holds");
}

#[test]
fn each_role_has_its_methods() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    let auditor = [
        "audit.get",
        "audit.query",
        "audit.tail",
        "audit.checkpoint",
        "audit.prove",
        "audit.consistency",
        "audit.verify",
        "job.list",
        "job.history",
        "backup.list",
        "rpc.discover",
        "system.health",
        "system.status",
    ];
    let roles = [
        ("app", app()),
        ("privacy", named(&["subject.", "request.", "rpc.discover", "system.health"])),
        ("auditor", named(&auditor)),
        ("operator", operator()),
        ("admin", named(&[""])),
    ];
    let rules: String = roles
        .iter()
        .enumerate()
        .map(|(index, (role, _))| format!("[[access.rules]]\nuser = {}\nrole = \"{role}\"\n", 61_000 + index))
        .collect();
    let daemon = serve(&world, &rules);
    for (index, (role, mut expected)) in roles.into_iter().enumerate() {
        let mut allowed =
            allowed(&daemon, &Somebody::new(61_000 + u32::try_from(index).unwrap(), 99_999, &[]));
        allowed.sort();
        expected.sort();
        assert_eq!(allowed, expected, "{role}");
    }
}

#[test]
fn a_refusal_is_the_same_in_a_batch_as_a_notification_and_over_http() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    let daemon = serve(&world, "[[access.rules]]\nuser = 54321\nallow = [\"system.health\"]\n");
    let create = json!({ "user_id": "u", "username": "u", "email": "e" });
    let batch = json!([
        { "jsonrpc": "2.0", "id": 1, "method": "system.health" },
        { "jsonrpc": "2.0", "id": 2, "method": "profile.create", "params": create },
        { "jsonrpc": "2.0", "method": "profile.create", "params": create },
    ]);
    let told: Value =
        serde_json::from_str(&stranger().sends(&daemon.socket, batch.to_string().as_bytes())).unwrap();
    assert_eq!(told[0]["result"]["status"], "ok");
    assert_eq!((told[1]["error"]["code"].as_i64(), told.as_array().unwrap().len()), (Some(-32022), 2));

    let curl = |arguments: &[&str]| {
        let done = stranger()
            .command("curl")
            .args(["-s", "-w", "\n%{http_code}", "--unix-socket", daemon.socket.to_str().unwrap()])
            .args(arguments)
            .output()
            .expect("curl");
        let text = String::from_utf8(done.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (body.to_owned(), status.to_owned())
    };
    let (body, status) = curl(&["-d", &batch[1].to_string(), "http://sidekeep/"]);
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((answer["error"]["code"].as_i64(), status.as_str()), (Some(-32022), "200"));
    assert_eq!(curl(&["http://sidekeep/healthz"]).1, "200");
    assert_eq!(curl(&["http://sidekeep/metrics"]).1, "403");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id IS NOT NULL"), "0");
}

#[test]
fn a_socket_for_its_group_is_closed_to_others() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    world.open();
    let daemon =
        world.start_with("socket.group = \"54322\"\n[[access.rules]]\ngroup = 54322\nrole = \"app\"\n");
    let member = Somebody::new(99_999, 99_999, &[GROUP]);
    assert_eq!(member.calls(&daemon.socket, "system.health", &json!({})).unwrap()["status"], "ok");
    let address = format!("UNIX-CONNECT:{}", daemon.socket.display());
    let refused = stranger().command("socat").args(["-", &address]).output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"), "{refused:?}");
}

#[test]
fn a_rule_that_could_not_be_followed_ends_the_start() {
    let world = World::new();
    for (rule, named) in [
        ("user = \"no-such-user-here\"\nrole = \"app\"", "no-such-user-here"),
        ("group = \"no-such-group-here\"\nrole = \"app\"", "no-such-group-here"),
        ("user = 1\nallow = [\"profiles.*\"]", "profiles.*"),
        ("user = 1\nallow = [\"profile.get\", \"nothing\"]", "nothing"),
    ] {
        let mut daemon = world.spawn(&format!("[[access.rules]]\n{rule}\n"));
        assert_eq!(daemon.wait(), Some(78), "{rule}");
        let log = daemon.log();
        assert!(log.contains(named) && log.contains("access.rules[0]"), "{log}");
    }
}
