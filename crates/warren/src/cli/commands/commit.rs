//! `warren commit`.

use super::images::{follow, report, show};
use super::{Outcome, Session};
use crate::cli::args::CommitArgs;
use warren_api::image::CommitInstanceRequest;

/// Makes an image of an instance's changes, with progress.
pub(super) async fn commit(session: &Session, args: CommitArgs) -> Outcome {
    let request = CommitInstanceRequest {
        name: args.reference,
        id: args.id,
        author: args.author,
        message: args.message,
        changes: args.changes,
        ..CommitInstanceRequest::default()
    };
    let what = format!("committing {}", args.instance);
    let steps = session.client.commit_instance(&args.instance, &request);
    let images = follow(session, &what, steps).await?;
    report(session, "committed", &images);
    show(session, &images)?;
    Ok(0)
}
