//! OpenSSH public keys, as lines of `authorized_keys` have them (sshd(8), AUTHORIZED_KEYS FILE FORMAT).

/// Keys of one instance at most, and the longest, bytes: RSA of 16384 bits takes 2.8 kB.
const MOST: usize = 64;
const LONGEST: usize = 8 << 10;
/// How the types of public keys begin.
const TYPES: [&str; 4] = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"];

/// Whether all are public keys: a type, base64, and perhaps a comment, on one line each. Options before the type, which could run
/// commands, make it none.
///
/// # Errors
/// What is wrong, as the end of a sentence about the field.
pub fn check(keys: &[String]) -> Result<(), &'static str> {
    if keys.len() > MOST {
        return Err("may be 64 at most");
    }
    if keys.iter().all(|key| is_public_key(key)) {
        Ok(())
    } else {
        Err(
            "must be OpenSSH public keys, such as \"ssh-ed25519 AAAA… me@example\", each on one line",
        )
    }
}

fn is_public_key(key: &str) -> bool {
    let mut words = key.split(' ').filter(|word| !word.is_empty());
    let kind = words.next().unwrap_or_default();
    let body = words.next().unwrap_or_default();
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    key.len() <= LONGEST
        && !key.chars().any(char::is_control)
        && TYPES.iter().any(|start| kind.starts_with(start))
        && body.len() >= 16
        && body.bytes().all(is_base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000 me";

    #[test]
    fn public_keys_are_told_from_anything_else() {
        let token = KEY.replace("ssh-ed25519", "sk-ssh-ed25519@openssh.com");
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[KEY.to_owned(), token]), Ok(()));
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----".to_owned();
        let two = format!("{KEY}\n{KEY}");
        let option = format!("command=\"reboot\" {KEY}");
        let long = format!("{KEY}{}", "x".repeat(9000));
        for text in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 short",
            &private,
            &two,
            &option,
            &long,
        ] {
            assert!(check(&[text.to_owned()]).is_err(), "{text:?}");
        }
        assert!(check(&vec![KEY.to_owned(); MOST + 1]).is_err());
    }
}
