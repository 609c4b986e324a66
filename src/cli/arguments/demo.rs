//! Arguments of `mvm demo`.

use clap::Args;

#[derive(Debug, Args)]
pub struct DemoCommand {
    /// Plays the story inside the namespaces; the command without it stages
    #[arg(long, hide = true)]
    pub inside: Option<std::path::PathBuf>,
}
