//! Images made of what an instance has changed: an import like a pull, but from an instance.

use super::{App, AppError, JobUpdate, images};
use futures::stream::BoxStream;
use warren_api::{CommitInstanceRequest, CreateImageRequest};
use warren_core::admission::{Admission, Operation, admit};
use warren_core::id::Prefixes;
use warren_core::ports::commits::CommitRequest;
use warren_core::ports::host_link::ImageImport;

/// Bytes of an author, of a message and of an instruction, and instructions.
const AUTHOR: usize = 1024;
const MESSAGE: usize = 4096;
const CHANGE: usize = 64 << 10;
const CHANGES: usize = 256;

impl App {
    /// Starts a commit, and follows it. Who stops following cancels nothing.
    ///
    /// # Errors
    /// Missing or ambiguous; a state in which nothing can be committed; a request that can never work; too many at once.
    pub fn commit_instance(
        &self,
        wanted: &str,
        request: CommitInstanceRequest,
    ) -> Result<BoxStream<'static, JobUpdate>, AppError> {
        let view = self.find(wanted, Prefixes::Accepted)?;
        check(&request)?;
        let state = view.status.state.name();
        if let Admission::Refuse(refusal) = admit(Operation::Commit, state, view.intent.desired) {
            return Err(refusal.into());
        }
        let shown = CreateImageRequest {
            name: request.name.clone(),
            id: request.id.clone(),
            tags: request.tags.clone(),
            ..CreateImageRequest::default()
        };
        images::check(&shown)?;
        let order = CommitRequest {
            name: request.name,
            id: request.id,
            author: request.author,
            message: request.message,
            changes: request.changes,
            tags: request.tags,
        };
        self.import_followed(
            shown,
            ImageImport::Commit(view.intent.id.clone(), order),
            (),
            None,
        )
    }
}

fn check(request: &CommitInstanceRequest) -> Result<(), AppError> {
    let bounded = [
        ("author", request.author.as_deref(), AUTHOR),
        ("message", request.message.as_deref(), MESSAGE),
    ];
    for (field, text, most) in bounded {
        if text.is_some_and(|text| text.len() > most) {
            return Err(AppError::field(
                field,
                format!("may have at most {most} bytes"),
            ));
        }
    }
    if request.changes.len() > CHANGES || request.changes.iter().any(|one| one.len() > CHANGE) {
        return Err(AppError::field(
            "changes",
            format!("may be at most {CHANGES}, each of {CHANGE} bytes"),
        ));
    }
    Ok(())
}
