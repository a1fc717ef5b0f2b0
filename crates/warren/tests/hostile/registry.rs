//! As much of a registry as a pull needs, on loopback: one image.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use warren_image::Digest;

use crate::list::{StoredLayer, documents};

/// Longer than anybody waits.
const SILENCE: Duration = Duration::from_secs(60);

type Blobs = HashMap<String, Blob>;

#[derive(Clone)]
struct Blob {
    kind: &'static str,
    bytes: Vec<u8>,
    /// After so many bytes nothing more comes, and the connection stays.
    silent_after: Option<usize>,
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        Blob {
            kind,
            bytes,
            silent_after: None,
        }
    }
}

pub(crate) struct Registry {
    blobs: Arc<Mutex<Blobs>>,
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Registry {
    /// Serves an image as `hostile:1`.
    pub(crate) fn serve(layers: &[StoredLayer]) -> Self {
        let blobs = Arc::new(Mutex::new(blobs(layers)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let (served, ends) = (Arc::clone(&blobs), Arc::clone(&stopped));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let blobs = Arc::clone(&served);
                // A client that goes away is not our failure.
                std::thread::spawn(move || drop(answer(&stream, &blobs)));
            }
        });
        Registry {
            blobs,
            address,
            stopped,
        }
    }

    /// From now on this blob comes otherwise than it should.
    pub(crate) fn damage(&self, digest: &str, damage: fn(&mut Vec<u8>)) {
        let mut blobs = self.blobs.lock().unwrap();
        damage(&mut blobs.get_mut(digest).unwrap().bytes);
    }

    /// From now on only the first bytes of this blob come, however often it is asked for.
    pub(crate) fn stall(&self, digest: &str, after: usize) {
        let mut blobs = self.blobs.lock().unwrap();
        blobs.get_mut(digest).unwrap().silent_after = Some(after);
    }

    /// From now on it is this image.
    pub(crate) fn repair(&self, layers: &[StoredLayer]) {
        *self.blobs.lock().unwrap() = blobs(layers);
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
    }
}

fn blobs(layers: &[StoredLayer]) -> Blobs {
    let (manifest, config) = documents(layers);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut blobs: Blobs = HashMap::new();
    for name in ["1".to_owned(), Digest::of(&manifest).to_string()] {
        blobs.insert(name, Blob::new(kind, manifest.clone()));
    }
    let stored = layers.iter().map(|layer| &layer.bytes);
    for blob in stored.chain([&config]) {
        let name = Digest::of(blob).to_string();
        blobs.insert(name, Blob::new("application/octet-stream", blob.clone()));
    }
    blobs
}

fn answer(stream: &TcpStream, blobs: &Mutex<Blobs>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let mut words = request.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut stream = stream;
    let found = blobs.lock().unwrap().get(name).cloned();
    let nothing = || Blob::new("application/json", b"{}".to_vec());
    let (status, blob) = match found {
        Some(found) => ("200 OK", found),
        None if path == "/v2/" => ("200 OK", nothing()),
        None => ("404 Not Found", nothing()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        blob.kind,
        blob.bytes.len()
    )?;
    if method == Some("HEAD") {
        return Ok(());
    }
    match blob.silent_after {
        None => stream.write_all(&blob.bytes)?,
        Some(after) => {
            stream.write_all(&blob.bytes[..after])?;
            // Until the other side has had enough.
            stream.set_read_timeout(Some(SILENCE))?;
            let _ = stream.read(&mut [0; 1])?;
        }
    }
    Ok(())
}
