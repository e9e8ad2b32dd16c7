//! A gate before a store: passes bytes on, or does what networks and full disks do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// They are passed on.
    Open,
    /// Each connection is cut at once.
    Refused,
    /// They are taken, and never answered.
    Mute,
    /// As [`Passage::Mute`] for a request that writes or deletes a name with this in it, and what follows it; others are passed
    /// on.
    MuteAt(&'static str),
    /// Each part of them is late by so many milliseconds.
    Slow(u64),
    /// A connection is cut once it has sent so many bytes: a large upload is lost, what is small passes.
    CutAfter(usize),
    /// Requests that write are answered so by the store, as by one that is full or read-only; reads pass.
    NoWrites(u16),
}

/// The gate; it stays as long as the test runs.
pub struct Gate {
    pub port: u16,
    passage: Arc<Mutex<Passage>>,
    muted: Arc<AtomicU32>,
}

impl Gate {
    pub(super) fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let passage = Arc::new(Mutex::new(Passage::Open));
        let (shared, muted) = (passage.clone(), Arc::new(AtomicU32::new(0)));
        let counted = muted.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                pass(client, server, (&shared, &counted));
            }
        });
        Self { port, passage, muted }
    }

    /// What happens from now on, on open connections too.
    pub fn set(&self, passage: Passage) {
        *self.passage.lock().unwrap() = passage;
    }

    /// How many requests were kept for themselves, by [`Passage::MuteAt`].
    pub fn muted(&self) -> u32 {
        self.muted.load(Ordering::Relaxed)
    }
}

fn pass(
    mut client: TcpStream,
    server: TcpStream,
    (passage, counted): (&Arc<Mutex<Passage>>, &Arc<AtomicU32>),
) {
    let (mut back, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let (now, counted, mut server) = (passage.clone(), counted.clone(), server);
    thread::spawn(move || {
        let (mut part, mut sent, mut muted) = (vec![0; 64 << 10], 0, false);
        while let Ok(read @ 1..) = client.read(&mut part) {
            sent += read;
            let passage = *now.lock().unwrap();
            match passage {
                Passage::Open => {}
                Passage::Mute => continue,
                Passage::MuteAt(name) => {
                    if !muted && writes(&part[..read]) && line(&part[..read]).contains(name) {
                        muted = true;
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    if muted {
                        continue;
                    }
                }
                Passage::Slow(millis) => thread::sleep(Duration::from_millis(millis)),
                Passage::CutAfter(most) if sent <= most => {}
                Passage::NoWrites(status) if writes(&part[..read]) => {
                    let answer =
                        format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    let _ = client.write_all(answer.as_bytes());
                    break;
                }
                Passage::NoWrites(_) => {}
                Passage::Refused | Passage::CutAfter(_) => break,
            }
            if server.write_all(&part[..read]).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
}

fn writes(request: &[u8]) -> bool {
    [&b"PUT "[..], b"POST ", b"DELETE "].iter().any(|method| request.starts_with(method))
}

/// The first line, with the names as they are: clients of Google's storage write them otherwise.
fn line(request: &[u8]) -> String {
    let line = String::from_utf8_lossy(request).lines().next().unwrap_or_default().to_owned();
    [("%2E", "."), ("%2F", "/"), ("%2D", "-")]
        .iter()
        .fold(line, |line, (code, sign)| line.replace(code, sign))
}
