//! Arguments of `mvm image …`.

use clap::Subcommand;

use crate::vm::naming::ImageName;

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make a small Debian image from the mirror that apt is set up with here
    Debian {
        /// The image's name
        #[arg(long, value_name = "NAME", default_value = "debian")]
        name: ImageName,
        /// A Debian package besides those of the recipe; may be given again
        #[arg(long = "package", value_name = "PACKAGE", value_parser = parse_package)]
        packages: Vec<String>,
    },
    /// List the images
    List,
}

fn parse_package(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let named =
        text.len() > 1 && text.starts_with(inner) && text.chars().all(|c| inner(c) || "+.-".contains(c));
    match named {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of a Debian package: a-z, 0-9, '+', '.' and '-'")),
    }
}
