//! x
pub async fn run(_: super::config::DestinationConfig, _: bool) -> anyhow::Result<()> { Ok(()) }
