//! `nbd-mirror demo`: a failover on this machine, with a check of every answered write.
//!
//! It starts a destination and a source as real processes on files in one folder, writes stamped
//! blocks over several NBD connections, kills the source with SIGKILL in the middle of them, promotes
//! the images and reads them back. It needs no root, no kernel module and no network but loopback.

mod cluster;
mod folder;
mod interrupt;
mod stamp;
mod workload;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{anyhow, bail};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use cluster::{Cluster, SOURCE, VOLUME_MIB, VOLUMES};
use folder::Folder;
use interrupt::Interrupt;
use stamp::BLOCK_BYTES;
use workload::{Verdict, Workload};

/// How long the workload writes before the source is killed.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// Pause between two redraws of the progress bar.
const REDRAW: Duration = Duration::from_millis(50);

/// Runs the demo in `dir`, which must be empty or missing and stays, or in a temporary folder.
///
/// # Errors
/// Whatever kept the demo from its end, with the last lines of both daemons' logs; and a write that
/// was answered and is not in the image.
pub fn run(dir: Option<PathBuf>) -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    let folder = Folder::open(dir)?;
    println!("nbd-mirror demo in {}", folder.path().display());
    if !folder.is_temporary() {
        println!("  (the folder stays: its .toml files show the configuration, its .log files the logs)");
    }
    let mut cluster = Cluster::start(folder)?;
    play(&mut cluster, &interrupt).map_err(|e| match interrupt.check() {
        Err(interrupted) => interrupted,
        Ok(()) => anyhow!("{e:#}\n\n{}", cluster.logs()),
    })
}

/// The play itself: mirror, write, kill, promote, check.
fn play(cluster: &mut Cluster, interrupt: &Interrupt) -> anyhow::Result<()> {
    let go_on = || interrupt.check();
    cluster.wait_mirroring(go_on)?;
    println!("  {} volumes of {VOLUME_MIB} MiB are mirrored from source {SOURCE} to the destination", VOLUMES.len());

    let started = Instant::now();
    let workload = Workload::start(run_number(), &cluster.volumes())?;
    println!("  writing stamped {BLOCK_BYTES}-byte blocks over {} NBD connections", workload.connections());
    watch(&workload, started, interrupt)?;

    workload.expect_cut();
    let killed = Instant::now();
    cluster.kill_source()?;
    let history = workload.finish()?;
    println!("  source killed with SIGKILL in the middle of it");

    let images = cluster.images();
    let promoted = cluster.promote()?;
    for image in &images {
        workload::connect(image)?;
    }
    let outage = killed.elapsed();
    for line in promoted.lines() {
        println!("  {line}");
    }

    let mut verdict = Verdict::default();
    for image in &images {
        verdict.merge(history.check(image, go_on)?);
    }
    report(verdict, killed - started, outage)
}

/// Shows the workload's progress until it is time to kill the source.
fn watch(workload: &Workload, started: Instant, interrupt: &Interrupt) -> anyhow::Result<()> {
    let style = ProgressStyle::with_template("  [{bar:30}] {msg}")?.progress_chars("=> ");
    let bar = ProgressBar::new(WRITE_TIME.as_millis() as u64).with_style(style);
    loop {
        interrupt.check()?;
        workload.check()?;
        let elapsed = started.elapsed();
        let answered = workload.answered();
        let rate = mib_per_second(answered, elapsed);
        bar.set_message(format!("{} answered, {rate:.1} MiB/s", HumanCount(answered)));
        if elapsed >= WRITE_TIME {
            bar.abandon();
            return Ok(());
        }
        bar.set_position(elapsed.as_millis() as u64);
        std::thread::sleep(REDRAW);
    }
}

/// Prints the table, and fails where a promise is broken.
fn report(verdict: Verdict, written: Duration, outage: Duration) -> anyhow::Result<()> {
    let rate = mib_per_second(verdict.answered, written);
    println!();
    let seconds = outage.as_secs_f64();
    let count = |writes| HumanCount(writes).to_string();
    println!("  writes answered  {:>10}", count(verdict.answered));
    println!("  found            {:>10}", count(verdict.found));
    println!("  lost             {:>10}", count(verdict.lost));
    println!("  time to promote  {seconds:>8.2} s   from SIGKILL to all images served");
    println!("  write rate   {rate:>8.1} MiB/s   stored twice before each answer");
    println!();
    if verdict.answered == 0 {
        bail!("no write was answered in {written:?}, so nothing is proved");
    }
    if verdict.lost > 0 || verdict.damaged > 0 {
        bail!(
            "{} answered writes are not in the images, and {} blocks hold what nobody wrote",
            verdict.lost,
            verdict.damaged
        );
    }
    println!("  every answered write is in the promoted images");
    Ok(())
}

fn mib_per_second(writes: u64, elapsed: Duration) -> f64 {
    let mib = writes as f64 * BLOCK_BYTES as f64 / f64::from(1 << 20);
    mib / elapsed.as_secs_f64().max(f64::EPSILON)
}

/// A number that tells this run's blocks from any other's.
fn run_number() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.map_or(0, |d| d.as_nanos() as u64)
}
