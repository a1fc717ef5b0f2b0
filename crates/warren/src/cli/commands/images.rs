//! Commands about images, and the pull that `run` does by itself.

use super::{Outcome, Session, each, outcome};
use crate::cli::args::{ImagesArgs, LoadArgs, OutputFormat, PullArgs, PushArgs, RmiArgs};
use crate::cli::failure::CliError;
use crate::cli::output::{Chatter, Detail};
use crate::cli::progress::{ImageBars, transfer};
use crate::cli::text::{bytes, short_digest};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use warren_api::client::{ClientError, ListQuery, LoadContent, LoadSource};
use warren_api::image::{CreateImageRequest, Image, ImageEvent};
use warren_api::push::{CreatePushRequest, PushEvent};
use warren_core::image::ImageProgress;

/// `warren images`
pub(super) async fn images(session: &Session, args: ImagesArgs) -> Outcome {
    let mut images = session.client.images(&ListQuery::default()).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
    let detail = if args.no_trunc {
        Detail::Untruncated
    } else {
        Detail::Short
    };
    session.out.list(&images, detail)?;
    Ok(0)
}

/// Shows a pull's, load's or commit's progress until its images are here.
pub(super) async fn follow(
    session: &Session,
    what: &str,
    mut steps: impl Stream<Item = Result<ImageEvent, ClientError>> + Unpin,
) -> Result<Vec<Image>, CliError> {
    let mut bars = ImageBars::new(&session.out, what);
    let outcome = loop {
        match steps.next().await {
            Some(Ok(ImageEvent::Progress(progress))) => bars.update(what, &progress),
            Some(Ok(ImageEvent::Done(images))) => break Ok(images),
            Some(Err(error)) => break Err(error.into()),
            None => {
                break Err(CliError::plain(format!(
                    "{what}: the server said no more before it was done"
                )));
            }
        }
    };
    bars.finish();
    outcome
}

/// Fetches an image, with progress.
pub(super) async fn fetch(
    session: &Session,
    request: &CreateImageRequest,
) -> Result<Vec<Image>, CliError> {
    if session.client.is_registry_of(&request.name) {
        // A server that asked itself would only hear what it knows.
        return match session.client.image(&request.name).await {
            Ok(image) => Ok(vec![image]),
            Err(error) if error.code() == Some("image_not_found") => Err(CliError::refused(
                format!(
                    "the image {} is not here, and it names this server's own registry",
                    request.name
                ),
                "push it there first, or see `warren images` for what is here",
            )),
            Err(error) => Err(error.into()),
        };
    }
    let what = format!("pulling {}", request.name);
    let images = follow(session, &what, session.client.pull_image(request)).await?;
    report(session, "pulled", &images);
    Ok(images)
}

pub(super) fn report(session: &Session, verb: &str, images: &[Image]) {
    for image in images {
        let size = image
            .size_bytes
            .map(|size| format!(", {}", bytes(size)))
            .unwrap_or_default();
        session.out.note(format!(
            "{verb} {} ({}{size})",
            image.name,
            short_digest(&image.digest)
        ));
    }
}

/// Prints what came in: the name for people, and what scripts ask for.
pub(super) fn show(session: &Session, images: &[Image]) -> Result<(), CliError> {
    match (
        session.out.format(OutputFormat::Name),
        session.out.chatter(),
    ) {
        (OutputFormat::Name, Chatter::Quiet) => images
            .iter()
            .try_for_each(|image| session.out.line(&image.id)),
        (OutputFormat::Name, Chatter::Normal) => images
            .iter()
            .try_for_each(|image| session.out.line(&image.name)),
        (OutputFormat::Json | OutputFormat::Yaml | OutputFormat::Table | OutputFormat::Wide, _) => {
            session.out.list(images, Detail::Short)
        }
    }
}

/// `warren pull`
pub(super) async fn pull(session: &Session, args: PullArgs) -> Outcome {
    let request = CreateImageRequest {
        name: args.reference,
        id: args.id,
        platform: args.platform,
        plain_http: args.registry.plain_http.then_some(true),
        credentials: args.registry.credentials(),
        ..CreateImageRequest::default()
    };
    let images = fetch(session, &request).await?;
    show(session, &images)?;
    Ok(0)
}

/// `warren push`
pub(super) async fn push(session: &Session, args: PushArgs) -> Outcome {
    let image = session.client.image(&args.image).await?;
    let request = CreatePushRequest {
        target: args.target.unwrap_or(image.name),
        image: image.id,
        insecure: args.registry.plain_http,
        credentials: args.registry.credentials(),
    };
    let what = format!("pushing {}", request.target);
    let mut bars = ImageBars::new(&session.out, &what);
    let mut steps = session.client.push_image(&request);
    let outcome = loop {
        match steps.next().await {
            // The manifest goes last, and at once.
            Some(Ok(PushEvent::Progress(ImageProgress::Finishing))) => {}
            Some(Ok(PushEvent::Progress(progress))) => bars.update(&what, &progress),
            Some(Ok(PushEvent::Done(push))) => break Ok(push),
            Some(Err(error)) => break Err(CliError::from(error)),
            None => {
                break Err(CliError::plain(format!(
                    "{what}: the server said no more before it was done"
                )));
            }
        }
    };
    bars.finish();
    let push = outcome?;
    session.out.note(format!(
        "pushed {} ({}, {} sent)",
        push.target,
        short_digest(&push.digest),
        bytes(push.bytes.unwrap_or_default())
    ));
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Json => session.out.json(&push)?,
        OutputFormat::Yaml => session.out.yaml(&push)?,
        OutputFormat::Name | OutputFormat::Table | OutputFormat::Wide => {
            session.out.line(&push.target)?;
        }
    }
    Ok(0)
}

/// A layout that is larger is packed into a file.
const PACKED_IN_MEMORY: u64 = 64 << 20;

/// What is uploaded: a file of the person's, one made here that is removed afterwards, or what fits into memory.
enum Upload {
    Given(PathBuf),
    Made(NamedTempFile),
    Packed(Bytes),
}

impl Upload {
    fn content(&self) -> LoadContent {
        match self {
            Upload::Given(path) => LoadContent::File(path.clone()),
            Upload::Made(file) => LoadContent::File(file.path().to_owned()),
            Upload::Packed(bytes) => LoadContent::Bytes(bytes.clone()),
        }
    }
}

fn at<'a>(path: &'a Path) -> impl Fn(io::Error) -> CliError + 'a {
    move |source| CliError::File {
        what: path.display().to_string(),
        source,
    }
}

fn scratch() -> Result<NamedTempFile, CliError> {
    NamedTempFile::with_prefix("warren-load-").map_err(|source| CliError::File {
        what: format!(
            "a temporary file in {} (TMPDIR)",
            std::env::temp_dir().display()
        ),
        source,
    })
}

/// The parts of an OCI layout directory (image-spec v1.1, `image-layout.md`) with their sizes, and nothing else that lies around
/// there; from the top, in order of name.
fn parts_of_layout(directory: &Path) -> Result<Vec<(PathBuf, u64)>, CliError> {
    if !directory.join("oci-layout").is_file() || !directory.join("index.json").is_file() {
        return Err(CliError::refused(
            format!(
                "{} is not an OCI layout: it has no oci-layout and index.json",
                directory.display()
            ),
            format!(
                "for a root file system, send a tarball: `tar -C {} -c . | warren load - --name REFERENCE`",
                directory.display()
            ),
        ));
    }
    let mut parts = vec![PathBuf::from("oci-layout"), PathBuf::from("index.json")];
    let blobs = directory.join("blobs");
    for algorithm in sorted(&blobs)? {
        for blob in sorted(&blobs.join(&algorithm))? {
            parts.push(Path::new("blobs").join(&algorithm).join(&blob));
        }
    }
    let mut sized = Vec::with_capacity(parts.len());
    for part in parts {
        let path = directory.join(&part);
        let metadata = std::fs::metadata(&path).map_err(at(&path))?;
        if metadata.is_file() {
            sized.push((part, metadata.len()));
        }
    }
    Ok(sized)
}

/// These parts of a directory as a tar archive.
fn pack(
    directory: &Path,
    parts: &[(PathBuf, u64)],
    to: &mut impl io::Write,
    progress: &impl Fn(u64),
) -> Result<(), CliError> {
    let mut archive = tar::Builder::new(to);
    for (part, size) in parts {
        let path = directory.join(part);
        let mut file = File::open(&path).map_err(at(&path))?;
        archive.append_file(part, &mut file).map_err(at(&path))?;
        progress(*size);
    }
    let to = archive.into_inner().map_err(at(directory))?;
    to.flush().map_err(at(directory))
}

fn sorted(directory: &Path) -> Result<Vec<std::ffi::OsString>, CliError> {
    let mut names = std::fs::read_dir(directory)
        .map_err(at(directory))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(at(directory))?;
    names.sort();
    Ok(names)
}

/// The file to send for what was named.
fn prepare(session: &Session, path: &Path) -> Result<Upload, CliError> {
    if path.as_os_str() == "-" {
        let mut file = scratch()?;
        let bar = transfer(&session.out, "reading standard input", None);
        let copied = io::copy(&mut bar.wrap_read(io::stdin().lock()), file.as_file_mut());
        bar.finish_and_clear();
        copied.map_err(at(Path::new("standard input")))?;
        return Ok(Upload::Made(file));
    }
    let metadata = std::fs::metadata(path).map_err(at(path))?;
    if metadata.is_dir() {
        let parts = parts_of_layout(path)?;
        if parts.iter().map(|(_, size)| size).sum::<u64>() <= PACKED_IN_MEMORY {
            let mut packed = Vec::new();
            pack(path, &parts, &mut packed, &|_| {})?;
            return Ok(Upload::Packed(packed.into()));
        }
        let mut file = scratch()?;
        let bar = transfer(&session.out, &format!("packing {}", path.display()), None);
        let mut writer = io::BufWriter::new(file.as_file_mut());
        let packed = pack(path, &parts, &mut writer, &|n| bar.inc(n));
        bar.finish_and_clear();
        packed?;
        drop(writer);
        return Ok(Upload::Made(file));
    }
    if !metadata.is_file() {
        // A pipe has no length, and the server wants to know it.
        let mut file = scratch()?;
        let mut source = File::open(path).map_err(at(path))?;
        io::copy(&mut source.by_ref(), file.as_file_mut()).map_err(at(path))?;
        return Ok(Upload::Made(file));
    }
    Ok(Upload::Given(path.to_owned()))
}

/// `warren load`
pub(super) async fn load(session: &Session, args: LoadArgs) -> Outcome {
    let upload = prepare(session, &args.path)?;
    let source = LoadSource {
        content: upload.content(),
        name: args.name,
        id: args.id,
    };
    let what = match &source.name {
        Some(name) => format!("loading {name}"),
        None => format!("loading {}", args.path.display()),
    };
    let steps = session.client.load_image(&source).await?;
    let images = follow(session, &what, steps).await?;
    report(session, "loaded", &images);
    show(session, &images)?;
    Ok(0)
}

/// `warren rmi`
pub(super) async fn rmi(session: &Session, args: RmiArgs) -> Outcome {
    let (done, failure) = each(session, &args.images, |name| async move {
        Ok(session.client.delete_image(&name).await?)
    })
    .await;
    super::instances::removed(session, &done)?;
    outcome(failure)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_layout_is_packed_without_what_lies_around() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        for (name, text) in [
            ("oci-layout", "{}"),
            ("index.json", "[]"),
            ("blobs/sha256/aa", "blob"),
            ("secret.txt", "private"),
        ] {
            std::fs::write(root.join(name), text).unwrap();
        }
        let mut packed = Vec::new();
        let parts = parts_of_layout(root).unwrap();
        pack(root, &parts, &mut packed, &|_| {}).unwrap();
        let mut archive = tar::Archive::new(packed.as_slice());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["oci-layout", "index.json", "blobs/sha256/aa"]);
    }

    #[test]
    fn a_directory_that_is_no_layout_is_refused_with_the_way_to_send_it() {
        let directory = tempfile::tempdir().unwrap();
        let error = parts_of_layout(directory.path()).unwrap_err();
        assert!(error.sentence().contains("not an OCI layout"), "{error}");
        assert!(error.hint().unwrap().contains("warren load -"));
    }
}
