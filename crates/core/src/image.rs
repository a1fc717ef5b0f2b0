//! What is known of an image once it is on the host: the reference it came by, its digest, and the
//! part of its configuration that decides how its workload runs.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The run-time part of an OCI image configuration (image-spec v1.1, `config.md`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, in order, as `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`; empty means `/`.
    pub working_dir: String,
    /// `User`: `user`, `uid`, `user:group`, `uid:gid`; empty means root.
    pub user: String,
    /// `StopSignal`, by name or number; empty means SIGTERM.
    pub stop_signal: String,
    /// `ExposedPorts`, such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `Volumes`.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
}

/// One reference and what it leads to on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The user's id (`img-nginx`), or one made from the digest.
    pub id: String,
    /// The reference, normalised: `docker.io/library/nginx:1.27`, `localhost:5000/web:latest`.
    pub name: String,
    /// `sha256:…` of the image's manifest.
    pub digest: String,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// When it came here.
    pub created_at: Timestamp,
    /// The converted disk's size.
    pub size_bytes: u64,
    /// How its workload runs.
    pub config: ImageConfig,
    /// The user's labels on it.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// Where one layer is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerPhase {
    /// Known, nothing done yet.
    Waiting,
    /// Its bytes are coming in.
    Downloading,
    /// Its files are being written to the disk.
    Converting,
    /// Its bytes are going out.
    Uploading,
    /// It is where it should be, or was there already.
    Done,
}

/// One step of progress of a pull or a load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageProgress {
    /// The reference was resolved: what is to come.
    Resolved {
        /// `sha256:…` of the manifest.
        digest: String,
        /// Number of layers.
        layers: usize,
        /// Sum of their compressed sizes in bytes.
        total_bytes: u64,
    },
    /// A layer moved on.
    Layer {
        /// `sha256:…` of the compressed layer.
        digest: String,
        /// Where it is now.
        phase: LayerPhase,
        /// Compressed bytes done in this phase.
        bytes: u64,
        /// Its compressed size.
        total: u64,
    },
    /// All layers are merged; the disk is being finished and made durable.
    Finishing,
}

/// The argument vector an instance runs: the instance's own entrypoint replaces the image's and its
/// cmd; the instance's own cmd replaces the image's cmd (as `docker run --entrypoint` does).
pub fn command(
    image: &ImageConfig,
    entrypoint: Option<&[String]>,
    cmd: Option<&[String]>,
) -> Vec<String> {
    match (entrypoint, cmd) {
        (Some(entrypoint), cmd) => [entrypoint, cmd.unwrap_or_default()].concat(),
        (None, Some(cmd)) => [image.entrypoint.as_slice(), cmd].concat(),
        (None, None) => [image.entrypoint.as_slice(), image.cmd.as_slice()].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_entrypoint_drops_the_images_cmd() {
        let image = ImageConfig {
            entrypoint: vec!["/e".into()],
            cmd: vec!["c".into()],
            ..ImageConfig::default()
        };
        let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(command(&image, None, None), own(&["/e", "c"]));
        assert_eq!(command(&image, None, Some(&own(&["x"]))), own(&["/e", "x"]));
        assert_eq!(command(&image, Some(&own(&["/y"])), None), own(&["/y"]));
        assert_eq!(
            command(&image, Some(&own(&["/y"])), Some(&own(&["z"]))),
            own(&["/y", "z"])
        );
    }
}
