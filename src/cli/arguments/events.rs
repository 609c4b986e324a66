//! Arguments of `mvm events`.

use clap::Args;

#[derive(Debug, Args)]
pub struct EventsCommand {
    /// Go on as more happens
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many, at first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    pub last: usize,
}
