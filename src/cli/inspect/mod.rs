//! `nbd-mirror inspect`: looks into a journal, or into what a fenced source discarded.

mod input;
mod show;
#[cfg(test)]
mod tests;
mod walk;

use std::fs::OpenOptions;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::EXIT_CODES;
use crate::format::frame::Record;
use crate::format::ids::Seq;
use input::Input;
use walk::{Item, Part};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct InspectArgs {
    /// A file of discarded records, a source's journal, or a destination's fill-0.journal, fill-1.journal or state
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON, one object a line
    #[arg(long, conflicts_with = "record")]
    json: bool,
    /// Write out what this record has written, and nothing else; "c1" is the first one of a volume's contents
    #[arg(long, value_name = "RECORD", value_parser = parse_record)]
    record: Option<(bool, Seq)>,
    /// Where to write it, to a new file; standard output otherwise
    #[arg(long, value_name = "FILE", requires = "record")]
    output: Option<PathBuf>,
    /// List only records that cover this byte of a volume
    #[arg(long, value_name = "VOLUME:OFFSET", value_parser = parse_byte, conflicts_with = "record")]
    covering: Option<(String, u64)>,
}

fn parse_record(text: &str) -> Result<(bool, Seq), String> {
    let (contents, digits) = text.strip_prefix('c').map_or((false, text), |digits| (true, digits));
    let number = digits.parse().map_err(|_| "it is no record's number, as 17 or c17")?;
    Ok((contents, Seq(number)))
}

fn parse_byte(text: &str) -> Result<(String, u64), String> {
    let (volume, offset) = text.rsplit_once(':').ok_or("it has no ':', as vol0:4096")?;
    Ok((volume.to_owned(), offset.parse().map_err(|_| "the offset is a number of bytes, as vol0:4096")?))
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let input = input::open(&args.file)?;
    if let Some((contents, seq)) = args.record {
        return extract(&input, contents, seq, args.output.as_deref());
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let damage = list(&input, args.json, args.covering.as_ref(), &mut out)?;
    out.flush().context("can't write to stdout")?;
    if damage > 0 { bail!("{} is damaged in {damage} places", args.file.display()) } else { Ok(()) }
}

/// Prints all that there is; returns how many places are damaged.
fn list(input: &Input, json: bool, covering: Option<&(String, u64)>, out: &mut dyn Write) -> anyhow::Result<u64> {
    let mut put = |value: &Value| {
        let line = if json { format!("{value}\n") } else { show::text(value) };
        out.write_all(line.as_bytes()).context("can't write to stdout")
    };
    put(&show::head(input))?;
    if input.kept.is_none() {
        let why = "a daemon that runs on this file may change it meanwhile";
        put(&json!({"type": "note", "at": 0, "why": why}))?;
    }
    let (mut frames, mut records, mut bytes, mut damage) = (0_u64, 0_u64, 0_u64, input.damage.len() as u64);
    for (at, why) in &input.damage {
        put(&json!({"type": "damage", "at": at, "why": why}))?;
    }
    walk(input, &mut |part, item| {
        match &item {
            Item::Frame { .. } => frames += 1,
            Item::Record { record, payload, .. } => {
                if covering.is_some_and(|byte| !covers(input, record, byte)) {
                    return Ok(());
                }
                records += 1;
                bytes += payload.len() as u64;
            }
            Item::Damage { .. } => damage += 1,
            Item::Note { .. } => {}
        }
        let skipped = covering.is_some() && matches!(item, Item::Frame { .. });
        if skipped { Ok(()) } else { put(&show::item(input, part, &item)) }
    })?;
    put(&json!({"type": "sum", "frames": frames, "records": records, "bytes": bytes, "damage": damage}))?;
    Ok(damage)
}

fn covers(input: &Input, record: &Record, (volume, offset): &(String, u64)) -> bool {
    let named = show::volume(input.superblock.as_ref(), record) == *volume;
    named && (record.offset..record.end()).contains(offset)
}

/// Visits each section; one begins where the one before it has ended.
fn walk(input: &Input, visit: &mut walk::Visit) -> anyhow::Result<()> {
    let mut end = None;
    for (section, before) in &input.sections {
        let after = match section.part {
            Part::Half { .. } => before.or(end),
            Part::Contents | Part::Journal => *before,
        };
        end = section.walk(&input.file, after, visit)?;
    }
    Ok(())
}

/// Writes one record's payload out.
fn extract(input: &Input, contents: bool, seq: Seq, output: Option<&Path>) -> anyhow::Result<()> {
    let mut found: Option<(Record, Vec<u8>, bool)> = None;
    walk(input, &mut |part, item| {
        if let Item::Record { seq: number, record, payload, whole } = item
            && number == seq
            && (part == Part::Contents) == contents
            && found.is_none()
        {
            found = Some((*record, payload.to_vec(), whole));
        }
        Ok(())
    })?;
    let name = if contents { format!("c{seq}") } else { seq.to_string() };
    let Some((record, payload, whole)) = found else { bail!("there is no record {name} that can be read") };
    if payload.is_empty() {
        let (offset, length) = (record.offset, record.length);
        bail!("record {name} is a {} of {length} bytes at {offset}: it has no payload", show::kind(record.kind));
    }
    match output {
        Some(path) => {
            let made = OpenOptions::new().write(true).create_new(true).open(path);
            let written = made.and_then(|mut file| file.write_all(&payload));
            written.with_context(|| format!("can't write {}", path.display()))?;
        }
        None if io::stdout().is_terminal() => bail!("name a file with --output: a payload is no text"),
        None => io::stdout().lock().write_all(&payload).context("can't write to stdout")?,
    }
    if whole { Ok(()) } else { bail!("record {name} is damaged: these aren't the bytes that were written") }
}
