//! The state file: a head with a version, JSON, and a CRC-64 at the end.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use super::{BitcodeError, CreateError, RestoreError, StateFileError, VmState};
use crate::host::errno::OsError;

/// The version of the format, which is that of Firecracker 1.16's state.
pub(crate) const VERSION: &str = "10.0.0";
const MAGIC: &[u8] = b"fcsim state ";
/// Longest file that is looked at.
const LIMIT: usize = 10_000_000;

/// Writes the file, which is truncated before.
pub(crate) fn write(path: &Path, state: &VmState) -> Result<(), CreateError> {
    let failed = |what| move |error: std::io::Error| CreateError::StateFile(what, OsError(error));
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).open(path).map_err(failed("open"))?;
    let mut bytes = [MAGIC, VERSION.as_bytes(), b"\n"].concat();
    bytes.extend(serde_json::to_vec(state).map_err(|_| StateFileError::Bitcode(BitcodeError))?);
    let sum = crc64(&bytes);
    bytes.extend(sum.to_le_bytes());
    file.write_all(&bytes).map_err(|error| StateFileError::Io(error.into()))?;
    file.sync_all().map_err(failed("sync_all"))
}

/// Reads the file.
pub(crate) fn read(path: &Path) -> Result<VmState, RestoreError> {
    let file = File::open(path).map_err(|error| RestoreError::Open(error.into()))?;
    Ok(parse(&file)?.1)
}

/// The version of a file's format.
pub(crate) fn version(file: &File) -> Result<String, StateFileError> {
    Ok(parse(file)?.0)
}

fn parse(file: &File) -> Result<(String, VmState), StateFileError> {
    let mut bytes = Vec::new();
    file.take(LIMIT as u64 + 1).read_to_end(&mut bytes).map_err(|error| StateFileError::Io(error.into()))?;
    if bytes.len() > LIMIT {
        return Err(StateFileError::SizeLimitExceeded(LIMIT));
    }
    let Some((content, sum)) = bytes.split_last_chunk::<8>() else {
        let why = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "File too short to contain CRC");
        return Err(StateFileError::Io(why.into()));
    };
    let rest = content.strip_prefix(MAGIC).ok_or(StateFileError::Bitcode(BitcodeError))?;
    let end = rest.iter().position(|&byte| byte == b'\n').ok_or(StateFileError::Bitcode(BitcodeError))?;
    let version = String::from_utf8_lossy(&rest[..end]).into_owned();
    // a document that is cut or has something after it is no content; one in which a value changed has the wrong sum
    let state =
        serde_json::from_slice(&rest[end + 1..]).map_err(|_| StateFileError::Bitcode(BitcodeError))?;
    if version != VERSION {
        return Err(StateFileError::InvalidFormatVersion(version));
    }
    if crc64(content) != u64::from_le_bytes(*sum) {
        return Err(StateFileError::Crc64);
    }
    Ok((version, state))
}

/// CRC-64 with the ECMA-182 polynomial, reflected.
fn crc64(bytes: &[u8]) -> u64 {
    !bytes.iter().fold(u64::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u64::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xc96c_5795_d787_0f42 } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_crc_64_xz() {
        assert_eq!(crc64(b"123456789"), 0x995d_c9bb_df19_39fa);
    }
}
