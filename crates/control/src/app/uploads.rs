//! Archives that clients upload: spooled to a file of ours, bounded by what the disk has, handed to the
//! host by path, removed when the host is done with it.

use super::operations::Tracked;
use super::{App, AppError, JobUpdate};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use std::io;
use std::path::Path;
use tokio::io::AsyncWriteExt;
use warren_api::{Code, CreateImageRequest, OperationKind, OperationPhase};
use warren_core::PortError;
use warren_core::ports::host_link::ImageImport;
use warren_core::ports::images::LoadRequest;

/// How many bytes are written between two looks at the disk.
const CHECK_EVERY: u64 = 64 << 20;
/// Bytes of an upload that are written at a time.
const WRITTEN_TOGETHER: usize = 1 << 20;
/// A client that sends nothing for this long has gone.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// An upload's parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upload {
    /// The reference to give it.
    pub name: Option<String>,
    /// The id to give it.
    pub id: Option<String>,
    /// Which platform of an index.
    pub platform: Option<String>,
    /// As the client announced it.
    pub length: Option<u64>,
}

impl App {
    /// Spools the archive, then loads it as a job of its own.
    ///
    /// # Errors
    /// `disk_full`, `body_too_large`, a body that breaks off.
    pub async fn load<E: std::fmt::Display + Send>(
        &self,
        upload: Upload,
        body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
    ) -> Result<BoxStream<'static, JobUpdate>, AppError> {
        if let Some(id) = &upload.id {
            warren_core::id::check_id(id).map_err(|e| AppError::field("id", e.to_string()))?;
        }
        if upload.name.as_ref().is_some_and(|name| {
            name.is_empty()
                || name.len() > 512
                || name.chars().any(|c| c.is_control() || c.is_whitespace())
        }) {
            return Err(AppError::field("name", "must be a reference such as web:1"));
        }
        let subject = upload.name.as_deref().unwrap_or("upload");
        let tracked = self.track_within_bounds(OperationKind::Load, subject)?;
        tracked.started(OperationPhase::Receiving);
        let spooled = self.spool(upload.length, body, &tracked);
        let file = tracked.part(spooled).await?;
        // From here on it waits with all other images.
        tracked.queued_again();
        let request = CreateImageRequest {
            name: upload.name.clone().unwrap_or_else(|| "upload".to_owned()),
            id: upload.id.clone(),
            platform: upload.platform.clone(),
            ..CreateImageRequest::default()
        };
        let import = ImageImport::Load(LoadRequest {
            path: file.to_path_buf(),
            name: upload.name,
            id: upload.id,
            platform: upload.platform,
        });
        self.import_followed(request, import, file, Some(tracked))
    }

    async fn spool<E: std::fmt::Display + Send>(
        &self,
        length: Option<u64>,
        mut body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
        tracked: &Tracked,
    ) -> Result<tempfile::TempPath, AppError> {
        let settings = &self.0.settings;
        let directory = settings.spool.clone();
        let failed =
            |e: io::Error| AppError::Port(PortError::io("the upload could not be written", e));
        let too_large = || {
            AppError::coded(
                Code::BodyTooLarge,
                format!("an upload may have at most {} bytes", settings.upload_limit),
            )
        };
        if length.is_some_and(|length| length > settings.upload_limit) {
            return Err(too_large());
        }
        tokio::fs::create_dir_all(&directory)
            .await
            .map_err(failed)?;
        let mut room = self.room(&directory)?;
        if length.is_some_and(|length| length > room) {
            return Err(no_space());
        }
        let named = tempfile::Builder::new()
            .prefix("upload-")
            .tempfile_in(&directory)
            .map_err(failed)?;
        let (file, path) = named.into_parts();
        // What comes in small pieces is written in large ones: each is a turn of a thread of its own.
        let mut file =
            tokio::io::BufWriter::with_capacity(WRITTEN_TOGETHER, tokio::fs::File::from_std(file));
        let (mut written, mut since_check) = (0u64, 0u64);
        loop {
            let chunk = match tokio::time::timeout(SILENCE, body.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => {
                    return Err(AppError::coded(
                        Code::InvalidBody,
                        format!("the upload broke off: {error}"),
                    ));
                }
                Err(_) => {
                    return Err(AppError::coded(
                        Code::InvalidBody,
                        "the upload broke off: nothing came for a minute",
                    ));
                }
            };
            written += chunk.len() as u64;
            since_check += chunk.len() as u64;
            if written > settings.upload_limit {
                return Err(too_large());
            }
            if since_check > CHECK_EVERY {
                room = self.room(&directory)?;
                since_check = chunk.len() as u64;
            }
            if since_check > room {
                return Err(no_space());
            }
            file.write_all(&chunk).await.map_err(failed)?;
            tracked.counted(written, length);
        }
        file.flush().await.map_err(failed)?;
        if written == 0 {
            return Err(AppError::coded(
                Code::InvalidBody,
                "the body is empty: send an archive",
            ));
        }
        Ok(path)
    }

    /// Bytes that may still be written.
    fn room(&self, directory: &Path) -> Result<u64, AppError> {
        let stat = rustix::fs::statvfs(directory).map_err(|e| {
            AppError::Port(PortError::io(
                "the spool's file system cannot be read",
                e.into(),
            ))
        })?;
        Ok(stat
            .f_bavail
            .saturating_mul(stat.f_frsize)
            .saturating_sub(self.0.settings.upload_reserve))
    }
}

fn no_space() -> AppError {
    AppError::coded(
        Code::DiskFull,
        "the disk has no room for this upload: free some space on the data directory's file system",
    )
}
