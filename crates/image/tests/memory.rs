//! What a conversion needs of memory is bounded, whatever its layers say. Each shape of layer is converted by a process of
//! its own, whose peak is read from the kernel.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]
#![expect(clippy::print_stdout, reason = "a child tells its parent")]

mod support;

use std::io::Read;
use std::process::{Command, Stdio};

use support::{Archive, convert_layers};
use warren_image::Limits;
use warren_image::pipeline::LayerInput;

const BOUND: u64 = 256 << 20;
const TEST: &str = "memory_is_bounded_whatever_layers_say";
const SHAPE: &str = "WARREN_MEASURED_SHAPE";

/// How a layer tries to need much, and how its conversion has to end: with a limit, or well.
const SHAPES: [(&str, &str); 3] = [
    ("directories", "TreeMemory"),
    ("one directory and a window of 128 MiB", "converted"),
    ("headers and maps", "converted"),
];

#[test]
fn memory_is_bounded_whatever_layers_say() {
    if let Ok(shape) = std::env::var(SHAPE) {
        measure(&shape);
        return;
    }
    let children = SHAPES.map(|(shape, expected)| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(SHAPE, shape)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        (shape, expected, child)
    });
    for (shape, expected, child) in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let found = said.lines().find_map(|line| line.strip_prefix("peak "));
        let Some((peak, ended)) = found.and_then(|line| line.split_once(' ')) else {
            panic!("{shape}: {said}");
        };
        let peak: u64 = peak.parse().unwrap();
        println!("{shape}: {} MiB", peak >> 20);
        assert!(ended.contains(expected), "{shape}: {ended}");
        assert!(peak < BOUND, "{shape}: {peak} bytes");
    }
}

/// The child: converts, and says what it needed.
fn measure(shape: &str) {
    let work = tempfile::tempdir().unwrap();
    let layers = match shape {
        "directories" => vec![endless(|number, archive| {
            let value = number.to_le_bytes();
            archive
                .pax(&[("SCHILY.xattr.user.number", &value)])
                .directory(format!("{}/{number}/a/b/c/d", number % 100).as_bytes())
        })],
        "one directory and a window of 128 MiB" => {
            let names = numbered(330_000, |number, archive| {
                let name = format!("{number:0200}");
                archive.pax(&[("path", name.as_bytes())]).file(b"f", b"")
            });
            vec![names, compressed_with_a_large_window(work.path())]
        }
        "headers and maps" => vec![numbered(40, |number, archive| {
            let map: Vec<String> = (0..60_000u32).map(|at| format!("{},1", at * 4)).collect();
            let filler = vec![b'x'; 300_000];
            archive
                .pax(&[
                    ("GNU.sparse.size", b"1099511627776"),
                    ("GNU.sparse.numblocks", b"60000"),
                    ("GNU.sparse.map", map.join(",").as_bytes()),
                    ("comment", &filler),
                ])
                .file(format!("sparse-{number}").as_bytes(), &vec![1; 60_000])
        })],
        other => unreachable!("{other} is no shape"),
    };
    let ended = convert_layers(layers, &work.path().join("out"), &Limits::default());
    let ended = match ended {
        Ok(_) => "converted".to_owned(),
        Err(error) => format!("{error:?}").replace('\n', " "),
    };
    println!("\npeak {} {ended}", peak());
}

/// `VmHWM` of this process: the most memory it ever had.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kibibytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kibibytes.parse::<u64>().unwrap() << 10
}

/// An archive that is made while it is read.
struct Made<F> {
    make: F,
    next: u64,
    most: u64,
    piece: Vec<u8>,
    at: usize,
}

impl<F: FnMut(u64, Archive) -> Archive> Read for Made<F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.piece.len() {
            if self.next == self.most {
                return Ok(0);
            }
            self.piece = (self.make)(self.next, Archive::new()).0;
            (self.next, self.at) = (self.next + 1, 0);
        }
        let count = into.len().min(self.piece.len() - self.at);
        into[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn endless(make: impl FnMut(u64, Archive) -> Archive + Send + 'static) -> LayerInput {
    numbered(u64::MAX, make)
}

fn numbered(most: u64, make: impl FnMut(u64, Archive) -> Archive + Send + 'static) -> LayerInput {
    let made = Made {
        make,
        next: 0,
        most,
        piece: Vec::new(),
        at: 0,
    };
    LayerInput {
        digest: None,
        size: None,
        diff_id: None,
        open: Box::new(move |_| Ok(Box::new(made))),
    }
}

/// As `zstd --ultra -22` makes it: whoever unpacks it has to remember 128 MiB.
fn compressed_with_a_large_window(work: &std::path::Path) -> LayerInput {
    let path = work.join("layer");
    // Its memory must not count for the conversion.
    let made = Command::new("sh")
        .arg("-c")
        .arg("head -c 200000000 /dev/zero | tr '\\0' x >\"$1/f\" && tar -C \"$1\" -cf - f | zstd -q --long=27 -1 >\"$1/layer\" && rm \"$1/f\"")
        .arg("sh")
        .arg(work)
        .status()
        .unwrap();
    assert!(made.success());
    LayerInput {
        digest: None,
        size: None,
        diff_id: None,
        open: Box::new(move |_| Ok(Box::new(std::fs::File::open(path)?))),
    }
}
