//! The master key, with which tenants' keys are sealed: where it comes from. None is ever made here.
//!
//! ```text
//! MVM_MASTER_KEY_FILE | MVM_MASTER_KEY      else $CREDENTIALS_DIRECTORY/mvm-master-key      else MVM_ROOT/master.key
//! ```

use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

use super::sealing::Key;
use crate::infra::{config::Roots, text::unhex_into};

/// A key's file is no longer than that.
const MOST: usize = 256;
/// What systemd is told to call it.
const CREDENTIAL: &str = "mvm-master-key";

/// Where a master key came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `MVM_MASTER_KEY_FILE`.
    File(PathBuf),
    /// `MVM_MASTER_KEY`.
    Variable,
    /// A credential of systemd's.
    Credential(PathBuf),
    /// `MVM_ROOT/master.key`, or another file in there: beside what it protects.
    Root(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) if path.as_os_str().is_empty() => {
                f.write_str("MVM_MASTER_KEY_FILE, which is empty")
            }
            Self::File(path) | Self::Root(path) => write!(f, "{}", path.display()),
            Self::Variable => f.write_str("MVM_MASTER_KEY"),
            Self::Credential(_) => write!(f, "systemd's credential {CREDENTIAL}"),
        }
    }
}

/// Why there is no master key where one is said to be.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// Two are given.
    #[error("both MVM_MASTER_KEY_FILE and MVM_MASTER_KEY are set: which one counts is not said")]
    Two,
    /// It cannot be read.
    #[error("the master key cannot be read from {from}")]
    Unreadable {
        /// From where.
        from: Source,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("the master key in {from} may be read by others: its mode is {mode:03o}, and its owner {owner}")]
    Open {
        /// From where.
        from: Source,
        /// Its mode.
        mode: u32,
        /// Its owner's uid.
        owner: u32,
    },
    /// It is none.
    #[error("there is no master key in {from}: it must be 32 random bytes, or their hex or base64")]
    Malformed {
        /// From where.
        from: Source,
    },
}

/// The master key that is given, and where; `None` where there is none anywhere.
///
/// # Errors
/// Where it is said to be somewhere, and is not.
pub fn given(roots: &Roots) -> Result<Option<(Key, Source)>, MasterKeyError> {
    let places = &roots.master_key;
    let source = match (&places.file, &places.variable, &places.credentials) {
        (Some(_), Some(_), _) => return Err(MasterKeyError::Two),
        (Some(file), None, _) if lies_below(file, &roots.root) => Source::Root(file.clone()),
        (Some(file), None, _) => Source::File(file.clone()),
        (None, Some(text), _) => {
            let from = Source::Variable;
            return match parse(text.reveal().as_bytes()) {
                Some(key) => Ok(Some((key, from))),
                None => Err(MasterKeyError::Malformed { from }),
            };
        }
        // A link that leads nowhere is one that is missing: none is made in its place.
        (None, None, Some(folder)) if folder.join(CREDENTIAL).symlink_metadata().is_ok() => {
            Source::Credential(folder.join(CREDENTIAL))
        }
        (None, None, _) if roots.own_master_key().symlink_metadata().is_ok() => {
            Source::Root(roots.own_master_key())
        }
        (None, None, _) => return Ok(None),
    };
    let key = match &source {
        Source::Credential(path) => read(path, &source, false)?,
        Source::File(path) | Source::Root(path) => read(path, &source, true)?,
        Source::Variable => None,
    };
    match key {
        Some(key) => Ok(Some((key, source))),
        None => Err(MasterKeyError::Malformed { from: source }),
    }
}

/// Also where a link leads there.
fn lies_below(file: &Path, folder: &Path) -> bool {
    let real = |path| fs::canonicalize(path).ok();
    real(file).zip(real(folder)).is_some_and(|(file, folder)| file.starts_with(folder))
}

/// A file's key. systemd sees to the rights of its credentials itself.
fn read(path: &Path, from: &Source, is_ours: bool) -> Result<Option<Key>, MasterKeyError> {
    let unreadable = |source| MasterKeyError::Unreadable { from: from.clone(), source };
    // What is no file does not keep this waiting.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file = fs::File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    let (mode, owner) = (meta.mode() & 0o777, meta.uid());
    let is_trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
    if meta.is_file() && is_ours && (mode & 0o077 != 0 || !is_trusted) {
        return Err(MasterKeyError::Open { from: from.clone(), mode, owner });
    }
    let mut bytes = Zeroizing::new([0; MOST]);
    let mut length = 0;
    while length < MOST {
        match file.read(&mut bytes[length..]) {
            Ok(0) => return Ok(parse(&bytes[..length])),
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(None)
}

/// 32 bytes as they are, or as hex or base64 in a line.
fn parse(bytes: &[u8]) -> Option<Key> {
    if bytes.len() == 32 {
        // Text is no random bytes: half a key in hex, a password, base64 of another length.
        let is_text = bytes.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
        return if is_text { None } else { Key::of(bytes) };
    }
    let text = std::str::from_utf8(bytes).ok()?.trim();
    if text.len() == 64 {
        let mut key = Zeroizing::new([0; 32]);
        unhex_into(text, &mut *key)?;
        return Key::of(&*key);
    }
    let mut key = Zeroizing::new([0; 33]);
    Key::of(Base64::decode(text, &mut *key).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::config::{Environment, Hidden, MasterKeyPlaces};

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn a_key_is_bytes_hex_or_base64_and_nothing_else() {
        let bytes: Vec<u8> = (0..32).collect();
        let id = Key::of(&bytes).unwrap().id();
        for text in [HEX.to_owned(), format!("{HEX}\n"), HEX.to_uppercase(), format!(" {BASE64}\n")] {
            assert_eq!(parse(text.as_bytes()).unwrap().id(), id, "{text}");
        }
        assert_eq!(parse(&bytes).unwrap().id(), id);
        let plus = format!("+{}", &HEX[1..]);
        for bad in [
            "",
            "password",
            &HEX[1..],
            &HEX[..32],
            "correct horse battery staple pas",
            &BASE64[4..],
            &"0".repeat(64),
            &format!("{HEX}{HEX}"),
            &plus,
        ] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(parse(&[0xff; 100]).is_none());
    }

    #[test]
    fn the_first_that_is_given_counts_and_what_is_wrong_with_it_is_said() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let given = |places: MasterKeyPlaces| {
            let mut environment = Environment::default();
            environment.master_key = places;
            given(&Roots::new(dir.path(), &environment).unwrap()).map(|found| found.map(|(_, source)| source))
        };
        let write_in = |folder: &Path, name: &str, content: &[u8], mode: u32| {
            let path = folder.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let write = |name: &str, content: &[u8], mode: u32| write_in(elsewhere.path(), name, content, mode);
        let none = MasterKeyPlaces::default;
        let variable = |text: &str| Some(Hidden::new(text.to_owned()));
        assert_eq!(given(none()).unwrap(), None);
        let own = write_in(dir.path(), "master.key", HEX.as_bytes(), 0o600);
        assert_eq!(given(none()).unwrap(), Some(Source::Root(own.clone())));
        // Whoever names it: it lies where it lies.
        let link = elsewhere.path().join("link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        for file in [own, link] {
            let places = MasterKeyPlaces { file: Some(file.clone()), ..none() };
            assert_eq!(given(places).unwrap(), Some(Source::Root(file)));
        }
        let credentials = Some(elsewhere.path().join("credentials"));
        assert!(matches!(
            given(MasterKeyPlaces { credentials: credentials.clone(), ..none() }),
            Ok(Some(Source::Root(_)))
        ));
        fs::create_dir(elsewhere.path().join("credentials")).unwrap();
        let credential = elsewhere.path().join("credentials/mvm-master-key");
        std::os::unix::fs::symlink("/nowhere", &credential).unwrap();
        let dangling = given(MasterKeyPlaces { credentials: credentials.clone(), ..none() });
        assert!(matches!(dangling, Err(MasterKeyError::Unreadable { .. })));
        fs::remove_file(credential).unwrap();
        let credential = write("credentials/mvm-master-key", BASE64.as_bytes(), 0o440);
        let places = MasterKeyPlaces { credentials, ..none() };
        assert_eq!(given(places.clone()).unwrap(), Some(Source::Credential(credential)));
        let places = MasterKeyPlaces { variable: variable(HEX), ..places };
        assert_eq!(given(places.clone()).unwrap(), Some(Source::Variable));
        let file = Some(write("key", HEX.as_bytes(), 0o400));
        assert!(matches!(given(MasterKeyPlaces { file: file.clone(), ..places }), Err(MasterKeyError::Two)));
        assert!(matches!(given(MasterKeyPlaces { file, ..none() }), Ok(Some(Source::File(_)))));
        let wrong = |file: PathBuf| given(MasterKeyPlaces { file: Some(file), ..none() }).unwrap_err();
        assert!(matches!(
            wrong(write("open", HEX.as_bytes(), 0o640)),
            MasterKeyError::Open { mode: 0o640, .. }
        ));
        assert!(matches!(wrong(elsewhere.path().join("none")), MasterKeyError::Unreadable { .. }));
        assert!(matches!(wrong(elsewhere.path().to_owned()), MasterKeyError::Unreadable { .. }));
        for content in [&b""[..], b"secret", &[0xff; 10 << 20]] {
            assert!(matches!(wrong(write("bad", content, 0o600)), MasterKeyError::Malformed { .. }));
        }
        let empty = wrong(PathBuf::new()).to_string();
        assert_eq!(empty, "the master key cannot be read from MVM_MASTER_KEY_FILE, which is empty");
        let empty = given(MasterKeyPlaces { variable: variable(""), ..none() });
        assert!(matches!(empty, Err(MasterKeyError::Malformed { from: Source::Variable })));
        let bad = MasterKeyPlaces { variable: variable("hunter2"), ..none() };
        let said = given(bad).unwrap_err().to_string();
        assert!(!said.contains("hunter2"), "{said}");
    }
}
