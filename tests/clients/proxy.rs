//! A wire that can be cut: forwards TCP, and ends or silences a connection after so many bytes.
//!
//! A client that is told to stop is not a client whose train went into a tunnel. Here the connection is closed under it
//! or goes silent with both ends open, and nobody knows but the test.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// Both ends are closed with bytes under way, as when a server dies.
    Close,
    /// Both ends stay open and nothing moves: what a network change leaves behind.
    Silence,
}

/// Bytes taken from a socket at once: small, so that a cut falls where it was asked for.
const PIECE_BYTES: usize = 16 * 1024;

/// The proxy: a thread per direction, until the test's process ends.
#[derive(Clone)]
pub struct Proxy {
    /// Where clients connect, such as `http://127.0.0.1:41234`.
    pub url: String,
    wire: Arc<Mutex<Wire>>,
}

#[derive(Default)]
struct Wire {
    /// What is to happen: after how many more bytes to the server, and how.
    cuts: VecDeque<(u64, Cut)>,
    /// Cuts made.
    made: usize,
    /// Rest after each piece, when the wire is slow.
    rest: Option<Duration>,
    /// Silenced sockets, kept so that they stay open.
    silent: Vec<TcpStream>,
}

impl Proxy {
    /// A wire to `server`, cut as `cuts` say: each counts the bytes sent to the server since the one before it.
    pub fn start(server: &str, cuts: &[(u64, Cut)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let wire = Arc::new(Mutex::new(Wire { cuts: cuts.iter().copied().collect(), ..Wire::default() }));
        let (server, shared) = (server.to_owned(), wire.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(&server) else { continue };
                let (back_from, back_to) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
                let wire = shared.clone();
                thread::spawn(move || to_server(client, upstream, &wire));
                thread::spawn(move || to_client(back_from, back_to));
            }
        });
        Self { url, wire }
    }

    /// The same wire, with so many bytes a second at most on each connection.
    pub fn paced(self, bytes_per_s: u32) -> Self {
        let pieces_per_s = f64::from(bytes_per_s) / f64::from(u32::try_from(PIECE_BYTES).unwrap());
        self.wire.lock().unwrap().rest = Some(Duration::from_secs_f64(1.0 / pieces_per_s));
        self
    }

    /// How many cuts were made.
    pub fn cuts(&self) -> usize {
        self.wire.lock().unwrap().made
    }
}

fn to_server(mut client: TcpStream, mut server: TcpStream, wire: &Mutex<Wire>) {
    let mut piece = [0; PIECE_BYTES];
    while let Ok(n @ 1..) = client.read(&mut piece) {
        let (cut, rest) = {
            let mut wire = wire.lock().unwrap();
            let cut = match wire.cuts.front_mut() {
                Some((left, _)) if *left > n as u64 => {
                    *left -= n as u64;
                    None
                }
                _ => wire.cuts.pop_front(),
            };
            (cut, wire.rest)
        };
        let keep = cut.map_or(n, |(left, _)| usize::try_from(left).unwrap_or(n).min(n));
        if server.write_all(&piece[..keep]).is_err() {
            break;
        }
        if let Some((_, how)) = cut {
            let mut wire = wire.lock().unwrap();
            wire.made += 1;
            if let Cut::Silence = how {
                wire.silent.extend([client, server]);
                return;
            }
            break;
        }
        if let Some(rest) = rest {
            thread::sleep(rest);
        }
    }
    // The other direction ends with it.
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
}

fn to_client(mut server: TcpStream, mut client: TcpStream) {
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
}
