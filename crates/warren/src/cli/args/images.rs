//! The words of the commands about images.

use crate::cli::values::{Size, parse_unit_size};
use clap::Args;
use std::path::PathBuf;
use warren_api::image::PushCredentials;

const IMAGES_EXAMPLES: &str = "\
Examples:
  warren images                           What is here
  warren images -o wide                   With whole digests and platforms
  warren images -o json | jq -r '.[].name'";

/// List images
///
/// Shows the images on the server, ready to run and still on their way, with the size each takes as
/// the read-only disk that all its instances share.
#[derive(Debug, Clone, Args)]
#[command(after_help = IMAGES_EXAMPLES)]
pub(crate) struct ImagesArgs {
    /// Do not shorten anything
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// How to speak to a registry.
#[derive(Debug, Clone, Args)]
pub(crate) struct RegistryArgs {
    /// The registry speaks plain HTTP (one on your own machine, usually)
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// A user name for the registry; its password is read from WARREN_REGISTRY_PASSWORD
    #[arg(long, value_name = "USER", requires = "password")]
    pub(crate) username: Option<String>,
    /// Only by environment, so that no process list shows it.
    #[arg(
        long = "registry-password",
        env = "WARREN_REGISTRY_PASSWORD",
        hide = true,
        hide_env_values = true
    )]
    pub(crate) password: Option<String>,
}

impl RegistryArgs {
    pub(crate) fn credentials(self) -> Option<PushCredentials> {
        self.username.map(|username| PushCredentials {
            username: Some(username),
            password: self.password,
            registry_token: None,
        })
    }
}

const PULL_EXAMPLES: &str = "\
Examples:
  warren pull nginx:1.27                          From Docker Hub
  warren pull ghcr.io/owner/app@sha256:…          Exactly this one
  warren pull --plain-http localhost:5000/web     From a registry on your own machine
  warren pull --platform linux/arm64 alpine";

/// Fetch an image from a registry
///
/// Fetches the layers that are missing, verifies them, and converts them to the one read-only disk that
/// instances boot from. A pull that was interrupted goes on where it was.
#[derive(Debug, Clone, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    /// Which platform of an image that has several, such as linux/amd64; the host's when absent
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// An id of your own for it
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// An image's reference
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
}

const PUSH_EXAMPLES: &str = "\
Examples:
  warren push registry.example/team/app:1                   To where its name says
  warren push app:1 --as registry.example/team/app:1        Under another name
  warren push --plain-http app:1 --as localhost:5000/app:1  To a registry on your own machine
  warren push -o json app:1 --as registry.example/app:1 | jq .bytes";

/// Send an image to a registry
///
/// Sends what the registry lacks of the image, byte for byte as it came here, so that it keeps its digest.
/// Layers that the registry has in another repository are not sent again where it allows that.
#[derive(Debug, Clone, Args)]
#[command(after_help = PUSH_EXAMPLES)]
pub(crate) struct PushArgs {
    /// The reference to give it there; its own when absent
    #[arg(long = "as", value_name = "REFERENCE")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    /// The image's reference, id or digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

const LOAD_EXAMPLES: &str = "\
Examples:
  warren load app.tar --name app:1                An OCI or docker archive, compressed or not
  warren load ./oci-layout --name app:1           An OCI layout directory
  warren load rootfs.tar.zst --name debian:mine   A root file system
  docker save app:1 | warren load - --name app:1";

/// Bring in an image from a file
///
/// Sends an OCI layout, an OCI or docker archive, or a root-file-system tarball from this machine to
/// the server, which tells them apart by content, and gives the image the name REFERENCE.
#[derive(Debug, Clone, Args)]
#[command(after_help = LOAD_EXAMPLES)]
pub(crate) struct LoadArgs {
    /// The name to give it; needed where the file has none
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) name: Option<String>,
    /// An id of your own for it
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// A file, a directory, or - for standard input
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
}

const SAVE_EXAMPLES: &str = "\
Examples:
  warren save nginx:1.27 --file nginx.tar                  An OCI archive
  warren save app:1 app:2 | ssh other warren load -        Straight to another host
  warren save app:1 --format docker-archive | docker load
  warren save app:1 --format oci-dir --file ./app          An OCI layout directory";

/// Write images to an archive
///
/// Gives the images' manifests, configurations and layers as they came, so that whoever loads them gets the same digests:
/// podman, skopeo and docker, or `warren load`. The same images always give the same bytes. A file is there when it is
/// whole, and replaces what was there; a directory must be new.
#[derive(Debug, Clone, Args)]
#[command(after_help = SAVE_EXAMPLES)]
pub(crate) struct SaveArgs {
    /// Where to write; standard output when absent or -
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) format: SaveFormat,
    /// References, ids or digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

/// See [`SaveArgs::format`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SaveFormat {
    /// An OCI layout in a tar archive
    #[default]
    OciArchive,
    /// The same, with the file by which docker finds images
    DockerArchive,
    /// An OCI layout as a directory
    OciDir,
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  warren image export debian:13 debian.qcow2            A disk for libvirt or QEMU
  warren image export debian:13 disk.raw --size 10G     Sparse: takes no more than what is in it
  warren image export app:1 app.ext4 --format ext4      Only the file system, for `mount -o loop` or as a drive of a microVM
  qemu-system-x86_64 -drive file=debian.qcow2,if=virtio -kernel … -append 'root=/dev/vda1 rw'

A disk has what the image has: images of containers bring no kernel and no boot loader, give those to the machine.";

/// Write an image as a disk for another machine
///
/// Makes a writable ext4 file system with everything the image has: bytes, modes, owners, times, links, devices, extended
/// attributes. raw and qcow2 are disks with a GUID partition table and one partition, /dev/vda1, that has the file system;
/// ext4 is the file system alone. The same image and size always give the same bytes. The file is there when it is whole, and
/// replaces what was there.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct ExportArgs {
    /// What to write; by the ending of FILE when absent, else raw
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<ExportFormat>,
    /// Size of the disk, such as 10G; what the image needs and a quarter more (256 MiB at least) when absent
    #[arg(long, value_name = "SIZE", value_parser = parse_unit_size)]
    pub(crate) size: Option<Size>,
    /// The image's reference, id or digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The file to write
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// See [`ExportArgs::format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExportFormat {
    /// A disk with a partition, byte for byte
    Raw,
    /// The same in QEMU's own format
    Qcow2,
    /// The file system alone
    Ext4,
}

impl ExportFormat {
    /// As a file's name says.
    pub(crate) fn by_ending(file: &std::path::Path) -> Self {
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("qcow2") => ExportFormat::Qcow2,
            Some("ext4") => ExportFormat::Ext4,
            Some(_) | None => ExportFormat::Raw,
        }
    }
}

const RMI_EXAMPLES: &str = "\
Examples:
  warren rmi nginx:1.27                   Remove one
  warren rmi $(warren images -q)          Remove all that no instance uses";

/// Remove images
///
/// Removes each name; the disk behind it goes when its last name does. An image that an instance uses
/// is kept, and the command says which instances those are.
#[derive(Debug, Clone, Args)]
#[command(after_help = RMI_EXAMPLES)]
pub(crate) struct RmiArgs {
    /// References, ids or digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}
