//! Firecracker's command line: which arguments there are, and what is wrong with others.

use std::collections::BTreeMap;

/// An argument: its name, whether it takes a value, its default, its help.
type Known = (&'static str, bool, Option<&'static str>, &'static str);

/// All arguments, in the order of their names, which is the order of the help text.
const KNOWN: &[Known] = &[
    ("api-sock", true, Some("/run/firecracker.socket"), "Path to unix domain socket used by the API."),
    (
        "boot-timer",
        false,
        None,
        "Whether or not to load boot timer device for logging elapsed time since InstanceStart command.",
    ),
    ("config-file", true, None, "Path to a file that contains the microVM configuration in JSON format."),
    ("describe-snapshot", true, None, "Print the data format version of the provided snapshot state file."),
    ("enable-pci", false, None, "Enables PCIe support."),
    ("http-api-max-payload-size", true, Some("51200"), "Http API request payload max size, in bytes."),
    ("id", true, Some("anonymous-instance"), "MicroVM unique identifier."),
    ("level", true, None, "Set the logger level."),
    ("log-path", true, None, "Path to a fifo or a file used for configuring the logger on startup."),
    ("metadata", true, None, "Path to a file that contains metadata in JSON format to add to the mmds."),
    ("metrics-path", true, None, "Path to a fifo or a file used for configuring the metrics on startup."),
    ("mmds-size-limit", true, None, "Mmds data store limit, in bytes."),
    ("module", true, None, "Set the logger module filter."),
    (
        "no-api",
        false,
        None,
        "Optional parameter which allows starting and using a microVM without an active API socket.",
    ),
    (
        "no-seccomp",
        false,
        None,
        "Optional parameter which allows starting and using a microVM without seccomp filtering. Not recommended.",
    ),
    (
        "parent-cpu-time-us",
        true,
        None,
        "Parent process CPU time (wall clock, microseconds). This parameter is optional.",
    ),
    (
        "seccomp-filter",
        true,
        None,
        "Optional parameter which allows specifying the path to a custom seccomp filter. For advanced users.",
    ),
    ("show-level", false, None, "Whether or not to output the level in the logs."),
    (
        "show-log-origin",
        false,
        None,
        "Whether or not to include the file path and line number of the log's origin.",
    ),
    ("snapshot-version", false, None, "Print the supported data format version."),
    (
        "start-time-cpu-us",
        true,
        None,
        "Process start CPU time (wall clock, microseconds). This parameter is optional.",
    ),
    (
        "start-time-us",
        true,
        None,
        "Process start time (wall clock, microseconds). This parameter is optional.",
    ),
];

/// What is wrong with a command line. Its debug form is what Firecracker puts on stderr.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("Argument '{1}' cannot be used together with argument '{0}'.")]
    ForbiddenArgument(String, String),
    #[error("Argument '{0}' required, but not found.")]
    MissingArgument(String),
    #[error("The argument '{0}' requires a value, but none was supplied.")]
    MissingValue(String),
    #[error("Found argument '{0}' which wasn't expected, or isn't valid in this context.")]
    UnexpectedArgument(String),
    #[error("The argument '{0}' was provided more than once.")]
    DuplicateArgument(String),
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Help,
    Version,
    Run(Args),
}

/// Arguments by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args(BTreeMap<&'static str, String>);

impl Args {
    /// The value of an argument, or its default.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let default = || KNOWN.iter().find(|known| known.0 == name).and_then(|known| known.2);
        self.0.get(name).map(String::as_str).or_else(default)
    }

    /// Was this flag given?
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Understands a command line without the program's name. What follows `--` is not looked at.
pub(crate) fn parse(args: &[String]) -> Result<Parsed, ArgsError> {
    let args = args.split(|arg| arg == "--").next().unwrap_or_default();
    let given = |name: &str| args.iter().any(|arg| arg == name);
    if given("--help") || given("-h") {
        return Ok(Parsed::Help);
    }
    if given("--version") {
        return Ok(Parsed::Version);
    }
    let mut parsed = Args::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let name = arg.strip_prefix("--").ok_or_else(|| ArgsError::UnexpectedArgument(arg.clone()))?;
        let known = KNOWN.iter().find(|known| known.0 == name);
        let &(name, takes_value, ..) = known.ok_or_else(|| ArgsError::UnexpectedArgument(name.to_owned()))?;
        if parsed.flag(name) {
            return Err(ArgsError::DuplicateArgument(name.to_owned()));
        }
        let value = if takes_value {
            let value = rest.next().filter(|value| !value.starts_with("--"));
            value.cloned().ok_or_else(|| ArgsError::MissingValue(name.to_owned()))?
        } else {
            String::new()
        };
        parsed.0.insert(name, value);
    }
    if parsed.flag("no-api") && !given("--config-file") {
        return Err(ArgsError::MissingArgument("config-file".to_owned()));
    }
    if parsed.flag("no-seccomp") && given("--seccomp-filter") {
        return Err(ArgsError::ForbiddenArgument("no-seccomp".to_owned(), "seccomp-filter".to_owned()));
    }
    Ok(Parsed::Run(parsed))
}

/// The help text.
pub(crate) fn help() -> String {
    let form = |known: &Known| match known.1 {
        true => format!("  --{0} <{0}>", known.0),
        false => format!("  --{}", known.0),
    };
    let mut lines: Vec<(String, String)> = KNOWN
        .iter()
        .map(|known| match known.2 {
            Some(default) => (form(known), format!("{} [default: \"{default}\"]", known.3)),
            None => (form(known), known.3.to_owned()),
        })
        .collect();
    for (form, text) in
        [("  --help", "Show the help message."), ("  --version", "Print the binary version number.")]
    {
        let at = lines.partition_point(|line| *line.0 < *form);
        lines.insert(at, (form.to_owned(), text.to_owned()));
    }
    let width = lines.iter().map(|line| line.0.len()).max().unwrap_or(0);
    let lines: Vec<_> = lines.iter().map(|(form, text)| format!("{form:width$}   {text}")).collect();
    format!("optional arguments:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> Option<ArgsError> {
        parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).err()
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(error(&["--nope"]), Some(ArgsError::UnexpectedArgument("nope".into())));
        assert_eq!(error(&["nope"]), Some(ArgsError::UnexpectedArgument("nope".into())));
        assert_eq!(error(&["--id"]), Some(ArgsError::MissingValue("id".into())));
        assert_eq!(error(&["--id", "--id"]), Some(ArgsError::MissingValue("id".into())));
        assert_eq!(error(&["--id", "a", "--id", "b"]), Some(ArgsError::DuplicateArgument("id".into())));
        assert_eq!(error(&["--no-api"]), Some(ArgsError::MissingArgument("config-file".into())));
        assert_eq!(error(&["--id", "a", "--", "--nope"]), None);
    }

    #[test]
    fn names_are_sorted() {
        assert!(KNOWN.is_sorted_by_key(|known| known.0));
    }
}
