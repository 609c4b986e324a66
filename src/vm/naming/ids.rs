//! Identifiers and paths: tenant, pool, instance, revision.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::NameError;

/// Implements what a newtype over text needs to be used by serde and clap alike: one parser for both.
macro_rules! text_type {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.0.as_ref()
            }
        }
    };
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_label(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError::Label { what: $what, text: text.to_owned() })
                }
            }
        }
        text_type!($name);
    };
}

label_type!(
    /// A tenant's id: a DNS label.
    TenantId,
    "tenant"
);
label_type!(
    /// A pool's id: a DNS label, unique within its tenant.
    PoolId,
    "pool"
);
label_type!(
    /// A guest image's name: a DNS label.
    ImageName,
    "guest image"
);

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| inner(b) || b == b'-')
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1])
}

/// The name of a tenant's secret: that of a file in one folder of a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl FromStr for SecretName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        // As `mvm_proto::secrets::is_name`, which is there for Linux alone.
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        match (1..=128).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(inner) {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError::Secret { text: text.to_owned() }),
        }
    }
}
text_type!(SecretName);

/// An instance's id: `i-` and 8 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);

impl InstanceId {
    /// The id with these 32 bits.
    pub fn from_bits(bits: u32) -> Self {
        Self(format!("i-{bits:08x}"))
    }
}

impl FromStr for InstanceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let prefix = text.parse::<InstancePrefix>()?;
        if prefix.0.len() == 10 {
            Ok(Self(prefix.0))
        } else {
            Err(NameError::Instance { text: text.to_owned() })
        }
    }
}
text_type!(InstanceId);

/// The beginning of an instance id, as a person types it: `i-` and up to 8 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePrefix(String);

impl InstancePrefix {
    /// Does this id begin like that?
    pub fn matches(&self, id: &InstanceId) -> bool {
        id.0.starts_with(&self.0)
    }
}

impl fmt::Display for InstancePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstancePrefix {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Instance { text: text.to_owned() };
        let hex = text.strip_prefix("i-").ok_or_else(wrong)?;
        if hex.len() <= 8 && is_hex(hex) { Ok(Self(text.to_owned())) } else { Err(wrong()) }
    }
}

/// `tenant/pool`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolPath {
    /// The tenant.
    pub tenant: TenantId,
    /// The pool.
    pub pool: PoolId,
}

impl fmt::Display for PoolPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.pool)
    }
}

impl FromStr for PoolPath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, pool] => Ok(Self { tenant: tenant.parse()?, pool: pool.parse()? }),
            _ => Err(NameError::Path { what: "a pool", form: "tenant/pool", text: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for PoolPath {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<PoolPath> for String {
    fn from(path: PoolPath) -> String {
        path.to_string()
    }
}

/// `tenant/pool/instance`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstancePath {
    /// The tenant.
    pub tenant: TenantId,
    /// The pool.
    pub pool: PoolId,
    /// The instance.
    pub instance: InstanceId,
}

impl InstancePath {
    /// The path of the instance's pool.
    pub fn pool_path(&self) -> PoolPath {
        PoolPath { tenant: self.tenant.clone(), pool: self.pool.clone() }
    }
}

impl fmt::Display for InstancePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.pool, self.instance)
    }
}

impl FromStr for InstancePath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let InstanceRef { pool, prefix } = text.parse()?;
        let instance = prefix.0.parse()?;
        Ok(Self { tenant: pool.tenant, pool: pool.pool, instance })
    }
}

impl TryFrom<String> for InstancePath {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<InstancePath> for String {
    fn from(path: InstancePath) -> String {
        path.to_string()
    }
}

/// `tenant/pool/instance` as a person types it: the id may be a beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRef {
    /// The pool.
    pub pool: PoolPath,
    /// The beginning of the instance's id.
    pub prefix: InstancePrefix,
}

impl fmt::Display for InstanceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.prefix)
    }
}

impl FromStr for InstanceRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, pool, instance] => Ok(Self {
                pool: PoolPath { tenant: tenant.parse()?, pool: pool.parse()? },
                prefix: instance.parse()?,
            }),
            _ => Err(NameError::Path {
                what: "an instance",
                form: "tenant/pool/instance",
                text: text.to_owned(),
            }),
        }
    }
}

/// A revision's name: the content hash of its artifacts, 64 hex digits, or the first 12 or more where a person types it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RevisionHash(String);

impl RevisionHash {
    /// Does it begin with these digits?
    pub fn starts_with(&self, beginning: &RevisionHash) -> bool {
        self.0.starts_with(&beginning.0)
    }

    /// The first 12 digits, for tables.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl FromStr for RevisionHash {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if (12..=64).contains(&text.len()) && is_hex(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Revision { text: text.to_owned() })
        }
    }
}
text_type!(RevisionHash);

/// A base snapshot's name: the hash of all that it depends on, 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BaseKey(String);

impl BaseKey {
    /// The key that is this sha256.
    pub fn from_sha256(digest: [u8; 32]) -> Self {
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The first 12 digits, for tables.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for BaseKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() == 64 && is_hex(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::BaseKey { text: text.to_owned() })
        }
    }
}
text_type!(BaseKey);

/// A tenant, or one of its pools.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The tenant.
    pub tenant: TenantId,
    /// The pool; all of the tenant's, where none is named.
    pub pool: Option<PoolPath>,
}

impl std::str::FromStr for Scope {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('/') {
            let pool: PoolPath = text.parse()?;
            return Ok(Self { tenant: pool.tenant.clone(), pool: Some(pool) });
        }
        Ok(Self { tenant: text.parse()?, pool: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// What parses is shown as it was typed; nothing panics.
        #[test]
        fn paths_are_shown_as_they_are_typed(text in "[a-zA-Z0-9./_-]{0,40}") {
            if let Ok(path) = text.parse::<InstancePath>() {
                assert_eq!(path.to_string(), text);
            }
            if let Ok(path) = text.parse::<PoolPath>() {
                assert_eq!(path.to_string(), text);
            }
        }

        #[test]
        fn every_text_is_a_name_or_an_error(text: String) {
            let _ = (text.parse::<InstanceRef>(), text.parse::<RevisionHash>(), text.parse::<Scope>());
            let _ = text.parse::<BaseKey>();
        }
    }

    #[test]
    fn labels() {
        let long = "a".repeat(63);
        for good in ["a", "0", "a-b", long.as_str(), "a--b"] {
            assert!(good.parse::<TenantId>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-", "a-", "-a", "A", "a_b", "a/b", "a.b", "ä", " a", too_long.as_str(), ".."] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn base_keys() {
        let key = BaseKey::from_sha256([0xa7; 32]);
        assert_eq!(key.to_string(), "a7".repeat(32));
        assert_eq!((key.to_string().parse(), key.short()), (Ok(key.clone()), "a7a7a7a7a7a7"));
        for bad in ["", "a7a7a7a7a7a7", &"A7".repeat(32), &"a7".repeat(33), &"../".repeat(22)[..64]] {
            assert!(bad.parse::<BaseKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        assert!("acme/workers".parse::<PoolPath>().is_ok());
        for bad in ["acme", "acme/", "/workers", "a/b/c", ""] {
            assert!(bad.parse::<PoolPath>().is_err(), "{bad}");
        }
        assert!("acme/workers/i-0f3a91c2".parse::<InstancePath>().is_ok());
        assert!("acme/workers/i-0f".parse::<InstancePath>().is_err());
        assert!("acme/workers/i-0f".parse::<InstanceRef>().is_ok());
        for bad in ["acme/workers/0f", "acme/workers/i-0G", "acme/workers/i-0f3a91c2a", "acme/workers"] {
            assert!(bad.parse::<InstanceRef>().is_err(), "{bad}");
        }
    }
}
