//! A program on the guest's console, as `/etc/mvm/console.json` says: a shell, for example. Started once the guest knows who it
//! is, and again whenever it has ended.

use std::{
    fs::{self, File},
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mvm_proto::settings::Console as Settings;

use super::{
    launch::{Launcher, Plan, Streams},
    screen::{self, Screen},
    spawn,
};

pub const FILE: &str = "/etc/mvm/console.json";
const VERSION: u32 = 1;

/// One that ends sooner than that is not started again at once.
const USUAL: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// The program on the console.
pub struct Console {
    launcher: Arc<Launcher>,
    screen: Arc<Screen>,
    started: AtomicBool,
}

impl Console {
    pub fn new(launcher: Arc<Launcher>, screen: Arc<Screen>) -> Self {
        Self { launcher, screen, started: AtomicBool::new(false) }
    }

    /// Starts it, where there is one and it has not been started. A guest whose console fails is a guest all the same: it is
    /// only said.
    pub fn start(self: &Arc<Self>) {
        if self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        let settings = match settings() {
            Ok(Some(settings)) => settings,
            Ok(None) => return,
            Err(error) => return self.screen.line(&format!("mvm-guest: {FILE}: {error}")),
        };
        let own = self.clone();
        let _ = spawn("console", move || own.keep(&settings));
    }

    fn keep(&self, settings: &Settings) {
        let mut pause = SHORTEST;
        loop {
            let begun = Instant::now();
            if let Err(why) = self.run(settings) {
                if self.launcher.children.is_closed() {
                    return;
                }
                return self.screen.line(&format!("mvm-guest: nothing runs on the console: {why}"));
            }
            pause = if begun.elapsed() >= USUAL { SHORTEST } else { (pause * 2).min(LONGEST) };
            thread::sleep(pause);
        }
    }

    /// Runs it to its end.
    fn run(&self, settings: &Settings) -> Result<(), String> {
        let terminal = screen::terminal().map_err(|error| error.to_string())?;
        // Whatever the one before did to the terminal.
        if let Ok(mut modes) = rustix::termios::tcgetattr(&terminal) {
            use rustix::termios::{InputModes, LocalModes, OptionalActions, OutputModes, tcsetattr};
            modes.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ECHOE | LocalModes::ISIG;
            modes.input_modes |= InputModes::ICRNL;
            modes.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
            let _ = tcsetattr(&terminal, OptionalActions::Now, &modes);
        }
        let plan = Plan {
            argv: &settings.argv,
            env: &settings.env,
            cwd: "",
            user: "",
            streams: Streams::Existing(terminal),
        };
        let launched = self.launcher.launch(plan).map_err(|refused| refused.why)?;
        let mut exited: File = launched.exited;
        let _ = exited.read_exact(&mut [0; 8]);
        // Its jobs end with it, as at a login.
        launched.session.end();
        Ok(())
    }
}

fn settings() -> io::Result<Option<Settings>> {
    let bytes = match fs::read(FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let settings: Settings = serde_json::from_slice(&bytes)?;
    match settings.schema_version {
        VERSION => Ok(Some(settings)),
        other => Err(io::Error::other(format!("this agent does not know its version {other}"))),
    }
}
