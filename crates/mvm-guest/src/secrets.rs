//! Secrets: taken from the host, put in their place at once, shown to be there, and said to who has to hear of it. Does no I/O but on
//! the connection.

use std::fs::File;

use mvm_proto::{
    Answer, Code, Frames, ProtoError,
    message::{Receipt, Refused},
    secrets::{SecretSet, Tell, confirmation},
};
use zeroize::Zeroizing;

use crate::{
    identify::{self, Fact},
    system::System,
};

/// Secrets, sorted by name.
#[derive(Default, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Each with its content.
    pub files: Vec<(String, Zeroizing<Vec<u8>>)>,
    /// What their confirmation is made with.
    pub salt: [u8; 32],
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Logs are no place for them.
        write!(f, "Secrets({})", self.files.len())
    }
}

impl Secrets {
    /// What is confirmed where these are there, as they were read back.
    pub fn confirm(&self, there: &[(String, Zeroizing<Vec<u8>>)]) -> String {
        confirmation(&self.salt, there.iter().map(|(name, content)| (name.as_str(), content.as_slice())))
    }
}

/// Takes what the host has announced.
///
/// # Errors
/// Where the connection fails, or carries something else.
pub(crate) fn take(set: &SecretSet, connection: &File) -> Result<Secrets, ProtoError> {
    let mut frames = Frames::on(connection);
    let mut secrets = Secrets { files: Vec::with_capacity(set.files.len()), salt: set.salt };
    for file in &set.files {
        let mut content = Zeroizing::new(vec![0; file.size]);
        frames.data_into(&mut content)?;
        secrets.files.push((file.name.clone(), content));
    }
    secrets.files.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(secrets)
}

/// Puts them in their place. Who has to hear that they are others now does, also of a guest's first ones; a workload that does not
/// run yet finds them when it starts.
pub(crate) fn put(system: &impl System, secrets: &Secrets, tell: &Tell) -> Answer {
    let before = {
        let _running = system.running();
        system.secrets()
    };
    let mut receipt = identify::apply(system, &[Fact::Secrets(secrets)]);
    let is_same = before.is_ok_and(|before| before == secrets.files);
    if receipt.failed.is_none() && !is_same && *tell != Tell::Nobody {
        let told: Receipt = identify::apply(system, &[Fact::Told(tell)]);
        receipt.append(told);
    }
    Answer::Receipt(receipt)
}

/// What is not as it may be.
pub(crate) fn refuse(why: String) -> Answer {
    Answer::Refused(Refused { code: Code::Failed, why })
}
