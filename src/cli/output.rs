//! How things are printed: JSON or tables, colours only on a terminal, prompts, guests' bytes escaped.

use std::{
    io::{IsTerminal, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{
    arguments::Global,
    error::{CliError, Kind},
};
#[cfg(target_os = "linux")]
pub use crate::infra::text::{Escaper, escape};
use crate::infra::{config::Environment, text};

/// Where and how this command prints.
#[derive(Debug, Clone)]
pub struct Out {
    /// JSON instead of text.
    pub json: bool,
    /// Only what was asked for.
    pub quiet: bool,
    /// More than what was asked for.
    pub verbose: bool,
    color: bool,
    width: u16,
}

/// Between two columns of a table.
const GAP: usize = 2;

static UNHEARD: AtomicBool = AtomicBool::new(false);
/// Why something could not be printed.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// Something that is going on.
pub struct Progress {
    stop: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Progress {
    fn drop(&mut self) {
        // The line must be gone before the next one is printed: hang up first, then wait.
        self.stop = std::sync::mpsc::channel().0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Good, doubtful, bad, and what is less important.
#[derive(Debug, Clone, Copy)]
pub enum Tone {
    /// Green.
    Good,
    /// Yellow.
    Doubtful,
    /// Red.
    Bad,
    /// Dim.
    Aside,
}

impl Out {
    /// As the options and the terminal say.
    pub fn new(global: &Global, environment: &Environment) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let no_color = global.no_color || environment.no_color;
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            color: terminal && !no_color && !global.json,
            width: width(terminal, environment.columns),
        }
    }

    /// Are there colours?
    pub fn is_colored(&self) -> bool {
        self.color
    }

    /// A text in a tone, where there are colours.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let style = match tone {
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Doubtful => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default(),
            Tone::Aside => Style::new().dimmed(),
        };
        format!("{style}{text}{style:#}")
    }

    /// Prints a line for people; nothing with `--json` or `-q`.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.json && !self.quiet {
            self.raw(format!("{}\n", line.as_ref()).as_bytes());
        }
    }

    /// Prints what was asked for: as JSON, or as this text.
    pub fn show(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            let json = serde_json::to_string_pretty(value).unwrap_or_default();
            self.raw(format!("{}\n", text::json(json)).as_bytes());
        } else {
            let text = text();
            if !text.is_empty() {
                self.raw(format!("{}\n", text.trim_end_matches('\n')).as_bytes());
            }
        }
    }

    /// Prints what a verb made or changed: the object with `--json`, a line for people without `-q`.
    pub fn done(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.show(value, String::new);
        } else if !self.quiet {
            self.show(value, text);
        }
    }

    /// Prints one line of a stream of JSON.
    pub fn json_line(&self, value: &impl Serialize) {
        let json = serde_json::to_string(value).unwrap_or_default();
        self.raw(format!("{}\n", text::json(json)).as_bytes());
    }

    /// Prints bytes as they are. When the reader has gone away, nothing more is printed; what is being done is done to its
    /// end all the same.
    pub fn raw(&self, bytes: &[u8]) {
        if self.is_unheard() {
            return;
        }
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            UNHEARD.store(true, Ordering::Relaxed);
            if error.kind() != std::io::ErrorKind::BrokenPipe {
                let _ = UNWRITTEN.set(error.to_string());
            }
        }
    }

    /// Why what was to be printed could not be, where somebody wanted it: a reader that has gone did not.
    pub fn unwritten(&self) -> Option<&'static str> {
        UNWRITTEN.get().map(String::as_str)
    }

    /// Has the reader of stdout gone away? Then a command that only prints may end.
    pub fn is_unheard(&self) -> bool {
        UNHEARD.load(Ordering::Relaxed)
    }

    /// Tells people something beside the result.
    pub fn note(&self, line: impl AsRef<str>) {
        if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
        }
    }

    /// Shows on a terminal that something is going on, once it takes longer than a second; ends when it is dropped.
    pub fn progress(&self, what: &str) -> Progress {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        if self.quiet || self.json || !std::io::stderr().is_terminal() {
            return Progress { stop, thread: None };
        }
        let what = what.to_owned();
        let thread = std::thread::spawn(move || {
            let start = std::time::Instant::now();
            let mut shown = false;
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                stopped.recv_timeout(std::time::Duration::from_secs(1))
            {
                shown = true;
                let _ = write!(std::io::stderr(), "\r{what} … {} s", start.elapsed().as_secs());
            }
            if shown {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
        });
        Progress { stop, thread: Some(thread) }
    }

    /// A table that fits the terminal: where it is too narrow, columns are left out from the right, and no word is broken.
    pub fn table(&self, header: &[&str], mut rows: Vec<Vec<String>>) -> String {
        rows.insert(0, header.iter().map(|name| name.to_uppercase()).collect());
        let columns = header.len();
        let length = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let mut room = usize::from(self.width);
        let fits = (0..columns)
            .take_while(|&at| {
                let taken = length(at) + if at == 0 { 0 } else { GAP };
                let fits = taken <= room;
                room = room.saturating_sub(taken);
                fits
            })
            .count();
        // The first two say what it is and how it is: without them it is no table.
        let shown = fits.max(2.min(columns));
        let widths: Vec<usize> = (0..shown).map(length).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
            cells.join(&" ".repeat(GAP)).trim_end().to_owned()
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Prints an error and returns the exit code.
    pub fn error(&self, error: &CliError) -> u8 {
        let mut stderr = std::io::stderr().lock();
        let text =
            if self.json { error.json() } else { error.text(self.color && std::io::stderr().is_terminal()) };
        let _ = writeln!(stderr, "{text}");
        error.exit_code()
    }

    /// Asks before something is destroyed.
    ///
    /// # Errors
    /// Where nobody is there to answer, or the answer is not yes.
    pub fn confirm(&self, question: &str, yes: bool) -> Result<(), CliError> {
        if yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(CliError::new(
                Kind::Usage,
                "not_confirmed",
                format!("{question} nobody is there to answer"),
            )
            .fix("say --yes"));
        }
        let _ = write!(std::io::stderr(), "{question} [y/N] ");
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(CliError::new(Kind::Usage, "not_confirmed", "not confirmed; nothing was done")),
        }
    }
}

fn width(terminal: bool, columns: Option<u16>) -> u16 {
    let seen = terminal
        .then(|| rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col))
        .flatten();
    seen.or(columns).filter(|&width| width > 0).unwrap_or(120)
}

/// A number of things, for people: `1 tenant`, `2 tenants`.
pub fn count(number: impl Into<u64>, thing: &str) -> String {
    match number.into() {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// A time, for people: to the second, in UTC.
pub fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A number of MiB, for people.
pub fn mib(mib: u64) -> String {
    match mib {
        0..10_240 => format!("{mib} MiB"),
        _ => format!("{:.1} GiB", mib as f64 / 1024.0),
    }
}

/// A data disk, for people.
pub fn data_disk(size_mib: u64) -> String {
    match size_mib {
        0 => "no data disk".to_owned(),
        size => format!("{} data disk", mib(size)),
    }
}

/// A number of bytes, for people.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ if bytes < 10 << 30 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
