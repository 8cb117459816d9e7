//! A server for tests, which answers one connection after the other as it is told.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::{Address, Endpoint};

/// What to do with a connection.
pub enum Script {
    /// Read the request, answer, close.
    Answer(Vec<u8>),
    /// Read the request, answer, and keep the connection open.
    Hang(Vec<u8>),
    /// Read the request, answer, then go on byte by byte.
    Drip(Vec<u8>, Duration),
    /// Close without reading: the unread request makes it a reset.
    Close { after: Duration },
}

/// The connection is reset after the request is there.
pub fn reset() -> Script {
    Script::Close { after: Duration::from_millis(100) }
}

/// The connection is closed as soon as it is there.
pub fn close_early() -> Script {
    Script::Close { after: Duration::ZERO }
}

/// Listens until it is dropped.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(scripts: Vec<Script>) -> Self {
        Self::bind("127.0.0.1:0", scripts).unwrap()
    }

    pub fn bind(address: &str, scripts: Vec<Script>) -> Option<Self> {
        let listener = TcpListener::bind(address).ok()?;
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&requests);
        if scripts.is_empty() {
            drop(listener);
        } else {
            thread::spawn(move || {
                for script in scripts {
                    let (stream, _) = listener.accept().unwrap();
                    play(stream, script, &seen);
                }
            });
        }
        Some(Self { address, requests })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Address(Address::Ip(self.address))
    }

    /// The heads of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

fn play(mut stream: TcpStream, script: Script, requests: &Mutex<Vec<String>>) {
    if let Script::Close { after } = script {
        return thread::sleep(after);
    }
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend(&buffer[..length]),
        }
    }
    requests.lock().push(String::from_utf8_lossy(&request).into_owned());
    let (Script::Answer(answer) | Script::Hang(answer) | Script::Drip(answer, _)) = &script else {
        return;
    };
    // A client that gave up is what some tests are about.
    let _ = stream.write_all(answer);
    match script {
        Script::Drip(_, pause) => {
            while stream.write_all(b" ").is_ok() {
                thread::sleep(pause);
            }
        }
        Script::Hang(_) => {
            thread::spawn(move || while !matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)) {});
        }
        _ => {}
    }
}
