//! Who a process runs as: an image's `User` looked up in its own `/etc/passwd` and `/etc/group`, as the OCI
//! image specification describes it (config.md, "User"). No NSS: a static program must not load the image's libraries.

use std::path::Path;

/// A user and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups; empty when the image names a group.
    pub(super) groups: Vec<u32>,
    /// Its number where the image has no name for it.
    pub(super) name: String,
    pub(super) home: String,
    /// What it logs in to; never empty.
    pub(super) shell: String,
}

const SHELL: &str = "/bin/sh";

/// The image does not know this user or group.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum UserError {
    #[error("the image has no user {0:?}")]
    NoUser(String),
    #[error("the image has no group {0:?}")]
    NoGroup(String),
}

/// Looks `text` up in the files below `etc`; a file that is missing is an empty one.
pub(super) fn look_up(etc: &Path, text: &str) -> Result<User, UserError> {
    let read = |name| std::fs::read(etc.join(name)).unwrap_or_default();
    let (passwd, group) = (read("passwd"), read("group"));
    resolve(
        text,
        &String::from_utf8_lossy(&passwd),
        &String::from_utf8_lossy(&group),
    )
}

fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    // name:password:uid:gid:comment:home:shell; a name wins over a number, as it does in Docker.
    let line = |matches: &dyn Fn(&[&str]) -> bool| {
        passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() >= 6 && matches(fields))
    };
    let found = line(&|fields| fields[0] == user).or_else(|| line(&|fields| fields[2] == user));
    let (name, uid, gid, home, shell) = match &found {
        Some(fields) => {
            let number = |text: &str| text.parse().map_err(|_| UserError::NoUser(user.to_owned()));
            let shell = fields.get(6).copied().unwrap_or_default();
            let (uid, gid) = (number(fields[2])?, number(fields[3])?);
            (fields[0], uid, gid, fields[5], shell)
        }
        None => {
            // An image with one static binary and no files still has a root.
            let user = if user == "root" { "0" } else { user };
            let uid = user
                .parse()
                .map_err(|_| UserError::NoUser(user.to_owned()))?;
            ("", uid, 0, "/", "")
        }
    };
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    let shell = if shell.is_empty() { SHELL } else { shell }.to_owned();
    let called = match (name, uid) {
        ("", 0) => "root",
        ("", _) => user,
        (name, _) => name,
    };
    let called = called.to_owned();
    let Some(wanted) = wanted_group else {
        let groups = if name.is_empty() {
            Vec::new()
        } else {
            memberships(group, name, gid)
        };
        return Ok(User {
            uid,
            gid,
            groups,
            name: called,
            home,
            shell,
        });
    };
    let gid = group_lines(group)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))?;
    Ok(User {
        uid,
        gid,
        groups: Vec::new(),
        name: called,
        home,
        shell,
    })
}

fn memberships(group: &str, name: &str, primary: u32) -> Vec<u32> {
    group_lines(group)
        .filter(|(_, gid, members)| {
            *gid != primary && members.split(',').any(|member| member == name)
        })
        .map(|(_, gid, _)| gid)
        .collect()
}

/// name:password:gid:members
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/false\n\
                          broken\n1000:x:7:8::/odd:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:4:www,root\nssl:x:90:other,www\n";

    fn user(text: &str) -> Result<(u32, u32, Vec<u32>, String), UserError> {
        resolve(text, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups, user.home))
    }

    #[test]
    fn every_form_of_the_image_specification_resolves() {
        let root = "/root".to_owned();
        let www = "/var/www".to_owned();
        assert_eq!(user(""), Ok((0, 0, vec![4], root)));
        assert_eq!(user("www"), Ok((33, 34, vec![4, 90], www.clone())));
        assert_eq!(user("33"), Ok((33, 34, vec![4, 90], www.clone())));
        assert_eq!(user("www:log"), Ok((33, 4, vec![], www.clone())));
        assert_eq!(user("33:77"), Ok((33, 77, vec![], www)));
        assert_eq!(user("5000"), Ok((5000, 0, vec![], "/".to_owned())));
        assert_eq!(user("5000:6000"), Ok((5000, 6000, vec![], "/".to_owned())));
        assert_eq!(user("1000"), Ok((7, 8, vec![], "/odd".to_owned())));
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        assert_eq!(user("nobody"), Err(UserError::NoUser("nobody".to_owned())));
        assert_eq!(user("www:none"), Err(UserError::NoGroup("none".to_owned())));
        assert_eq!(user("-1"), Err(UserError::NoUser("-1".to_owned())));
    }

    #[test]
    fn an_image_without_files_has_numbers_and_root() {
        assert_eq!(
            resolve("", "", ""),
            Ok(User {
                uid: 0,
                gid: 0,
                groups: vec![],
                name: "root".to_owned(),
                home: "/".to_owned(),
                shell: "/bin/sh".to_owned(),
            })
        );
        assert_eq!(resolve("root", "", ""), resolve("", "", ""));
        let shell = |user: &str| resolve(user, PASSWD, GROUP).map(|user| (user.name, user.shell));
        assert_eq!(
            shell("www"),
            Ok(("www".to_owned(), "/bin/false".to_owned()))
        );
    }
}
