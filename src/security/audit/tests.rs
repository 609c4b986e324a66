//! Logs that are whole, and logs that somebody cut, edited or removed a part of.

use std::fs::{self, OpenOptions};

use super::{kept::*, *};
use crate::{infra::config::Environment, security::node_key::NodeKey};

fn log(lines: u64) -> (tempfile::TempDir, Roots) {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
    begin(&roots, "acme", dir.path(), Entry::new("test.begin", "acme", Phase::Done)).unwrap();
    for number in 1..lines {
        add(&roots, dir.path(), number, 0);
    }
    (dir, roots)
}

/// A line that is a little longer than so many bytes.
fn add(roots: &Roots, folder: &Path, number: u64, bytes: usize) {
    let mut entry = Entry::new("test.do", format!("acme/{number}"), Phase::Done);
    entry.detail = Some("x".repeat(bytes));
    append(roots, "acme", folder, entry).unwrap();
}

/// A log of three files, of lines of a fifth of a file each.
fn long_log() -> (tempfile::TempDir, Roots) {
    let (dir, roots) = log(1);
    for number in 1..13 {
        add(&roots, dir.path(), number, FULL as usize / 5);
    }
    assert_eq!(
        names(dir.path()).unwrap(),
        ["audit.000000000001.log", "audit.000000000007.log", "audit.head", "audit.log"]
    );
    (dir, roots)
}

fn check(dir: &tempfile::TempDir, roots: &Roots) -> Result<u64, String> {
    verify(roots, "acme", dir.path()).map(|verified| verified.records).map_err(|error| error.to_string())
}

fn whose() -> Whose {
    Whose {
        node_id: "node-1".into(),
        tenant_id: "acme".into(),
        tenant_created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
    }
}

/// Writes the log anew, as root would who wants no line to show: every hash fits, and the head, too.
fn rewrite(roots: &Roots, folder: &Path, change: impl Fn(&mut Entry) -> bool) {
    let (records, _) = records(folder, Place::default()).unwrap();
    for name in names(folder).unwrap() {
        fs::remove_file(folder.join(name)).unwrap();
    }
    let mut is_first = true;
    for mut record in records {
        if change(&mut record.entry) {
            let write = if std::mem::take(&mut is_first) { begin } else { append };
            write(roots, "acme", folder, record.entry).unwrap();
        }
    }
}

#[test]
fn a_chain_is_whole() {
    let (dir, roots) = log(3);
    assert_eq!(check(&dir, &roots), Ok(3));
    let (records, place) = records(dir.path(), Place::default()).unwrap();
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3]);
    add(&roots, dir.path(), 3, 0);
    let (more, _) = super::records(dir.path(), place).unwrap();
    assert_eq!(more.iter().map(|record| record.seq).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_changed_a_missing_and_a_cut_line_are_found() {
    let change = |edit: &dyn Fn(Vec<&str>) -> Vec<String>| {
        let (dir, roots) = log(3);
        let text = fs::read_to_string(log_file(dir.path())).unwrap();
        let lines = edit(text.lines().collect());
        fs::write(log_file(dir.path()), lines.join("\n") + "\n").unwrap();
        check(&dir, &roots).unwrap_err()
    };
    let own = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let edited = change(&|lines| own(lines).iter().map(|l| l.replace("test.do", "test.xx")).collect());
    assert!(edited.contains("audit.log is broken at line 2, record 2: its hash"), "{edited}");
    let removed = change(&|lines| own(vec![lines[0], lines[2]]));
    assert!(removed.contains("at line 2, record 2: it does not follow"), "{removed}");
    let cut = change(&|lines| own(vec![lines[0], lines[1]]));
    assert!(cut.contains("record 3 is missing") && cut.contains("at its end"), "{cut}");
}

#[test]
fn half_a_line_of_a_killed_writer_is_cut_off() {
    let (dir, roots) = log(2);
    let mut file = OpenOptions::new().append(true).open(log_file(dir.path())).unwrap();
    file.write_all(b"{\"seq\":3,").unwrap();
    assert_eq!(check(&dir, &roots), Ok(2));
    add(&roots, dir.path(), 3, 0);
    assert_eq!(check(&dir, &roots), Ok(3));
}

#[test]
fn lines_of_several_writers_make_one_chain_and_the_last_one_is_its_head() {
    let (dir, roots) = log(1);
    std::thread::scope(|scope| {
        let (folder, roots) = (dir.path(), &roots);
        let write = |writer: u64| {
            // They fill a file meanwhile.
            (0..5).for_each(|number| add(roots, folder, writer * 5 + number, FULL as usize / 30));
        };
        for writer in 0..8 {
            scope.spawn(move || write(writer));
        }
        // Who verifies meanwhile waits for nobody, and finds it whole.
        let mut records = 0;
        while records < 41 {
            let found = check(&dir, roots).unwrap();
            assert!(found >= records);
            records = found;
        }
    });
    assert_eq!(check(&dir, &roots), Ok(41));
    assert_eq!(head::read(dir.path()).unwrap().unwrap().count, 41);
    assert_eq!(names(dir.path()).unwrap().len(), 3);
}

#[test]
fn lines_without_their_head_count_also_in_the_next_files() {
    let (dir, roots) = log(1);
    let before = fs::read(dir.path().join("audit.head")).unwrap();
    for number in 1..13 {
        add(&roots, dir.path(), number, FULL as usize / 5);
    }
    fs::write(dir.path().join("audit.head"), before).unwrap();
    assert_eq!(check(&dir, &roots), Ok(13));
    add(&roots, dir.path(), 13, 0);
    assert_eq!(head::read(dir.path()).unwrap().unwrap().count, 14);
    assert_eq!(check(&dir, &roots), Ok(14));
}

#[test]
fn what_is_missing_or_wrong_in_one_of_several_files_is_named_with_it() {
    let after = |change: &dyn Fn(&Path)| {
        let (dir, roots) = long_log();
        assert_eq!(check(&dir, &roots), Ok(13));
        change(dir.path());
        check(&dir, &roots).unwrap_err()
    };
    let first = "audit.000000000001.log";
    let second = "audit.000000000007.log";
    let said = after(&|folder| fs::remove_file(folder.join(first)).unwrap());
    assert_eq!(
        said,
        format!("records 1 to 6 are missing from the audit log before {second}: {first} was removed")
    );
    let said = after(&|folder| fs::remove_file(folder.join(second)).unwrap());
    assert!(said.contains("records 7 to 11") && said.contains(&format!("or {second} was removed")), "{said}");
    let said = after(&|folder| fs::remove_file(log_file(folder)).unwrap());
    assert!(said.contains("records 12 to 13") && said.contains("at its end"), "{said}");
    let said = after(&|folder| {
        let file = OpenOptions::new().write(true).open(folder.join(second)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 10).unwrap();
    });
    assert!(said.contains(second) && said.contains("line 5, record 11: it was cut off"), "{said}");
    let said = after(&|folder| {
        let text = fs::read_to_string(folder.join(second)).unwrap();
        fs::write(folder.join(second), text.replacen("acme/8", "acme/9", 1)).unwrap();
    });
    assert!(said.contains(second) && said.contains("line 3, record 9: its hash"), "{said}");
}

#[test]
fn who_follows_sees_every_line_once_across_files() {
    let (dir, roots) = log(1);
    let (mut seen, mut place) = (Vec::new(), Place::default());
    let mut look = || {
        let (records, now) = records(dir.path(), place).unwrap();
        place = now;
        seen.extend(records.into_iter().map(|record| record.seq));
    };
    for number in 1..13 {
        if number % 3 == 0 {
            look();
        }
        add(&roots, dir.path(), number, FULL as usize / 5);
    }
    look();
    look();
    assert_eq!(seen, (1..14).collect::<Vec<_>>());
}

#[test]
fn nothing_is_appended_to_a_log_of_which_a_part_is_gone() {
    let again = |dir: &tempfile::TempDir, roots: &Roots| {
        append(roots, "acme", dir.path(), Entry::new("test.do", "acme/9", Phase::Done)).unwrap_err()
    };
    let (dir, roots) = log(3);
    fs::remove_file(dir.path().join("audit.head")).unwrap();
    assert!(matches!(again(&dir, &roots), AuditError::NoHead { .. }));
    assert!(check(&dir, &roots).is_err());
    fs::remove_file(log_file(dir.path())).unwrap();
    assert!(matches!(again(&dir, &roots), AuditError::Gone { .. }));
    assert!(check(&dir, &roots).is_err());
    assert!(names(dir.path()).unwrap().is_empty(), "it is not begun again by itself");
    let (dir, roots) = log(3);
    fs::remove_file(log_file(dir.path())).unwrap();
    assert!(matches!(again(&dir, &roots), AuditError::Missing { first: 1, last: 3, .. }));
    assert!(!log_file(dir.path()).exists());
    let (dir, roots) = log(3);
    fs::write(log_file(dir.path()), "").unwrap();
    assert!(matches!(again(&dir, &roots), AuditError::Cut { .. }));
    let (dir, roots) = log(3);
    fs::write(dir.path().join("audit.head"), "").unwrap();
    assert!(matches!(again(&dir, &roots), AuditError::Store(StoreError::Damaged { .. })));
    // Another tenant's, whole and with its head.
    let (dir, roots) = log(3);
    let entry = || Entry::new("test.do", "globex", Phase::Done);
    let said = append(&roots, "globex", dir.path(), entry()).unwrap_err();
    assert!(matches!(said, AuditError::Broken { line: 1, record: 1, why: ANOTHERS, .. }), "{said}");
    assert_eq!(check(&dir, &roots), Ok(3));
}

#[test]
fn a_log_that_is_given_up_is_put_aside_and_the_new_one_says_why() {
    let (dir, roots) = long_log();
    assert!(matches!(
        begin_anew(&roots, "acme", dir.path(), Vec::new()),
        Err(AuditError::Whole { records: 13 })
    ));
    fs::remove_file(dir.path().join("audit.000000000007.log")).unwrap();
    let why = begin_anew(&roots, "acme", dir.path(), Vec::new()).unwrap();
    assert_eq!(
        names(dir.path()).unwrap(),
        ["audit-1.000000000001.log", "audit-1.head", "audit-1.log", "audit.head", "audit.log"]
    );
    let (records, _) = records(dir.path(), Place::default()).unwrap();
    let detail = records[0].entry.detail.clone().unwrap();
    assert!(detail.starts_with(&why) && detail.contains("its head named record 13, "), "{detail}");
    add(&roots, dir.path(), 1, 0);
    assert_eq!(check(&dir, &roots), Ok(2));
    fs::remove_file(log_file(dir.path())).unwrap();
    fs::remove_file(dir.path().join("audit.head")).unwrap();
    assert!(begin_anew(&roots, "acme", dir.path(), Vec::new()).unwrap().ends_with("is gone"));
    assert_eq!(check(&dir, &roots), Ok(1));
}

#[test]
fn a_clock_that_went_back_is_remarked_and_breaks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".throw-away"), "").unwrap();
    let at = |clock: &str| Roots::new(dir.path(), &Environment::at(clock)).unwrap();
    let entry = || Entry::new("test.do", "acme", Phase::Done);
    begin(&at("2026-01-02T00:00:00Z"), "acme", dir.path(), entry()).unwrap();
    append(&at("2026-01-01T00:00:00Z"), "acme", dir.path(), entry()).unwrap();
    append(&at("2099-01-01T00:00:00Z"), "acme", dir.path(), entry()).unwrap();
    let verified = verify(&at("2026-01-01T00:00:00Z"), "acme", dir.path()).unwrap();
    assert_eq!((verified.records, verified.remarked), (3, 1));
    assert_eq!(verified.remarks[0].record, 2);
    assert!(verified.remarks[0].what.contains("from 2026-01-02T00:00:00Z to 2026-01-01T00:00:00Z"));
}

#[test]
fn a_kept_head_shows_that_a_log_was_rewritten_or_cut() {
    let (dir, roots) = log(5);
    let key = NodeKey::load_or_make(&roots).unwrap();
    let verified = verify(&roots, "acme", dir.path()).unwrap();
    let head = KeptHead::of(whose(), &verified, roots.now());
    let text = head.sign(&key).unwrap().to_string();
    assert_eq!(KeptHead::read(text.as_bytes(), Some(&key)).unwrap(), head);
    let against = |whose: &Whose| head.hold_against(&roots, dir.path(), whose);
    assert_eq!(against(&whose()).unwrap().records, 5);
    add(&roots, dir.path(), 6, 0);
    assert_eq!(against(&whose()).unwrap().records, 6, "what came later is no rewrite");
    let other = Whose { tenant_id: "globex".into(), ..whose() };
    assert!(matches!(against(&other), Err(KeptError::OtherLog { .. })));
    // Another word in one line, and every hash after it made anew.
    rewrite(&roots, dir.path(), |entry| {
        entry.path = entry.path.replace('3', "4");
        true
    });
    assert_eq!(check(&dir, &roots), Ok(6), "it looks whole");
    assert!(matches!(against(&whose()), Err(KeptError::Rewritten { record: 5, .. })));
    // Lines left out.
    rewrite(&roots, dir.path(), |entry| entry.path < "acme/3".into());
    assert_eq!(check(&dir, &roots), Ok(3));
    assert!(matches!(against(&whose()), Err(KeptError::Shorter { records: 3, kept: 5, .. })));
}

#[test]
fn only_a_head_that_this_node_signed_is_believed() {
    let (dir, roots) = log(2);
    let key = NodeKey::load_or_make(&roots).unwrap();
    let verified = verify(&roots, "acme", dir.path()).unwrap();
    let signed = KeptHead::of(whose(), &verified, roots.now()).sign(&key).unwrap();
    let mut changed = signed.clone();
    changed["hash"] = "0".repeat(64).into();
    let read = |text: &str| KeptHead::read(text.as_bytes(), Some(&key));
    assert!(matches!(read(&changed.to_string()), Err(KeptError::Forged(_))));
    assert!(matches!(read("{}"), Err(KeptError::NotAHead(_))));
    assert!(matches!(read("12 abc"), Err(KeptError::NotAHead(_))));
    let other = key.sign(serde_json::json!({ "kind": "something else" }).as_object().unwrap().clone());
    assert!(matches!(read(&other.to_string()), Err(KeptError::NotAHead(_))));
    fs::remove_file(dir.path().join("node.key")).unwrap();
    let anew = NodeKey::load_or_make(&roots).unwrap();
    let said = KeptHead::read(signed.to_string().as_bytes(), None).unwrap_err();
    assert!(matches!(said, KeptError::NoKey { .. }), "{said}");
    let said = KeptHead::read(signed.to_string().as_bytes(), Some(&anew)).unwrap_err();
    assert!(matches!(said, KeptError::OtherKey { .. }));
    assert!(said.to_string().contains(&key.public().key_id), "{said}");
}

#[test]
fn what_was_cut_off_gets_an_outcome_and_what_ended_meanwhile_keeps_its_own() {
    let (dir, mut roots) = log(1);
    // Nobody has this id.
    roots.actor.pid = i32::MAX.unsigned_abs();
    let write = |path: &str, phase| {
        append(&roots, "acme", dir.path(), Entry::new("test.do", path, phase)).unwrap();
    };
    ["killed", "ends", "unsettled"].into_iter().for_each(|path| write(path, Phase::Intent));
    let is_unsettled = |path: &str| {
        // Its last line, before it was seen to be no more.
        if path == "ends" {
            write(path, Phase::Done);
        }
        path == "unsettled"
    };
    assert_eq!(close_cut_off(&roots, "acme", dir.path(), is_unsettled, |_| None).unwrap(), 1);
    let (records, _) = records(dir.path(), Place::default()).unwrap();
    let recovered = records.iter().filter(|record| record.entry.phase == Phase::Recovered);
    assert_eq!(recovered.map(|record| record.entry.path.as_str()).collect::<Vec<_>>(), ["killed"]);
}
