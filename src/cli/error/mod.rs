//! Errors for people: what happened, why, what to do; and the exit code.

#[cfg(target_os = "linux")]
mod audit;
#[cfg(target_os = "linux")]
mod causes;
#[cfg(target_os = "linux")]
mod protection;
#[cfg(target_os = "linux")]
mod secrets;
#[cfg(target_os = "linux")]
mod vmm;

#[cfg(target_os = "linux")]
pub use self::{audit::restore_or, protection::limits_come_by};

use clap::{CommandFactory, error::ErrorKind};
use serde::Serialize;

use crate::{infra::text, vm::naming::NameError};

/// The table of exit codes, for the docs.
pub const EXIT_CODES: &str = "\
| code | meaning |
| --- | --- |
| 0 | done, or it was like that already |
| 1 | failed, also because of what a file holds |
| 2 | usage: malformed arguments, also an address outside the cluster |
| 3 | not found |
| 4 | refused: by state, quota, room, a lock held too long, or a name, net id or subnet in use |
| 5 | the environment lacks something; `mvm doctor` says what |
| 128 + N | ended by signal N: Ctrl-C gives 130 |
";

/// What kind of failure it is; the exit code follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1
    Failed,
    /// 2
    Usage,
    /// 3
    NotFound,
    /// 4
    Refused,
    /// 5
    Environment,
}

/// An error as it is printed.
#[derive(Debug, Clone)]
pub struct CliError {
    kind: Kind,
    code: &'static str,
    what: String,
    why: Vec<String>,
    fix: Option<String>,
}

/// An error in JSON.
#[derive(Debug, Serialize)]
pub struct Body<'a> {
    code: &'a str,
    what: &'a str,
    why: String,
    fix: Option<&'a str>,
}

impl CliError {
    /// What is wrong, in a line.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// An error without causes.
    pub fn new(kind: Kind, code: &'static str, what: impl Into<String>) -> Self {
        Self { kind, code, what: what.into(), why: Vec::new(), fix: None }
    }

    /// With what a recovery does about it, once what was in the way is not.
    #[cfg(target_os = "linux")]
    fn fix_then_recover(self, in_the_way: &Self, does: &str) -> Self {
        match &in_the_way.fix {
            Some(fix) => self.fix(format!("{fix}; then mvm node recover, which {does}")),
            None => self.fix(format!("mvm node recover, once that is mended: it {does}")),
        }
    }

    /// With what to do about it.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    fn of(kind: Kind, code: &'static str, error: &dyn std::error::Error) -> Self {
        let mut made = Self::new(kind, code, error.to_string());
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !made.what.contains(&text) {
                made.why.push(text);
            }
            cause = error.source();
        }
        made
    }

    /// Saying what it is about, where its own text does not.
    pub fn about(mut self, what: impl std::fmt::Display) -> Self {
        self.what = format!("{what}: {}", self.what);
        self
    }

    /// What happened and why, in one line.
    pub fn whole(&self) -> String {
        [std::slice::from_ref(&self.what), &self.why].concat().join(": ")
    }

    /// What to do about it.
    pub fn remedy(&self) -> Option<&str> {
        self.fix.as_deref()
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Refused => 4,
            Kind::Environment => 5,
        }
    }

    /// As lines for people.
    pub fn text(&self, color: bool) -> String {
        let style = if color { anstyle::AnsiColor::Red.on_default() } else { anstyle::Style::new() };
        let mut text = format!("{style}{}{style:#}", self.what);
        for why in &self.why {
            text.push_str(&format!("\n  because: {why}"));
        }
        if let Some(fix) = &self.fix {
            text.push_str(&format!("\n  try: {fix}"));
        }
        text
    }

    /// As JSON.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Wrapped<'a> {
            error: Body<'a>,
        }
        text::json(serde_json::to_string(&Wrapped { error: self.body() }).unwrap_or_default())
    }

    /// What it consists of, for the JSON of something else.
    pub fn body(&self) -> Body<'_> {
        Body { code: self.code, what: &self.what, why: self.why.join(": "), fix: self.remedy() }
    }
}

/// Prints what clap says of malformed arguments, or help; returns the exit code.
pub fn usage(error: &clap::Error) -> u8 {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    if error.use_stderr() && arguments.iter().any(|argument| argument == "--json") {
        let what = match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing".to_owned(),
            _ => {
                // Up to the first empty line: what is wrong, and with what.
                let rendered = error.render().to_string();
                let lines = rendered.lines().map(str::trim).take_while(|line| !line.is_empty());
                lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
            }
        };
        let fix = format!("{} --help", command_of(&arguments));
        eprintln!("{}", CliError::new(Kind::Usage, "usage", what).fix(fix).json());
    } else {
        let _ = error.print();
    }
    if error.use_stderr() { 2 } else { 0 }
}

/// The command that arguments name, as far as there is one: `mvm tenant create`.
fn command_of(arguments: &[String]) -> String {
    let mut command = super::arguments::Cli::command();
    let mut path = "mvm".to_owned();
    for argument in arguments.iter().filter(|argument| !argument.starts_with('-')) {
        let Some(found) = command.find_subcommand(argument).cloned() else { continue };
        path = format!("{path} {argument}");
        command = found;
    }
    path
}

impl From<NameError> for CliError {
    fn from(error: NameError) -> Self {
        Self::of(Kind::Usage, "malformed", &error)
    }
}
