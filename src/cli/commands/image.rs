//! `mvm image …`

use crate::cli::{
    arguments::image::ImageCommand,
    error::CliError,
    output::{Out, bytes, count, time},
};
use crate::{
    infra::config::Roots,
    vm::image::{
        self, Image, Manifest,
        debian::{self, Options},
    },
};

/// Runs the command.
pub fn run(out: &Out, roots: &Roots, command: ImageCommand) -> Result<u8, CliError> {
    match command {
        ImageCommand::Debian { mut packages, name } => {
            packages.sort_unstable();
            packages.dedup();
            let mut progress = None;
            let mut step = |what: &'static str| {
                // The line of the step before goes first.
                drop(progress.take());
                progress = Some(out.progress(what));
                if out.verbose {
                    out.note(what);
                }
            };
            let made = debian::make(roots, &Options { name, packages }, &mut step);
            drop(progress);
            let (manifest, new) = made?;
            out.done(&manifest, || {
                let next = format!("next: mvm pool create TENANT/POOL --image {}", manifest.name);
                match new {
                    true => format!("{}        {next}", describe(&manifest)),
                    false => format!("{} is there already        {next}", describe(&manifest)),
                }
            });
        }
        ImageCommand::List => return list(out, roots),
    }
    Ok(0)
}

fn describe(manifest: &Manifest) -> String {
    format!(
        "{}: {}, kernel {}, {}, {}",
        manifest.name,
        manifest.release,
        manifest.kernel_version,
        count(manifest.packages.len() as u64, "package"),
        bytes(manifest.size_bytes())
    )
}

/// One that is damaged is neither ignored nor in the way of the others.
fn list(out: &Out, roots: &Roots) -> Result<u8, CliError> {
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    for name in image::names(roots)? {
        match Image::of(roots, &name).current(roots) {
            Ok((_, manifest)) => all.push(manifest),
            Err(error) => wrong.push(CliError::from(error)),
        }
    }
    out.show(&all, || {
        if all.is_empty() {
            return "no images yet        next: mvm image debian".to_owned();
        }
        let row = |one: &Manifest| {
            vec![
                one.name.to_string(),
                one.release.clone(),
                one.kernel_version.clone(),
                one.revision.short().to_owned(),
                bytes(one.size_bytes()),
                time(one.created_at),
            ]
        };
        out.table(&["image", "release", "kernel", "revision", "size", "made"], all.iter().map(row).collect())
    });
    Ok(wrong.iter().map(|error| out.error(error)).max().unwrap_or(0))
}
