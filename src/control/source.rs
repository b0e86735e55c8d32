//! x
pub async fn run(_: super::config::SourceConfig, _: bool) -> anyhow::Result<()> { Ok(()) }
