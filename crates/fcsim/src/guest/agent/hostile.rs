//! An agent that means harm: it answers one request with whatever a test says, and all others as it should.

use std::{fs::File, io, io::Write};

use mvm_guest::Agent;
use mvm_proto::{Frames, Hello, Kind, ProtoError, Request};

use super::Sim;
use crate::fault::Said;

/// Serves a connection to its end.
pub(super) fn serve(
    agent: &Agent<Sim>,
    connection: &File,
    request: &str,
    says: &[Said],
    again: &[Said],
) -> Result<(), ProtoError> {
    let mut frames = Frames::on(connection);
    let _theirs: Hello = frames.message()?;
    let asked: Request = frames.message()?;
    frames.send(&Hello::of("fcsim"))?;
    let name = serde_json::to_value(&asked).map_err(ProtoError::Message)?;
    if name["request"] != *request {
        return agent.answer(connection, &mut frames, asked);
    }
    let forever = says.iter().chain(again.iter().cycle());
    for (number, said) in forever.enumerate() {
        match said {
            Said::Message(message) => {
                let text = message.to_string().replace("{n}", &number.to_string());
                frames.data(Kind::Message, text.as_bytes())?;
            }
            Said::Data(size) => frames.data(Kind::Data, &vec![0; *size])?,
            Said::Deaf => loop {
                std::thread::park();
            },
            Said::Raw(text) => (&mut &*connection).write_all(text.as_bytes())?,
        }
    }
    // It has said all, and does not end.
    io::copy(&mut &*connection, &mut io::sink())?;
    Ok(())
}
