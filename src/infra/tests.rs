//! What unit tests share.

/// Says that a test cannot run here, where it is seen and counted.
pub fn skip(reason: &str) {
    use std::io::Write;
    println!("SKIP ({reason})");
    if let Some(log) = std::env::var_os("MVM_SKIP_LOG") {
        let line = format!("{reason}\n");
        let file = std::fs::File::options().append(true).open(log);
        let _ = file.and_then(|mut log| log.write_all(line.as_bytes()));
    }
}
