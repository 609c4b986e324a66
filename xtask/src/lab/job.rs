//! What goes into the lab: programs built here, a guest to boot, and the script that is the job.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{machine::Run, make};

/// A job.
pub struct Job {
    /// Programs by the name they have in the lab, where they are on PATH.
    pub programs: Vec<(String, PathBuf)>,
    /// MVM_ROOT with the guest image: its images go along.
    pub guest: Option<PathBuf>,
    /// What bash runs.
    pub script: String,
}

impl Job {
    /// Writes the job disk.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn write(&self, run: &Run) -> Result<PathBuf> {
        let (folder, image) = (run.file("job"), run.file("job.ext4"));
        for place in ["bin", "guest"] {
            fs::create_dir_all(folder.join(place))?;
        }
        for (name, file) in &self.programs {
            fs::copy(file, folder.join("bin").join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
        if let Some(root) = &self.guest {
            let images = root.join("images").display().to_string();
            let target = folder.join("guest").display().to_string();
            crate::run("cp", &["--archive", "--sparse=always", &images, &target])?;
        }
        fs::write(folder.join("job"), &self.script)?;
        let size = size_of(&folder)?;
        // Inodes, bitmaps and the ends of blocks take a part of it.
        make::file_system(&image, &format!("{}M", (size >> 20) * 11 / 10 + 16), Some(&folder))?;
        fs::remove_dir_all(&folder)?;
        Ok(image)
    }
}

fn size_of(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        size += match entry.file_type()?.is_dir() {
            true => size_of(&entry.path())?,
            // What a file has in blocks: a root file system is mostly holes.
            false => entry.metadata()?.blocks() << 9,
        };
    }
    Ok(size)
}

/// A word as bash reads it.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Builds programs, for release: the lab is slow enough. Returns them by name.
///
/// # Errors
/// When they do not compile.
pub fn build(arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    println!("$ cargo {}", arguments.join(" "));
    let output = Command::new("cargo")
        .args(arguments)
        .args(["--release", "--locked", "--quiet", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        if let (Some(name), Some(file)) = (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            programs.push((name.to_owned(), PathBuf::from(file)));
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_word_stays_one() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
