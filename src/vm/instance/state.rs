//! The state machine of an instance: one total function from a state and an event to what follows.
//!
//! Pure: no I/O. The code, the error texts, the tests and the diagram in docs/architecture.md all come from [`next`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// The states of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Made, but its pool has no revision to run yet.
    Created,
    /// Its pool has a revision; it has never run.
    Ready,
    /// Its VMM runs and its vCPUs run.
    Running,
    /// Its VMM runs and its vCPUs are paused.
    Warm,
    /// It is a snapshot on disk; no VMM.
    Sleeping,
    /// No VMM and no memory; its disks are there.
    Stopped,
    /// It is no more.
    Destroyed,
}

/// What can be asked of an instance, or happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// Its pool got a revision.
    Built,
    /// Boot it afresh.
    Start,
    /// Pause its vCPUs.
    Pause,
    /// Let its vCPUs run again.
    Resume,
    /// Write it to disk and end its VMM.
    Sleep,
    /// Load it from disk.
    Wake,
    /// Compress what it takes on disk.
    Archive,
    /// End its VMM; what sleeps is discarded.
    Stop,
    /// Its VMM ended by itself, or its host rebooted.
    Died,
    /// Remove it.
    Destroy,
}

/// What follows from an event in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It goes to this state.
    To(State),
    /// What was asked for holds already.
    Already,
    /// The event is not possible in this state.
    Denied,
}

impl State {
    /// Every state.
    pub const ALL: [State; 7] = [
        State::Created,
        State::Ready,
        State::Running,
        State::Warm,
        State::Sleeping,
        State::Stopped,
        State::Destroyed,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Ready => "ready",
            State::Running => "running",
            State::Warm => "warm",
            State::Sleeping => "sleeping",
            State::Stopped => "stopped",
            State::Destroyed => "destroyed",
        }
    }

    /// Has an instance in this state a VMM?
    pub fn has_vmm(self) -> bool {
        matches!(self, State::Running | State::Warm)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for State {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.name() == text)
            .ok_or_else(|| format!("{text:?} is not a state; there are: {}", list(Self::ALL)))
    }
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 10] = [
        Event::Built,
        Event::Start,
        Event::Pause,
        Event::Resume,
        Event::Sleep,
        Event::Wake,
        Event::Archive,
        Event::Stop,
        Event::Died,
        Event::Destroy,
    ];

    /// Is it asked for by somebody? What is not happens by itself.
    pub fn is_asked_for(self) -> bool {
        !matches!(self, Event::Built | Event::Died)
    }

    /// The verb of the command line, or what happened.
    pub fn name(self) -> &'static str {
        match self {
            Event::Built => "built",
            Event::Start => "start",
            Event::Pause => "warm",
            Event::Resume => "resume",
            Event::Sleep => "sleep",
            Event::Wake => "wake",
            Event::Archive => "archive",
            Event::Stop => "stop",
            Event::Died => "died",
            Event::Destroy => "destroy",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What follows from `event` in `state`. A sleep of a running instance passes through Warm.
pub fn next(state: State, event: Event) -> Next {
    use Next::{Already, Denied, To};
    use State::{Created, Destroyed, Ready, Running, Sleeping, Stopped, Warm};
    match event {
        Event::Built => match state {
            Created | Ready => To(Ready),
            Running | Warm | Sleeping | Stopped => Already,
            Destroyed => Denied,
        },
        Event::Start => match state {
            Ready | Stopped => To(Running),
            Running => Already,
            Created | Warm | Sleeping | Destroyed => Denied,
        },
        Event::Pause => match state {
            Running => To(Warm),
            Warm => Already,
            Created | Ready | Sleeping | Stopped | Destroyed => Denied,
        },
        Event::Resume => match state {
            Warm => To(Running),
            Running => Already,
            Created | Ready | Sleeping | Stopped | Destroyed => Denied,
        },
        Event::Sleep => match state {
            Running | Warm => To(Sleeping),
            Sleeping => Already,
            Created | Ready | Stopped | Destroyed => Denied,
        },
        Event::Wake => match state {
            Sleeping => To(Running),
            Running => Already,
            Created | Ready | Warm | Stopped | Destroyed => Denied,
        },
        // It sleeps on; whether it is compressed already is not a matter of its state.
        Event::Archive => match state {
            Sleeping => To(Sleeping),
            Created | Ready | Running | Warm | Stopped | Destroyed => Denied,
        },
        Event::Stop => match state {
            Running | Warm | Sleeping => To(Stopped),
            Stopped => Already,
            Created | Ready | Destroyed => Denied,
        },
        Event::Died => match state {
            Running | Warm => To(Stopped),
            Created | Ready | Sleeping | Stopped | Destroyed => Already,
        },
        Event::Destroy => match state {
            Created | Ready | Running | Warm | Sleeping | Stopped => To(Destroyed),
            Destroyed => Already,
        },
    }
}

/// A verb that the state does not allow: the error text names both, where the verb works, and what gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// The state it is in.
    pub state: State,
    /// What was asked.
    pub event: Event,
}

impl Denial {
    /// The states in which the event is possible.
    pub fn works_from(self) -> Vec<State> {
        State::ALL.into_iter().filter(|&state| matches!(next(state, self.event), Next::To(_))).collect()
    }

    /// The verb that leads from the state to one in which the event is possible, or to where it would lead.
    pub fn way(self) -> Option<Event> {
        let goal = State::ALL.into_iter().find_map(|state| match next(state, self.event) {
            Next::To(goal) => Some(goal),
            Next::Already | Next::Denied => None,
        });
        let verbs = [Event::Resume, Event::Wake, Event::Start, Event::Sleep, Event::Stop];
        let leads_to = |verb: Event, wanted: &dyn Fn(State) -> bool| matches!(next(self.state, verb), Next::To(state) if wanted(state));
        verbs.into_iter().find(|&verb| leads_to(verb, &|state| Some(state) == goal)).or_else(|| {
            verbs.into_iter().find(|&verb| leads_to(verb, &|state| self.works_from().contains(&state)))
        })
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is {}; {} works from {}", self.state, self.event, list(self.works_from()))
    }
}

/// The transitions as the lines of a Mermaid state diagram, for docs/architecture.md.
pub fn diagram() -> String {
    let mut lines = vec!["stateDiagram-v2".to_owned(), "    [*] --> created".to_owned()];
    for state in State::ALL {
        for event in Event::ALL {
            if let Next::To(to) = next(state, event) {
                lines.push(format!("    {state} --> {to}: {event}"));
            }
        }
    }
    lines.push("    destroyed --> [*]".to_owned());
    lines.join("\n")
}

fn list(states: impl IntoIterator<Item = State>) -> String {
    states.into_iter().map(State::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the reference, section 3, written out by hand: rows are states, columns events in the order of `ALL`.
    #[test]
    fn transitions_are_those_of_the_reference() {
        let table = [
            ("created", "ready - - - - - - - = destroyed"),
            ("ready", "ready running - - - - - - = destroyed"),
            ("running", "= = warm = sleeping = - stopped stopped destroyed"),
            ("warm", "= - = running sleeping - - stopped stopped destroyed"),
            ("sleeping", "= - - - = running sleeping stopped = destroyed"),
            ("stopped", "= running - - - - - = = destroyed"),
            ("destroyed", "- - - - - - - - = ="),
        ];
        assert_eq!(table.len(), State::ALL.len());
        for (name, row) in table {
            let state: State = name.parse().unwrap();
            let cells: Vec<&str> = row.split(' ').collect();
            assert_eq!(cells.len(), Event::ALL.len());
            for (event, cell) in Event::ALL.into_iter().zip(cells) {
                let expected = match cell {
                    "-" => Next::Denied,
                    "=" => Next::Already,
                    to => Next::To(to.parse().unwrap()),
                };
                assert_eq!(next(state, event), expected, "{state} + {event}");
            }
        }
    }

    #[test]
    fn a_denial_names_the_way() {
        let denial = Denial { state: State::Warm, event: Event::Start };
        assert_eq!(denial.to_string(), "it is warm; start works from ready, stopped");
        assert_eq!(denial.way(), Some(Event::Resume));
        assert_eq!(Denial { state: State::Sleeping, event: Event::Start }.way(), Some(Event::Wake));
        assert_eq!(Denial { state: State::Stopped, event: Event::Pause }.way(), Some(Event::Start));
        assert_eq!(Denial { state: State::Created, event: Event::Stop }.way(), None);
    }

    #[test]
    fn every_state_can_be_destroyed_and_only_once() {
        for state in State::ALL {
            let expected = if state == State::Destroyed { Next::Already } else { Next::To(State::Destroyed) };
            assert_eq!(next(state, Event::Destroy), expected);
        }
    }
}
