//! TLS to PostgreSQL: version 1.3 with chain and name checked, or nothing at all; never a byte in clear.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use serde_json::json;

use crate::support::{Cluster, Daemon, PATIENCE, Psql, World, sidekeep, timed, wait_for};

const NAME: &str = "db.test";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A loopback address that nobody but this process uses.
pub fn loopback() -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{}", 64 + (pid >> 16) % 64, (pid >> 8) & 255, pid & 255)
}

/// A PostgreSQL with TLS at a loopback address of its own, so that its port is free.
struct Server {
    cluster: Cluster,
    address: String,
}

impl Server {
    fn start(authority: &Authority) -> Self {
        let address = loopback();
        let server = Self { cluster: Cluster::own(&[("listen_addresses", &address)]), address };
        server.certify(authority, NAME, 2100);
        server.cluster.execute("ALTER SYSTEM SET ssl = on");
        server.reload();
        server
    }

    /// Gives it another certificate.
    fn certify(&self, authority: &Authority, name: &str, until: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, authority).unwrap();
        let owner = std::fs::metadata(self.cluster.data()).unwrap();
        for (file, text) in [("server.crt", certificate.pem()), ("server.key", key.serialize_pem())] {
            let path = self.cluster.data().join(file);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        self.reload();
    }

    fn reload(&self) {
        let loaded =
            || crate::support::sql(&self.cluster.owner_url("postgres"), "SELECT pg_conf_load_time()");
        let before = loaded();
        self.cluster.execute("SELECT pg_reload_conf()");
        wait_for("the reload", || (loaded() != before).then_some(()));
    }

    fn world(&self) -> World {
        let database = self.cluster.database();
        let app_url = format!("postgresql://sidekeep_app@{NAME}/{database}?hostaddr={}", self.address);
        World::with_urls(self.cluster.owner_url(&database), app_url)
    }
}

fn ca_file(world: &World, authority: &Authority) -> (PathBuf, String) {
    let path = world.path("ca.pem");
    std::fs::write(&path, authority.pem()).unwrap();
    (path.clone(), format!("database.ca_file = {path:?}\nlimits.call_timeout = \"4s\"\n"))
}

/// Why the daemon does not reach its server.
fn why_not(daemon: &Daemon, word: &str) -> String {
    let mut client = daemon.client();
    let why = wait_for(word, || {
        let health = client.ok("system.health", json!({}));
        assert_eq!(health["status"], "unavailable");
        health["checks"]["database"]["message"].as_str().filter(|why| why.contains(word)).map(str::to_owned)
    });
    eprintln!("{why}");
    assert_eq!(client.err("preferences.get", json!({ "user_id": "u" })).kind(), "unavailable");
    why
}

#[test]
fn chain_and_name_are_checked_and_the_session_is_tls_1_3() {
    let right = authority("right");
    let server = Server::start(&right);
    let world = server.world();
    let (_, config) = ca_file(&world, &right);
    let daemon = world.start_with(&config);
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    let versions = "SELECT DISTINCT version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'sidekeep'";
    assert_eq!(world.sql(versions), "TLSv1.3");

    // What a call gave up is cancelled by way of TLS too.
    let mut lock = Psql::open(&world.owner_url);
    lock.run("BEGIN; SELECT FROM subjects WHERE user_id = 'u' FOR UPDATE");
    let record = json!({ "user_id": "u", "consent_type": "c", "granted": true });
    assert_eq!(daemon.client().err("consent.record", record).kind(), "unavailable");
    let active =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sidekeep' AND state <> 'idle'";
    let ((), took) = timed(|| wait_for("the statement's end", || (world.sql(active) == "0").then_some(())));
    assert!(took < Duration::from_secs(10), "{took:?}");
    lock.run("COMMIT");
    daemon.stop();

    // A first host that is dead.
    let hosts = world
        .app_url
        .replace(NAME, &format!("{NAME}:9,{NAME}:5432"))
        .replace("hostaddr=", "hostaddr=127.0.0.1,");
    let several = world.start_with(&format!("database.url = {hosts:?}\n{config}"));
    several.ok("preferences.get", json!({ "user_id": "u" }));
    several.stop();

    let wrong = world.path("wrong.pem");
    std::fs::write(&wrong, authority("wrong").pem()).unwrap();
    let daemon = world.spawn(&config.replace("ca.pem", "wrong.pem"));
    daemon.wait_listening();
    why_not(&daemon, "UnknownIssuer");
    drop(daemon);

    server.certify(&right, "other.test", 2100);
    let daemon = world.spawn(&config);
    daemon.wait_listening();
    why_not(&daemon, NAME);
    drop(daemon);

    server.certify(&right, NAME, 2020);
    let daemon = world.spawn(&config);
    daemon.wait_listening();
    why_not(&daemon, "xpired");

    // The same daemon, once the server is put right.
    server.certify(&right, NAME, 2100);
    wait_for("health", || (daemon.ok("system.health", json!({}))["status"] == "ok").then_some(()));
    daemon.ok("preferences.get", json!({ "user_id": "u" }));
}

/// A server that answers every request for TLS with this, and keeps what it is sent.
fn answering(answer: &'static [u8]) -> (u16, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, hear) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = vec![0; 8];
            if stream.read_exact(&mut request).is_err() || stream.write_all(answer).is_err() {
                continue;
            }
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            let _ = stream.read_to_end(&mut request);
            if heard.send(request).is_err() {
                return;
            }
        }
    });
    (port, hear)
}

#[test]
fn a_server_without_tls_hears_nothing_but_the_request_for_it() {
    let mut world = World::new();
    let (_, config) = ca_file(&world, &authority("right"));
    for answer in [b"N".as_slice(), b"E"] {
        let (port, heard) = answering(answer);
        world.app_url = format!("postgresql://sidekeep_app@{NAME}:{port}/planted?hostaddr=127.0.0.1");
        let daemon = world.spawn(&config);
        daemon.wait_listening();
        why_not(&daemon, "TLS");
        // SSLRequest: its length and its number.
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), [0, 0, 0, 8, 4, 210, 22, 47]);
    }
}

#[test]
fn what_would_go_out_in_clear_is_a_mistake_in_the_configuration() {
    let world = World::new();
    let check = |more: &str| {
        let (file, _) = world.configure(more);
        let mut daemon = world.spawn(more);
        assert_eq!(daemon.wait(), Some(78), "{more}: {}", daemon.log());
        let checked = sidekeep(&["--config", file.to_str().unwrap(), "config", "check"]);
        assert_eq!(checked.status.code(), Some(78), "{more}");
        String::from_utf8(checked.stderr).unwrap()
    };
    let url = "database.url = \"postgresql://sidekeep_app@db.example.org/x\"\n";
    let said = check(&format!("{url}database.tls = \"off\"\n"));
    assert!(said.contains("in clear") && said.contains("loopback"), "{said}");
    let said = check("database.url = \"postgresql://sidekeep_app@db.example.org/x?sslmode=prefer\"\n");
    assert!(said.contains("in clear"), "{said}");
    let said = check(
        "database.url = \"postgresql://sidekeep_app@localhost/x?hostaddr=192.0.2.7\"\ndatabase.tls = \"off\"\n",
    );
    assert!(said.contains("in clear"), "{said}");
    let mut daemon = world.spawn(&format!("{url}database.ca_file = \"/nonexistent/ca.pem\"\n"));
    assert_eq!(daemon.wait(), Some(78), "{}", daemon.log());
    assert!(daemon.log().contains("/nonexistent/ca.pem"), "{}", daemon.log());
}
