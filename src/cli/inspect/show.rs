//! What was found, as text or as JSON, one object a line.

use serde_json::{Value, json};

use super::input::Input;
use super::walk::{Item, Part};
use crate::format::frame::{Kind, RECORD_COPY, RECORD_FUA, Record};
use crate::format::ids::Seq;
use crate::format::superblock::Superblock;

/// A record's number as the command line takes it.
pub(super) fn number(part: Part, seq: Seq) -> String {
    if part == Part::Contents { format!("c{seq}") } else { seq.to_string() }
}

pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Write => "write",
        Kind::Trim => "trim",
        Kind::WriteZeroes => "write-zeroes",
        Kind::Flush => "flush",
    }
}

/// A volume's name; its number where nothing tells the name.
pub(super) fn volume(superblock: Option<&Superblock>, record: &Record) -> String {
    let known = superblock.and_then(|superblock| superblock.volumes.get(usize::from(record.volume)));
    known.map_or_else(|| record.volume.to_string(), |volume| volume.name.clone())
}

/// What the file says of itself.
pub(super) fn head(input: &Input) -> Value {
    let mut head = json!({"type": "file", "what": input.what});
    if let Some(superblock) = &input.superblock {
        let volumes = superblock.volumes.iter();
        let volumes = volumes.map(|volume| json!({"name": volume.name, "size_bytes": volume.size_bytes}));
        head["source"] = json!(superblock.name);
        head["id"] = json!(superblock.source.to_string());
        head["epoch"] = json!(superblock.epoch.0);
        head["fenced_by"] = json!(superblock.fenced_by.0);
        head["incarnation"] = json!(superblock.incarnation);
        head["half_bytes"] = json!(superblock.half_bytes);
        head["clean"] = json!(superblock.clean.to_string());
        head["whole"] = json!(superblock.whole);
        head["alone"] = json!(superblock.alone);
        head["promoted"] = json!(superblock.promoted);
        head["volumes"] = volumes.collect();
    }
    if let Some(kept) = &input.kept {
        head["discarded_by"] = json!(kept.discarded_by.0);
        head["promoted_at"] = json!(kept.mark.to_string());
        head["exact"] = json!(kept.exact);
        head["kept_unix_s"] = json!(kept.kept_unix_s);
        head["contents_bytes"] = json!(kept.contents_bytes);
        head["journal_bytes"] = json!(kept.journal_bytes);
    }
    head
}

pub(super) fn item(input: &Input, part: Part, item: &Item) -> Value {
    match item {
        Item::Frame { at, header } => json!({
            "type": "frame", "at": at, "fill": header.fill.0, "first": number(part, header.first),
            "last": number(part, header.last()), "epoch": header.epoch.0, "incarnation": header.incarnation,
            "committed": header.committed.0, "bytes": header.frame_bytes(),
        }),
        Item::Record { seq, record, whole, .. } => json!({
            "type": "record", "record": number(part, *seq), "volume": volume(input.superblock.as_ref(), record),
            "kind": kind(record.kind), "offset": record.offset, "length": record.length,
            "copy": record.flags & RECORD_COPY != 0, "fua": record.flags & RECORD_FUA != 0, "whole": whole,
        }),
        Item::Damage { at, why } => json!({"type": "damage", "at": at, "why": why}),
        Item::Note { at, why } => json!({"type": "note", "at": at, "why": why}),
    }
}

/// A name may be anything in a file from elsewhere; what a terminal would obey is taken out. JSON escapes it by itself.
fn safe(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// One line of text for what [`head`] and [`item`] tell.
pub(super) fn text(value: &Value) -> String {
    let plain = |key: &str| match &value[key] {
        Value::String(text) => safe(text),
        other => other.to_string(),
    };
    match value["type"].as_str().unwrap_or_default() {
        "file" => {
            let mut lines = format!("{}\n", plain("what"));
            for (key, value) in value.as_object().into_iter().flatten() {
                match value {
                    Value::Array(volumes) => {
                        for volume in volumes {
                            let (name, bytes) = (safe(volume["name"].as_str().unwrap_or("?")), &volume["size_bytes"]);
                            lines.push_str(&format!("  volume {name}, {bytes} bytes\n"));
                        }
                    }
                    _ if key == "type" || key == "what" => {}
                    Value::String(text) => lines.push_str(&format!("  {} {}\n", key.replace('_', " "), safe(text))),
                    other => lines.push_str(&format!("  {} {other}\n", key.replace('_', " "))),
                }
            }
            lines
        }
        "frame" => {
            let [fill, at, first, last, bytes] = ["fill", "at", "first", "last", "bytes"].map(plain);
            format!("frame at byte {at}: fill {fill}, records {first} to {last}, {bytes} bytes\n")
        }
        "record" => {
            let [record, volume, kind, offset, length] = ["record", "volume", "kind", "offset", "length"].map(plain);
            let copy = if value["copy"] == true { " copy" } else { "" };
            let whole = if value["whole"] == true { "ok" } else { "DAMAGED" };
            format!("  {record} {volume} {kind} offset {offset} length {length}{copy} {whole}\n")
        }
        "damage" => format!("DAMAGE at byte {}: {}\n", plain("at"), plain("why")),
        "note" => format!("note: at byte {}: {}\n", plain("at"), plain("why")),
        _ => {
            let [frames, records, bytes, damage] = ["frames", "records", "bytes", "damage"].map(plain);
            format!("{frames} frames, {records} records, {bytes} bytes of payload, {damage} places damaged\n")
        }
    }
}
