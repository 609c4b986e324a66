//! An Ed25519 key in the forms of OpenSSH, from 32 random bytes.
//!
//! Source of the forms: `PROTOCOL.key` of OpenSSH, and RFC 8709.

use ed25519_compact::{KeyPair, Seed};

/// The two halves of a key.
#[derive(Clone)]
pub struct SshKey {
    /// The private half, as in `ssh_host_ed25519_key`.
    pub private: String,
    /// The public half, as in `known_hosts`: `ssh-ed25519 AAAA…`.
    pub public: String,
}

const KIND: &[u8] = b"ssh-ed25519";

/// Makes a key.
pub fn make(seed: [u8; 32]) -> SshKey {
    let pair = KeyPair::from_seed(Seed::new(seed));
    let public = [string(KIND), string(&pair.pk[..])].concat();
    // Two equal numbers: who decrypts a key sees by them that it worked. Nothing is encrypted here.
    let check = [seed[0], seed[8], seed[16], seed[24]];
    let mut private = [&check[..], &check[..], &public, &string(&pair.sk[..]), &string(b"")].concat();
    let padding = (1_u8..).take((8 - private.len() % 8) % 8);
    private.extend(padding);
    let none = string(b"none");
    let file = [
        &b"openssh-key-v1\0"[..],
        &none,
        &none,
        &string(b""),
        &1_u32.to_be_bytes(),
        &string(&public),
        &string(&private),
    ]
    .concat();
    let mut text = String::from("-----BEGIN OPENSSH PRIVATE KEY-----\n");
    let encoded = base64(&file);
    for line in encoded.as_bytes().chunks(70) {
        // Base 64 is ASCII.
        text.extend(line.iter().map(|&byte| char::from(byte)));
        text.push('\n');
    }
    text.push_str("-----END OPENSSH PRIVATE KEY-----\n");
    SshKey { private: text, public: format!("ssh-ed25519 {}", base64(&public)) }
}

/// Bytes with their length before them.
fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    /// The seed and the public key of RFC 8032, 7.1, test 1.
    #[test]
    fn the_public_key_is_the_seeds() {
        let hex = |text: &str| -> Vec<u8> {
            let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
            (0..text.len()).step_by(2).map(digit).collect()
        };
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let key = make(seed.try_into().unwrap());
        assert_eq!(key.public, format!("ssh-ed25519 {}", base64(&[string(KIND), string(&public)].concat())));
    }

    #[test]
    fn openssh_reads_it() {
        let key = make([7; 32]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, &key.private).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let output = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(&file).output();
        let Ok(output) = output else {
            println!("SKIP (no ssh-keygen)");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), key.public);
    }
}
