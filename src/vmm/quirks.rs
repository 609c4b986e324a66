//! What differs between Firecracker's versions.

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
    if loses_vsock(version) && client.info()?.is_paused() {
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

/// Does a VMM of this version lay a Diff over what is in its file? Older ones empty the file first, and their guest's memory
/// with it, where it was loaded from there. True for those that were tried.
pub fn writes_in_place(version: &str) -> bool {
    numbers(version) >= IN_PLACE_SINCE
}

const IN_PLACE_SINCE: [u32; 3] = [1, 16, 0];

fn loses_vsock(version: &str) -> bool {
    numbers(version) < VSOCK_LIVES_SINCE
}

fn numbers(version: &str) -> [u32; 3] {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{loses_vsock, writes_in_place};

    #[test]
    fn versions_are_told_apart() {
        for (version, loses) in
            [("1.16.1", true), ("1.15.9", true), ("1.16.2", false), ("1.17.0-dev", false), ("2.0.0", false)]
        {
            assert_eq!(loses_vsock(version), loses, "{version}");
        }
        assert!(writes_in_place("1.16.1") && writes_in_place("1.17.0-dev") && !writes_in_place("1.15.9"));
    }
}
