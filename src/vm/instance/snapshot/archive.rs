//! The memory of a long sleeper, compressed: its snapshot names the archive in place of the memory file.

use std::{
    fs,
    io::{self, BufReader, BufWriter, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use super::{Delta, folder};
use crate::{
    infra::{config::Roots, failpoint},
    store::{self, StoreError},
    vm::snapshot::{Image, PAGE, SnapshotError, Stamp, is_zeros},
};

impl Delta {
    /// Compresses the memory of an instance that sleeps for long.
    ///
    /// # Errors
    /// Where it fails, it is as before.
    pub fn pack(&mut self, roots: &Roots) -> Result<(), SnapshotError> {
        let folder = folder(roots, &self.instance);
        let mem = folder.join(&self.image.mem.file);
        // What is damaged must not get a sum under which it would be believed.
        self.image.check(&folder)?;
        let name = format!("{}.zst", self.image.mem.file);
        let new = store::unfinished(&folder.join(&name));
        let output = store::create_file(&new)?;
        let packed = (|| {
            let mut input = BufReader::with_capacity(1 << 20, fs::File::open(&mem)?);
            let mut encoder = zstd::Encoder::new(BufWriter::with_capacity(1 << 20, output), 0)?;
            encoder.include_checksum(true)?;
            io::copy(&mut input, &mut encoder)?;
            failpoint::hit("archive", "written")?;
            encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&new, folder.join(&name))
        })();
        if let Err(source) = packed {
            let _ = fs::remove_file(&new);
            return Err(StoreError::io("compress into", &new)(source).into());
        }
        self.archive = Some(Stamp::of(&folder, &name)?);
        self.commit(roots)?;
        failpoint::hit("archive", "committed").map_err(StoreError::io("archive", &mem))?;
        Ok(self.drop_others(roots)?)
    }

    /// Brings an archived memory back, and compares every page of it.
    ///
    /// # Errors
    /// Where it fails, it is archived as before.
    pub fn unpack(&mut self, roots: &Roots) -> Result<(), SnapshotError> {
        let Some(archive) = self.archive.clone() else { return Ok(()) };
        let folder = folder(roots, &self.instance);
        let mem = folder.join(&self.image.mem.file);
        let new = store::unfinished(&mem);
        let unpacked = unpack(&folder.join(&archive.file), &new, self.image.mem.size_bytes)
            .and_then(|()| self.image_at(&folder, &new)?.scrub(&folder))
            .and_then(|()| Ok(fs::rename(&new, &mem).map_err(StoreError::io("rename", &new))?));
        if let Err(error) = unpacked {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        self.image.mem = Stamp::of(&folder, &self.image.mem.file)?;
        self.archive = None;
        self.commit(roots)?;
        failpoint::hit("unpack", "committed").map_err(StoreError::io("unpack", &mem))?;
        Ok(self.drop_others(roots)?)
    }

    /// Is every byte that the archive would bring back what was written? It is unpacked for that, and that removed again.
    pub(super) fn scrub_archive(&self, folder: &Path, archive: &Stamp) -> Result<(), SnapshotError> {
        archive.check_length(folder)?;
        let unpacked = store::unfinished(&folder.join(&self.image.mem.file));
        let result = unpack(&folder.join(&archive.file), &unpacked, self.image.mem.size_bytes)
            .and_then(|()| self.image_at(folder, &unpacked)?.scrub(folder));
        store::remove_file(&unpacked)?;
        result
    }

    /// The image with its memory in another file.
    fn image_at(&self, folder: &Path, mem: &Path) -> Result<Image, SnapshotError> {
        let name = mem.file_name().unwrap_or_default().to_string_lossy();
        Ok(Image { mem: Stamp::of(folder, &name)?, ..self.image.clone() })
    }
}

/// Unpacks a memory file, leaving holes where there are zeros.
fn unpack(archive: &Path, to: &Path, size_bytes: u64) -> Result<(), SnapshotError> {
    let damaged = |error: io::Error| SnapshotError::Damaged {
        path: archive.to_path_buf(),
        why: format!("it cannot be unpacked: {error}"),
    };
    let input = fs::File::open(archive).map_err(StoreError::io("open", archive))?;
    let mut decoder = zstd::Decoder::new(input).map_err(damaged)?;
    let output = store::create_file(to)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size_bytes {
        let length = (size_bytes - at).min(buffer.len() as u64) as usize;
        let bytes = &mut buffer[..length];
        decoder.read_exact(bytes).map_err(damaged)?;
        for page in bytes.chunks(PAGE as usize) {
            if !is_zeros(page) {
                output.write_all_at(page, at).map_err(StoreError::io("write", to))?;
            }
            at += page.len() as u64;
        }
    }
    // Its own sum comes last.
    if decoder.read(&mut [0]).map_err(damaged)? > 0 {
        return Err(damaged(io::Error::other("there is more in it than memory")));
    }
    output.set_len(size_bytes).and_then(|()| output.sync_all()).map_err(StoreError::io("write", to))?;
    Ok(())
}
