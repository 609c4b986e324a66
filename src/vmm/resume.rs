//! Letting a paused guest go on, so that its vsock device lives.

use super::{
    client::{Client, VmmError},
    wire::{Call, SnapshotCreate, SnapshotType},
};

/// The first version after whose pause and resume vsock lives (upstream's issue 6074).
const VSOCK_LIVES_SINCE: [u32; 3] = [1, 16, 2];

/// Lets the vCPUs of a VMM of this version go on. It is well when they run.
///
/// Older versions tell the guest's vsock driver only in a snapshot that its connections are gone, and after a pause without
/// one every new connection hangs. So they are asked for one that cannot be written: it does all but that. What the guest
/// has written to stays known.
///
/// # Errors
/// When the VMM does not answer or refuses.
pub fn resume(client: &mut Client, version: &str) -> Result<(), VmmError> {
    if loses_vsock(version) && client.info()?.state == "Paused" {
        let nowhere = "no-such-folder/none";
        let create = Call::SnapshotCreate(SnapshotCreate {
            snapshot_type: SnapshotType::Diff,
            snapshot_path: nowhere.into(),
            mem_file_path: nowhere.into(),
        });
        match client.call(&create) {
            Err(VmmError::Refused { .. }) => {}
            made => made?,
        }
    }
    client.call(&Call::Resume)
}

fn loses_vsock(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let version: [u32; 3] = std::array::from_fn(|_| parts.next().unwrap_or(0));
    version < VSOCK_LIVES_SINCE
}

#[cfg(test)]
mod tests {
    use super::loses_vsock;

    #[test]
    fn versions_are_told_apart() {
        for (version, loses) in
            [("1.16.1", true), ("1.15.9", true), ("1.16.2", false), ("1.17.0-dev", false), ("2.0.0", false)]
        {
            assert_eq!(loses_vsock(version), loses, "{version}");
        }
    }
}
