//! Looking into the journal of a source that was killed.

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Client, Daemon, Endpoint, Finished, MIB, Plan, assert_says, kind, pattern, verb};

fn inspect(journal: &Path, args: &[&str]) -> Finished {
    verb(&[&["inspect", journal.to_str().unwrap()], args].concat())
}

fn lines(json: &str, wanted: &str) -> Vec<Value> {
    let all = json.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["type"] == wanted).collect()
}

#[test]
fn a_killed_sources_journal_is_looked_into() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.destination = None;
    // What is written stays in the journal.
    plan.source.max_age = "1h".to_owned();
    let mut source = Daemon::source(&plan.source);
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    for at in 0..8 {
        client.write(at * 65_536, &pattern(at, 4096)).unwrap();
    }
    client.succeed(0, kind::TRIM, MIB, 65_536, &[]).unwrap();
    source.kill();
    let journal = &plan.source.journal;

    let text = inspect(journal, &[]).success();
    assert_says(
        &text,
        &["a source's journal", "alpha", "vol0", "write offset 65536 length 4096 ok", "trim", "0 places"],
    );
    let records = lines(&inspect(journal, &["--json"]).success(), "record");
    assert_eq!(records.len(), 9, "{records:?}");
    let covering = lines(&inspect(journal, &["--json", "--covering", "vol0:131073"]).success(), "record");
    assert_eq!((covering.len(), &covering[0]["offset"]), (1, &Value::from(131_072)));

    let number = covering[0]["record"].as_str().unwrap();
    let bytes = plan.path("bytes");
    inspect(journal, &["--record", number, "--output", bytes.to_str().unwrap()]).success();
    assert_eq!(std::fs::read(&bytes).unwrap(), pattern(2, 4096));
    let again = inspect(journal, &["--record", number, "--output", bytes.to_str().unwrap()]);
    assert!(again.status.code() == Some(1) && again.stderr.contains("bytes"), "a file isn't written over");

    // One byte of what that record wrote, at rest.
    let whole = std::fs::read(journal).unwrap();
    let at = whole.windows(64).position(|piece| piece == &pattern(2, 64)[..]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(journal).unwrap();
    file.write_all_at(&[whole[at] ^ 1], at as u64).unwrap();
    let found = inspect(journal, &["--json"]);
    assert_eq!(found.status.code(), Some(1), "{}", found.stdout);
    assert_says(&found.stderr, &["damaged in 1 places"]);
    assert_eq!(lines(&found.stdout, "damage")[0]["at"], at as u64);
    let records = lines(&found.stdout, "record");
    assert_eq!((records.len(), records.iter().filter(|record| record["whole"] == false).count()), (9, 1));
}
