//! The key by which a client knows an instance again.

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{HashAlg, PrivateKey};

/// Separates these keys from whatever else the secret may be used for.
const PURPOSE: &[u8] = b"warren ssh host key, version 1\0";

/// What keys are derived from. Whoever has it can pass for every instance.
#[derive(Clone)]
pub struct HostSecret([u8; 32]);

impl std::fmt::Debug for HostSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostSecret(…)")
    }
}

impl HostSecret {
    /// One that was kept.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        SystemRandom::new()
            .fill(&mut bytes)
            .expect("the system has random bytes");
        Self(bytes)
    }

    /// The bytes, to keep them where nobody else can read them.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// An Ed25519 key pair.
#[derive(Clone)]
pub struct HostKey(PrivateKey);

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostKey").field(&self.fingerprint()).finish()
    }
}

impl HostKey {
    /// The key of `subject` (an instance's id): always the same one for the same secret, and another one for every other subject.
    /// Nothing has to be kept for it, and a clone of an instance, which has an id of its own, has a key of its own.
    #[must_use]
    pub fn derive(secret: &HostSecret, subject: &str) -> Self {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &secret.0));
        context.update(PURPOSE);
        context.update(subject.as_bytes());
        let seed: [u8; 32] = context
            .sign()
            .as_ref()
            .try_into()
            .expect("SHA-256 gives 32 bytes");
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
        Self(PrivateKey::new(pair, "").expect("an unencrypted key pair is a private key"))
    }

    /// As a line of `known_hosts` has it, without a host: `ssh-ed25519 AAAA…`.
    #[must_use]
    pub fn public_key(&self) -> String {
        let line = self.0.public_key().to_openssh();
        line.expect("an Ed25519 key can be written")
            .trim()
            .to_owned()
    }

    /// As `ssh` shows it: `SHA256:…`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.public_key().fingerprint(HashAlg::Sha256).to_string()
    }

    pub(crate) fn private(&self) -> PrivateKey {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lasting_and_one_for_each() {
        let (secret, other) = (HostSecret::new([7; 32]), HostSecret::new([8; 32]));
        let key = HostKey::derive(&secret, "a");
        assert_eq!(key.public_key(), HostKey::derive(&secret, "a").public_key());
        assert!(key.public_key().starts_with("ssh-ed25519 AAAA"));
        assert!(key.fingerprint().starts_with("SHA256:"));
        for unlike in [HostKey::derive(&secret, "b"), HostKey::derive(&other, "a")] {
            assert_ne!(key.public_key(), unlike.public_key());
        }
        // Whoever has said yes to a key once is not asked again by a later release.
        assert_eq!(
            HostKey::derive(&HostSecret::new([0; 32]), "").public_key(),
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHu2iZQE9BfeMhejzCId/EE8yiqn5c4lBirnbH1PrUAc"
        );
    }
}
