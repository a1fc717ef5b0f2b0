//! Paths below `/v2/`, and the grammar of what is in them. Repository names contain slashes, so a path is read from its end.
//!
//! Source: OCI distribution-spec v1.1, "Pulling manifests" (names, tags), "Endpoints"; image-spec v1.1 `descriptor.md` (digests).

use warren_core::ports::registry::ManifestName;

/// A repository with its registry's host fits into the 255 characters that many clients allow.
const LONGEST_NAME: usize = 255;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags { repository: String },
    /// `/v2/<name>/referrers/<digest>`
    Referrers { repository: String, digest: String },
    /// `/v2/<name>/manifests/<tag or digest>`; the last part is not checked yet.
    Manifest {
        repository: String,
        reference: String,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob { repository: String, digest: String },
    /// `/v2/<name>/blobs/uploads/`
    Uploads { repository: String },
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload { repository: String, id: String },
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Astray {
    /// It has none of the known forms.
    Form,
    /// The repository's name is none.
    Name,
    /// What should be a digest is none.
    Digest,
}

impl Route {
    /// Reads a path with its percent-encoding.
    pub(super) fn parse(path: &str) -> Result<Route, Astray> {
        let Some(rest) = path.strip_prefix("/v2") else {
            return Err(Astray::Form);
        };
        if rest.is_empty() || rest == "/" {
            return Ok(Route::Base);
        }
        let parts: Vec<String> = rest
            .strip_prefix('/')
            .ok_or(Astray::Form)?
            .split('/')
            .map(decode)
            .collect::<Option<_>>()
            .ok_or(Astray::Form)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["_catalog"] => Ok(Route::Catalog),
            [name @ .., "tags", "list"] => Ok(Route::Tags {
                repository: repository(name)?,
            }),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Ok(Route::Uploads {
                    repository: repository(name)?,
                })
            }
            [name @ .., "blobs", "uploads", id] => Ok(Route::Upload {
                repository: repository(name)?,
                id: (*id).to_owned(),
            }),
            [name @ .., "manifests", reference] => Ok(Route::Manifest {
                repository: repository(name)?,
                reference: (*reference).to_owned(),
            }),
            [name @ .., "referrers", wanted] => Ok(Route::Referrers {
                repository: repository(name)?,
                digest: digest(wanted)?,
            }),
            [name @ .., "blobs", wanted] => Ok(Route::Blob {
                repository: repository(name)?,
                digest: digest(wanted)?,
            }),
            _ => Err(Astray::Form),
        }
    }
}

/// One part of a path; `None` where it hides a separator or is not UTF-8.
fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high << 4 | low).ok()?
            }
            other => other,
        });
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.contains('/')).then_some(text)
}

fn repository(parts: &[&str]) -> Result<String, Astray> {
    let name = parts.join("/");
    if is_repository(&name) {
        Ok(name)
    } else {
        Err(Astray::Name)
    }
}

fn digest(text: &str) -> Result<String, Astray> {
    if is_digest(text) {
        Ok(text.to_owned())
    } else {
        Err(Astray::Digest)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`
pub(super) fn is_repository(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST_NAME && name.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(|b| word(*b));
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.split(|b| word(*b)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
pub(super) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// `sha256:` or `sha512:` with as many lower-case digits as it has: the algorithms that are registered and can be checked.
pub(super) fn is_digest(text: &str) -> bool {
    let digits = match text.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 => hex,
        Some(("sha512", hex)) if hex.len() == 128 => hex,
        _ => return false,
    };
    digits
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a manifest is called, `None` if it can be neither a tag nor a digest. Tags have no colon.
pub(super) fn manifest_name(reference: &str) -> Option<ManifestName> {
    if is_digest(reference) {
        Some(ManifestName::Digest(reference.to_owned()))
    } else if is_tag(reference) {
        Some(ManifestName::Tag(reference.to_owned()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = sha256();
        let repository = |name: &str| name.to_owned();
        for (path, route) in [
            ("/v2".to_owned(), Route::Base),
            ("/v2/".to_owned(), Route::Base),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            (
                "/v2/a/tags/list".to_owned(),
                Route::Tags {
                    repository: repository("a"),
                },
            ),
            (
                "/v2/tags/list/tags/list".to_owned(),
                Route::Tags {
                    repository: repository("tags/list"),
                },
            ),
            (
                "/v2/a/b.c/d__e-f/manifests/1.0".to_owned(),
                Route::Manifest {
                    repository: repository("a/b.c/d__e-f"),
                    reference: "1.0".to_owned(),
                },
            ),
            (
                format!("/v2/manifests/manifests/{digest}"),
                Route::Manifest {
                    repository: repository("manifests"),
                    reference: digest.clone(),
                },
            ),
            (
                format!("/v2/a/blobs/{}", digest.replace(':', "%3A")),
                Route::Blob {
                    repository: repository("a"),
                    digest: digest.clone(),
                },
            ),
            (
                "/v2/a/blobs/uploads".to_owned(),
                Route::Uploads {
                    repository: repository("a"),
                },
            ),
            (
                "/v2/a/blobs/uploads/".to_owned(),
                Route::Uploads {
                    repository: repository("a"),
                },
            ),
            (
                "/v2/a/blobs/blobs/uploads/x".to_owned(),
                Route::Upload {
                    repository: repository("a/blobs"),
                    id: "x".to_owned(),
                },
            ),
            (
                format!("/v2/a/referrers/{digest}"),
                Route::Referrers {
                    repository: repository("a"),
                    digest: digest.clone(),
                },
            ),
        ] {
            assert_eq!(Route::parse(&path), Ok(route), "{path}");
        }
    }

    #[test]
    fn what_is_not_in_the_grammar_leads_nowhere() {
        let digest = sha256();
        for (path, why) in [
            ("/v3/".to_owned(), Astray::Form),
            ("/v2x/a/tags/list".to_owned(), Astray::Form),
            ("/v2/a".to_owned(), Astray::Form),
            ("/v2/a/".to_owned(), Astray::Form),
            ("/v2/tags/list".to_owned(), Astray::Name),
            ("/v2/A/tags/list".to_owned(), Astray::Name),
            ("/v2/../tags/list".to_owned(), Astray::Name),
            ("/v2/a//b/tags/list".to_owned(), Astray::Name),
            ("/v2/a%2Fb/tags/list".to_owned(), Astray::Form),
            ("/v2/a%zz/tags/list".to_owned(), Astray::Form),
            ("/v2/%ff/tags/list".to_owned(), Astray::Form),
            (format!("/v2/{}/tags/list", "a".repeat(256)), Astray::Name),
            ("/v2/a/blobs/sha256:12".to_owned(), Astray::Digest),
            (
                format!("/v2/a/blobs/{}", digest.to_uppercase()),
                Astray::Digest,
            ),
            ("/v2/a/blobs/md5:00".to_owned(), Astray::Digest),
            ("/v2/a/referrers/latest".to_owned(), Astray::Digest),
        ] {
            assert_eq!(Route::parse(&path), Err(why), "{path}");
        }
    }

    #[test]
    fn tags_and_digests_are_told_apart() {
        assert_eq!(
            manifest_name("latest"),
            Some(ManifestName::Tag("latest".into()))
        );
        assert_eq!(
            manifest_name(&sha256()),
            Some(ManifestName::Digest(sha256()))
        );
        let long = "a".repeat(129);
        for neither in [".hidden", "-x", "", "a:b", "sha256:12", "a b", &long] {
            assert_eq!(manifest_name(neither), None, "{neither}");
        }
    }
}
