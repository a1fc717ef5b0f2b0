//! What repositories hold beyond the images' own records: manifests that were pushed, and the tags that name them.
//!
//! ```text
//! <data>/images/repositories/<sha-256 of the name>.json     one a repository
//! ```
//!
//! A repository changes as a whole, by fsync and rename. All of them are in memory; the files are read when the store is opened.
//! A manifest stays while a tag, or a manifest that stays, names it, or when it was pushed by its digest alone. When the last
//! tag of one is gone it stays for an hour, for those who are pulling it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use warren_crashpoint::reached;

use crate::digest::Digest;
use crate::store::StoreError;
use crate::store::publish::{self, Temporary};
use crate::store::records::blocking;

/// How long a manifest without tags stays, seconds.
pub(super) const LINGER: i64 = 3600;

/// A manifest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) media_type: String,
    /// What it names: configuration and layers, or manifests.
    pub(super) names: BTreeSet<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Digest>,
    /// Since when its last tag is gone, seconds since 1970; absent while it has one, or never had any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) loose_since: Option<i64>,
}

/// What a tag names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tag {
    pub(super) manifest: Digest,
    /// The manifest of the image that was made of it, where it runs here: the tag's own, or one that this names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<Digest>,
    /// The names under which that image is recorded. Their records decide: with none of them left, the tag is gone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) names: BTreeSet<String>,
}

/// A repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Repository {
    pub(super) name: String,
    #[serde(default)]
    pub(super) manifests: BTreeMap<Digest, Entry>,
    #[serde(default)]
    pub(super) tags: BTreeMap<String, Tag>,
}

impl Repository {
    /// Adds a manifest under tags, which others lose.
    pub(super) fn put(
        &mut self,
        digest: &Digest,
        entry: Entry,
        tags: impl IntoIterator<Item = (String, Tag)>,
        now: i64,
    ) {
        self.manifests.insert(digest.clone(), entry);
        for (tag, value) in tags {
            let displaced = self.tags.insert(tag, value);
            if let Some(displaced) = displaced {
                self.loosen(&displaced.manifest, now);
            }
        }
    }

    /// Takes a tag away; its manifest stays for a while.
    pub(super) fn take_tag(&mut self, tag: &str, now: i64) -> bool {
        let Some(taken) = self.tags.remove(tag) else {
            return false;
        };
        self.loosen(&taken.manifest, now);
        true
    }

    /// Takes a manifest and its tags away at once. What only it named stays for a while.
    pub(super) fn take_manifest(&mut self, digest: &Digest, now: i64) -> bool {
        let Some(taken) = self.manifests.remove(digest) else {
            return false;
        };
        self.tags.retain(|_, tag| tag.manifest != *digest);
        for named in &taken.names {
            self.loosen(named, now);
        }
        true
    }

    fn loosen(&mut self, manifest: &Digest, now: i64) {
        if self.is_named(manifest) {
            return;
        }
        if let Some(entry) = self.manifests.get_mut(manifest) {
            entry.loose_since.get_or_insert(now);
        }
    }

    /// Whether a tag or another manifest names it.
    fn is_named(&self, manifest: &Digest) -> bool {
        self.tags.values().any(|tag| tag.manifest == *manifest)
            || self
                .manifests
                .values()
                .any(|entry| entry.names.contains(manifest))
    }

    /// Drops manifests whose last tag went long ago, with the manifests that only they named and those that refer to them.
    pub(super) fn expire(&mut self, now: i64) {
        let mut going: Vec<Digest> = self
            .manifests
            .iter()
            .filter(|(_, entry)| {
                entry
                    .loose_since
                    .is_some_and(|since| now.saturating_sub(since) >= LINGER)
            })
            .map(|(digest, _)| digest.clone())
            .collect();
        while let Some(digest) = going.pop() {
            // It may have been named anew.
            if self.is_named(&digest) {
                if let Some(entry) = self.manifests.get_mut(&digest) {
                    entry.loose_since = None;
                }
                continue;
            }
            let Some(gone) = self.manifests.remove(&digest) else {
                continue;
            };
            going.extend(gone.names);
            let referring = self
                .manifests
                .iter()
                .filter(|(_, entry)| entry.subject.as_ref() == Some(&digest));
            going.extend(referring.map(|(digest, _)| digest.clone()));
        }
    }

    /// Whether it has a blob, because one of its manifests names it.
    pub(super) fn names(&self, blob: &Digest) -> bool {
        self.manifests
            .values()
            .any(|entry| entry.names.contains(blob))
    }

    /// All that has to stay for it.
    pub(super) fn needed(&self) -> impl Iterator<Item = &Digest> {
        self.manifests
            .iter()
            .flat_map(|(digest, entry)| std::iter::once(digest).chain(&entry.names))
    }

    fn is_empty(&self) -> bool {
        self.manifests.is_empty() && self.tags.is_empty()
    }
}

/// All repositories.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
    held: Arc<Held>,
    /// Files that are no repositories any more: nobody knows what they held.
    damaged: Vec<PathBuf>,
    /// One change at a time.
    writing: Arc<tokio::sync::Mutex<()>>,
}

type Held = Mutex<BTreeMap<String, Arc<Repository>>>;

impl Shelf {
    /// Reads what is there. A damaged file is named in the log and left out.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        let (mut held, mut damaged) = (BTreeMap::new(), Vec::new());
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match serde_json::from_slice::<Repository>(&std::fs::read(&path)?) {
                Ok(repository) if path == place(&directory, &repository.name) => {
                    held.insert(repository.name.clone(), Arc::new(repository));
                }
                Ok(_) => {
                    tracing::error!(path = %path.display(), "a repository has another name than its file");
                    damaged.push(path);
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a repository is damaged");
                    damaged.push(path);
                }
            }
        }
        Ok(Shelf {
            directory,
            held: Arc::new(Mutex::new(held)),
            damaged,
            writing: Arc::default(),
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Repository>> {
        lock(&self.held).get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Repository>> {
        lock(&self.held).values().cloned().collect()
    }

    /// What could not be read when the store was opened, if anything.
    pub(super) fn damaged(&self) -> Option<&Path> {
        self.damaged.first().map(PathBuf::as_path)
    }

    /// Changes a repository, durably, all or nothing, also where nobody waits for it any more.
    pub(super) async fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Repository) -> T,
    ) -> Result<T, StoreError> {
        let writing = Arc::clone(&self.writing).lock_owned().await;
        let before = self.get(name);
        let mut repository = match &before {
            Some(held) => (**held).clone(),
            None => Repository {
                name: name.to_owned(),
                ..Repository::default()
            },
        };
        let result = change(&mut repository);
        if before.as_deref() == Some(&repository) || (before.is_none() && repository.is_empty()) {
            return Ok(result);
        }
        let path = place(&self.directory, name);
        let held = Arc::clone(&self.held);
        blocking("writing a repository", move || {
            let _writing = writing;
            if repository.is_empty() {
                publish::remove(&path)?;
                lock(&held).remove(&repository.name);
            } else {
                let mut temporary = Temporary::beside(&path)?;
                temporary
                    .file()
                    .write_all(&serde_json::to_vec(&repository)?)?;
                temporary.publish(&path)?;
                lock(&held).insert(repository.name.clone(), Arc::new(repository));
            }
            reached("receive.repository-written");
            Ok(())
        })
        .await?;
        Ok(result)
    }
}

fn lock(held: &Held) -> MutexGuard<'_, BTreeMap<String, Arc<Repository>>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(directory: &Path, name: &str) -> PathBuf {
    let hex = Digest::of(name.as_bytes());
    directory.join(format!("{}.json", hex.hex()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed test panics")]
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn entry(names: &[&str]) -> Entry {
        Entry {
            media_type: "t".to_owned(),
            names: names.iter().map(|name| digest(name)).collect(),
            subject: None,
            loose_since: None,
        }
    }

    fn tag(of: &str) -> Tag {
        Tag {
            manifest: digest(of),
            image: None,
            names: BTreeSet::new(),
        }
    }

    fn left(repository: &Repository) -> usize {
        repository.manifests.len()
    }

    #[test]
    fn a_displaced_image_goes_after_an_hour_and_takes_what_was_only_its() {
        let mut repository = Repository::default();
        repository.put(&digest("amd64"), entry(&["layer"]), [], 0);
        repository.put(&digest("both"), entry(&["own", "layer"]), [], 0);
        let index = entry(&["amd64", "both"]);
        repository.put(&digest("index"), index, [("1".to_owned(), tag("index"))], 0);
        let signature = Entry {
            subject: Some(digest("index")),
            ..entry(&["signed"])
        };
        repository.put(&digest("signature"), signature, [], 0);
        let next = entry(&["both"]);
        repository.put(&digest("next"), next, [("1".to_owned(), tag("next"))], 100);
        repository.expire(100 + LINGER - 1);
        assert_eq!(left(&repository), 5);
        repository.expire(100 + LINGER);
        let kept: Vec<bool> = ["both", "next", "amd64", "index", "signature"]
            .map(|name| repository.manifests.contains_key(&digest(name)))
            .to_vec();
        assert_eq!(kept, [true, true, false, false, false]);
        assert!(repository.names(&digest("own")) && !repository.names(&digest("signed")));
    }

    #[test]
    fn what_was_pushed_by_its_digest_alone_stays() {
        let mut repository = Repository::default();
        repository.put(&digest("a"), entry(&[]), [], 0);
        repository.expire(i64::MAX);
        assert_eq!(left(&repository), 1);
        assert!(repository.take_manifest(&digest("a"), 0));
        assert!(!repository.take_manifest(&digest("a"), 0));
        assert!(repository.is_empty());
    }

    #[test]
    fn a_manifest_that_gets_a_tag_again_stays() {
        let mut repository = Repository::default();
        let one = || [("1".to_owned(), tag("a"))];
        repository.put(&digest("a"), entry(&[]), one(), 0);
        assert!(repository.take_tag("1", 5));
        assert!(!repository.take_tag("1", 5));
        assert_eq!(repository.manifests[&digest("a")].loose_since, Some(5));
        repository.put(&digest("a"), entry(&[]), one(), 6);
        repository.expire(i64::MAX);
        assert_eq!(left(&repository), 1);
    }

    #[test]
    fn a_manifest_that_is_taken_takes_its_tags() {
        let mut repository = Repository::default();
        let tags = ["1", "2"].map(|name| (name.to_owned(), tag("index")));
        repository.put(&digest("child"), entry(&[]), [], 0);
        repository.put(&digest("index"), entry(&["child"]), tags, 0);
        assert!(repository.take_manifest(&digest("index"), 7));
        assert!(repository.tags.is_empty());
        assert_eq!(
            left(&repository),
            1,
            "what it named is still being asked for"
        );
        repository.expire(7 + LINGER);
        assert!(repository.is_empty());
    }

    #[tokio::test]
    async fn repositories_survive_and_damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(directory.path().to_owned()).unwrap();
        for name in ["a/b", "c"] {
            shelf
                .change(name, |repository| {
                    let tags = [("1".to_owned(), tag("m"))];
                    repository.put(&digest("m"), entry(&["x"]), tags, 0);
                })
                .await
                .unwrap();
        }
        shelf
            .change("c", |repository| repository.take_manifest(&digest("m"), 0))
            .await
            .unwrap();
        let again = Shelf::open(directory.path().to_owned()).unwrap();
        assert_eq!(again.get("a/b"), shelf.get("a/b"));
        assert_eq!(again.all().len(), 1);
        assert_eq!(again.damaged(), None);
        let path = place(directory.path(), "a/b");
        std::fs::write(&path, "{").unwrap();
        let damaged = Shelf::open(directory.path().to_owned()).unwrap();
        assert_eq!(damaged.damaged(), Some(path.as_path()));
    }
}
