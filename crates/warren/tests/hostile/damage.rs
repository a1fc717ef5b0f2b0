//! Layers that are not what was promised: refused, nothing is published, and the next attempt works.

use crate::list::{Ends, StoredLayer, hostile, oci_archive};
use crate::registry::Registry;
use crate::server::Server;
use warren_image::Digest;

fn good() -> Vec<StoredLayer> {
    let image = hostile("whiteout_through_symlink");
    assert!(matches!(image.ends, Ends::Harmless(_)));
    image.layers
}

fn nothing_is_here(server: &Server) {
    assert_eq!(server.images(), 0);
    assert_eq!(server.disks(), Vec::<std::path::PathBuf>::new());
    assert_eq!(server.half_made(), Vec::<std::path::PathBuf>::new());
}

fn refused_and_then_pulled(damage: fn(&mut Vec<u8>)) {
    let server = Server::start();
    let registry = Registry::serve(&good());
    let reference = format!("{}/hostile:1", registry.host());
    registry.damage(&Digest::of(&good()[1].bytes).to_string(), damage);
    let problem = server.pull(&reference).unwrap_err();
    assert_eq!(problem.code, "image_damaged", "{problem:?}");
    nothing_is_here(&server);
    registry.repair(&good());
    server.pull(&reference).unwrap();
    assert_eq!((server.images(), server.disks().len()), (1, 1));
}

#[test]
fn a_layer_of_another_digest_is_refused() {
    refused_and_then_pulled(|bytes| bytes[200] ^= 1);
}

#[test]
fn a_truncated_layer_is_refused() {
    refused_and_then_pulled(|bytes| bytes.truncate(700));
}

#[test]
fn a_layer_that_is_too_long_is_refused() {
    refused_and_then_pulled(|bytes| bytes.extend_from_slice(b"more"));
}

#[test]
fn a_stalled_layer_is_given_up() {
    let server = Server::start();
    let registry = Registry::serve(&good());
    let reference = format!("{}/hostile:1", registry.host());
    registry.stall(&Digest::of(&good()[1].bytes).to_string(), 0);
    let problem = server.pull(&reference).unwrap_err();
    assert_eq!(problem.code, "registry_stalled", "{problem:?}");
    nothing_is_here(&server);
    registry.repair(&good());
    server.pull(&reference).unwrap();
    assert_eq!((server.images(), server.disks().len()), (1, 1));
}

#[test]
fn a_layer_of_another_size_is_refused() {
    for difference in [-1, 1] {
        refused_as_described(|layers| {
            layers[0].size = layers[0].size.checked_add_signed(difference).unwrap();
        });
    }
}

#[test]
fn a_layer_with_another_diff_id_is_refused() {
    refused_as_described(|layers| layers[0].diff_id = Digest::of(b"other").to_string());
}

/// An image whose documents say something wrong is refused whichever way it comes.
fn refused_as_described(describe: impl FnOnce(&mut Vec<StoredLayer>)) {
    let server = Server::start();
    let mut wrong = good();
    describe(&mut wrong);
    let registry = Registry::serve(&wrong);
    let reference = format!("{}/hostile:1", registry.host());
    for problem in [
        server.load("localhost/x:1", &oci_archive(&wrong)),
        server.pull(&reference),
    ] {
        let problem = problem.unwrap_err();
        assert_eq!(problem.code, "image_damaged", "{problem:?}");
    }
    nothing_is_here(&server);
    registry.repair(&good());
    server.pull(&reference).unwrap();
    server.load("localhost/x:1", &oci_archive(&good())).unwrap();
    assert_eq!((server.images(), server.disks().len()), (2, 1));
}

#[test]
fn a_damaged_archive_is_refused() {
    let server = Server::start();
    let whole = oci_archive(&good());
    let layer = &good()[0].bytes;
    let at = whole
        .windows(layer.len())
        .position(|window| window == layer)
        .unwrap();
    let mut flipped = whole.clone();
    flipped[at + 600] ^= 1;
    for damaged in [&flipped[..], &whole[..at + 600]] {
        let problem = server.load("localhost/x:1", damaged).unwrap_err();
        let expected = ["image_damaged", "image_malformed", "not_an_image"];
        assert!(expected.contains(&problem.code.as_str()), "{problem:?}");
        nothing_is_here(&server);
    }
    server.load("localhost/x:1", &whole).unwrap();
    assert_eq!(server.images(), 1);
}
