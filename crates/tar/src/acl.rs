//! POSIX ACLs as PAX records spell them (`SCHILY.acl.access`, `SCHILY.acl.default`), into the form that Linux keeps.
//!
//! Sources: star(5), "SCHILY.acl.*"; acl(5), "ACL TEXT FORMS"; the kernel's `posix_acl_xattr.h`.

/// What a record's text comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acl {
    /// The value of `system.posix_acl_access` or `system.posix_acl_default`.
    Value(Vec<u8>),
    /// The same, with owner, group and others only: a file's mode says as much.
    Minimal(Vec<u8>),
    /// It names users or groups without their numbers, and what they are is known to the image's own files at most.
    Named,
}

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// `e_tag`, in the order of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

/// Reads entries such as `user::rwx`, `group:34:r-x` or `user:lisa:rw-:1000`, one a line or between commas. `None` for
/// what is no ACL.
pub(super) fn parse(text: &[u8]) -> Option<Acl> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries: Vec<(Tag, u32, u16)> = Vec::new();
    let mut named = false;
    for line in text.split(['\n', ',']) {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let fields: Vec<&str> = entry.split(':').collect();
        let (&[tag, who, permissions] | &[tag, who, permissions, _]) = fields.as_slice() else {
            return None;
        };
        let tag = match (tag, who) {
            ("user" | "u", "") => Tag::Owner,
            ("user" | "u", _) => Tag::User,
            ("group" | "g", "") => Tag::OwningGroup,
            ("group" | "g", _) => Tag::Group,
            ("mask" | "m", "") => Tag::Mask,
            ("other" | "o", "") => Tag::Other,
            _ => return None,
        };
        let id = match tag {
            Tag::User | Tag::Group => {
                let number = fields.get(3).unwrap_or(&who).parse().ok();
                named |= number.is_none();
                number.unwrap_or(NO_ID)
            }
            Tag::Owner | Tag::OwningGroup | Tag::Mask | Tag::Other => NO_ID,
        };
        entries.push((tag, id, parse_permissions(permissions)?));
    }
    if named {
        return Some(Acl::Named);
    }
    entries.sort_unstable();
    let once = |wanted| entries.iter().filter(|entry| entry.0 == wanted).count() == 1;
    let twice = entries
        .windows(2)
        .any(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1));
    let minimal = entries.len() == 3;
    if !(once(Tag::Owner) && once(Tag::OwningGroup) && once(Tag::Other)) || twice {
        return None;
    }
    if !minimal && !once(Tag::Mask) {
        return None;
    }
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&(tag as u16).to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Some(match minimal {
        true => Acl::Minimal(value),
        false => Acl::Value(value),
    })
}

fn parse_permissions(text: &str) -> Option<u16> {
    text.chars().try_fold(0, |permissions, letter| {
        Some(match letter {
            'r' => permissions | 4,
            'w' => permissions | 2,
            'x' => permissions | 1,
            '-' => permissions,
            _ => return None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    #[test]
    fn both_spellings_give_what_linux_keeps() {
        let expected = Acl::Value(value(&[
            (1, 7, u32::MAX),
            (2, 6, 33),
            (2, 5, 1001),
            (4, 5, u32::MAX),
            (8, 4, 7),
            (0x10, 7, u32::MAX),
            (0x20, 0, u32::MAX),
        ]));
        let lines = "user::rwx\nuser:1001:r-x\t#effective:r-x\nuser:33:rw-\ngroup::r-x\ngroup:7:r--\nmask::rwx\nother::---\n";
        assert_eq!(parse(lines.as_bytes()).as_ref(), Some(&expected));
        let commas =
            "u::rwx,g::r-x,o::---,m::rwx,user:lisa:r-x:1001,user:www-data:rw-:33,group:lp:r--:7";
        assert_eq!(parse(commas.as_bytes()), Some(expected));
    }

    #[test]
    fn what_says_nothing_new_and_what_cannot_be_known_are_told_apart() {
        assert_eq!(
            parse(b"user::rw-,group::r--,other::r--"),
            Some(Acl::Minimal(value(&[
                (1, 6, u32::MAX),
                (4, 4, u32::MAX),
                (0x20, 4, u32::MAX)
            ])))
        );
        let named = b"user::rw-,user:lisa:r--,group::r--,mask::r--,other::r--";
        assert_eq!(parse(named), Some(Acl::Named));
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        for text in [
            "",
            "user::rwx",
            "user::rwx,group::r-x,other::r-x,other::r-x",
            "user::rwx,user:5:rwx,group::r-x,other::r-x",
            "user::rwx,user:5:rwx,user:5:r-x,group::r-x,mask::rwx,other::r-x",
            "user::rwz,group::r-x,other::r-x",
            "somebody::rwx,group::r-x,other::r-x",
            "user",
            "a:b:c:d:e",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(b"\xff"), None);
    }
}
