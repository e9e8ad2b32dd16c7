//! Between a daemon and its PostgreSQL, on Unix sockets: passes everything on, and cuts a connection or falls silent on it
//! exactly where a test says.
//!
//! It reads the protocol's messages (PostgreSQL's manual, chapter 55), and changes none.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// What becomes of a connection at a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is cut before the server gets the statement.
    CutBefore,
    /// It is cut when the server has done it, and before the client gets the answer.
    CutAfter,
    /// The server never gets the statement, and the client hears nothing more.
    MuteBefore,
    /// The server does it, and the client hears nothing more.
    MuteAfter,
}

impl Fault {
    /// Whether the server does the statement.
    pub fn is_after(self) -> bool {
        matches!(self, Self::CutAfter | Self::MuteAfter)
    }
}

/// What to look for.
struct Trap {
    what: Box<dyn Fn(&str) -> bool + Send>,
    /// What the same connection must have sent just before.
    after: Option<&'static str>,
    fault: Fault,
}

#[derive(Default)]
struct State {
    /// The first of them is set; the others follow.
    traps: VecDeque<Trap>,
    sprung: u32,
}

/// What happens on one connection, and at which of the answers that end with "ready for query": a client may send its next
/// statement before it has read the last word about the one before.
type Fate = Mutex<Option<(Fault, u64)>>;

/// A proxy, listening as long as the test runs.
pub struct Proxy {
    directory: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// In front of the server whose socket is in this directory.
    pub fn new(server: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("sp").tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(".s.PGSQL.5432")).unwrap();
        let (state, server) = (Arc::new(Mutex::new(State::default())), server.join(".s.PGSQL.5432"));
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&server) else { continue };
                connect(&client, &server, &shared);
            }
        });
        Self { directory, state }
    }

    /// The URL of the server, by way of the proxy.
    pub fn url(&self, url: &str) -> String {
        let (base, _) = url.split_once("?host=").unwrap();
        format!("{base}?host={}", self.directory.path().display())
    }

    /// Lets this happen at the next statement that is such a one; once.
    pub fn fail(&self, fault: Fault, what: impl Fn(&str) -> bool + Send + 'static) {
        self.state.lock().unwrap().traps.clear();
        self.then_fail(fault, what);
    }

    /// As [`Proxy::fail`], at the COMMIT of a transaction whose last statement has this in it.
    pub fn fail_commit(&self, fault: Fault, after: &'static str) {
        self.state.lock().unwrap().traps.clear();
        self.then_fail_commit(fault, after);
    }

    /// Lets this happen at such a statement after everything that is still to happen.
    pub fn then_fail(&self, fault: Fault, what: impl Fn(&str) -> bool + Send + 'static) {
        self.state.lock().unwrap().traps.push_back(Trap { what: Box::new(what), after: None, fault });
    }

    /// As [`Proxy::fail_commit`], after everything that is still to happen.
    pub fn then_fail_commit(&self, fault: Fault, after: &'static str) {
        let what = Box::new(|sql: &str| sql == "COMMIT");
        self.state.lock().unwrap().traps.push_back(Trap { what, after: Some(after), fault });
    }

    /// How often it happened.
    pub fn failed(&self) -> u32 {
        self.state.lock().unwrap().sprung
    }
}

impl State {
    fn spring(&mut self, statement: &str, last: &str) -> Option<Fault> {
        let sprung =
            |trap: &mut Trap| (trap.what)(statement) && trap.after.is_none_or(|after| last.contains(after));
        let trap = self.traps.pop_front_if(sprung)?;
        self.sprung += 1;
        eprintln!("{:?} at {statement:?}, after {last:?}", trap.fault);
        Some(trap.fault)
    }
}

fn connect(client: &UnixStream, server: &UnixStream, state: &Arc<Mutex<State>>) {
    let (fate, copy) = (Arc::new(Fate::default()), UnixStream::try_clone);
    let forth = (copy(client).unwrap(), copy(server).unwrap(), state.clone(), fate.clone());
    let back = (copy(server).unwrap(), copy(client).unwrap());
    thread::spawn(move || {
        let (mut client, mut server, state, fate) = forth;
        let _ = requests(&mut client, &mut server, &state, &fate);
        cut(&client, &server);
    });
    thread::spawn(move || {
        let (mut server, mut client) = back;
        let _ = answers(&mut server, &mut client, &fate);
        cut(&client, &server);
    });
}

fn cut(client: &UnixStream, server: &UnixStream) {
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// What the client sends: a first message without a type, then messages with one.
fn requests(
    client: &mut UnixStream,
    server: &mut UnixStream,
    state: &Mutex<State>,
    fate: &Fate,
) -> std::io::Result<()> {
    server.write_all(&body(client)?)?;
    // The first such answer is that to the first message.
    let (mut prepared, mut last, mut asked) = (HashMap::new(), String::new(), 1);
    loop {
        let message = message(client)?;
        let mut text =
            message[5..].split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        let statement = match message[0] {
            b'Q' => text.next(),
            b'P' => {
                prepared.insert(text.next().unwrap(), text.next().unwrap());
                None
            }
            // The portal's name, then the statement's.
            b'B' => prepared.get(&text.nth(1).unwrap()).cloned(),
            _ => None,
        };
        if let Some(statement) = statement {
            if let Some(fault) = state.lock().unwrap().spring(&statement, &last) {
                *fate.lock().unwrap() = Some((fault, asked + 1));
            }
            last = statement;
        }
        asked += u64::from(matches!(message[0], b'Q' | b'S'));
        let fault = *fate.lock().unwrap();
        match fault {
            Some((Fault::CutBefore, _)) => return Ok(()),
            Some((Fault::MuteBefore, _)) => {}
            _ => server.write_all(&message)?,
        }
    }
}

fn answers(server: &mut UnixStream, client: &mut UnixStream, fate: &Fate) -> std::io::Result<()> {
    let mut ended = 0;
    loop {
        let message = message(server)?;
        let fault = *fate.lock().unwrap();
        // Ready for the next statement, so this one is done.
        let ends = message[0] == b'Z';
        match fault {
            Some((Fault::CutAfter, at)) if ends && ended + 1 == at => return Ok(()),
            Some((_, at)) if ended + 1 >= at => {}
            _ => client.write_all(&message)?,
        }
        ended += u64::from(ends);
    }
}

fn message(from: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    Ok([&kind, &*body(from)?].concat())
}

/// A length that counts itself, and what follows.
fn body(from: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
    from.read_exact(&mut body)?;
    Ok([&length, &*body].concat())
}
