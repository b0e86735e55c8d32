//! The tables of docs/recovery.md are those that the program decides by.

use nbd_mirror::core::recovery::table::{Row, markdown};
use nbd_mirror::core::recovery::{chain, destination_start, hello, reach, source_start, warrant, welcome};
use std::path::Path;

fn assert_shown<R: Row>(section: &str) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recovery.md")).unwrap();
    let body = text.split("\n## ").find_map(|part| part.strip_prefix(section)?.strip_prefix('\n'));
    let body = body.unwrap_or_else(|| panic!("docs/recovery.md has no section {section}"));
    let tables: String = body.lines().filter(|line| line.starts_with('|')).map(|line| format!("{line}\n")).collect();
    let wanted = markdown::<R>();
    assert!(tables == wanted, "the program decides otherwise than the section \"{section}\"; paste this:\n\n{wanted}");
}

#[test]
fn the_source_starts_as_documented() {
    assert_shown::<source_start::Row>("A source starts");
}

#[test]
fn the_destination_starts_as_documented() {
    assert_shown::<destination_start::Row>("A destination starts");
}

#[test]
fn the_chain_ends_as_documented() {
    assert_shown::<chain::Row>("What the halves hold");
}

#[test]
fn a_hello_is_answered_as_documented() {
    assert_shown::<hello::Row>("The destination answers a hello");
}

#[test]
fn a_welcome_is_taken_as_documented() {
    assert_shown::<welcome::Row>("The source takes a welcome");
}

#[test]
fn a_promote_is_judged_as_documented() {
    assert_shown::<warrant::Row>("What a promote may lack");
}

#[test]
fn a_fenced_source_tells_what_differs_as_documented() {
    assert_shown::<reach::Row>("What differs at a fenced source");
}
