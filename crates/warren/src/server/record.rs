//! The record of intent on this host: the store in the data directory, and whether it may be believed.

use super::data_dir::DataDir;
use std::sync::Arc;
use warren_core::PortError;
use warren_store::{Older, OpenOptions, Origin, SqliteStore, Unowned};

/// Changes that subscribers to events can be behind: the lives of about two thousand instances, some 20 MB.
const HISTORY: usize = 20_000;

/// An opened store.
pub(crate) struct Opened {
    pub(crate) store: Arc<SqliteStore>,
    /// Why it may not be the record of this host, if it may not.
    pub(crate) doubt: Option<String>,
}

/// Opens the store and judges it by what this data directory remembers.
///
/// # Errors
/// The store's.
pub(crate) async fn open(data: &DataDir, older: Older) -> Result<Opened, PortError> {
    let inhabited = is_inhabited(data);
    let options = OpenOptions {
        installation: Some(data.installation.clone()),
        // A store that is made where instances exist is not their record: it stays nobody's until somebody
        // has said otherwise, however often it is opened.
        unowned: if inhabited {
            Unowned::Leave
        } else {
            Unowned::Adopt
        },
        history: HISTORY,
        older,
    };
    let store = SqliteStore::open(data.store(), options).await?;
    let doubt = doubt(&store, data);
    Ok(Opened {
        store: Arc::new(store),
        doubt,
    })
}

/// Whether instances have directories here.
fn is_inhabited(data: &DataDir) -> bool {
    std::fs::read_dir(data.instances()).is_ok_and(|mut entries| entries.next().is_some())
}

fn doubt(store: &SqliteStore, data: &DataDir) -> Option<String> {
    match (store.origin(), store.installation()) {
        (Origin::Backup { revision }, _) => Some(format!(
            "the record was restored from a backup (commit {revision})"
        )),
        (Origin::Behind { revision, seen }, _) => Some(format!(
            "the record is an older copy (commit {revision}, this host has seen {seen})"
        )),
        (_, Some(owner)) if *owner != data.installation => Some(format!(
            "the record is that of another installation ({owner})"
        )),
        (_, None) => Some("the record is new, and instances exist here".to_owned()),
        (Origin::New | Origin::Existing, Some(_)) => None,
    }
}
