//! A promote without the daemon: for a host that mounts the images itself.

use super::mirror::{self, Mirror};
use crate::control::config::DestinationConfig;
use crate::control::exports::Exports;
use crate::control::seat;
use anyhow::Context as _;
use serde_json::{Value, json};

/// Promotes a source's images while no destination daemon runs, and brings everything to them. From then on they may be
/// written to by anybody: nothing is known of what differs from the old source, so a failback compares all of them.
///
/// # Errors
/// The daemon runs, the promote is refused, or a disk fails.
pub async fn promote(config: &DestinationConfig, source: &str, force: bool) -> anyhow::Result<Value> {
    crate::engine::ring::probe()?;
    let configured = config.sources.iter().find(|mirrored| mirrored.name == source).with_context(|| {
        let names: Vec<&str> = config.sources.iter().map(|mirrored| mirrored.name.as_str()).collect();
        format!("this configuration knows no source \"{source}\", only {}", names.join(", "))
    })?;
    let mirrored = crate::control::config::MirroredSource { peer: None, ..configured.clone() };
    let plan = mirror::staging_plan(config);
    let node = mirror::Node { admin: config.admin.clone(), unwatched: true, live: false, share: None };
    // What a log holds belongs into the journal files first; from then on none is used.
    let journal_dir = config.journal_dir.clone();
    tokio::task::spawn_blocking(move || crate::engine::nvram::empty(&journal_dir)).await??;
    let mirror = Mirror::start(&mirrored, node, &config.journal_dir, plan, Exports::default(), false).await?;
    let promoted = async {
        let data = match mirror.serving().await {
            // It was promoted before: what is in its journal is all that is left to be brought to the images.
            Ok(_) => json!({ "source": source }),
            Err(_) => mirror.promote(force, false).await?,
        };
        seat::sync(&mirror.serving().await?).await?;
        Ok(data)
    };
    let outcome: anyhow::Result<Value> = promoted.await;
    mirror.stop().await;
    let mut data = outcome?;
    data["exports"] = Value::Null;
    data["images"] =
        configured.volumes.iter().map(|volume| json!({ "name": volume.name, "image": volume.image })).collect();
    Ok(data)
}
