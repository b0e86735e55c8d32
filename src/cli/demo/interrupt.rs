//! Ctrl-C during the demo: noted here, so that the demo can stop its daemons and clear up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Tells whether SIGINT, SIGTERM or SIGHUP has arrived.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches the signals from now on, in a thread of its own.
    ///
    /// # Errors
    /// A runtime or a handler that can't be set up.
    pub fn watch() -> anyhow::Result<Self> {
        let arrived = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("can't set up the handling of signals")?;
        let mut signals = {
            let _context = runtime.enter();
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]
        };
        let note = Arc::clone(&arrived);
        std::thread::spawn(move || {
            let [interrupt, terminate, hangup] = &mut signals;
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            note.store(true, Ordering::SeqCst);
        });
        Ok(Self(arrived))
    }

    /// Ends the demo after a signal.
    ///
    /// # Errors
    /// "interrupted", once a signal has arrived.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.0.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        Ok(())
    }
}
